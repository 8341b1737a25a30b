"""The tokens at which documents of a decoder of `transformers` begin and end.

The files of the tokenizer have priority over generation_config.json, and that over config.json.
"""

import json
import pathlib
from typing import Any

from bertgpt import files
from bertgpt.data.tokens import hf_files, tokenizers
from bertgpt.hub import weights


def obey_end(tokenizer: tokenizers.Tokenizer, source: pathlib.Path, hf_config: dict[str, Any]
             ) -> tokenizers.Tokenizer:
  """Returns a decoder's tokenizer with the end of text of the model, if its own files name none.

  A piece of words stays one, whatever the config says.

  Args:
    tokenizer: tokenizer in the folder.
    source: the folder.
    hf_config: content of config.json.
  """
  end = next(iter(find_ends(source, hf_config)), -1)
  if (end == tokenizer.eod_id or end not in _added_ids(tokenizer)
      or "eod" in hf_files.read_hf_files(source / "tokenizer.json").names):
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


def find_ends(source: pathlib.Path, hf_config: dict[str, Any]) -> list[int]:
  """Returns the tokens at which transformers ends the texts of a decoder, according to its config.

  Args:
    source: the folder.
    hf_config: content of config.json.
  """
  ends = _read_setting("eos_token_id", source, hf_config)
  return [end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int)]


def find_start(tokenizer: tokenizers.Tokenizer, source: pathlib.Path, hf_config: dict[str, Any]
               ) -> int:
  """Returns the token with which a document of a decoder begins; -1: the end of another one.

  It is the one that its tokenizer names or, if that names none, its config.

  Args:
    tokenizer: result of `obey_end`.
    source: the folder.
    hf_config: content of config.json.
  """
  name = hf_files.read_hf_files(source / "tokenizer.json").beginning
  if name in tokenizer.pieces:
    start = tokenizer.pieces.index(name)
  else:
    start = _read_setting("bos_token_id", source, hf_config)
    start = start if isinstance(start, int) and start in _added_ids(tokenizer) else -1
  return -1 if start == tokenizer.eod_id else start


def _read_setting(name: str, source: pathlib.Path, hf_config: dict[str, Any]) -> Any:
  """Returns a setting for generating texts, which config.json may have too; None: neither has."""
  path = source / "generation_config.json"
  settings = files.read_json(path, weights.REMEDY) if files.has_file(path) else {}
  return settings.get(name, hf_config.get(name))


def _added_ids(tokenizer: tokenizers.Tokenizer) -> set[int]:
  """Returns the tokens that are not pieces of words."""
  if isinstance(tokenizer, tokenizers.SentencePiece):
    return {*filter(tokenizer.library.is_control, range(tokenizer.vocab_size))}
  return {token["id"] for token in json.loads(tokenizer.data).get("added_tokens") or ()}


def describe_ends(tokenizer: tokenizers.Tokenizer, source: pathlib.Path, hf_config: dict[str, Any]
                  ) -> str:
  """Returns a line if transformers ends the texts of a decoder at other tokens, or ''.

  Args:
    tokenizer: result of `obey_end`.
    source: the folder.
    hf_config: content of config.json.
  """
  ends = [end for end in find_ends(source, hf_config) if 0 <= end < tokenizer.vocab_size]
  if not ends or tokenizer.eod_id < 0 or ends == [tokenizer.eod_id]:
    return ""
  shown = ", ".join(tokenizer.pieces[end] for end in ends)
  return (f"transformers ends a text at {shown}, bertgpt at {tokenizer.pieces[tokenizer.eod_id]}")
