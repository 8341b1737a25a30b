"""bertgpt.inference.long_documents: together, the parts of a document have its ids."""

import random

import numpy as np
import pytest
import small_runs

from bertgpt import config as config_lib
from bertgpt.data.tokens import training
from bertgpt.inference import long_documents, suites

SEPARATORS = ["\n", "\n\n", "\n  ", " \n", "\n\n\n\t", "\n\u3000", "\u2028\n"]


def make_text():
  rng = random.Random(0)
  lines = [line for line in small_runs.make_text(40).split("\n") if line]
  return "".join(line + rng.choice(SEPARATORS) for line in lines)


@pytest.mark.parametrize("kind, vocab_size", [("sentencepiece", 45), ("wordpiece", 100),
                                              ("bpe", 330)])
def test_ids_of_parts_are_those_of_the_whole(monkeypatch, kind, vocab_size):
  monkeypatch.setattr(long_documents, "PART_CHARS", 150)
  config = config_lib.base().tokenizer
  config.update(kind=kind, vocab_size=vocab_size)
  text = make_text()
  tokenizer = training.train_tokenizer(config, [text])
  lines = [line + "\n" for line in text.split("\n")[:-1]] + [text.split("\n")[-1]]
  found = list(long_documents.cut_document(filter(None, lines), tokenizer))
  assert "".join(part.texts[0] for part in found) == text and len(found) > 10
  assert [part.is_last for part in found] == [False] * (len(found) - 1) + [True]
  assert sum(part.entries for part in found) == len([line for line in lines if line])
  ids = tokenizer.encode([part.texts[0] for part in found])
  assert np.concatenate(ids).tolist() == tokenizer.encode([text])[0].tolist()


def wiki(sentences):
  """Lines like those of wiki.test.tokens, which begin and end with a space."""
  lines = [f" = {s.split()[0]} = \n" if i % 5 == 1 else f" {s.replace('.', ' .')} \n"
           for i, s in enumerate(sentences)]
  return [line for text in lines for line in (" \n", text)]


def code(sentences):
  return [f"{'    ' * (1 + i % 3)}{s}\n" + "\n" * (i % 4 == 0) for i, s in enumerate(sentences)]


def prose(sentences):
  """Paragraphs are indented with two ideographic spaces."""
  return [f"\u3000\u3000{s.replace(' ', '')}\u3002\n" for s in sentences]


@pytest.mark.parametrize("make_lines", [wiki, code, prose])
@pytest.mark.parametrize("kind, vocab_size", [("sentencepiece", 45), ("wordpiece", 100),
                                              ("bpe", 330)])
def test_lines_that_all_begin_with_white_space_are_cut(monkeypatch, kind, vocab_size, make_lines):
  monkeypatch.setattr(long_documents, "PART_CHARS", 150)
  config = config_lib.base().tokenizer
  config.update(kind=kind, vocab_size=vocab_size)
  source = "".join(make_lines([s for s in small_runs.make_text(60).split("\n") if s]))
  lines = source.splitlines(keepends=True)
  detokenizer = "wikitext" if make_lines is wiki else ""
  detokenize = lambda text: suites.detokenize(text, detokenizer)
  text = detokenize(source)
  tokenizer = training.train_tokenizer(config, [text])
  found = list(long_documents.cut_document(lines, tokenizer, detokenize))
  assert len(found) > 8 and max(len(part.texts[0]) for part in found) < 600
  assert "".join(part.source for part in found) == source
  assert "".join(part.texts[0] for part in found) == text
  ids = tokenizer.encode([part.texts[0] for part in found])
  assert np.concatenate(ids).tolist() == tokenizer.encode([text])[0].tolist()
  done = 0
  for i, part in enumerate(found[:-1], 1):  # Later parts do not depend on earlier ones.
    done += part.entries
    if i % 4 == 1:
      again = long_documents.cut_document(lines[done:], tokenizer, detokenize, part.carry)
      assert list(again) == found[i:]


def test_a_token_that_reaches_over_line_ends_is_not_cut(monkeypatch):
  """A tokenizer that does not split text into words has tokens that span lines."""
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

  from bertgpt.data.tokens import tokenizers
  monkeypatch.setattr(long_documents, "PART_CHARS", 20)
  library = Tokenizer(models.BPE())
  library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  library.decoder = decoders.ByteLevel()
  text = "one two\nthree four\n" * 30 + "five six\nseven\n" * 20
  library.train_from_iterator([text], trainers.BpeTrainer(
      vocab_size=330, max_token_length=16, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
  tokenizer = tokenizers.ByteBPE(library.to_str().encode())
  whole = tokenizer.encode([text])[0].tolist()
  assert any("\n" in tokenizer.decode([i]).strip("\n") for i in whole)
  lines = [line + "\n" for line in text.split("\n")[:-1]]
  found = list(long_documents.cut_document(lines, tokenizer))
  assert np.concatenate(tokenizer.encode([part.texts[0] for part in found])).tolist() == whole


def test_nothing_gives_no_part(gpt):
  assert list(long_documents.cut_document([], gpt.tokenizer)) == []
