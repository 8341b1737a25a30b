"""bertgpt.data.tokens.lost: what a tokenizer cannot give back."""

import types

import pytest

from bertgpt.data.tokens import lost, training

SIZES = {"wordpiece": 44, "bpe": 270, "sentencepiece": 28}
TEXT = ["the The cafe café A a 2 fi cat saw é e à a dog", "and the dog saw it"] * 20
CASES = [
    ("bpe", False, []),
    ("sentencepiece", False, [lost.WHITE_SPACE, "letter forms"]),
    ("sentencepiece", True, ["case", lost.WHITE_SPACE, "letter forms"]),
    ("wordpiece", False, [lost.WHITE_SPACE]),
    ("wordpiece", True, ["case", "accents", lost.WHITE_SPACE]),
]


def train(kind, lowercase):
  config = types.SimpleNamespace(kind=kind, vocab_size=SIZES[kind], lowercase=lowercase,
                                 model_type="unigram")
  return training.train_tokenizer(config, TEXT)


@pytest.mark.parametrize("kind, lowercase, expected", CASES)
def test_what_is_lost_is_not_in_the_decoded_text(kind, lowercase, expected):
  tokenizer = train(kind, lowercase)
  assert lost.find_lost(tokenizer) == expected
  text = "The  café saw \na ² cat"
  assert (tokenizer.decode(tokenizer.encode([text])[0]) == text) == (not expected)
  is_known = lost.describe_lost(tokenizer) == "comparable between tokenizers"
  assert is_known == (not expected)


def test_a_phrase_lists_what_is_lost():
  assert lost.describe_lost(train("wordpiece", True)) == (
      "comparable only with tokenizers that lose case, accents and white space")
  assert lost.describe_lost(train("wordpiece", False)) == (
      "comparable only with tokenizers that lose white space")


def test_the_sentences_of_a_corpus_lose_white_space():
  """Unless the tokenizer keeps it, the spaces between them are not encoded."""
  kept = types.SimpleNamespace(encode=train("bpe", False).encode, unk_id=-1, keeps_space=False)
  assert lost.find_lost(kept) == [] and lost.find_lost(kept, True) == [lost.WHITE_SPACE]
  assert lost.find_lost(train("bpe", False), True) == []
