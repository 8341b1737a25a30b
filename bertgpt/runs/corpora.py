"""The prepared corpus of a run, and the config fields that depend on its tokenizer."""

import contextlib
import pathlib
from collections.abc import Iterable

import jax

from bertgpt import console, files
from bertgpt.config import ConfigDict, leaves, mixtures
from bertgpt.data.batches import formats
from bertgpt.data.corpus import file_checks, prepare
from bertgpt.data.corpus.corpus import Corpus, is_corpus, open_corpus, read_manifest
from bertgpt.data.tokens import tokenizers
from bertgpt.devices import agreement, watchdog
from bertgpt.errors import ConfigError, DataError, UserError, one_line
from bertgpt.runs import manifest, step_folders
from bertgpt.runs import workdir as workdir_lib

# Fields that select and cut the text of a corpus, in addition to those of the tokenizer.
TEXT_FIELDS = ("data.source", "data.validation_fraction", "data.invalid_text", "data.language")


def find_corpus(config: ConfigDict, *, reports: bool = True, resumes: bool = False,
                identity: str = "", workdir: pathlib.Path | None = None) -> pathlib.Path:
  """Returns the folder of a config's prepared corpus, which process 0 prepares if it is missing.

  Only process 0 reads the source. The other processes wait, and get the name of the corpus from it.

  Args:
    config: config of a run; all processes call with the same one.
    reports: whether to print a report on a corpus that is prepared.
    resumes: whether a run began with this config, see `prepare.ensure_prepared`.
    identity: that of the corpus which the run began with, see `find_identity`. If the text is gone
      or has changed since, this corpus in the cache is used; '': only that of the text.
    workdir: folder of the run with this identity. If its corpus is missing, it is prepared with the
      tokenizer as the run has it, because this version may read `tokenizer.path` differently.
  Raises:
    DataError: the data is wrong, or this process cannot read the corpus that process 0 prepared.
  """
  is_first = jax.process_index() == 0
  path = pathlib.Path()
  if is_first:
    path = (_find_kept(config, identity) or
            prepare.ensure_prepared(_with_saved(config, workdir) if identity else config,
                                    reports=reports, resumes=resumes))
  if jax.process_count() == 1:
    return path
  with watchdog.paused():  # Process 0 has its own limit.
    name = agreement.broadcast_text(path.name)
  if not is_first:
    path = files.make_path(config.data.corpus or f"{config.data.cache_dir}/{name}")
    if not is_corpus(path):
      raise DataError(f"{path}: process 0 has prepared this corpus, but it is not here. Put "
                      "data.cache_dir on storage that all hosts share")
  return path.absolute()


def _with_saved(config: ConfigDict, workdir: pathlib.Path | None) -> ConfigDict:
  """Returns the config with the tokenizer of a workdir, if there is none of its corpora."""
  saved = workdir / "tokenizer" if workdir else None
  if not saved or not saved.is_dir() or config.data.corpus or not config.tokenizer.path:
    return config
  with contextlib.suppress(DataError):  # There may be no tokenizer at `tokenizer.path` anymore.
    if prepare.find_prepared(config, resumes=True)[1]:
      return config
  config = config.copy_and_resolve_references()
  config.tokenizer.path = str(saved)
  return config


def find_identity(path: pathlib.Path, config: ConfigDict) -> str:
  """Returns the identity of the corpus of a run's newest checkpoint.

  Args:
    path: workdir of the run.
    config: config of this start.
  Returns:
    '' if there is no checkpoint, or if the config asks for another text or tokenizer than the run.
  """
  if not is_same_text(workdir_lib.read_config(path), config):
    return ""
  root = step_folders.checkpoints_path(path)
  for step in reversed(step_folders.find_steps(root)):
    with contextlib.suppress(manifest.Damaged, OSError):
      return manifest.read_manifest(root / str(step))["metadata"].get("corpus", "")
  return ""


def is_same_text(old: ConfigDict, new: ConfigDict) -> bool:
  """Returns whether two configs have the same fields for the text and the tokenizer of a corpus."""
  values = [[(field, value) for field, value in leaves(config)
             if field in TEXT_FIELDS or field.startswith("tokenizer.")] for config in (old, new)]
  return values[0] == values[1]


def _find_kept(config: ConfigDict, identity: str) -> pathlib.Path | None:
  """Returns the corpus in the cache with an identity, with a note if it is not that of the text."""
  if not identity or config.data.corpus:
    return None
  is_it = lambda path: is_corpus(path) and file_checks.identify(read_manifest(path)) == identity
  reason = "has changed since the run began, or an earlier version identified it in another way"
  try:
    _, path = prepare.find_prepared(config, resumes=True)
    if path and is_it(path):
      return path
  except (UserError, OSError) as e:
    reason = f"cannot be read ({one_line(e)})"
  for path in files.make_path(config.data.cache_dir).glob("corpus-*"):
    if files.is_unfinished(path):  # Another process is about to rename it.
      continue
    with contextlib.suppress(DataError, PermissionError):  # Damaged, of a later version, private.
      if is_it(path):
        console.say(f"note: the text or the tokenizer {reason}. Using the run's "
                    f"original corpus: {path}")
        return path
  return None


def open_others(config: ConfigDict, corpus: Corpus, names: Iterable[str]) -> dict[str, Corpus]:
  """Opens other corpora than the run's own, and checks that all hosts have them.

  Args:
    config: config of a run.
    corpus: a split of the run's own corpus.
    names: names of the corpora in `data.corpora`, the same on all hosts.
  Returns:
    Name -> the same split of the corpus.
  Raises:
    DataError: a corpus is damaged or empty, or was prepared with another tokenizer, or two names
      stand for the same corpus.
  """
  opened, known = {}, {corpus.identity: mixtures.MAIN}
  paths = mixtures.find_paths(config)
  for name in names:
    other = open_corpus(paths[name], corpus.split)
    field = f"data.corpora: {name}={paths[name]}"
    if _way_of_encoding(other) != _way_of_encoding(corpus):
      raise DataError(f"{field}: was prepared with another tokenizer than data.corpus="
                      f"{config.data.corpus}. Prepare its text again, with "
                      f"--config.tokenizer.path={corpus.path / 'tokenizer'}")
    if twin := known.get(other.identity):
      raise DataError(f"{field}: is the same corpus as {twin}. Give one name to it; in mixtures, "
                      "with the sum of the weights")
    opened[name], known[other.identity] = other, name
  if opened:
    agreement.check({f"the prepared corpus {name}": other.identity
                     for name, other in opened.items()})
  return opened


def _way_of_encoding(corpus: Corpus) -> tuple[str, bool]:
  """Returns the tokenizer, and whether an early version left out white space."""
  return corpus.manifest["tokenizer"]["fingerprint"], corpus.manifest["format_version"] == 1


def check_tokenizer(config: ConfigDict, tokenizer: tokenizers.Tokenizer) -> None:
  """Checks that `data.corpus` was prepared with the tokenizer that the config names.

  A run that resumes is not checked: its tokenizer is compared with that of its checkpoint, and
  `tokenizer.path` may have changed or be gone since the run began.

  Args:
    config: config of a new run.
    tokenizer: tokenizer of its corpus.
  Raises:
    ConfigError: the config names another tokenizer.
    DataError: there is no tokenizer at `tokenizer.path`.
  """
  path = config.tokenizer.path
  if config.data.corpus and path and tokenizer.fingerprint() not in {
      prepare.load_tokenizer(config, is_saved).fingerprint() for is_saved in (False, True)}:
    raise ConfigError(f"tokenizer.path={path} is not the tokenizer that "
                      f"data.corpus={config.data.corpus} was prepared with. Leave data.corpus "
                      "empty, so that data.source is prepared with this tokenizer, or leave "
                      "tokenizer.path empty")


def resolve(config: ConfigDict, tokenizer: tokenizers.Tokenizer,
            will_train: bool = True) -> ConfigDict:
  """Returns the config with the field that depends on the tokenizer, `model.vocab_size`.

  Args:
    config: config of a run.
    tokenizer: tokenizer of its corpus.
    will_train: whether the tokenizer must have the special tokens that the objective needs.
  Raises:
    ConfigError: the tokenizer lacks tokens that the objective needs, or the config names another
      size of the vocabulary.
  """
  config = config.copy_and_resolve_references()
  with config.unlocked():
    if config.model.vocab_size not in (0, tokenizer.vocab_size):
      raise ConfigError(f"model.vocab_size={config.model.vocab_size}, but the tokenizer has "
                        f"{tokenizer.vocab_size} tokens. Leave model.vocab_size at 0")
    config.model.vocab_size = tokenizer.vocab_size
  if will_train:
    formats.check_tokenizer(config, tokenizer)
  return config
