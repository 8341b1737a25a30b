"""bertgpt.data.tokens.offsets: the ids are those of `encode`, and each has its text."""

import types

import numpy as np
import pytest

from bertgpt.data.tokens import offsets, training

TEXT = ["The café finds 3 “Über” dogs —  in U.S.  now!", "", " a\tb 今天 x", "plain words here"]


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


def test_special_tokens_in_a_text_are_text(tokenizer):
  (ids, _), = offsets.encode_with_offsets(tokenizer, ["a [SEP] b"])
  assert tokenizer.sep_id not in ids
