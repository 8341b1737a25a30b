"""The tokens at which documents of a decoder of `transformers` begin and end.

The files of the tokenizer have priority over generation_config.json, and that over config.json.
"""

import json
import pathlib
from typing import Any

from bertgpt import files
from bertgpt.data.tokens import hf_files, tokenizers
from bertgpt.hub import weights


def read_settings(folder: pathlib.Path, hf_config: dict[str, Any]) -> dict[str, Any]:
  """Returns the settings for generating texts, which may be in either of two files.

  Args:
    folder: local folder of the model.
    hf_config: content of config.json.
  """
  path = folder / "generation_config.json"
  return hf_config | (files.read_json(path, weights.REMEDY) if files.has_file(path) else {})


def obey_end(tokenizer: tokenizers.Tokenizer, hf: hf_files.HfFiles, settings: dict[str, Any]
             ) -> tokenizers.Tokenizer:
  """Returns a decoder's tokenizer with the end of text of the model, if its own files name none.

  A piece of words stays one, whatever the config says.

  Args:
    tokenizer: tokenizer in the folder.
    hf: files of the folder.
    settings: result of `read_settings`.
  """
  end = next(iter(find_ends(settings)), -1)
  if (end == tokenizer.eod_id or end not in _added_ids(tokenizer) or "eod" in hf.names):
    return tokenizer
  # Padding and unknown words have no token that is another role's, see `reading.choose_names`.
  names = {role: name for role, name in tokenizer.names.items()
           if role not in ("pad", "unk") or name != tokenizer.pieces[end]}
  names["eod"] = tokenizer.pieces[end]
  data = tokenizer.data
  if not isinstance(tokenizer, tokenizers.SentencePiece):
    content = json.loads(data)
    for token in content["added_tokens"]:
      token["special"] |= token["id"] == end
    data = json.dumps(content, ensure_ascii=False).encode()
  return tokenizer.replaced(data, names)


def find_ends(settings: dict[str, Any]) -> list[int]:
  """Returns the tokens at which transformers ends the texts of a decoder, according to its config.

  Args:
    settings: result of `read_settings`.
  """
  ends = settings.get("eos_token_id")
  return [end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int)]


def find_start(tokenizer: tokenizers.Tokenizer, hf: hf_files.HfFiles, settings: dict[str, Any]
               ) -> int:
  """Returns the token with which a document of a decoder begins; -1: the end of another one.

  It is the one that its tokenizer names or, if that names none, its config.

  Args:
    tokenizer: result of `obey_end`.
    hf: files of the folder.
    settings: result of `read_settings`.
  """
  if hf.beginning in tokenizer.pieces:
    start = tokenizer.pieces.index(hf.beginning)
  else:
    start = settings.get("bos_token_id")
    start = start if isinstance(start, int) and start in _added_ids(tokenizer) else -1
  return -1 if start == tokenizer.eod_id else start


def _added_ids(tokenizer: tokenizers.Tokenizer) -> set[int]:
  """Returns the tokens that are not pieces of words."""
  if isinstance(tokenizer, tokenizers.SentencePiece):
    return {*filter(tokenizer.library.is_control, range(tokenizer.vocab_size))}
  return {token["id"] for token in json.loads(tokenizer.data).get("added_tokens") or ()}


def describe_ends(tokenizer: tokenizers.Tokenizer, settings: dict[str, Any]) -> str:
  """Returns a line if transformers ends the texts of a decoder at other tokens, or ''.

  Args:
    tokenizer: result of `obey_end`.
    settings: result of `read_settings`.
  """
  ends = [end for end in find_ends(settings) if 0 <= end < tokenizer.vocab_size]
  if not ends or tokenizer.eod_id < 0 or ends == [tokenizer.eod_id]:
    return ""
  shown = ", ".join(tokenizer.pieces[end] for end in ends)
  return (f"transformers ends a text at {shown}, bertgpt at {tokenizer.pieces[tokenizer.eod_id]}")
