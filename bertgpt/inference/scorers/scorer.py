"""The record of a way to score the tokens of texts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bertgpt.runs.trained import Trained


class Row(NamedTuple):
  """Tokens that a model sees together.

  Attributes:
    tokens: int [N], at most the window.
    first: the tokens before this index are context, which is seen and not scored.
  """

  tokens: np.ndarray
  first: int


class Joined(NamedTuple):
  """A text after its context, in one row.

  Attributes:
    row: the row, which scores the tokens of the text; not all of them if the window is too short.
    num_cut: tokens left out at the start of the context.
  """

  row: Row
  num_cut: int


class Scorer(NamedTuple):
  """One way to score the tokens of texts.

  Attributes:
    name: prefix of the perplexity that it gives, as in 'token_perplexity'.
    how: model -> short description of the context of a token, to follow a comma in a printed line.
    by_line: whether each line of a document is scored as a separate text.
    is_likelihood: whether the log-probabilities of the tokens add up to that of the text (chain
      rule), so that a value per word or per byte has a meaning.
    cut: (model, int [N] ids of a text, window, stride) -> rows that score every token once; the
      first token is left out if no token can be put before it.
    join: (model, int [C] ids of a context, which may be empty, int [N] ids of the text after it,
      window) -> `Joined`, with as much of the context as the window holds.
    score: (trained, rows, rows per batch) -> for every row, the log-probabilities of its tokens
      from `first` on, float32 [N - first], in nats.
    lengths: (model, window) -> fewest and most tokens of a text that is scored as a whole.
    describe: (number of rows, window, stride) -> description of the rows in words.
  """

  name: str
  how: Callable[[Trained], str]
  by_line: bool
  is_likelihood: bool
  cut: Callable[[Trained, np.ndarray, int, int], list[Row]]
  join: Callable[[Trained, np.ndarray, np.ndarray, int], Joined]
  score: Callable[[Trained, Sequence[Row], int], list[np.ndarray]]
  lengths: Callable[[Trained, int], tuple[int, int]]
  describe: Callable[[int, int, int], str]
