"""Opens any trained model, from the folder of a run or of a model of `transformers`.

A family that `transformers` lacks is opened from the files of another program.

    trained = open_model(pathlib.Path("runs/demo"))
    trained = open_model(pathlib.Path("all-MiniLM-L6-v2"))

No code of a folder is run, and nothing is written into it.
"""

import contextlib
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from bertgpt import config as config_lib
from bertgpt import files, trees
from bertgpt.config import ConfigDict, choices, families
from bertgpt.config.families import HEADS
from bertgpt.config.overrides import set_field
from bertgpt.data.tokens import hf_files, reading, tokenizers
from bertgpt.devices import cluster
from bertgpt.errors import ConfigError, DataError
from bertgpt.hub import (
    conversion,
    document_bounds,
    folder_tokenizer,
    same_ids,
    sentence_encoders,
    submodels,
    weights,
)
from bertgpt.hub.conversion import Converted
from bertgpt.hub.family_tables import Opened, find_candidates, find_own_format
from bertgpt.runs import corpora, folder_kinds
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.trained import Trained

# Classes of tokenizers that give all tokens the same segment. Only transformers 5 writes
# TokenizersBackend, for tokenizers without a class of their own.
_WITHOUT_SEGMENTS = reading.ROBERTA_CLASSES | {
    "BarthezTokenizer", "BigBirdTokenizer", "CamembertTokenizer", "DistilBertTokenizer",
    "GPT2Tokenizer", "GPTNeoXTokenizer", "LlamaTokenizer", "MBartTokenizer", "MPNetTokenizer",
    "T5Tokenizer", "TokenizersBackend", "XLMRobertaTokenizer"}
# Classes that number segments in transformers 4, but not in transformers 5.23.
_WITH_SEGMENTS_IN_4 = frozenset({"AlbertTokenizer", "PreTrainedTokenizer", "XLNetTokenizer"})

_ROW_LENGTHS = range(8, 2**16 + 1)  # For no limit, transformers writes a number of 31 digits.


def open_model(path: pathlib.Path, flag: str = "--workdir",
               dtype: str = trained_lib.SCORING_DTYPE) -> Trained:
  """Opens a trained model; prints notes on stderr if it comes from `transformers`.

  Args:
    path: folder of a run, or of a model of `transformers`.
    flag: flag that named the folder, for messages.
    dtype: see `runs.trained.make_trained`.
  Raises:
    ConfigError: there is no model in `path`, or it was fine-tuned by this program.
    DataError: the model cannot be read.
  """
  if not is_of_transformers(path):
    if not folder_kinds.is_run(path):
      raise ConfigError(folder_kinds.describe_missing(
          path, flag, "Give the folder of a run, or of a model of transformers"))
    return trained_lib.load_trained(path, flag, dtype)
  cluster.count_devices()
  opened = open_folder(path, flag)
  cluster.say_once(*(f"note: {flag} {path}: {note}" for note in opened.notes))
  trained = trained_lib.make_trained(opened.config, opened.params, opened.tokenizer, 0, "",
                                     workdir=path, dtype=dtype)
  return trained._replace(fresh=opened.fresh, bos_id=opened.bos_id,
                          beginning_id=opened.beginning_id)


def is_of_transformers(path: pathlib.Path) -> bool:
  """Returns whether a folder is meant as a model of `transformers`, complete or not.

  Args:
    path: any path.
  """
  is_run = (path / "checkpoints").exists() and not folder_kinds.is_of_transformers(
      path / "config.json")
  if is_run or not path.is_dir():
    return False
  if find_own_format(path):
    return True
  if any((path / name).exists() for name in (weights.WEIGHTS, weights.INDEX, weights.ADAPTER)):
    return True
  try:
    return folder_kinds.describes_transformers(path / "config.json")
  except (OSError, ValueError):
    return weights.find_hint(path) != weights.REMEDY or bool(find_inner(path))


def find_inner(path: pathlib.Path) -> list[pathlib.Path]:
  """Returns the models of `transformers` in subfolders of a folder that is not a model, sorted.

  Such folders are in the cache of huggingface_hub, and in sentence encoders of 2020.

  Args:
    path: the folder.
  """
  return sorted(p.parent for pattern in ("*/config.json", "*/*/config.json")
                for p in path.glob(pattern) if is_of_transformers(p.parent))


def open_folder(source: pathlib.Path, flag: str) -> Opened:
  """Returns the model in a folder of `transformers`.

  Args:
    source: the folder.
    flag: flag that named the folder, for messages.
  Raises:
    ConfigError: there is no such folder.
    DataError: a file is missing, is damaged, or belongs to an unsupported model.
  """
  if not source.is_dir():
    raise ConfigError(f"{flag} {source}: no such folder")
  folder = files.copy_locally(source)
  try:
    opened = _open_copy(folder, source, flag)
  except (ConfigError, DataError) as e:  # A folder in a bucket is read from a copy.
    raise type(e)(str(e).replace(str(folder), str(source))) from e
  return opened._replace(notes=tuple(note.replace(str(folder), str(source))
                                     for note in opened.notes))


def _open_copy(folder: pathlib.Path, source: pathlib.Path, flag: str) -> Opened:
  """Returns the model in a folder; messages may name the folder instead of the source."""
  if own_format := find_own_format(folder):
    with name_folder(source, flag):
      return own_format.read(folder)
  weights.refuse_adapter(folder)
  hf_config = read_config(folder)
  with name_folder(source, flag):
    find_candidates(hf_config)
  tensors = weights.find(folder)
  with name_folder(source, flag):
    converted = conversion.convert(tensors, hf_config)
    converted = submodels.add(converted, {
        name: (weights.find(folder / name), read_config(folder / name))
        for name in converted.architecture.parts if _holds_model(folder / name)})
  hf = hf_files.read_hf_files(folder)  # Its errors name the folder.
  converted, unused = keep_used_segments(converted, hf)
  converted = take_row_length(converted, hf)
  rows = converted.fields["model.vocab_size"]
  tokenizer = folder_tokenizer.load_tokenizer(hf, rows, flag)
  if converted.architecture.skips_positions:
    with name_folder(source, flag):
      folder_tokenizer.check_padding(tokenizer, hf_config.get("pad_token_id", 1))
  ends, beginning_id = "", -1
  if families.FAMILIES[converted.fields["model.family"]].kind == "decoder":
    settings = document_bounds.read_settings(folder, hf_config)
    tokenizer = document_bounds.obey_end(tokenizer, hf, settings)
    ends = document_bounds.describe_ends(tokenizer, settings)
    beginning_id = document_bounds.find_start(tokenizer, hf, settings)
  spare = rows - tokenizer.vocab_size
  with name_folder(source, flag):
    converted = conversion.cut_vocabulary(converted, tokenizer.vocab_size)
    config = make_config(converted, tokenizer)
  template = folder_tokenizer.apply_template(folder, tokenizer)
  bos_id = folder_tokenizer.find_beginning(template, config, tokenizer)
  can_fill = families.find(config).can("fill") and set(converted.fresh).isdisjoint(
      families.HEADS_OF_ABILITY["fill"])
  notes = (unused, ends, *describe(converted, spare, rows),
           *sentence_encoders.describe(hf, source, config, tokenizer),
           folder_tokenizer.describe_template(template, hf, config, tokenizer, bos_id),
           folder_tokenizer.describe_chat(hf),
           folder_tokenizer.describe_conversion(folder, tokenizer),
           folder_tokenizer.describe_class(hf, tokenizer),
           same_ids.describe_masks(folder, tokenizer) if can_fill else "",
           tokenizer.note)
  return Opened(config, converted.params, tokenizer, converted.fields, converted.fresh,
                tuple(filter(None, notes)), bos_id, beginning_id)


def _holds_model(subfolder: pathlib.Path) -> bool:
  """Returns whether there is a subfolder with a model, complete or not."""
  if not subfolder.is_dir():
    files.has_file(subfolder)  # Refuses a link to a missing folder.
    return False
  return any(files.has_file(subfolder / name)
             for name in ("config.json", weights.WEIGHTS, weights.INDEX))


@contextlib.contextmanager
def name_folder(source: pathlib.Path, flag: str) -> Iterator[None]:
  """Puts a folder and its flag before the message of a DataError inside the context."""
  try:
    yield
  except DataError as e:
    raise DataError(f"{flag} {source}: {e}") from e


def read_config(source: pathlib.Path) -> dict[str, Any]:
  """Returns the content of the config.json of a model of `transformers`.

  Args:
    source: folder of the model.
  Raises:
    DataError: there is no config.json, or it is damaged.
  """
  path = source / "config.json"
  if not files.has_file(path) and (inner := find_inner(source)):
    if len(inner) > 1:
      raise DataError(f"{path}: no such file. There are models in {', '.join(map(str, inner))}. "
                      "Give one of these folders")
    raise DataError(f"{path}: no such file. The model is in {inner[0]}. Give that folder")
  return files.read_json(path, weights.REMEDY)


def keep_used_segments(converted: Converted, hf: hf_files.HfFiles) -> tuple[Converted, str]:
  """Returns a model that computes the same with our segments, and a line about the change or ''.

  A config has two segments if it does not say otherwise, but not every tokenizer numbers them.
  transformers then gives every token the first one, so the others are left out; if the objective
  has pairs, they become equal to the first one. So does a second one that the objective needs and
  the folder lacks.

  Args:
    converted: result of `conversion.convert`.
    hf: files of the model's folder.
  """
  number = converted.fields.get("model.num_segments", 0)
  has_pairs = choices.OBJECTIVES[converted.fields["objective.name"]].has_pairs
  name = converted.architecture.name
  if number == 1 and has_pairs:
    kept, note = 2, f"a second segment was added to {name}, equal to the first"
  elif number < 2 or numbers_segments(converted, hf):
    return converted, describe_segments(converted, hf)
  elif has_pairs:
    kept, note = number, (f"all segments of {name} are equal to the first one, because its "
                          "tokenizer numbers none")
  else:
    kept, note = 1, ("all segments but the first are left out, because the tokenizer of "
                     f"{name} numbers none")
  leaves = trees.named_leaves(converted.params)
  tables = {leaf: np.repeat(x[:1], kept, axis=0) for leaf, x in leaves.items()
            if leaf.endswith("segment/embedding")}
  if not tables:
    return converted, describe_segments(converted, hf)
  return converted._replace(params=trees.nest(leaves | tables),
                            fields=converted.fields | {"model.num_segments": kept}), note


def numbers_segments(converted: Converted, hf: hf_files.HfFiles) -> bool:
  """Returns whether the tokenizer of a model gives the second text of a pair another segment.

  Args:
    converted: result of `conversion.convert`.
    hf: files of the model's folder.
  """
  if (hf.used_class in folder_tokenizer.LIKE_THE_FILE
      and not folder_tokenizer.template_numbers_segments(hf.folder)):
    return False
  if isinstance(names := hf.settings.get("model_input_names"), list):
    return "token_type_ids" in names
  return (hf.tokenizer_class or converted.architecture.tokenizer_class) not in _WITHOUT_SEGMENTS


def describe_segments(converted: Converted, hf: hf_files.HfFiles) -> str:
  """Returns a line if our rows have segments, and those of transformers 4 or 5 have none; else ''.

  Args:
    converted: result of `conversion.convert`, with its segments.
    hf: files of the model's folder.
  """
  name = hf.tokenizer_class or converted.architecture.tokenizer_class
  has_segments = any("segment" in leaf and len(x) > 1
                     for leaf, x in trees.named_leaves(converted.params).items())
  if not has_segments:
    return ""
  # In transformers 5, these classes number segments only if model_input_names asks for them.
  needs_inputs = (name in {*_WITH_SEGMENTS_IN_4, "TokenizersBackend"}
                  and not isinstance(hf.settings.get("model_input_names"), list))
  start = f"segments are numbered, as in the pretraining of {converted.architecture.name}. "
  if not folder_tokenizer.template_numbers_segments(hf.folder):
    version = "" if needs_inputs else " 4"
    return (f"{start}transformers{version} numbers none with this folder, because the template in "
            "its tokenizer.json does not")
  if not needs_inputs:
    return ""
  return (f"{start}transformers 5 numbers none with this folder, unless model_input_names in its "
          "tokenizer_config.json has token_type_ids")


def take_row_length(converted: Converted, hf: hf_files.HfFiles) -> Converted:
  """Returns the model with the row length of its tokenizer, if its positions need no table.

  Args:
    converted: result of `conversion.convert`.
    hf: files of the model's folder.
  """
  if converted.fields.get("model.position") != "relative":
    return converted
  length = hf.settings.get("model_max_length")
  if type(length) is not int or length not in _ROW_LENGTHS:
    return converted
  return converted._replace(fields=converted.fields | {"model.max_positions": length})


def make_config(converted: Converted, tokenizer: tokenizers.Tokenizer) -> ConfigDict:
  """Returns the config of a run that holds a model of `transformers`.

  Args:
    converted: the model.
    tokenizer: tokenizer of the model.
  Raises:
    DataError: its fields do not make a valid config, or make the config of a different model.
  """
  config = config_lib.base()
  for field, value in converted.fields.items():
    set_field(config, field, value)
  config.model.dtype = "float32"
  config.tokenizer.kind = tokenizer.kind
  config.phases[0].seq_len = min(config.phases[0].seq_len, config.model.max_positions)
  problem = converted.architecture.find_problem(config.model)
  if problem or (problem := next(iter(config_lib.find_problems(config)), "")):
    raise DataError(f"config.json: {in_their_words(converted, problem)}. Choose another model")
  # GPT-1 has no token for the end of a document, and none is needed to score and continue texts.
  is_encoder = families.find(config).kind == "encoder"
  needs = choices.OBJECTIVES[config.objective.name].needs if is_encoder else ()
  if lacking := [f"{name}_token" for name in needs if getattr(tokenizer, f"{name}_id") < 0]:
    raise DataError(f"its tokenizer has no {', '.join(lacking)}. Name the token in "
                    "tokenizer_config.json, or put the tokenizer of the model into the folder")
  return corpora.resolve(config, tokenizer, will_train=is_encoder)


def in_their_words(converted: Converted, problem: str) -> str:
  """Returns a message about our fields with the keys of config.json in their place.

  Args:
    converted: the model.
    problem: message of `config.find_problems`.
  """
  keys = {f"model.{ours}": theirs for theirs, ours, _ in converted.architecture.fields}
  keys["phases[0].seq_len"] = keys.get("model.max_positions", "phases[0].seq_len")
  return re.sub(rf"(?:{'|'.join(map(re.escape, keys))})(?!\w)",
                lambda match: keys[match[0]], problem)


def describe(converted: Converted, spare: int, rows: int) -> Iterator[str]:
  """Yields what a user should know about an opened model, one line each.

  Args:
    converted: the model.
    spare: rows of the token table that were cut.
    rows: rows of the token table in the folder.
  """
  if converted.fresh:
    names = ", ".join(HEADS[head] for head in converted.fresh)
    yield f"drawn at random, because the folder has none: {names}"
  if converted.zero:
    names = ", ".join(f"bias of the {HEADS[head]}" for head in converted.zero)
    yield f"set to 0, because the folder has none: {names}"
  if converted.dropped:
    # One name per layer: weight and bias belong together.
    names = ", ".join(dict.fromkeys(name.rpartition(".")[0] or name for name in converted.dropped))
    yield f"left out, because {converted.architecture.name} has no such head: {names}"
  if converted.others:
    names = ", ".join(f"{other}*" for other in converted.others)
    yield f"left out, because they belong to another model in the same file: {names}"
  if spare:
    yield (f"the last {spare} of {rows} rows are left out, because the tokenizer has no token for "
           "them")
