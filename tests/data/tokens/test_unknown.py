"""bertgpt.data.tokens.unknown: the text behind unknown tokens."""

import types

import pytest

from bertgpt.data.tokens import training, unknown


def train(kind):
  config = types.SimpleNamespace(kind=kind, vocab_size=SIZES[kind],
                                 lowercase=True, model_type="unigram")
  return training.train_tokenizer(config, ["the cat saw a dog and the dog saw it"] * 20)


SIZES = {"wordpiece": 30, "bpe": 270, "sentencepiece": 21, "words": 12}
TEXTS = ["the cat", "the \u1e05\u0e01\u0e02 saw \u0e03", "", "\u0e04" * 150 + " dog"]


@pytest.mark.parametrize("kind, expected", [
    ("wordpiece", [0, 3 + 3 + 3 + 3, 0, 450]), ("bpe", [0, 0, 0, 0])])
def test_bytes_of_unknown_words(kind, expected):
  tokenizer = train(kind)
  assert [unknown.count_bytes(tokenizer, [text], tokenizer.encode([text]))
          for text in TEXTS] == expected
  encoded = tokenizer.encode(TEXTS)
  assert unknown.count_bytes(tokenizer, TEXTS, encoded) == sum(expected)
  assert unknown.count_tokens(tokenizer, encoded) == (3 if kind == "wordpiece" else 0)


def test_characters_that_sentencepiece_lacks():
  tokenizer = train("sentencepiece")
  text = "the \u0e01\u0e02 saw \u0e03"
  assert unknown.count_bytes(tokenizer, [text], tokenizer.encode([text])) == 9


def test_unknown_words_are_counted_and_not_noted():
  """A model that reads such words by their characters knows them all."""
  tokenizer = train("words")
  encoded = tokenizer.encode(["the zebra"])
  assert tokenizer.unk_id in encoded[0]
  assert unknown.count_bytes(tokenizer, ["the zebra"], encoded) == 5
  assert unknown.count_tokens(tokenizer, encoded) == 0


def test_only_a_large_share_is_described():
  assert unknown.describe(5, 100, "it") == unknown.describe(0, 0, "it") == ""
  assert unknown.describe(60, 100, "the tokens of a.txt").startswith("60% of the tokens of a.txt ")
