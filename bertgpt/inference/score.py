"""Log-probabilities of the tokens of texts.

    trained = load_trained(pathlib.Path("runs/demo"))
    for logp in score(trained, ["The cat sees the dog.", "The cat dog the sees."]):
      print(logp.sum())
"""

from collections.abc import Iterable, Sequence

import numpy as np

from bertgpt.errors import ConfigError
from bertgpt.inference import arguments, scorers
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.trained import Trained

SMALLEST_WINDOW = 4  # [CLS], [SEP], and two tokens.


def score(trained: Trained, texts: Iterable[str], *, window: int = 0, stride: int = 0,
          batch_size: int = 8) -> list[np.ndarray]:
  """Returns the log-probabilities of the tokens of every text.

  A decoder scores every token given the tokens before it; the first one follows the end of another
  document, or the token with which an imported model begins a text. An encoder scores every token
  given all the others, with the token masked (Salazar et al. 2020, arXiv:1910.14659); its scores
  compare texts, but do not add up to the log-probability of a text.

  Args:
    trained: the model.
    texts: texts of any length.
    window: maximum number of tokens that the model sees together; 0: as in training.
    stride: tokens scored with each window except the first of a text; 0: half a window. Encoders
      do not use it: they cut long texts into windows that do not overlap.
    batch_size: rows per batch.
  Returns:
    float32 [N] each, in nats, for the N tokens `trained.tokenizer.encode([text])[0]`. The first
    token is left out if the model is a decoder without an end-of-document token.
  Raises:
    ConfigError: the window or the stride does not fit, or the model cannot score texts; `texts` is
      a single one, or `batch_size` is not positive.
  """
  texts = arguments.as_list(texts)
  arguments.check_at_least(1, batch_size=batch_size)
  window, stride = choose_window(trained, window, stride)
  return score_tokens(trained, trained.tokenizer.encode(texts), window, stride, batch_size)


def score_tokens(trained: Trained, encoded: Sequence[np.ndarray], window: int, stride: int,
                 batch_size: int) -> list[np.ndarray]:
  """Returns the result of `score` for encoded texts.

  Args:
    trained: the model.
    encoded: int [N] each.
    window, stride: result of `choose_window`.
    batch_size: rows per batch.
  """
  scorer = scorers.find(trained)
  cut = [scorer.cut(trained, ids, window, stride) for ids in encoded]
  logp = iter(scorer.score(trained, [row for rows in cut for row in rows], batch_size))
  nothing = np.zeros(0, np.float32)
  return [np.concatenate([nothing, *(next(logp) for _ in rows)]) for rows in cut]


def choose_window(trained: Trained, window: int = 0, stride: int = 0) -> tuple[int, int]:
  """Returns the window and the stride, in tokens, with their defaults for a model.

  Args:
    trained: the model.
    window: maximum number of tokens that the model sees together; 0: the longest rows of training.
    stride: tokens scored with each window; 0: half a window.
  Raises:
    ConfigError: the window exceeds the model's positions, or the stride leaves no context.
  """
  most, window = trained.config.model.max_positions, window or trained_lib.longest_row(trained)
  if not SMALLEST_WINDOW <= window <= most:
    raise ConfigError(f"--window={window}: the model has {most} positions. Give {SMALLEST_WINDOW} "
                      f"to {most}")
  stride = stride or window // 2
  if stride >= window:
    raise ConfigError(f"--stride={stride}: must be less than the window of {window} tokens")
  return window, stride
