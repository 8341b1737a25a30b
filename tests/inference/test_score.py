"""bertgpt.inference.score: one log-probability per token, for texts of any length."""

import numpy as np
import pytest
from one_by_one import after, encode, instead

from bertgpt.errors import ConfigError
from bertgpt.inference.score import score

TEXTS = ["The cat sees the dog.", "", "A bird.", "The stone near the road. " * 8]


def test_tokens_are_scored_after_those_before_them(gpt):
  """In the first window these are all earlier tokens; later, the earlier tokens of a window."""
  found = score(gpt, TEXTS, window=16, stride=6, batch_size=3)
  for text, logp in zip(TEXTS, found, strict=True):
    tokens = [gpt.tokenizer.eod_id, *encode(gpt, text)]
    expected = []
    for i in range(1, len(tokens)):
      end = min(len(tokens), 16 + max(0, -(-(i + 1 - 16) // 6)) * 6)
      expected.append(after(gpt, tokens[max(0, end - 16):i])[tokens[i]])
    assert logp.dtype == np.float32 and logp.shape == (len(tokens) - 1,)
    np.testing.assert_allclose(logp, expected, atol=1e-5)


def test_tokens_are_scored_among_all_others(bert):
  found = score(bert, TEXTS, window=20, batch_size=3)
  for text, logp in zip(TEXTS, found, strict=True):
    tokens = encode(bert, text)
    pieces = [tokens[i:i + 18] for i in range(0, len(tokens), 18)]
    expected = [instead(bert, piece, at)[token] for piece in pieces
                for at, token in enumerate(piece)]
    assert logp.dtype == np.float32 and logp.shape == (len(tokens),)
    np.testing.assert_allclose(logp, expected, atol=1e-5)


@pytest.mark.parametrize("which", ["gpt", "bert"])
def test_scores_do_not_depend_on_the_texts_around(request, which):
  """Alone, in another order, or in other batch sizes, scores are equal up to rounding."""
  trained, order = request.getfixturevalue(which), [3, 0, 2, 1]
  whole = score(trained, TEXTS)
  for batch_size in (1, 3, 64):
    found = score(trained, [TEXTS[i] for i in order], batch_size=batch_size)
    for i, logp in zip(order, found, strict=True):
      np.testing.assert_allclose(logp, whole[i], atol=1e-5)
      np.testing.assert_allclose(score(trained, [TEXTS[i]])[0], whole[i], atol=1e-5)


@pytest.mark.parametrize("arguments, fragment", [
    ({"window": 65}, "--window=65: the model has 64 positions. Give 4 to 64"),
    ({"window": 3}, "--window=3"),
    ({"window": 8, "stride": 8}, "--stride=8: must be less than the window of 8 tokens"),
])
def test_windows_that_do_not_fit_are_refused(gpt, arguments, fragment):
  with pytest.raises(ConfigError, match=fragment):
    score(gpt, ["The cat."], **arguments)
