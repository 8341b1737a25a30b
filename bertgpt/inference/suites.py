"""Named protocols of zero-shot evaluation: the measure, the file, and how the file is read.

A published score depends on its protocol as much as on the model: GPT-2's 45.99% on LAMBADA counts
only the last token of a word; other protocols count whole words, and the same model then scores
32.6%. So every protocol is a line of `SUITES`, and the user names its text: `--suite lambada=FILE`,
or a TFDS dataset as in `lambada=tfds:name:split#feature`. No data comes with the program.
"""

import difflib
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bertgpt import config as config_lib
from bertgpt import files
from bertgpt.data.text import fields, intake, paths, sources, texts
from bertgpt.data.tokens.tokenizers import Tokenizer
from bertgpt.errors import ConfigError, DataError


class Suite(NamedTuple):
  """One protocol.

  Attributes:
    measure: key of `zero_shot.MEASURES` and of `READERS`.
    file: description of its file, for error messages.
    detokenizer: key of DETOKENIZERS, applied to the text before it is tokenized.
    counts_lines: whether the end of a line counts as a word, as in the token counts of WikiText.
    rule: condition for a guess of the last word to be correct. 'word': every token of the word,
      which begins after the last space, is the likeliest one given the tokens before it.
      'stop_words': the same, but the word begins after any white space, and its first token only
      has to be the likeliest of the tokens that are not stop words. 'token': the last token of the
      word is the likeliest one.
    source: publication or code that defines the protocol.
  """

  measure: str
  file: str
  detokenizer: str = ""
  counts_lines: bool = False
  rule: str = ""
  source: str = ""


_WIKITEXT = Suite(
    "perplexity", "wiki.test.tokens, in which words are separated by spaces", "wikitext", True,
    source="Merity et al. 2016, arXiv:1609.07843; detokenized as Radford et al. 2019, 3.1 advise")
_LAMBADA_FILE = "lambada_test.jsonl of openai/gpt-2, one object with a field text per line"
SUITES = {
    "text": Suite("perplexity", "any text, or a .jsonl file with a document in each field text"),
    "wikitext2": _WIKITEXT,
    "wikitext103": _WIKITEXT,
    "lambada": Suite("last_word", _LAMBADA_FILE, rule="word",
                     source="Paperno et al. 2016; lm-evaluation-harness, lambada_openai"),
    "lambada_stop_words": Suite("last_word", _LAMBADA_FILE, rule="stop_words",
                                source="after Radford et al. 2019, 3.3; the list is ours"),
    "lambada_last_token": Suite("last_word", _LAMBADA_FILE, rule="token",
                                source="Radford et al. 2019, 3.3, by openai/gpt-2#131"),
    "pairs": Suite("pairs", "a table with the columns good and bad, separated by tabs",
                   source="Warstadt et al. 2020, arXiv:1912.00582 (BLiMP)"),
    "choices": Suite("choices", "one JSON object per line, with the fields context, endings and "
                     "label", source="lm-evaluation-harness, output_type multiple_choice"),
}

# name -> (pattern, replacement), applied in this order.
DETOKENIZERS = {
    "": (),
    "wikitext": (
        (r" @([-,.])@ ", r"\1"),
        (r"(?m)^ | $", ""),
        (r"= (?==)", "="),                        # Headings: = = Career = =
        (r" ([.,:;!?%)\]])", r"\1"),
        (r"([(\[$\u00a3]) ", r"\1"),
        (r'" ([^"\n]*?) "', r'"\1"'),
        (r" ('s|'re|'ve|'ll|'d|'m|n't)\b", r"\1"),
        (r"s ' ", "s' "),
    ),
}

STOP_WORDS = frozenset("""
a about above after again against all am an and any are as at be because been before being below
between both but by can could did do does doing down during each few for from further had has
have having he her here hers herself him himself his how i if in into is it its itself just me more
most my myself no nor not now of off on once only or other our ours ourselves out over own same
she should so some such than that the their theirs them themselves then there these they this
those through to too under until up very was we were what when where which while who whom why will
with would you your yours yourself yourselves
""".split())

# The text of a document, of its line or of a passage; two sentences; or a result of `make_choice`.
Entry = tuple[str, ...]

_CHOICE_FIELDS = ("context", "endings", "label")
_FROM_FILES_ONLY = ("pairs", "choices")  # Measures whose entries are not a single text.


def parse(spec: str) -> list[tuple[str, str]]:
  """Returns the (name, file) pairs of 'NAME=FILE,NAME=FILE'.

  Args:
    spec: value of --suite.
  Raises:
    ConfigError: a name is not in `SUITES`, or has no file.
  """
  parts: list[tuple[str, str]] = []
  # A comma that no NAME= follows belongs to the file, as in tfds:x:test#title,text.
  for part in filter(None, map(str.strip, re.split(r",(?=\s*(?:\w+=|$))", spec))):
    name, _, file = part.partition("=")
    parts.append((name, file))
  if not parts:
    raise ConfigError(f"--suite {spec!r}: names no suite. Choose among {', '.join(SUITES)}")
  for name, file in parts:
    if name not in SUITES:
      if not file and files.expand(name).exists():
        raise ConfigError(f"--suite {name}: is a file, not the name of a suite. Write "
                          f"NAME={name}, with one of the names {', '.join(SUITES)}")
      close = difflib.get_close_matches(name, SUITES, n=1)
      raise ConfigError(f"--suite {name}: no such suite. " + (
          f"Did you mean {close[0]}?" if close else f"Choose among {', '.join(SUITES)}"))
    if not file:
      raise ConfigError(f"--suite {name}: no data comes with the program. Give {name}=FILE with "
                        f"{SUITES[name].file}")
    if file.startswith("tfds:") and SUITES[name].measure in _FROM_FILES_ONLY:
      raise ConfigError(f"--suite {name}={file}: {name} are read from a file only. Write the "
                        f"dataset to one, and give {name}=FILE with {SUITES[name].file}")
    if not file.startswith("tfds:") and (problem := config_lib.remote_problem(file)):
      raise ConfigError(f"--suite {name}={file}: {problem}")
  return parts


def detokenize(text: str, detokenizer: str) -> str:
  """Returns a tokenized text as ordinary text.

  Args:
    text: text with its tokens separated by spaces.
    detokenizer: key of `DETOKENIZERS`; '' returns the text as it is.
  """
  for pattern, replacement in DETOKENIZERS[detokenizer]:
    text = re.sub(pattern, replacement, text)
  return text


def count_words(text: str, counts_lines: bool) -> int:
  """Returns the number of words separated by white space.

  Args:
    text: text as it is in the file.
    counts_lines: whether the end of every line counts as a word.
  """
  return len(text.split()) + counts_lines * text.count("\n")


def find_stop_tokens(tokenizer: Tokenizer) -> np.ndarray:
  """Finds the tokens that are special, are a stop word, or contain no letter or digit.

  Args:
    tokenizer: tokenizer of the model.
  Returns:
    bool [vocab_size].
  """
  names = [tokenizer.decode([i]).strip().lower() for i in range(tokenizer.vocab_size)]
  is_stop = np.array([name in STOP_WORDS or (bool(name) and not any(map(str.isalnum, name)))
                      for name in names])
  is_stop[list(tokenizer.special_ids)] = True
  return is_stop


# -------------------------------------------------------------------- reading


def iterate(name: str, file: str) -> Iterator[Entry]:
  """Yields the documents, passages, pairs or choices that a suite measures, one at a time.

  Args:
    name: key of `SUITES`.
    file: a path, or 'tfds:NAME:SPLIT#FEATURE'.
  Yields:
    (text,), (good, bad) sentences, or a result of `make_choice`. If `is_one_document`, the texts
    are the lines of the document with their ends.
  Raises:
    ConfigError: there is no such file, it lacks a column or a field, or, raised at its end, it held
      no text.
    DataError: it is damaged.
  """
  suite, flag = SUITES[name], f"--suite {name}"
  if file.startswith("tfds:"):
    content = _read_dataset(file, flag)
  else:
    content = READERS[suite.measure](files.expand(file), flag)
  has_text = False
  for entry in content:
    has_text = has_text or any(map(str.strip, entry))
    yield entry
  if not has_text:
    raise ConfigError(f"{flag} {file}: holds no text. Give {suite.file}")


def is_one_document(name: str, file: str) -> bool:
  """Returns whether a file is one document, whose lines `iterate` yields.

  Args:
    name: key of `SUITES`.
    file: see `iterate`.
  """
  return (SUITES[name].measure == "perplexity" and not file.startswith("tfds:")
          and not paths.is_json_lines(file))


def _read_documents(path: pathlib.Path, flag: str) -> Iterator[Entry]:
  read = texts.iterate_texts if paths.is_json_lines(path) else texts.iterate_lines
  return ((text,) for text in read(path, flag))


def _read_passages(path: pathlib.Path, flag: str) -> Iterator[Entry]:
  return ((text,) for text in texts.iterate_texts(path, flag))


def _read_pairs(path: pathlib.Path, flag: str) -> Iterator[Entry]:
  return texts.iterate_columns(path, flag, ("good", "bad"))


def _read_choices(path: pathlib.Path, flag: str) -> Iterator[Entry]:
  for place, record in texts.iterate_records(path, flag):
    if missing := [name for name in _CHOICE_FIELDS if name not in record]:
      raise ConfigError(f"{place}: has no field {missing[0]!r}. "
                        f"{fields.describe(record, missing[0])} Give every object the fields "
                        f"{', '.join(_CHOICE_FIELDS)}")
    try:
      context, endings, label = (record[name] for name in _CHOICE_FIELDS)
      yield make_choice(context, endings, label, record.get("delimiter", " "))
    except ValueError as e:
      raise DataError(f"{place}: {e}") from e


def make_choice(context: str, endings: Sequence[str], label: int, delimiter: str = " ") -> Entry:
  """Returns a context and its endings as an entry of the suite `choices`.

  The white space between them, wherever it is written, goes to the endings: byte-level tokenizers
  join a space to the word after it.

  Args:
    context: text that every ending continues; '': the endings begin a text.
    endings: two or more texts.
    label: index of the right ending.
    delimiter: white space put between context and ending if neither has any there.
  Returns:
    (label in decimal digits, context without white space at its end, *endings as they follow it).
  Raises:
    ValueError: an argument is of another form; the message follows the place of the choice.
  """
  if not isinstance(endings, (list, tuple)) or len(endings) < 2:
    found = f"has {len(endings)}" if isinstance(endings, (list, tuple)) else "is not a list"
    raise ValueError(f"endings {found}. Give a list of two or more texts")
  if not isinstance(label, int) or isinstance(label, bool):
    raise ValueError(f"label is {json.dumps(label)[:40]}, not a whole number. Give the index of "
                     "the right ending, 0 for the first")
  if not 0 <= label < len(endings):
    raise ValueError(f"label is {label}, but the {len(endings)} endings have the indices 0 to "
                     f"{len(endings) - 1}. Give the index of the right one")
  if not isinstance(delimiter, str) or delimiter.strip():
    raise ValueError("delimiter is not white space. Put other text into the context")
  try:
    whole = intake.take_text(context, "context")
    after = [intake.take_text(ending, f"ending {i}") for i, ending in enumerate(endings)]
  except ValueError as e:
    raise ValueError(f"{e}. Repair it") from e
  if blank := [i for i, ending in enumerate(after) if not ending.strip()]:
    raise ValueError(f"ending {blank[0]} is blank. Give a text, or remove the object")
  context = whole.rstrip()
  if not context:
    return str(label), "", *(ending.lstrip() for ending in after)
  space = whole[len(context):]
  return str(label), context, *(
      (space if space or ending[0].isspace() else delimiter) + ending for ending in after)


def _read_dataset(spec: str, flag: str) -> Iterator[Entry]:
  try:
    for document in sources.open_source(spec):
      yield (document.text,)
  except (ConfigError, DataError) as e:
    raise type(e)(f"{flag}: {str(e).removeprefix('data.source: ')}") from e


# Measure -> reader of its file: (path, flag that named it) -> entries.
READERS: dict[str, Callable[[pathlib.Path, str], Iterator[Entry]]] = {
    "perplexity": _read_documents, "last_word": _read_passages, "pairs": _read_pairs,
    "choices": _read_choices}
