"""CoNLL files: one word per line, with columns, and an empty line after every sentence.

Columns are separated by tabs and ASCII spaces, so a word may hold other white space, such as the
U+00A0 of "10 000". If that gives the lines different numbers of columns, but tabs alone give all of
them the same number, columns are separated by tabs, and words may hold spaces.

| part     | place                                                                               |
|----------|-------------------------------------------------------------------------------------|
| word     | first column; in files that number the words of a sentence (GermEval 2014), second  |
| tag      | last column; in files that number the words, third                                  |
| sentence | ends at a line without characters other than Unicode white space                    |
| skipped  | lines whose first column is -DOCSTART-, and comments                                |

A comment is a line before the first word of a sentence that begins with "#" and a space or a tab,
unless it is like the lines of words: its last column is a tag, or stands for one, it has as many
columns, and it is not like "# name = value" (GermEval, MultiCoNER, CoNLL-U). In files that number
the words, all such lines are comments. Empty columns at the end of a line are left out. Tags are
BIO: B-TYPE begins an entity, I-TYPE continues it, O is outside of entities; in files with a single
type, they may be B, I and O. A file without tags has one column, or "_" or "-" in place of all
tags. A sentence has at most `MAX_WORDS` words, which bounds the memory.
"""

import pathlib
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bertgpt.data.text.intake import split_columns
from bertgpt.errors import DataError
from bertgpt.finetuning.tasks import files

MAX_WORDS = 1 << 20
# Share of words whose number begins or continues a count, above which all of them should have one.
MOSTLY = 0.8
_NUMBER = re.compile(r"([0-9]{1,9})([-.][0-9]+)?")  # CoNLL-U also has 3-4 and 3.1.
NO_TAGS = ("_", "-")  # The last column of test sets whose tags are not published.
BARE_TAGS = ("B", "I")  # Tags of entities without a type, as in BioBERT's files.
HEADERS = frozenset("id idx index sentence sentence_id sent text word words token tokens form "
                    "lemma pos upos xpos chunk tag tags label labels ner ner_tag ner_tags".split())
_OTHER_PREFIXES = ("S", "U", "E", "L")  # Those of IOBES and BILOU that BIO lacks.


class Sentence(NamedTuple):
  """Words of a sentence, and their tags; None: they are unknown."""

  words: list[str]
  tags: list[str] | None


class Layout(NamedTuple):
  """Columns of a file.

  Attributes:
    split: line -> its columns.
    word: index of the column of words.
    tag: index of the column of tags; None: the file has none.
    has_tags: whether the words have tags.
    widths: numbers of columns of the lines; empty: not known.
  """

  split: Callable[[str], list[str]]
  word: int
  tag: int
  has_tags: bool
  widths: frozenset[int] = frozenset()

  def is_word(self, line: str) -> bool:
    """Returns whether a line that might be a comment is the line of a word."""
    if self.word:  # The line would begin with a number.
      return False
    cells = self.split(line)
    return len(cells) in self.widths and (cells[-1] in NO_TAGS or may_be_word(cells))


def is_tag(text: str) -> bool:
  """Returns whether a text is a tag: O, B-TYPE or I-TYPE, or B or I if there are no types."""
  return text in ("O", *BARE_TAGS) or (text[:2] in ("B-", "I-") and len(text) > 2)


def has_names(cells: list[str]) -> bool:
  """Returns whether the columns of a line are their names, as in a table."""
  return all(cell.lower() in HEADERS for cell in cells)


def may_be_word(cells: list[str]) -> bool:
  """Returns whether a line that begins with "#" ends in a tag, and is not like '# name = value'.

  "# Chapter I" is a comment.
  """
  return is_tag(cells[-1]) and cells[-1] not in BARE_TAGS and cells[2:3] != ["="]


def split_at_tabs(line: str) -> list[str]:
  """Returns the columns of a line, which tabs separate."""
  return [cell.strip(" ") for cell in line.rstrip(" \t").split("\t")]


def iterate_sentences(path: pathlib.Path, *, needs_tags: bool = True,
                      reads_tags: bool = True) -> Iterator[Sentence]:
  """Yields the sentences of a file. It reads the file twice and holds one sentence in memory.

  Args:
    path: file, plain or compressed.
    needs_tags: whether every word needs a tag; otherwise files without tags are read too.
    reads_tags: whether to read tags; otherwise they may be anything.
  Raises:
    DataError: a word lacks its tag, a tag is not in BIO, only some tags have a type, there is no
      sentence, or one has more than `MAX_WORDS` words.
  """
  layout = find_layout(path)
  has_tags = reads_tags and (needs_tags or layout.has_tags)
  sentence, first = None, ""
  for place, number, line in _words(path, layout.is_word):
    if sentence and place == 1:
      yield sentence
    if place == 1:
      sentence = Sentence([], [] if has_tags else None)
    cells = layout.split(line)
    if sentence.tags is not None:
      tag = _take_tag(cells, layout, f"{path}, line {number}", line)
      if tag != "O":
        first = first or tag
        if (tag in BARE_TAGS) != (first in BARE_TAGS):
          raise DataError(f"{path}, line {number}: tag {tag!r} is unlike {first!r} before it. Give "
                          "all tags a type, or none")
      sentence.tags.append(tag)
    if not cells[layout.word]:
      raise DataError(f"{path}, line {number}: has no word ({line[:40]!r}). Write a word and its "
                      "tag in each line, or remove the line")
    sentence.words.append(cells[layout.word])
  if not sentence:
    raise DataError(f"{path}: holds no sentences. Give a CoNLL file")
  yield sentence


def _take_tag(cells, layout, where, line) -> str:
  if len(cells) < 2:
    raise DataError(f"{where}: has no tag ({line[:40]!r}). Write a word and its tag in each line, "
                    "such as 'Berlin B-location'")
  tag = cells[layout.tag] if layout.tag < len(cells) else ""
  if is_tag(tag):
    return tag
  if has_names(cells):
    raise DataError(f"{where}: is a header ({' '.join(cells)}). Remove the line")
  remedy = "Convert the file to BIO"
  if tag[:1] in _OTHER_PREFIXES and tag[1:2] in ("", "-"):
    remedy += ". Replace S- and U- with B-, and E- and L- with I-"
  raise DataError(f"{where}: tag {tag[:40]!r} is none of O, B-TYPE, I-TYPE. {remedy}")


class _Columns:
  """The content of a file's columns, as split by a function."""

  def __init__(self, split: Callable[[str], list[str]]):
    self.split = split
    self.widths: set[int] = set()
    self.has_second, self.has_last, self.has_third = False, False, False
    # Words; those whose number begins or continues a count; those whose number is their index,
    # counted from 0, and from 1.
    self.count, self.counted, self.numbered = 0, 0, [0, 0]
    self.previous = 0  # The last number.
    self.unlike: list[tuple[int, str]] = [(0, ""), (0, "")]  # The first lines with other numbers.

  def add(self, place: int, number: int, line: str) -> None:
    """Examines the line of a word; `place` is its index in the sentence, from 1."""
    cells = self.split(line)
    self.widths.add(len(cells))
    has_two = len(cells) > 1
    self.count += 1
    if has_two and (match := _NUMBER.fullmatch(cells[0])):
      value = int(match[1])
      # Numbers may be left out, and 3-4 comes before 3. Some files count on in the next sentence.
      continues = value == self.previous + 1 or place > 1 and value >= self.previous
      self.counted += value in (0, 1) or continues
      self.previous = value
    for start in (0, 1):
      if has_two and cells[0] == str(place - 1 + start):
        self.numbered[start] += 1
      elif not self.unlike[start][0]:
        self.unlike[start] = number, line
    self.has_second |= has_two and not is_tag(cells[1])  # Something other than the tags of numbers.
    self.has_last |= has_two and cells[-1] not in NO_TAGS
    self.has_third |= len(cells) > 2 and cells[2] not in NO_TAGS

  def layout(self, path: pathlib.Path) -> Layout:
    most = max(self.numbered)
    if self.has_second and most == self.count:
      return Layout(self.split, 1, 2, self.has_third, frozenset(self.widths))
    if self.has_second and self.counted > MOSTLY * self.count:
      number, line = self.unlike[self.numbered.index(most)]
      raise DataError(f"{path}, line {number}: does not begin with the number of its word, as most "
                      f"lines do ({line[:40]!r}). Number the words of each sentence, or remove the "
                      "numbers")
    return Layout(self.split, 0, -1, self.has_last, frozenset(self.widths))


def find_layout(path: pathlib.Path) -> Layout:
  """Returns the columns of a file, which is read once, line by line.

  Args:
    path: file, plain or compressed.
  Raises:
    DataError: the file cannot be read, or numbers most of its words, but not as they are.
  """
  spaced, tabbed = _Columns(split_columns), _Columns(split_at_tabs)
  undecided: set[tuple[int, int]] = set()  # Widths of lines that may be comments.

  def leave_out(line: str) -> bool:
    if may_be_word(cells := split_columns(line)):
      undecided.add((len(cells), len(split_at_tabs(line))))
    return False

  for place, number, line in _words(path, leave_out):
    spaced.add(place, number, line)
    tabbed.add(place, number, line)
  # A line that may be a comment is that of a word if it has as many columns as another word, or if
  # that says nothing: there are no others, or their numbers differ and some have no tabs.
  says_nothing = not spaced.count or (len(spaced.widths) > 1 and 1 in tabbed.widths)
  words = [(by_space, by_tab) for by_space, by_tab in undecided if says_nothing
           or by_space in spaced.widths or by_tab in tabbed.widths - {1}]
  spaced.widths.update(by_space for by_space, _ in words)
  tabbed.widths.update(by_tab for _, by_tab in words)
  has_words_with_spaces = (len(spaced.widths) > 1 and len(tabbed.widths) == 1
                           and tabbed.widths != {1})
  return (tabbed if has_words_with_spaces else spaced).layout(path)


def _words(path: pathlib.Path, is_word: Callable[[str], bool]) -> Iterator[tuple[int, int, str]]:
  """Yields (index of the word in its sentence, from 1; number of its line; line).

  Args:
    path: file, plain or compressed.
    is_word: whether a line that begins like a comment, before a sentence, is the line of a word.
  """
  place = 0
  for number, line in files.read_text_lines(path):
    cells = split_columns(line)
    if not line.strip() or cells[0] == "-DOCSTART-":
      place = 0
    elif place or not line.startswith(("# ", "#\t")) or len(cells) < 2 or is_word(line):
      place += 1
      if place > MAX_WORDS:
        raise DataError(f"{path}, line {number}: a sentence has more than {MAX_WORDS} words. "
                        "Separate sentences with empty lines")
      yield place, number, line
