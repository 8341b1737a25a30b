"""bertgpt.data.tokens.marks: rows of one text and of two, as in Devlin et al. 2018, figure 2."""

import types

import numpy as np

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
