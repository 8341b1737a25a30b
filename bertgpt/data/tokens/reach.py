"""Pieces that no text yields, such as pieces with capitals if every text is lower-cased."""

import json
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

import tokenizers
from tokenizers import decoders, models, normalizers

from bertgpt.data.tokens import pipelines
from bertgpt.errors import DataError

# If no text yields more than this share of the pieces, the settings belong to another vocabulary.
# The first limit is for settings of a config, the second one for those of the folder, with which
# the model may have been trained.
MAX_UNREACHABLE = 0.03
MAX_UNREACHABLE_AS_SAID = 0.25
# Setting of BERT's normalizer in tokenizer_config.json -> in tokenizer.json.
SETTINGS = {"do_lower_case": "lowercase", "strip_accents": "strip_accents",
            "tokenize_chinese_chars": "handle_chinese_chars"}
_SPACE = "\u2581"
_ANOTHER = "Give the vocabulary that the tokenizer was trained with"

# Kind of a tokenizer -> the text of a piece; \ufffd: a part of a character.
_TEXTS: dict[str, Callable[[str], str]] = {
    "wordpiece": lambda piece: piece.removeprefix("##"),
    "bpe": lambda piece: decoders.ByteLevel().decode([piece]),
    "gpt1_bpe": lambda piece: piece.removesuffix(pipelines.END_OF_WORD),
    "unigram": str,
    "words": str,
}


class Normalization(NamedTuple):
  """What BERT's normalizer does to a text, as in `pipelines.bert_pipeline`."""

  lowercase: bool
  strip_accents: bool | None
  split_chinese: bool

  def share_unreachable(self, pieces: Collection[str]) -> float:
    """Returns the share of the pieces of a WordPiece that the normalizer changes."""
    return share_changed(normalizers.BertNormalizer(
        lowercase=self.lowercase, strip_accents=self.strip_accents,
        handle_chinese_chars=self.split_chinese), map(_TEXTS["wordpiece"], pieces))

  def find_better(self, pieces: Collection[str]) -> "Normalization | None":
    """Returns the most similar settings with which texts yield the pieces, if there are any."""
    return next((n for n in self._others()
                 if n.share_unreachable(pieces) <= MAX_UNREACHABLE), None)

  def _others(self) -> Iterator["Normalization"]:
    every = [Normalization(case, accents, chinese) for case in (True, False)
             for accents in (None, False) for chinese in (True, False)]
    yield from sorted(every, key=lambda n: sum(a != b for a, b in zip(n, self, strict=True)))

  def changes_to(self, other: "Normalization") -> dict[str, bool | None]:
    """Returns the settings of tokenizer_config.json that differ, with the other value."""
    return {name: new for name, old, new in zip(SETTINGS, self, other, strict=True) if new != old}

  def because(self) -> str:
    """Returns the reason why texts do not yield some pieces, for a message."""
    acts = ["lower-cased"] * self.lowercase
    strips = self.lowercase if self.strip_accents is None else self.strip_accents
    acts += ["stripped of accents"] * strips
    acts += ["cut at Chinese characters"] * self.split_chinese
    return f", because texts are {' and '.join(acts)}" if acts else ""


def share_changed(normalizer: normalizers.Normalizer, texts: Iterable[str]) -> float:
  """Returns the share of the texts of pieces that a normalizer changes, which no text yields.

  Args:
    normalizer: the normalizer.
    texts: texts of pieces. Those without a letter or digit do not count as changed.
  """
  found = [any(map(str.isalnum, text)) and "\ufffd" not in text
           and _plain(normalizer.normalize_str(text)) != _plain(text) for text in texts]
  return sum(found) / max(1, len(found))


def _plain(text: str) -> str:
  return text.replace(_SPACE, " ").strip()


def select(vocabulary: Iterable[str], named: Collection[str]) -> list[str]:
  """Returns the pieces that texts should yield.

  Args:
    vocabulary: all pieces.
    named: special and added tokens.
  """
  return [p for p in vocabulary if p not in named and not (p[:1] == "[" and p[-1:] == "]")]


def check(file: pathlib.Path, share: float, most: float, because: str, remedy: Callable[[], str]
          ) -> str:
  """Returns a note if texts do not yield some pieces, or ''.

  Args:
    file: the tokenizer's file.
    share: share of the pieces that no text yields.
    most: share above which it is an error.
    because: the reason, with a comma before it.
    remedy: returns the sentence that says what to do.
  Raises:
    DataError: no text yields more than `most` of the pieces.
  """
  if share <= min(most, MAX_UNREACHABLE):
    return ""
  line = f"{file}: no text yields {share:.0%} of its pieces{because}"
  advice = remedy()
  if share > most:
    raise DataError(f"{line}. {advice}")
  return f"{line}. Unless the model was trained this way, {advice[0].lower()}{advice[1:]}"


def check_json(file: pathlib.Path, kind: str, content: dict[str, Any], config: pathlib.Path | None
               ) -> str:
  """Returns a note if a tokenizer.json does not yield some of its pieces, or ''.

  Args:
    file: the tokenizer.json.
    kind: kind of the tokenizer.
    content: content of the file.
    config: the tokenizer_config.json, if its settings of BERT's normalizer are applied.
  Raises:
    DataError: no text yields more than `MAX_UNREACHABLE_AS_SAID` of the pieces.
  """
  normalizer = content.get("normalizer")
  steps = json.dumps(normalizer)
  # Precompiled panics on some texts, and ByteLevel writes texts as pieces are written.
  if not normalizer or '"Precompiled"' in steps or '"ByteLevel"' in steps:
    return ""
  vocabulary = content["model"]["vocab"]  # In a unigram model, a list of [piece, score].
  pieces = select((p for p, _ in vocabulary) if isinstance(vocabulary, list) else vocabulary,
                  {token["content"] for token in content.get("added_tokens") or ()})
  share = share_changed(_load(normalizer), map(_TEXTS[kind], pieces))
  if content["model"]["type"] != "WordPiece" or normalizer["type"] != "BertNormalizer":
    return check(file, share, MAX_UNREACHABLE_AS_SAID, ", because its normalizer changes them",
                 lambda: f"{_ANOTHER}, or correct the normalizer in the file")
  known = Normalization(*(normalizer.get(name) for name in SETTINGS.values()))

  def remedy() -> str:
    better = known.find_better(pieces)
    if not better:
      return _ANOTHER
    if config:
      return f"Write {json.dumps(known.changes_to(better))} into {config}"
    changes = {SETTINGS[name]: value for name, value in known.changes_to(better).items()}
    return f"Set {json.dumps(changes)} in the normalizer of the file"

  return check(file, share, MAX_UNREACHABLE_AS_SAID, known.because(), remedy)


def _load(normalizer: dict[str, Any]) -> normalizers.Normalizer:
  """Returns a normalizer of a tokenizer.json."""
  empty = json.loads(tokenizers.Tokenizer(models.BPE()).to_str())
  return tokenizers.Tokenizer.from_str(json.dumps(empty | {"normalizer": normalizer})).normalizer
