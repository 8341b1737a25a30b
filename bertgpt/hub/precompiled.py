"""The normalizer of SentencePiece and its spaces, as steps of the library `tokenizers`.

SentencePiece replaces the longest sequence of characters that its table has, from left to right.
The step `Precompiled` of `tokenizers` reads the same table, but looks up graphemes of up to five
bytes, for which it uses the shortest entry, and otherwise single characters. So it does not compose
longer sequences (Hangul, kana with marks, two accents), loses accents of capitals, and panics if a
text that an earlier step changed begins with a character that the table replaces. Here it therefore
gets only single characters, and NFC composes its output. NFC would also reorder marks and compose
across a mark, which SentencePiece does not do; placeholders between marks prevent this.

Of the 220,267 sequences of several characters in the table of `nmt_nfkc`, the result differs from
SentencePiece's for 21, in that of `nmt_nfkc_cf` for 23, nearly all in scripts that were added in
Unicode 16. With `Precompiled` alone, more than 219,000 differ within a text.

`tokenizers` cuts a text at its special tokens, and takes every part for a text of its own. But only
the first part is treated as SentencePiece treats a text, which puts a space before it and strips
its spaces. The others are what they would be within a text: `.` and ` cat` after a mask stay so.
"""

import functools
import itertools
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers

SPACE = "\u2581"  # SentencePiece's character for a space.
# Placeholders: noncharacters, which are for internal use (Unicode 16.0, section 23.7). A text may
# contain them nevertheless, so they are escaped there first: two characters stand for one.
# The first also stands before the first character of a part, from `make_normalizer` to
# `make_pre_tokenizers`.
_SPLIT, _BLOCK, _IOTA, _DOTTED, _SYMBOL, _ESCAPE = map(chr, range(0xFDD0, 0xFDD6))
_ESCAPED = {char: _ESCAPE + chr(0xFDE0 + i) for i, char in enumerate(
    (_ESCAPE, _SPLIT, _BLOCK, _IOTA, _DOTTED, _SYMBOL))}
_FIRST_SYMBOL = 0xF0000  # Private use; after `_SYMBOL`, it stands for a symbol that is kept as is.

# Characters that continue a grapheme: marks, joiners, half-width voiced sound marks, LF after CR,
# Thai and Lao AM, the colors of emoji.
_INSIDE = r"(?=[\p{M}\p{Cf}\uff9e\uff9f\n\u0e33\u0eb3\x{1f3fb}-\x{1f3ff}])"
_GREEK_MARKS = "\u0300\u0301\u0308\u0313\u0314\u0340-\u0343"
# (add_dummy_prefix, remove_extra_whitespaces) -> what is removed from the start of a part. The
# first part has a space before its placeholder, and the others have none. After the placeholder,
# every part has the space of add_dummy_prefix, and then those of the text.
_STARTS = {(True, True): " {}( (?= ))?|{} ?", (True, False): " {}|{} ",
           (False, True): " {} ?|{}", (False, False): " ?{}"}


def make_normalizer(rules: Any, symbols: Sequence[str],
                    normalize: Callable[[str], str]) -> normalizers.Normalizer:
  """Returns the normalizer of a SentencePiece model, for `make_pre_tokenizers` after it.

  Args:
    rules: `normalizer_spec` of the model.
    symbols: user-defined symbols, which SentencePiece does not normalize.
    normalize: SentencePiece's own normalizer.
  """
  # The first step must be `Prepend`: other steps must not change how a text begins.
  before = [normalizers.Prepend(_SPLIT), *_escapes()]
  after = [*_replacements(rules, normalize), *_spaces(rules)]
  restore = [normalizers.Replace(escaped, char) for char, escaped in reversed(_ESCAPED.items())]
  plain = normalizers.Sequence([*before, *after, *restore])
  changed = [s for s in sorted(symbols, key=len, reverse=True)
             if plain.normalize_str(s) != _SPLIT + s]
  hidden = {"".join(_ESCAPED.get(char, char) for char in symbol): _SYMBOL + chr(_FIRST_SYMBOL + i)
            for i, symbol in enumerate(changed)}
  return normalizers.Sequence([
      *before, *(normalizers.Replace(s, sign) for s, sign in hidden.items()), *after,
      *(normalizers.Replace(sign, s) for s, sign in hidden.items()), *restore, *_prefix(rules)])


def make_pre_tokenizers(rules: Any) -> list[Any]:
  """Returns the steps that write the spaces of a normalized text as pieces do.

  The text is not split at words: pieces are chosen for the whole text, and may span words.

  Args:
    rules: `normalizer_spec` of the model.
  """
  def write_spaces(char, scheme):
    return pre_tokenizers.Metaspace(char, prepend_scheme=scheme, split=False)

  start = _STARTS[rules.add_dummy_prefix, rules.remove_extra_whitespaces].replace("{}", _SPLIT)
  # Only `Metaspace` knows which part is the first: the one whose first character is that of the
  # original text. So no earlier step may remove this character: hence the placeholder.
  return [write_spaces(" ", "first"), pre_tokenizers.Split(Regex(rf"\A(?:{start})"), "removed"),
          write_spaces(SPACE, "never")]


def _escapes() -> Iterator[Any]:
  """Yields the steps that escape the placeholders in a text, except the one in front of it."""
  for char, escaped in _ESCAPED.items():
    yield normalizers.Replace(Regex(f"(?<!\\A){char}") if char == _SPLIT else char, escaped)


def _spaces(rules: Any) -> Iterator[Any]:
  """Yields the steps for white space. (`Strip` would also remove U+0085, for example.)

  At its end, a text also loses the character for a space.
  """
  if rules.remove_extra_whitespaces:
    for pattern, content in ((rf"[ {SPACE}]+\z", ""), (" {2,}", " ")):
      yield normalizers.Replace(Regex(pattern), content)


def _prefix(rules: Any) -> Iterator[Any]:
  """Yields the step that puts a space before the text."""
  if rules.add_dummy_prefix:
    is_text = r"(?!\z)" if rules.remove_extra_whitespaces else ""
    yield normalizers.Replace(Regex(rf"\A{_SPLIT}{is_text}"), f"{_SPLIT} ")


def _replacements(rules: Any, normalize: Callable[[str], str]) -> Iterator[Any]:
  if not rules.precompiled_charsmap:
    return
  table = normalizers.Precompiled(rules.precompiled_charsmap)
  if normalize("e\u0301") != "\u00e9":  # A custom table, which does not compose.
    yield table
    return
  restored = {_IOTA: "\u0345", _DOTTED: "\u0130"}
  if normalize("A") == "a":
    # An iota subscript that is part of a letter is not folded, and capital I with a dot is kept.
    vowels = "".join(map(_variants, "αηωΑΗΩ"))
    yield normalizers.Replace(
        Regex(f"(?<=[{vowels}άήώ\u1f00-\u1fff{_GREEK_MARKS}])\u0345"), _IOTA)
    yield normalizers.Replace(Regex(f"[{_variants('I')}]\u0307"), _DOTTED)
    yield normalizers.Replace(Regex(_capitals_that_do_not_compose()), _BLOCK)
  yield normalizers.Replace(Regex("(?=\u0344)"), _BLOCK)
  yield normalizers.Replace(Regex(_INSIDE), _SPLIT)
  yield table
  yield normalizers.Replace(Regex(f"(?<!\\A){_SPLIT}"), "")
  for char, content in restored.items():
    yield normalizers.Replace(char, content)
  yield normalizers.Replace(Regex(_marks_that_do_not_compose()), _BLOCK)
  yield normalizers.NFC()
  yield normalizers.Replace(_BLOCK, "")


@functools.cache
def _decompositions() -> tuple[tuple[str, str], ...]:
  """Returns (character, canonical decomposition) of all characters that have one."""
  characters = map(chr, (*range(0xD800), *range(0xE000, 0x30000)))
  pairs = ((c, unicodedata.normalize("NFD", c)) for c in characters if not "가" <= c <= "힣")
  return tuple((c, parts) for c, parts in pairs if parts != c)


def _variants(letter: str) -> str:
  """Returns a letter and the forms that NFKC turns into it, such as mathematical ones."""
  return letter + _compatible().get(letter, "")


@functools.cache
def _compatible() -> dict[str, str]:
  found: dict[str, str] = {}
  for char in map(chr, (*range(0x2000, 0x3000), *range(0xFF00, 0x10000), *range(0x1CC00, 0x20000))):
    if (normal := unicodedata.normalize("NFKC", char)) != char:
      found[normal] = found.get(normal, "") + char
  return found


@functools.cache
def _marks_that_do_not_compose() -> str:
  """Returns a pattern for the places between two marks that no character combines in this order."""
  followers: dict[str, set[str]] = {}
  for _, parts in _decompositions():
    for a, b in zip(parts, parts[1:], strict=False):
      if unicodedata.category(a)[0] == unicodedata.category(b)[0] == "M":
        followers.setdefault(a, set()).add(b)
  firsts = "".join(sorted(followers))
  places = [rf"(?<=[\p{{M}}&&[^{firsts}]])(?=\p{{M}})"]
  places += [rf"(?<={a})(?=[\p{{M}}&&[^{''.join(sorted(b))}]])"
             for a, b in sorted(followers.items())]
  return r"(?=\p{M})(?:" + "|".join([*places, *_letters_that_do_not_compose()]) + ")"


def _letters_that_do_not_compose() -> Iterator[str]:
  """Yields patterns for the places between a letter with a mark and a mark that NFC puts first."""
  letters: dict[int, dict[str, str]] = {}  # Class of the last mark -> composed marks -> letters.
  composed: dict[str, str] = {}  # Letter -> marks with which it composes into one character.
  for _, parts in _decompositions():
    for mark in parts[1:]:
      rest = unicodedata.normalize("NFC", parts.replace(mark, "", 1))
      if len(rest) == 1:
        composed[rest] = composed.get(rest, "") + mark
  for char, parts in _decompositions():
    group = letters.setdefault(unicodedata.combining(parts[-1]), {})
    marks = "".join(sorted(composed.get(char, "")))
    group[marks] = group.get(marks, "") + char
  classes = {char: unicodedata.combining(char) for char in map(chr, range(0x300, 0x1F000))}
  for highest, groups in sorted(letters.items()):
    lower = _as_ranges(char for char, value in classes.items() if 0 < value < highest)
    for marks, chars in sorted(groups.items()):
      if lower:
        others = f"(?=[{lower}&&[^{marks}]])" if marks else f"(?=[{lower}])"
        yield f"(?<=[{_as_ranges(chars)}]){others}"


def _as_ranges(chars: Iterable[str]) -> str:
  """Returns characters in the form of a character class of a pattern, without brackets."""
  text, codes = "", sorted(map(ord, chars))
  for _, group in itertools.groupby(enumerate(codes), lambda pair: pair[1] - pair[0]):
    run = [chr(code) for _, code in group]
    text += run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}"
  return text


@functools.cache
def _capitals_that_do_not_compose() -> str:
  """Returns a pattern for the places between a capital and a mark that only its small letter has.

  The table folds the capital, but has no entry for the capital with the mark.
  """
  places = []
  for char, _ in _decompositions():
    small, mark = unicodedata.normalize("NFD", char)[:-1], unicodedata.normalize("NFD", char)[-1]
    capital = unicodedata.normalize("NFC", small.upper())
    if (small and small.upper() != small and len(capital) == 1
        and len(unicodedata.normalize("NFC", capital + mark)) > 1):
      places += [f"(?<={before})(?={mark})"
                 for before in {f"[{_variants(capital)}]", small.upper()}]
  return r"(?=\p{M})(?:" + "|".join(sorted(set(places))) + ")"
