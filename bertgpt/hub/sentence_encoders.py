"""What sentence encoders do with texts and vectors, if `embed` does not do it."""

import pathlib
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np

from bertgpt import files
from bertgpt.config import ConfigDict
from bertgpt.data.tokens import hf_files, tokenizers

# Modules of sentence-transformers that are the model; in old versions, each family had its own.
_ENCODERS = frozenset({"Transformer", "ALBERT", "BERT", "RoBERTa", "XLNet"})
T = TypeVar("T", dict[str, Any], list[Any])


def find_root(folder: pathlib.Path, source: pathlib.Path) -> pathlib.Path:
  """Returns the folder of a sentence encoder, which may be the parent of its model's folder.

  Args:
    folder: local folder of the model. Sentence encoders have modules.json in it, old ones in
      its parent.
    source: the folder of which `folder` is a copy, if it is in a bucket; otherwise the same.
  """
  place = source.absolute()
  if not (folder / "modules.json").exists() and any(
      path.strip("/") == place.name for _, path in _read_modules(place.parent)):
    return place.parent
  return folder


def describe(hf: hf_files.HfFiles, source: pathlib.Path, config: ConfigDict,
             tokenizer: tokenizers.Tokenizer) -> Iterator[str]:
  """Yields what a sentence encoder does with texts and features, if `embed` does not do it.

  Args:
    hf: files of the model's folder.
    source: see `find_root`.
    config: config of a run that holds the model.
    tokenizer: tokenizer of the model.
  """
  # Old ones name another family.
  if file := min(hf.folder.glob("sentence_*_config.json"), default=None):
    texts = _read(file, {})
    longest = texts.get("max_seq_length") or hf.settings.get("model_max_length")
    if isinstance(longest, int) and 0 < longest < config.model.max_positions:
      yield (f"this sentence encoder cuts texts to {longest} tokens, bertgpt to the model's "
             f"{config.model.max_positions} positions")
    large, small = tokenizer.encode(["A", "a"])
    if texts.get("do_lower_case") is True and not np.array_equal(large, small):
      yield "this sentence encoder changes texts to lower case, bertgpt does not. Do it beforehand"
  root = find_root(hf.folder, source)
  match _read(root / "config_sentence_transformers.json", {}):
    case {"default_prompt_name": str(name), "prompts": dict(prompts)} if name in prompts:
      yield f"this sentence encoder puts {prompts[name]!r} before each text, bertgpt does not"
  for kind, path in _read_modules(root):
    if kind == "Pooling":
      modes = find_pooling(_read(root / path / "config.json", {}))
      if modes not in ([], ["mean"]):
        advice = ". Use --layer cls of embed" if modes == ["cls"] else ""
        rest = " alone" if "mean" in modes else ""
        yield (f"this sentence encoder pools with {', '.join(modes)}, not with the mean{rest}"
               f"{advice}")
    elif kind == "Normalize":
      yield "this sentence encoder scales vectors to length 1, bertgpt does not. Do it afterwards"
    elif kind not in _ENCODERS:
      yield f"left out: the module {kind} of this sentence encoder, in {path}"


def _read_modules(root: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Yields class and subfolder of every module of a sentence encoder."""
  for module in _read(root / "modules.json", []):
    match module:
      case {"type": str(kind), "path": str(path)}:
        yield kind.rpartition(".")[2], path


def _read(path: pathlib.Path, default: T) -> T:
  """Returns the content of a JSON file, or `default` if it is missing, damaged or of another type.

  Raises:
    DataError: it is a link to a missing file.
  """
  try:
    content = files.parse_json(path.read_bytes()) if files.has_file(path) else default
  except (OSError, ValueError):
    return default
  return content if isinstance(content, type(default)) else default


def find_pooling(settings: dict[str, Any]) -> list[str]:
  """Returns the names of the vectors that a sentence encoder puts side by side, such as 'mean'.

  Args:
    settings: config of its pooling. The key is `pooling_mode` since version 5.4 of
      sentence-transformers, and one like `pooling_mode_mean_tokens` for each vector before.
  """
  mode = settings.get("pooling_mode")
  modes = [m for m in (mode if isinstance(mode, list) else [mode]) if isinstance(m, str)]
  named = (name.removeprefix("pooling_mode_") for name, value in settings.items() if value is True
           and name.startswith("pooling_mode_"))
  return modes + [name.removesuffix("_tokens").removesuffix("_token") for name in named]
