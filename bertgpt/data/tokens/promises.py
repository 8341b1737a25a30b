"""The promise of every tokenizer: text never yields a special id.

Files from elsewhere may break it in several ways: special tokens among the user-defined symbols of
SentencePiece, added tokens that are not marked as special, words of a vocabulary whose
pre-tokenizer keeps brackets together, merges of a BPE that produce the name of a special token.
"""

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from sentencepiece import sentencepiece_model_pb2

_proto_lib: Any = sentencepiece_model_pb2  # Its classes are made when it is imported.

_PLACES = ("{}", " {} ", "a {} b", "a{}b", "{}a", "a{}", ".{}.", "{}{}", "\n{}\n", "天{}天")
_WIDE = {c: c + 0xFEE0 for c in range(0x21, 0x7F)}  # Full-width letters, which NFKC makes narrow.
# Replaces a special piece in the library's vocabulary. No word contains a space.
_HIDDEN = "{} \0 {}"


class Leak(NamedTuple):
  """A text that yields a special id.

  Attributes:
    text: the text.
    name: piece of the special id, or '' if the text yields no id at all.
  """

  text: str
  name: str


def find_leak(encode: Callable[[list[str]], Sequence[Sequence[int]]],
              specials: dict[int, str]) -> Leak | None:
  """Returns a text with the name of a special token that yields a special id, if there is one.

  Every name is tried alone, within words and between words, in other cases and in wide letters.

  Args:
    encode: texts -> ids.
    specials: piece by special id.
  """
  texts = []
  for name in specials.values():
    forms = dict.fromkeys((name, name.lower(), name.upper(), name.title(), name.translate(_WIDE)))
    texts += [place.replace("{}", form) for form in forms for place in _PLACES]
  for text, ids in zip(texts, encode(texts), strict=True):
    if found := specials.keys() & set(map(int, ids)):
      return Leak(text, specials[min(found)])
    if not len(ids):
      return Leak(text, "")
  return None


def hide_pieces(data: bytes, names: Collection[str]) -> str:
  """Returns a tokenizer.json from which no text can yield certain pieces; other ids are the same.

  Args:
    data: content of a tokenizer.json.
    names: the pieces.
  """
  content = json.loads(data)
  model, names = content["model"], set(names)
  is_list = isinstance(model["vocab"], list)  # A unigram model has a list of [piece, score].
  items = model["vocab"] if is_list else model["vocab"].items()
  inside = names & {piece for piece, _ in items}
  renamed = [[_HIDDEN.replace("{}", piece) if piece in names else piece, value]
             for piece, value in items]
  model["vocab"] = renamed if is_list else dict(renamed)
  if "merges" in model:
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    model["merges"] = [pair for pair in pairs if names.isdisjoint([*pair, "".join(pair)])]
  # The library gives added tokens ids from the size of the vocabulary on, which stays the same. It
  # does not match special ones in texts.
  content["added_tokens"] = [
      token | {"special": token["special"] or token["content"] in names}
      for token in content.get("added_tokens") or () if token["content"] not in inside]
  return json.dumps(content)


def show_added(data: bytes, hidden: Collection[str]) -> bytes:
  """Returns a tokenizer.json whose added tokens are found in texts; ids are the same.

  Args:
    data: content of a tokenizer.json.
    hidden: added tokens that stay special.
  """
  content = json.loads(data)
  shown = [token for token in content.get("added_tokens") or ()
           if token["special"] and token["content"] not in hidden]
  for token in shown:
    token["special"] = False
  return json.dumps(content, ensure_ascii=False, indent=2).encode() if shown else data


def make_control(data: bytes, ids: Collection[int]) -> bytes:
  """Returns a SentencePiece model from which no text can yield certain pieces.

  Args:
    data: content of its file.
    ids: ids of the pieces, which become control symbols.
  """
  return _with_type(data, ids, _proto_lib.ModelProto.SentencePiece.CONTROL)


def without_prefix(data: bytes) -> bytes:
  """Returns a SentencePiece model that puts no space before a text.

  Args:
    data: content of its file.
  """
  proto = _proto_lib.ModelProto.FromString(data)
  proto.normalizer_spec.add_dummy_prefix = False
  return proto.SerializeToString()


def make_user_symbols(data: bytes, ids: Collection[int]) -> bytes:
  """Returns a SentencePiece model that finds certain pieces in texts.

  Args:
    data: content of its file.
    ids: ids of the pieces, which become user-defined symbols.
  """
  return _with_type(data, ids, _proto_lib.ModelProto.SentencePiece.USER_DEFINED)


def _with_type(data: bytes, ids: Collection[int], kind: int) -> bytes:
  proto = _proto_lib.ModelProto.FromString(data)
  for i in ids:
    proto.pieces[i].type = kind
  return proto.SerializeToString()


def user_symbols(data: bytes) -> tuple[str, ...]:
  """Returns the user-defined symbols of a SentencePiece model.

  Args:
    data: content of its file.
  """
  kind = _proto_lib.ModelProto.SentencePiece.USER_DEFINED
  return tuple(p.piece for p in _proto_lib.ModelProto.FromString(data).pieces if p.type == kind)
