"""The trained model that `config.init_from` names: what must fit, and its parameters."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax

from bertgpt import config as config_lib
from bertgpt import files, trees
from bertgpt.config import ConfigDict, families
from bertgpt.config.stored import from_json
from bertgpt.data.corpus import corpus as corpus_lib
from bertgpt.data.corpus import prepare
from bertgpt.data.tokens import tokenizers
from bertgpt.data.tokens.vocabulary import make_vocabulary
from bertgpt.devices import cluster, sharding
from bertgpt.errors import ConfigError
from bertgpt.runs import corpora, word_tables, workdir
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.manifest import parse_type
from bertgpt.training import steps

# Fields of the model that may differ from the run whose parameters are used: dropout, initial
# values, precision, speed, and what depends on the tokenizer.
MAY_DIFFER = (
    "dropout", "dropout_at", "attention_dropout", "dropout_rng", "init_std", "truncated_init",
    "position_init", "position_init_std", "scale_residual_init", "dtype", "matmul", "attention",
    "remat", "scan_unroll", "vocab_size", "target_words")

_FLAG = "--config.init_from"


def check(config: ConfigDict) -> None:
  """Checks, before the text is prepared, that a new run can use the parameters. Reads no arrays.

  A family that reads words may have others than the trained run, so its sizes are not compared.

  Args:
    config: config of a new run.
  Raises:
    ConfigError: there is no pretrained model, it has another family or other sizes, or the text
      would get another tokenizer.
    DataError: there is no usable checkpoint.
  """
  if not config.init_from:
    return
  source = files.make_path(config.init_from)
  found = workdir.read_config(source, _FLAG)
  if found.model.family != config.model.family:
    record = families.FAMILIES.get(found.model.family)  # None: of a later version.
    holds = record.title if record else f"a model of the family {found.model.family!r}"
    makes = families.find(config).title
    raise ConfigError(f"init_from={config.init_from}: holds {holds}, but the config makes {makes}. "
                      f"Choose a --config that makes {holds}, or a run that holds {makes}")
  newest = trained_lib.check_pretrained(source, _FLAG)
  if families.find(config).reads_words:
    return
  metadata = newest["metadata"]
  if not _has_tokenizer(config, found, metadata["tokenizer"]):
    raise ConfigError(_describe_other_tokenizer(config))
  tokenizer = tokenizers.load_tokenizer(source / "tokenizer", is_saved=True)
  corpora.check_tokenizer(config, tokenizer)
  config = corpora.resolve(config, tokenizer)
  mesh = sharding.make_mesh(config)
  with sharding.use_mesh(mesh, config):
    abstract = steps.make_abstract_state(steps.make_setup(config, mesh, make_vocabulary(tokenizer)))
  saved = {name.removeprefix("params/"): parse_type(kind)[0]
           for name, (kind, *_) in newest["leaves"].items() if name.startswith("params/")}
  trained = config_lib.with_model_at(from_json(metadata["config"]), metadata["step"])
  check_shapes(config, abstract.params, trained, saved)


def _has_tokenizer(config: ConfigDict, found: ConfigDict, fingerprint: str) -> bool:
  """Returns whether the text of a run gets the tokenizer of a trained run, whose config is given.

  A tokenizer that is trained on the same text with the same settings is the same.
  """
  if config.data.corpus:
    manifest = corpus_lib.read_manifest(files.make_path(config.data.corpus))
    return manifest["tokenizer"]["fingerprint"] == fingerprint
  if config.tokenizer.path:
    return prepare.load_tokenizer(config).fingerprint() == fingerprint
  return corpora.is_same_text(found, config)


def _describe_other_tokenizer(config: ConfigDict) -> str:
  path, corpus = config.init_from, config.data.corpus
  remedy = f"--config.tokenizer.path={path}/tokenizer"
  if corpus:  # It has a tokenizer of its own, whatever tokenizer.path says.
    return (f"data.corpus={corpus}: was prepared with another tokenizer than that of "
            f"init_from={path}. Leave data.corpus empty and name data.source, with {remedy}")
  return f"init_from={path}: trained with another tokenizer. Set {remedy}"


def check_shapes(config: ConfigDict, params: Any, trained: ConfigDict,
                 saved: Mapping[str, tuple[int, ...]]) -> None:
  """Checks that a model has the arrays of a trained one, or fewer.

  Args:
    config: resolved config of the model.
    params: its parameters, or their shapes.
    trained: config of the trained model.
    saved: shapes of its parameters by path.
  Raises:
    ConfigError: an array is missing or has another shape; the message names the fields that differ.
  """
  wanted = trees.named_leaves(params)
  wrong = [f"{path}: {saved.get(path, 'absent')}, needs {x.shape}" for path, x in wanted.items()
           if saved.get(path) != x.shape]
  if not wrong:
    return
  fields = [f"model.{field}={old!r}, not {new!r}" for field, old, new in _differences(
      trained, config_lib.with_model_at(config, 0))]
  if trained.objective.name != config.objective.name:
    fields.append(f"objective.name={trained.objective.name!r}, not {config.objective.name!r}")
  more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
  raise ConfigError(
      f"init_from={config.init_from}: its parameters do not fit this model ({wrong[0]}{more}). Use "
      "another run, or set the fields as in that run" + "".join(f"\n  {line}" for line in fields))


def _differences(trained: ConfigDict, config: ConfigDict) -> list[tuple[str, Any, Any]]:
  """Returns (field of the model, value of the trained run, value of this one) if they differ."""
  old, new = (dict(config_lib.leaves(c.model)) for c in (trained, config))
  return [(field, old[field], value) for field, value in new.items()
          if field not in MAY_DIFFER and value != old[field]]


def describe_differences(trained: ConfigDict, config: ConfigDict) -> list[str]:
  """Returns a line for each model field that differs without changing a parameter's shape.

  Args:
    trained: config of the run whose parameters are used.
    config: config of the run that uses them.
  """
  return [f"model.{field} is {new!r} here. The parameters were trained with {old!r}"
          for field, old, new in _differences(trained, config)]


def describe_unused(wanted: Iterable[str], found: Iterable[str]) -> str:
  """Returns a note about parameters of a trained model that another one lacks; '' if it has all.

  Args:
    wanted: paths of the parameters that are used.
    found: paths of the trained ones.
  """
  wanted = set(wanted)
  groups = {path.partition("/")[0] for path in wanted}
  unused = []
  for path in found:
    group = path.partition("/")[0]
    name = path if group in groups else families.HEADS.get(group, group)
    if path not in wanted and name not in unused:
      unused.append(name)
  if not unused:
    return ""
  return ("note: these trained parameters are not used, because this model lacks them: "
          + ", ".join(unused))


def load(config: ConfigDict, corpus: corpus_lib.Corpus, fresh: Any) -> Any:
  """Returns the parameters of `config.init_from`, laid out for a run.

  Args:
    config: resolved config of the run.
    corpus: documents that are trained on.
    fresh: fresh parameters of the run, on the devices.
  Raises:
    ConfigError: the parameters belong to another tokenizer or model.
    DataError: there is no usable checkpoint.
  """
  path = files.make_path(config.init_from)
  source = trained_lib.load_trained(path, _FLAG)
  trained_lib.check_same_step(path, source)
  if families.find(config).reads_words:
    source = word_tables.replace_words(source, corpus.tokenizer, fresh["lm"])
  if source.tokenizer.fingerprint() != corpus.tokenizer.fingerprint():
    raise ConfigError(_describe_other_tokenizer(config))
  found = trees.named_leaves(source.params)
  check_shapes(config, fresh, source.config, {name: x.shape for name, x in found.items()})
  others = describe_differences(source.config, config_lib.with_model_at(config, 0))
  cluster.say_once(f"note: starting from the parameters of step {source.step} of "
                   f"{config.init_from}, with a fresh optimizer",
                   *(f"WARNING: {line}" for line in others),
                   describe_unused(trees.named_leaves(fresh), found))
  return jax.tree_util.tree_map_with_path(
      lambda path, x: jax.device_put(found[trees.path_of(path)], x.sharding), fresh)
