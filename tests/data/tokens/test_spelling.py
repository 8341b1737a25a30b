"""bertgpt.data.tokens.spelling: the characters of words, as bilm-tf numbers them."""

import numpy as np
import pytest

from bertgpt import config as config_lib
from bertgpt.data.tokens import spelling, training

TEXTS = ["The cat sees 7 dogs.", "the dog's café, the cat!", "naïve 你好"]


@pytest.fixture(scope="module")
def tokenizer():
  config = config_lib.base().tokenizer
  config.update(kind="words", vocab_size=20, lowercase=False)
  return training.train_tokenizer(config, TEXTS)


@pytest.mark.parametrize("word, chars", [
    ("cat", [258, 99, 97, 116, 259, *[260] * 45]),
    ("é", [258, 0xC3, 0xA9, 259, *[260] * 46]),
    ("x" * 48, [258, *[120] * 48, 259]), ("x" * 200, [258, *[120] * 48, 259]),
    ("", [258, 259, *[260] * 48]), ("\ud800", [258, ord("?"), 259, *[260] * 47])])
def test_a_word_is_its_bytes_between_marks(word, chars):
  assert spelling.spell([word]).tolist() == [chars]


def test_the_table_of_a_tokenizer_has_its_words_and_marks(tokenizer):
  table = spelling.make_table(tokenizer)
  assert table.shape == (20, 50)
  for i, piece in enumerate(tokenizer.pieces):
    if i not in tokenizer.special_ids and i != tokenizer.unk_id:
      found = bytes(c for c in table[i].tolist() if c < 256)
      assert found == piece.encode()
  assert table[tokenizer.cls_id, :4].tolist() == [258, 256, 259, 260]
  assert table[tokenizer.sep_id, :4].tolist() == [258, 257, 259, 260]
  assert table[tokenizer.unk_id, :7].tolist() == [258, *b"<UNK>", 259]
  assert (table[[tokenizer.pad_id, tokenizer.mask_id, tokenizer.eod_id]] == 260).all()


def test_words_are_the_most_frequent_ones(tokenizer):
  """"the" and "cat" occur twice, 13 words once; 6 ids are special, so one word is left out."""
  words = tokenizer.pieces[6:]
  assert set(words[:2]) == {"the", "cat"}
  assert len(set(words)) == 14
  ids = tokenizer.encode(["the unheard cat [MASK]"])[0]
  pieces = [tokenizer.pieces[i] for i in ids]
  assert pieces[0] == "the" and pieces[1] == "[UNK]" and pieces[2] == "cat"
  assert tokenizer.mask_id not in ids
  assert tokenizer.decode(tokenizer.encode(["the cat"])[0]) == "the cat"
  assert not tokenizer.continues_word().any()
  assert np.array_equal(np.flatnonzero(~tokenizer.ends_word()),
                        sorted({*tokenizer.special_ids, tokenizer.unk_id}))
