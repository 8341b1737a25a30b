"""What sentence encoders do with texts and vectors, if `embed` does not do it."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from bertgpt import files
from bertgpt.config import ConfigDict
from bertgpt.data.tokens import hf_files, tokenizers

# Modules of sentence-transformers that are the model; in old versions, each family had its own.
_ENCODERS = frozenset({"Transformer", "ALBERT", "BERT", "RoBERTa", "XLNet"})


def find_root(folder: pathlib.Path, source: pathlib.Path) -> pathlib.Path:
  """Returns the folder of a sentence encoder, which may be the parent of its model's folder.

  Args:
    folder: local folder of the model. Sentence encoders have modules.json in it, old ones in
      its parent.
    source: the folder of which `folder` is a copy, if it is in a bucket; otherwise the same.
  """
  parent = source.absolute().parent
  if not (folder / "modules.json").exists():
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
      for module in files.parse_json((parent / "modules.json").read_bytes()):
        if module["path"].strip("/") == source.absolute().name:
          return parent
  return folder


def describe(folder: pathlib.Path, source: pathlib.Path, config: ConfigDict,
             tokenizer: tokenizers.Tokenizer) -> Iterator[str]:
  """Yields what a sentence encoder does with texts and features, if `embed` does not do it.

  Args:
    folder, source: see `find_root`.
    config: config of a run that holds the model.
    tokenizer: tokenizer of the model.
  """
  root = find_root(folder, source)
  with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
    texts = _parse(min(folder.glob("sentence_*_config.json")))  # Old ones name another family.
    settings = hf_files.read_hf_files(folder / "tokenizer.json").settings
    longest = texts.get("max_seq_length") or settings.get("model_max_length")
    if longest and longest < config.model.max_positions:
      yield (f"this sentence encoder cuts texts to {longest} tokens, bertgpt to the model's "
             f"{config.model.max_positions} positions")
    large, small = tokenizer.encode(["A", "a"])
    if texts.get("do_lower_case") is True and not np.array_equal(large, small):
      yield "this sentence encoder changes texts to lower case, bertgpt does not. Do it beforehand"
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
    prompts = _parse(root / "config_sentence_transformers.json")
    if prompts["default_prompt_name"]:
      prompt = prompts["prompts"][prompts["default_prompt_name"]]
      yield f"this sentence encoder puts {prompt!r} before each text, bertgpt does not"
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
    for module in _parse(root / "modules.json"):
      kind, path = module["type"].rpartition(".")[2], module["path"]
      if kind == "Pooling":
        pooling = _parse(root / path / "config.json")
        modes = find_pooling(pooling)
        if modes not in ([], ["mean"]):
          advice = ". Use --layer cls of embed" if modes == ["cls"] else ""
          rest = " alone" if "mean" in modes else ""
          yield (f"this sentence encoder pools with {', '.join(modes)}, not with the mean{rest}"
                 f"{advice}")
      elif kind == "Normalize":
        yield "this sentence encoder scales vectors to length 1, bertgpt does not. Do it afterwards"
      elif kind not in _ENCODERS:
        yield f"left out: the module {kind} of this sentence encoder, in {path}"


def _parse(path: pathlib.Path) -> Any:
  files.has_file(path)  # Refuses a link to a missing file.
  return files.parse_json(path.read_bytes())


def find_pooling(settings: dict[str, Any]) -> list[str]:
  """Returns the names of the vectors that a sentence encoder puts side by side, such as 'mean'.

  Args:
    settings: config of its pooling. The key is `pooling_mode` since version 5.4 of
      sentence-transformers, and one like `pooling_mode_mean_tokens` for each vector before.
  """
  modes = settings.get("pooling_mode", [])
  modes = [modes] if isinstance(modes, str) else list(modes)
  named = (name.removeprefix("pooling_mode_") for name, value in settings.items() if value is True
           and name.startswith("pooling_mode_"))
  return modes + [name.removesuffix("_tokens").removesuffix("_token") for name in named]
