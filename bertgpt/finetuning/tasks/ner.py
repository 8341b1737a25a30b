"""Labels of words in CoNLL files: named entities, and whatever else is labelled word by word.

A file has a word a line, first column the word, last column its tag, parted by tabs or spaces;
an empty line ends a sentence, a line that starts with -DOCSTART- is left out. Tags are BIO: B-TYPE
begins an entity, I-TYPE goes on, O is outside.

The label of a word is asked and predicted at its first token (Devlin et al. 2018, 5.3). Sentences
beyond the window are cut between words into several rows, so that every word is predicted.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bertgpt.errors import DataError
from bertgpt.finetuning.tasks import files
from bertgpt.finetuning.tasks.rows import EvalSet, Format, Rows, Task
from bertgpt.finetuning.tasks.scores import harmonic_mean

# Official names, in WNUT 2017 and CoNLL 2003.
NAMES = {
    "train": ("wnut17train.conll", "eng.train", "train.txt", "train.conll"),
    "dev": ("emerging.dev.conll", "eng.testa", "valid.txt", "dev.txt", "dev.conll"),
    "test": ("emerging.test.annotated", "eng.testb", "test.txt", "test.conll"),
}


class Sentence(NamedTuple):
  words: list[str]
  tags: list[str]


class Labelled(NamedTuple):
  """Rows, and where every word's first token is.

  Attributes:
    places: for every sentence, for every word, (row, token).
  """

  rows: Rows
  places: list[list[tuple[int, int]]]


def open_task(config, form: Format) -> Task:
  """Reads the files of `config.task`. The tags are those of the training file.

  Raises:
    DataError: files are missing, or not as described above.
  """
  sets = {name: _read_set(config, name) for name in NAMES}
  train = sets.pop("train")
  chosen = files.choose_examples(len(train), config.max_train_examples, is_random=True)
  sets["dev"] = sets["dev"][:config.max_dev_examples or None]
  # O is class 0, so that what is missing is no entity.
  tags = ["O", *sorted({tag for s in train for tag in s.tags} - {"O"})]
  evals, baseline, unknown = [], {}, 0
  for name, sentences in sets.items():
    if not sentences:
      continue
    labelled = make_rows(sentences, tags, form)
    unknown += sum(tag not in tags for s in sentences for tag in s.tags)
    evals.append(EvalSet(name, labelled.rows,
                         functools.partial(score_outputs, sentences, labelled.places, tags),
                         functools.partial(write, sentences, labelled.places, tags, name)))
    baseline[name] = score([s.tags for s in sentences], [["O"] * len(s.tags) for s in sentences])
  notes = (f"{unknown} words have tags that training has not",) if unknown else ()
  train_rows = make_rows([train[i] for i in chosen], tags, form).rows
  return Task(config.name, "tokens", tuple(tags), train_rows, tuple(evals), baseline, notes)


def _read_set(config, name: str) -> list[Sentence]:
  paths = files.find_given(config.data, config[name], NAMES[name], needed=name != "test")
  return [sentence for path in paths for sentence in read_conll(path)]


def read_conll(path: pathlib.Path) -> list[Sentence]:
  """The sentences of a file.

  Raises:
    DataError: names the line that has no tag, or a tag that is none.
  """
  sentences, words, tags = [], [], []
  for number, line in [*files.read_text_lines(path), (0, "")]:
    cells = line.split("\t") if "\t" in line else line.split()
    if not line.strip() or cells[0] == "-DOCSTART-":
      if words:
        sentences.append(Sentence(words, tags))
      words, tags = [], []
      continue
    if len(cells) < 2:
      raise DataError(f"{path}, line {number}: has no tag ({line[:40]!r}); a line is a word and "
                      "its tag, as 'Berlin B-location'")
    tag = cells[-1].strip()
    if tag != "O" and (tag[:2] not in ("B-", "I-") or len(tag) == 2):
      raise DataError(f"{path}, line {number}: tag {tag[:40]!r} is none of O, B-TYPE, I-TYPE; "
                      "convert the file to BIO")
    words.append(cells[0])
    tags.append(tag)
  if not sentences:
    raise DataError(f"{path}: holds no sentences; give a CoNLL file")
  return sentences


def make_rows(sentences: Sequence[Sentence], tags: Sequence[str], form: Format) -> Labelled:
  """Rows with [CLS] and [SEP]; a word without tokens of its own is [UNK]."""
  number = {tag: i for i, tag in enumerate(tags)}
  pieces = iter(encode_words([s.words for s in sentences], form.tokenizer))
  tokens, labels, places = [], [], []
  for sentence in sentences:
    of_words = [next(pieces)[:form.max_length - 2] for _ in sentence.words]
    places.append([])
    for part in cut(list(map(len, of_words)), form.max_length - 2):
      row, label = [[form.first]], [[-1]]
      for i in part:
        places[-1].append((len(tokens), sum(map(len, row))))
        row.append(of_words[i])
        # A tag that training has not cannot be learnt.
        label.append([number.get(sentence.tags[i], -1)] + [-1] * (len(of_words[i]) - 1))
      tokens.append(np.concatenate([*row, [form.last]]).astype(np.int32))
      labels.append(np.concatenate([*label, [-1]]).astype(np.int32))
  return Labelled(Rows(tokens, [np.zeros(len(t), np.int32) for t in tokens], labels), places)


def encode_words(sentences: Sequence[Sequence[str]], tokenizer) -> list[np.ndarray]:
  """Tokens of every word, at least one; as in running text, where a space comes before."""
  space = " " if tokenizer.kind == "bpe" else ""
  unknown = [tokenizer.unk_id if tokenizer.unk_id >= 0 else tokenizer.mask_id]
  encoded = tokenizer.encode([space * (i > 0) + word for words in sentences
                              for i, word in enumerate(words)])
  return [ids if len(ids) else np.array(unknown, np.int32) for ids in encoded]


def cut(lengths: Sequence[int], room: int) -> list[list[int]]:
  """Numbers of the words of every row: as many as fit, in order."""
  parts, used = [[]], 0
  for i, length in enumerate(lengths):
    if used + length > room and parts[-1]:
      parts.append([])
      used = 0
    parts[-1].append(i)
    used += length
  return parts


# ----------------------------------------------------------------- results


def collect(outputs: Sequence[np.ndarray], places, tags: Sequence[str]) -> list[list[str]]:
  """The predicted tag of every word."""
  return [[tags[outputs[row][token]] for row, token in words] for words in places]


def score_outputs(sentences, places, tags, outputs) -> dict[str, float]:
  return score([s.tags for s in sentences], collect(outputs, places, tags))


def score(expected: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, float]:
  """F1 of entities: right are those of the same words and type (CoNLL 2003)."""
  hits = num_found = num_expected = 0
  for one, other in zip(expected, found, strict=True):
    one, other = entities(one), entities(other)
    hits += len(one & other)
    num_expected += len(one)
    num_found += len(other)
  return {"f1": harmonic_mean(hits, num_found, num_expected)}


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
  """(type, first word, word after the last) of every entity.

  An I-TYPE that follows no entity of its type begins one, as for conlleval.
  """
  spans, kind, start = set(), None, 0
  for i, tag in enumerate([*tags, "O"]):
    if kind is not None and tag != f"I-{kind}":
      spans.add((kind, start, i))
      kind = None
    if tag != "O" and kind is None:
      kind, start = tag[2:], i
  return spans


def write(sentences, places, tags, name: str, outputs, folder: pathlib.Path) -> None:
  """A CoNLL file: word, tag, predicted tag, as conlleval reads it."""
  lines = []
  for sentence, found in zip(sentences, collect(outputs, places, tags), strict=True):
    lines += [" ".join(cells) for cells in zip(sentence.words, sentence.tags, found, strict=True)]
    lines.append("")
  (folder / f"{name}.conll").write_text("\n".join(lines) + "\n")
