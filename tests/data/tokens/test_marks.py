"""bertgpt.data.tokens.marks: rows of one text and of two, as in Devlin et al. 2018, figure 2."""

import types

import numpy as np
import pytest

from bertgpt.config.families import FAMILIES
from bertgpt.data.tokens import marks


def test_texts_are_enclosed():
  around = marks.of_encoder(types.SimpleNamespace(cls_id=2, sep_id=3, num_separators=1))
  a, b, nothing = np.array([10, 11]), np.array([12]), np.zeros(0, np.int64)
  for row, expected in ((around.enclose(a), [2, 10, 11, 3]),
                        (around.enclose(nothing), [2, 3]),
                        (around.enclose(a, b), [2, 10, 11, 3, 12, 3]),
                        (around.enclose(a, nothing), [2, 10, 11, 3, 3]),
                        (marks.Marks(7, (8,), 9).enclose(a, b), [7, 10, 11, 8, 12, 9])):
    assert row.tolist() == expected and row.dtype == np.int32


@pytest.mark.parametrize("family, is_tuned, expected", [
    ("bert", False, ([2], [3], [3], [])), ("bert", True, ([2], [3], [3], [])),
    ("xlnet", True, ([], [3], [3], [2])),
    ("gpt", False, ([7], [], [], [])), ("gpt", True, ([9], [10], [11], []))])
def test_the_marks_of_a_family(family, is_tuned, expected):
  """Those of a fine-tuned decoder follow the 9 tokens of its tokenizer."""
  tokenizer = types.SimpleNamespace(cls_id=2, sep_id=3, num_separators=1, vocab_size=9)
  around = marks.of_family(FAMILIES[family], tokenizer, is_tuned=is_tuned, bos_id=7)
  first, between, last, end = expected
  a, b = np.array([0, 0]), np.array([1])
  assert around.enclose(a, b).tolist() == [*first, *a, *between, *b, *last, *end]
