"""Whether an exported tokenizer gives the ids that the model was trained with.

`transformers` reads tokenizer.json with the library `tokenizers`, and so does this module. The
names of special tokens are not compared: they are tokens in `transformers`, and text here, except
for the mask, which is a token for `fill` too.
"""

import pathlib
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import tokenizers
from tokenizers import models

from bertgpt.data.tokens import following
from bertgpt.data.tokens.marks import Marks
from bertgpt.data.tokens.tokenizers import SentencePiece, Tokenizer

# Text that tokenizers are known to treat differently: capitals, accents, one and two marks, points
# and vowel signs, voiced kana, Hangul, full and half width, ligatures, spaces of all kinds, and
# characters that no text should hold, which may be placeholders within a normalizer.
TEXTS = (
    "The Quick brown fox’s café isn't NAÏVE (or is it?), 1,234.5!",
    "Tiếng Việt: Ệ Ẫ ế ữ", "Großes ÄPFEL, Übermut", "İstanbul'da ılık ŞİİR", "Ǖ ǟ ȭ ṩ ḗ",
    "Ἐν ἀρχῇ ἦν ὁ λόγος, ᾳ ῳ ΐ", "Съешь ещё этих булок, й Ё ї", "שָׁלוֹם עֲלֵיכֶם",
    "السَّلامُ عَلَيْكُمْ، مُحَمَّدٌ", "क़लम ज़रूर हिन्दी में है।", "বাংলা ভাষা, ড় ঢ় কো", "தமிழ் மொழி",
    "ภาษาไทย กำ a\u00a0\u0e33b", "がぎぐ パーティー ｶﾞﾀﾞﾊﾟｱｲｳ、日本語。", "한국어 문장 각 뷁",
    "ㄱㅏ 中文（测试），汉字。",
    "ქართული ენა", "አማርኛ", "Հայերեն և", "½ ﬁ Å ① ㎏ ™ ｆｕｌｌ　ｗｉｄｔｈ ～",
    "👩‍👩‍👧 1️⃣ 🇩🇪 👍🏽 ☃",
    "a\u0085b \u0085", "two  spaces\u3000and\u2003others\u00a0here\u1680.\u202f", " \t leading",
    "trailing \n", "line\r\nline\n\n  indent\tTab", "zero\u200bwidth\u200djoin\ufeff\u00adsoft",
    "\ufdd0", "a\ufdd0b \ufdd1\u0301 \ufdd2\ufdd3\ufdd4\ufdd5\ufde0 \ufdd5",
    "\U000f0000 the\U000f0001",
    "", " ", "x" * 300, "e\u0323\u0302 \u00ea\u0323", "def f(x):\n    return x_1 + [2]  # <b>",
)
_WORD = "cat"
_FORMS: tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...] = ("NFC", "NFD", "NFKC", "NFKD")
# Where a mask may be: before a point, a letter and a space, at the start and the end.
MASKED = ("The cat is {}.", "the {}s", "the {} cat", "{} cat", " {}, the cat", "the cat  {}", "{}",
          "{} {}", "({}{}) ")
_PLACES = ("{}", "the {} house", "the{}house", " {} ", "{}{}", "a  {}", "({})")


def find_difference(fast: tokenizers.Tokenizer, tokenizer: Tokenizer, around: Marks) -> str | None:
  """Returns a line that shows a text whose ids differ from training; None: all ids are the same.

  Args:
    fast: the exported tokenizer.
    tokenizer: our tokenizer.
    around: marks that the training puts around texts.
  """
  if line := compare_texts(fast, tokenizer):
    return line
  a, b = tokenizer.encode([_WORD, f"{_WORD}s"])
  for texts, ours in (((_WORD,), around.enclose(a)), ((_WORD, f"{_WORD}s"), around.enclose(a, b))):
    if (theirs := fast.encode(*texts).ids) != ours.tolist():
      return _describe(tokenizer, f"the row of {' and '.join(map(repr, texts))}", theirs, ours)
  return None


def find_mask_difference(fast: tokenizers.Tokenizer, tokenizer: Tokenizer) -> str | None:
  """Returns a line that shows a text with masks whose ids are not those of `fill`; None: all are.

  Args:
    fast: the exported tokenizer of an encoder.
    tokenizer: our tokenizer.
  """
  if tokenizer.mask_id < 0:
    return None
  for place in MASKED:
    text = place.replace("{}", tokenizer.pieces[tokenizer.mask_id])
    ours = following.encode_template(tokenizer, text).tolist()
    theirs = fast.encode(text, add_special_tokens=False).ids
    if theirs != ours:
      return _describe(tokenizer, f"the text {text!r}", theirs, ours)
  return None


def describe_masks(folder: pathlib.Path, tokenizer: Tokenizer) -> str:
  """Returns a line if `fill` reads a text with masks differently than `transformers`, or ''.

  In some files of byte-level BPEs, the mask does not include the space before it. `fill` always
  reads it as if it did, because the space belongs to the hidden word.

  Args:
    folder: local folder of the model, an encoder.
    tokenizer: its tokenizer.
  """
  if (isinstance(tokenizer, SentencePiece) or tokenizer.mask_id < 0
      or not (folder / "tokenizer.json").exists()):
    return ""
  # Not the file itself: tokenizer_config.json may have changed it, in transformers too.
  fast = tokenizers.Tokenizer.from_buffer(tokenizer.data)
  if tokenizer.mask_id not in fast.get_added_tokens_decoder():
    return ""
  fast.no_padding()
  fast.no_truncation()
  line = find_mask_difference(fast, tokenizer)
  return f"{line}, which `bertgpt fill` reads" if line else ""


def compare_texts(fast: tokenizers.Tokenizer, tokenizer: Tokenizer) -> str | None:
  """Returns a line that shows a text whose ids differ, without marks; None: all are the same.

  Args:
    fast: a tokenizer as transformers reads it.
    tokenizer: our tokenizer.
  """
  texts = list(dict.fromkeys(make_texts(tokenizer)))
  for text, ours in zip(texts, tokenizer.encode(texts), strict=True):
    theirs = fast.encode(text, add_special_tokens=False).ids
    if theirs != ours.tolist() and not _is_tie(fast, tokenizer, theirs, ours.tolist()):
      return _describe(tokenizer, f"the text {text!r}", theirs, ours)
  return None


def _is_tie(fast: tokenizers.Tokenizer, tokenizer: Tokenizer, theirs: Sequence[int],
            ours: Sequence[int]) -> bool:
  """Returns whether pieces of the same text are equally likely in a unigram model, to rounding.

  SentencePiece adds the scores of pieces in float32, the library `tokenizers` in float64.
  """
  if not (isinstance(fast.model, models.Unigram) and isinstance(tokenizer, SentencePiece)):
    return False
  one, other = ("".join(map(_name(tokenizer), ids)) for ids in (theirs, ours))
  a, b = (sum(map(tokenizer.library.get_score, ids)) for ids in (theirs, ours))
  rounding = float(np.finfo(np.float32).eps) * len(ours)
  return one == other and abs(a - b) <= rounding * abs(b)


def _describe(tokenizer: Tokenizer, what: str, theirs: Sequence[int],
              ours: np.ndarray | Sequence[int]) -> str:
  pieces = [" ".join(map(_name(tokenizer), ids)) for ids in (theirs, ours)]
  return f"in transformers, {what} would be {pieces[0]} instead of {pieces[1]}"


def make_texts(tokenizer: Tokenizer) -> Iterator[str]:
  """Yields the texts that are compared, composed and decomposed, and with the user's symbols.

  Args:
    tokenizer: our tokenizer.
  """
  for text in TEXTS:
    for form in _FORMS:
      normal = unicodedata.normalize(form, text)
      yield from (normal, normal.upper(), normal.lower())
  for symbol in tokenizer.user_symbols:
    yield from (place.replace("{}", symbol) for place in _PLACES)


def _name(tokenizer: Tokenizer):
  return lambda i: tokenizer.pieces[i] if 0 <= i < tokenizer.vocab_size else str(i)
