"""Labels of words in CoNLL files: named entities, or anything else that is labeled word by word.

`tasks.conll` describes the files. A test set without tags is predicted and not scored.

A word's label is trained and predicted at its first token (Devlin et al. 2018, 5.3). Sentences
that are too long for a row are cut between words into several rows, so that every word is
predicted.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bertgpt.config import ConfigDict
from bertgpt.data.tokens import following
from bertgpt.data.tokens.tokenizers import Tokenizer
from bertgpt.finetuning.tasks import conll, files
from bertgpt.finetuning.tasks.conll import Sentence
from bertgpt.finetuning.tasks.rows import EvalSet, Rows, Task, TextFormat
from bertgpt.finetuning.tasks.scores import harmonic_mean

# Official file names of WNUT 2017 and CoNLL 2003, then common ones.
NAMES = {
    "train": ("wnut17train.conll", "eng.train", "train.txt", "train.conll"),
    "dev": ("emerging.dev.conll", "eng.testa", "valid.txt", "dev.txt", "dev.conll"),
    "test": ("emerging.test.annotated", "eng.testb", "test.txt", "test.conll"),
}


# (index of the row, index of the word's first token in it), for every word of every sentence.
Places = list[list[tuple[int, int]]]


class Labeled(NamedTuple):
  """Rows of sentences, and the places of their words in the rows.

  Attributes:
    rows: one or more rows per sentence.
    places: places of the words.
  """

  rows: Rows
  places: Places


def open_task(config: ConfigDict, text_format: TextFormat) -> Task:
  """Reads the files of a task. The labels are the tags of the training file.

  Args:
    config: group `task` of the fine-tuning config.
    text_format: format of the rows.
  Raises:
    DataError: files are missing, or are not in the format that is described above.
  """
  sets = {name: _read_set(config, name) for name in NAMES}
  train = sets.pop("train")
  chosen = files.choose_examples(len(train), config.max_train_examples, is_random=True)
  sets["dev"] = sets["dev"][:config.max_dev_examples or None]
  # O is class 0, because missing labels are 0 and must not be an entity.
  tags = ["O", *sorted({tag for s in train for tag in s.tags} - {"O"})]
  train_rows = make_rows([train[i] for i in chosen], tags, text_format).rows
  evals, baseline, unknown = [], {}, 0
  for name, sentences in sets.items():
    if not sentences:
      continue
    labeled = make_rows(sentences, tags, text_format)
    has_tags = all(s.tags is not None for s in sentences)
    evals.append(EvalSet(
        name, labeled.rows,
        functools.partial(score_outputs, sentences, labeled.places, tags) if has_tags else None,
        functools.partial(write, sentences, labeled.places, tags, name),
        gold=[s.tags for s in sentences] if has_tags else None))
    if has_tags:
      unknown += sum(tag not in tags for s in sentences for tag in s.tags)
      baseline[name] = score([s.tags for s in sentences], [["O"] * len(s.tags) for s in sentences])
  notes = (f"{unknown} words have tags that the training file lacks",) if unknown else ()
  return Task(config.name, "tokens", tuple(tags), train_rows, tuple(evals), baseline, notes)


def _read_set(config, name: str) -> list[Sentence]:
  paths = files.find_given(config.data, config[name], f"task.{name}", NAMES[name],
                           needed=name != "test")
  return [sentence for path in paths
          for sentence in read_conll(path, needs_tags=name != "test")]


def read_conll(path: pathlib.Path, *, needs_tags: bool = True) -> list[Sentence]:
  """Returns the sentences of a file.

  Args:
    path: file in the CoNLL format, plain or compressed.
    needs_tags: whether every word needs a tag; otherwise the file may have none.
  Raises:
    DataError: a line has no tag, a tag is not in BIO, or there is no sentence.
  """
  return list(conll.iterate_sentences(path, needs_tags=needs_tags))


def make_rows(sentences: Sequence[Sentence], tags: Sequence[str], text_format: TextFormat
              ) -> Labeled:
  """Returns the rows [CLS] words [SEP] of sentences.

  Args:
    sentences: sentences; each gets rows of its own.
    tags: tag of every class. Words with other tags have no label.
    text_format: format of the rows.
  """
  number = {tag: i for i, tag in enumerate(tags)}
  marks, segments = text_format.marks, []
  pieces = iter(encode_words([s.words for s in sentences], text_format.tokenizer))
  tokens, labels, places = [], [], []
  room = text_format.max_length - marks.count()
  for sentence in sentences:
    of_words = [next(pieces)[:room] for _ in sentence.words]
    places.append([])
    for part in cut(list(map(len, of_words)), room):
      row: list[Any] = []
      label = [[-1] * marks.num_before]
      for i in part:
        places[-1].append((len(tokens), marks.num_before + sum(map(len, row))))
        row.append(of_words[i])
        # -1: no label, for a tag that is not a class and for the word's other tokens.
        known = -1 if sentence.tags is None else number.get(sentence.tags[i], -1)
        label.append([known] + [-1] * (len(of_words[i]) - 1))
      words = np.concatenate([np.zeros(0, int), *row])
      tokens.append(marks.enclose(words))
      segments.append(marks.segments(len(words), None, text_format.segments))
      labels.append(np.concatenate([*label, [-1] * marks.num_after]).astype(np.int32))
  return Labeled(Rows(tokens, segments, labels), places)


def encode_words(sentences: Sequence[Sequence[str]], tokenizer: Tokenizer) -> list[np.ndarray]:
  """Returns the token ids of every word, encoded as in running text: int32 [length >= 1] each.

  A word that the tokenizer drops is [UNK], or [MASK] if there is no [UNK].

  Args:
    sentences: words by sentence; within a sentence, words are separated by a space.
    tokenizer: tokenizer of the pretrained run.
  Returns:
    One array per word, in the order of the sentences.
  """
  unknown = [tokenizer.unk_id if tokenizer.unk_id >= 0 else tokenizer.mask_id]
  first = iter(tokenizer.encode([words[0] for words in sentences if words]))
  others = iter(following.encode_after(
      tokenizer, [" " + word for words in sentences for word in words[1:]]))
  encoded = [next(others if i else first) for words in sentences for i in range(len(words))]
  return [ids if len(ids) else np.array(unknown, np.int32) for ids in encoded]


def cut(lengths: Sequence[int], room: int) -> list[list[int]]:
  """Returns the indices of the words in every row of a sentence: as many as fit, in order.

  Args:
    lengths: number of tokens of every word.
    room: tokens of words per row; a longer word gets a row of its own.
  """
  parts, used = [[]], 0
  for i, length in enumerate(lengths):
    if used + length > room and parts[-1]:
      parts.append([])
      used = 0
    parts[-1].append(i)
    used += length
  return parts


# ----------------------------------------------------------------- results


def collect(outputs: Sequence[np.ndarray], places: Places, tags: Sequence[str]
            ) -> list[list[str]]:
  """Returns the predicted tags of the words, by sentence.

  Args:
    outputs: predicted class of every token, int32 [length] for every row.
    places: places of the words in the rows, as in `Labeled`.
    tags: tag of every class.
  """
  return [[tags[outputs[row][token]] for row, token in words] for words in places]


def score_outputs(sentences: Sequence[Sentence], places: Places, tags: Sequence[str],
                  outputs: Sequence[np.ndarray]) -> dict[str, float]:
  """Returns the metrics of predicted classes, by name.

  Args:
    sentences: sentences with their right tags.
    places, tags, outputs: see `collect`.
  """
  return score([s.tags for s in sentences], collect(outputs, places, tags))


def score(expected: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, float]:
  """Returns the F1 of entities, as in CoNLL 2003 (Tjong Kim Sang and De Meulder 2003).

  An entity is right if its words and its type are.

  Args:
    expected: right tags of the words, by sentence.
    found: predicted tags of the words, by sentence.
  """
  hits = num_found = num_expected = 0
  for one, other in zip(expected, found, strict=True):
    one, other = entities(one), entities(other)
    hits += len(one & other)
    num_expected += len(one)
    num_found += len(other)
  return {"f1": harmonic_mean(hits, num_found, num_expected)}


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
  """Returns (type, index of the first word, index of the word after the last) of every entity.

  An I-TYPE that does not follow an entity of its type begins one, as in conlleval. The type of a
  bare B or I is ''.

  Args:
    tags: BIO tags of a sentence's words.
  """
  spans, kind, start = set(), None, 0
  for i, tag in enumerate([*tags, "O"]):
    if kind is not None and tag != (f"I-{kind}" if kind else "I"):
      spans.add((kind, start, i))
      kind = None
    if tag != "O" and kind is None:
      kind, start = tag[2:], i
  return spans


def write(sentences: Sequence[Sentence], places: Places, tags: Sequence[str], name: str,
          outputs: Sequence[np.ndarray], folder: pathlib.Path) -> None:
  """Writes a CoNLL file for conlleval: word, right tag if it is known, predicted tag.

  Args:
    sentences: sentences of the set.
    places, tags, outputs: see `collect`.
    name: name of the set, and of the file without .conll.
    folder: folder of the file.
  """
  lines = []
  for sentence, found in zip(sentences, collect(outputs, places, tags), strict=True):
    right = [] if sentence.tags is None else [sentence.tags]
    lines += [" ".join(cells) for cells in zip(sentence.words, *right, found, strict=True)]
    lines.append("")
  (folder / f"{name}.conll").write_text("\n".join(lines) + "\n", "utf-8")
