"""bertgpt.data.tokens.offsets: the ids are those of `encode`, and each has its text."""

import functools
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertgpt.data.tokens import offsets, training

TEXT = ["The café finds 3 “Über” dogs —  in U.S.  now!", "", " a\tb 今天 x", "plain words here"]


@functools.cache
def train(kind):
  config = types.SimpleNamespace(kind=kind, vocab_size=300 if kind == "bpe" else 60,
                                 lowercase=True, model_type="bpe")
  return training.train_tokenizer(config, ["the dogs find plain words here and there",
                                           "now café über in us 今天"] * 20)


@pytest.fixture(scope="module", params=["wordpiece", "sentencepiece", "bpe"])
def tokenizer(request):
  return train(request.param)


def test_ids_are_those_of_encode(tokenizer):
  for (ids, spans), expected in zip(offsets.encode_with_offsets(tokenizer, TEXT),
                                    tokenizer.encode(TEXT), strict=True):
    assert ids.tolist() == expected.tolist() and spans.shape == (len(ids), 2)


def test_tokens_cover_the_text_in_order(tokenizer):
  for text, (_, spans) in zip(TEXT, offsets.encode_with_offsets(tokenizer, TEXT), strict=True):
    assert (np.diff(spans[:, 0]) >= 0).all() and (spans[:, 0] <= spans[:, 1]).all()
    covered = {i for start, end in spans for i in range(start, end)}
    assert {i for i, c in enumerate(text) if not c.isspace()} <= covered


def test_every_token_says_what_its_characters_say(tokenizer):
  (ids, spans), = offsets.encode_with_offsets(tokenizer, TEXT[3:])
  for i, (start, end) in zip(ids, spans, strict=True):
    assert tokenizer.decode([i]).strip().removeprefix("##") == TEXT[3][start:end].strip()


MARKS = ["", "\u0301", "\u0323\u0302", "\u094d", "\u0947\u0902", "\u0651\u064b", "\u200d", "\u200b",
         "\ufe0f", "\u00ad"]
LETTERS = [*"abcxyz", "é", "ñ", "म", "न", "ح", "م", "д", "ß"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LETTERS), st.sampled_from(MARKS)), min_size=1))
def test_a_word_ends_after_its_last_mark(letters):
  """Google's get_final_text finds a word by its characters without marks, and so keeps them."""
  tokenizer = train("wordpiece")
  word = "".join(letter + mark for letter, mark in letters)
  text = f"now {word} {word},  the {word}"
  (ids, spans), = offsets.encode_with_offsets(tokenizer, [text])
  assert ids.tolist() == tokenizer.encode([text])[0].tolist()
  for start in (i for i in range(len(text)) if text.startswith(word, i)):
    end = start + len(word)
    inside = [span for span in spans.tolist() if start <= span[0] < end]
    assert (inside[0][0], inside[-1][1]) == (start, end)


@pytest.mark.parametrize("first", ["\u200b", "\u00ad", "\u200f\u200e", "\ufeff", "\u0301"])
def test_a_word_begins_with_its_invisible_characters(first):
  """Google's get_final_text then returns the whole word, with them."""
  text = f"{first}the cafe, now {first}cafe"
  for kind in ("wordpiece", "sentencepiece", "bpe"):
    (ids, spans), = offsets.encode_with_offsets(train(kind), [text])
    words = [text[start:end].strip() for start, end in spans]
    assert "".join(words) == text.replace(" ", "") or kind == "bpe"  # Its bytes share characters.
    covered = {i for start, end in spans for i in range(start, end)}
    assert covered >= {i for i, c in enumerate(text) if not c.isspace()}
    assert ids.tolist() == train(kind).encode([text])[0].tolist()


def test_dropped_characters_do_not_cross_white_space():
  text = "the \u0301 cat\u200b\u0301 \u0301"
  (_, spans), = offsets.encode_with_offsets(train("wordpiece"), [text])
  covered = {i for start, end in spans for i in range(start, end)}
  assert covered == {*range(3), *range(6, 11)}


def test_special_tokens_in_a_text_are_text(tokenizer):
  (ids, _), = offsets.encode_with_offsets(tokenizer, ["a [SEP] b"])
  assert tokenizer.sep_id not in ids
