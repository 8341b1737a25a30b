"""Documents with their text as it is, and how it is cut into sentences."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator

import sentencex

from bertgpt.data.text.intake import MAX_DOCUMENT_BYTES, Counts, cut_point
from bertgpt.errors import ConfigError, DataError, one_line, without_panics

MAX_SENTENCE_CHARS = 1 << 14  # Longer sentences are cut.

_LANGUAGES = frozenset((  # ISO 639-1, and bh, mo and sh, which it has withdrawn.
    "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv "
    "cy da de dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr "
    "ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw "
    "ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mo mr ms mt my na nb nd ne ng nl nn no nr "
    "nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so "
    "sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo "
    "xh yi yo za zh zu").split())
# Abbreviations that tell the rules of other languages of sentencex from the English ones.
_PROBE = "A z.B. B. A bzw. B. A esim. B. A κ. B."
# The time of sentencex grows with the square of the length of a line that has no white space, or
# many quotes that are not closed. So a longer line is given to it in windows. If it has quotes
# whose opening and closing marks are the same, it must be much longer: sentencex counts those in
# the whole line, so windows may give other sentences.
_LONG_LINE, _LONG_LINE_WITH_QUOTES = 20_000, 1 << 16
_WINDOW, _LARGEST_WINDOW = 1 << 13, 1 << 15
_AHEAD = 1 << 8  # Characters after a mark that decide whether it ends a sentence, and a margin.
_SAME_QUOTES = ("'\"`\N{SINGLE LOW-9 QUOTATION MARK}\N{SINGLE HIGH-REVERSED-9 QUOTATION MARK}"
                "\N{DOUBLE HIGH-REVERSED-9 QUOTATION MARK}")
_CLOSING = "»’”“«›》」)]}>）"  # What closes quotes and brackets, within which no sentence ends.
# sentencex 1.0.32 takes the space before a period for one byte, and panics in "plan B\u00a0.".
_WIDE_SPACE = re.compile(r"([A-Z]\.?\s*)[^\S\x00-\x7f](?=\.)")
_ANY_WIDE_SPACE = re.compile(r"[^\S\x00-\x7f]")  # The rules of Kazakh panic in more places.
_ONE_WORD = re.compile(r"\w{1,40}\W{0,3}")


@dataclasses.dataclass(frozen=True)
class Document:
  """One document and where it was found.

  Attributes:
    text: the whole text, with its white space; its only line end is a line feed.
    sentences_given: whether every line is one sentence.
    path: file; for datasets, name and index of the record.
    offset: byte of the decompressed file where the document starts.
    is_held_out: whether its source is one to hold out.
  """
  text: str
  sentences_given: bool
  path: str = ""
  offset: int = 0
  is_held_out: bool = False


def weigh(documents: Iterable[Document], weight: float,
          earlier: Iterable[Document]) -> Iterator[Document]:
  """Yields document i floor((i + 1) w) - floor(i w) times, for the weight w.

  Args:
    documents: documents of one part.
    weight: the weight.
    earlier: documents of the source in earlier parts, which are counted.
  """
  if weight == 1:
    yield from documents
    return
  for i, document in enumerate(documents, sum(1 for _ in earlier)):
    yield from itertools.repeat(document, math.floor((i + 1) * weight) - math.floor(i * weight))


def make_documents(whole: Document, counts: Counts, *,
                   is_cut: bool = False) -> Iterator[Document]:
  """Yields the documents of a text: none if it is blank, several if it is too long.

  Args:
    whole: document with the whole text; the texts of the documents, joined, are this text.
    counts: tally to add to.
    is_cut: whether the text is a part of a document that its reader has cut and counted.
  """
  stripped = whole.text.strip()
  if not stripped:
    counts["documents without text: skipped"] += 1
    return
  if _ONE_WORD.fullmatch(stripped):
    counts["documents of one word"] += 1
  if len(whole.text) * 4 <= MAX_DOCUMENT_BYTES:
    yield whole
    return
  texts = _cut(whole.text.encode())
  if len(texts) > 1 and not is_cut:
    counts["long documents cut"] += 1
  yield from (dataclasses.replace(whole, text=text) for text in texts)


def _cut(data: bytes) -> list[str]:
  """Cuts UTF-8 after line feeds, if there are any, or else after spaces."""
  texts, start = [], 0
  while len(data) - start > MAX_DOCUMENT_BYTES:
    end = start + MAX_DOCUMENT_BYTES
    cut = data.rfind(b"\n", start, end) + 1 or start + cut_point(data[start:end])
    texts.append(data[start:cut].decode())
    start = cut
  return [*texts, data[start:].decode()]


# --------------------------------------------------------------- sentences


def check_language(language: str) -> None:
  """Checks that a language is a known code: English rules apply to everything unknown.

  Args:
    language: `config.data.language`.
  Raises:
    ConfigError: it is neither a code of ISO 639-1 nor one whose rules are not the English ones.
  """
  if language in _LANGUAGES or _split_probe(language) != _split_probe("en"):
    return
  base = language.lower().replace("_", "-").split("-")[0]
  example = f", such as {base}" if base in _LANGUAGES else ""
  raise ConfigError(f"data.language={language!r}: is not a code of ISO 639-1, and English rules "
                    f"would apply. Give a two-letter code{example}, or en if the language has none")


def _split_probe(language: str) -> list[str]:
  return sentencex.segment(language, _PROBE)


def cut_sentences(document: Document, language: str) -> list[str]:
  """Cuts a document into its sentences; joined, they are its text.

  Every sentence begins with the white space before it, and the last one ends with the white space
  after it.

  Args:
    document: the document; it has one sentence per line if its sentences are given.
    language: ISO 639-1 code. Its rules apply to abbreviations and quotes; an end mark of any
      script ends a sentence in every language.
  Returns:
    The sentences in order, none blank; [] if the document is blank.
  Raises:
    DataError: sentencex fails.
  """
  text, start, sentences = document.text, 0, []
  try:
    ends = _list_ends(document, language)
  except RuntimeError as e:
    raise DataError(f"{document.path}: sentencex cannot cut the document at byte "
                    f"{document.offset} into sentences ({one_line(e)}). Remove it, or give one "
                    "sentence per line and data.source=text:GLOB") from e
  for end in ends:
    sentence = text[start:end]
    sentences += [sentence] if end - start <= MAX_SENTENCE_CHARS else _cut_long(sentence)
    start = end
  if sentences:
    sentences[-1] += text[start:]
  return sentences


def _list_ends(document: Document, language: str) -> list[int]:
  """Returns where the text of each sentence ends; raises RuntimeError if sentencex panics."""
  try:
    with without_panics():
      return [*_find_ends(document, language)]
  except RuntimeError:
    plain = dataclasses.replace(document, text=_ANY_WIDE_SPACE.sub(" ", document.text))
    with without_panics():
      return [*_find_ends(plain, language)]


def _find_ends(document: Document, language: str) -> Iterator[int]:
  """Yields where the text of each sentence ends, ascending."""
  start = 0
  for line in document.text.split("\n"):
    if document.sentences_given:
      if content := line.rstrip():
        yield start + len(content)
    elif content := line.strip():
      indent = line.index(content[0])
      yield from (start + indent + end for end in _split(content, language))
    start += len(line) + 1


def _split(line: str, language: str) -> Iterator[int]:
  """Yields where the sentences of a line end. The line has no white space around it.

  For a long line, these are the ends in windows that begin at the end of a sentence. A window is
  followed by all marks that close quotes and brackets in the rest of the line. So no sentence ends
  in a quote that is open at the end of the window; then the next window begins before the quote.
  A quote that is longer than the largest window is no quote: sentences end in it. If a mark that
  opens and closes quotes is in a window an odd number of times, another one follows.
  """
  same = [mark for mark in _SAME_QUOTES if mark in line]
  if len(line) <= (_LONG_LINE_WITH_QUOTES if same else _LONG_LINE):
    yield from _split_window(line, language)
    return
  last = {mark: line.rfind(mark) for mark in _CLOSING}
  start, size = 0, _WINDOW
  while start + size < len(line):
    window = line[start:start + size]
    closing = [*(mark for mark, place in last.items() if place >= start + size),
               *(mark for mark in same if window.count(mark) % 2)]
    closing = closing if size < _LARGEST_WINDOW else []
    closed = " ".join([window, *closing])
    ends = [end for end in _split_window(closed, language) if end <= size - _AHEAD]
    yield from (start + end for end in ends)
    if ends or not closing:
      start, size = start + (ends[-1] if ends else size - _AHEAD), _WINDOW
    else:
      size *= 2
  yield from (start + end for end in _split_window(line[start:], language))


def _split_window(line: str, language: str) -> Iterator[int]:
  """Yields where the sentences of a part of a line end, and the end of its text."""
  position = end = last = 0
  for segment in sentencex.segment(language, _WIDE_SPACE.sub(r"\1 ", line)):
    if content := segment.rstrip():
      end = position + len(content)
    position += len(segment)
    # sentencex also cuts "os.path": an ASCII mark ends a sentence only before a space.
    if end > last and (segment[-1].isspace() or not segment[-1].isascii()):
      yield end
      last = end
  if end > last:
    yield end


def _cut_long(sentence: str) -> list[str]:
  """Cuts a sentence with the white space before it into parts of `MAX_SENTENCE_CHARS`.

  The white space before a part does not count toward its length.
  """
  parts, start = [], 0
  for words in filter(str.strip, cut_at_spaces(sentence.strip(), MAX_SENTENCE_CHARS)):
    end = sentence.index(words, start) + len(words)
    parts.append(sentence[start:end])
    start = end
  return parts


def cut_at_spaces(text: str, max_chars: int) -> list[str]:
  """Cuts a text into pieces, at spaces if there are any.

  Args:
    text: any text.
    max_chars: characters per piece, at most.
  Returns:
    The pieces, without the spaces at which the text is cut.
  """
  pieces, start = [], 0
  while len(text) - start > max_chars:
    space = text.rfind(" ", start + 1, start + max_chars + 1)
    cut = space if space > 0 else start + max_chars
    pieces.append(text[start:cut])
    start = cut + (space > 0)
  return [*pieces, text[start:]]
