"""Guesses of masked words: the tokens that a model expects in place of [MASK].

    trained = load_trained(pathlib.Path("runs/demo"))
    for guesses in fill(trained, ["The cat sees the [MASK]."])[0]:
      print(guesses[0].token, guesses[0].probability)

Axes: B rows, L length, M masks, V vocabulary.
"""

import functools
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from bertgpt.config import families
from bertgpt.data.batches import buckets
from bertgpt.data.tokens import marks
from bertgpt.data.tokens.following import MASK, encode_template
from bertgpt.data.tokens.tokenizers import Tokenizer
from bertgpt.errors import ConfigError
from bertgpt.hub import opening
from bertgpt.inference import arguments
from bertgpt.models import Inputs, precision
from bertgpt.runs import trained as trained_lib
from bertgpt.runs import word_tables
from bertgpt.runs.trained import Trained


class Guess(NamedTuple):
  """A token in place of a mask.

  Attributes:
    token: text of the token; it begins with '##' if the token continues a word.
    probability: from 0 to 1, over all tokens including special ones.
  """

  token: str
  probability: float


def fill(trained: Trained, texts: Iterable[str], top: int = 5) -> list[list[list[Guess]]]:
  """Guesses the masked words of texts.

  Special tokens are never guessed.

  Args:
    trained: the model.
    texts: texts, each with [MASK] in place of one word or more; the masks of a text are guessed
      independently, each with the others masked.
    top: guesses per mask; fewer are returned if the vocabulary has fewer.
  Returns:
    Text -> mask, in the order of the text -> guesses, the likeliest first.
  Raises:
    ConfigError: the model cannot fill in words, a text has no mask, or it has more tokens than the
      model has positions; `texts` is a single one, or `top` is not positive.
  """
  texts = arguments.as_list(texts)
  arguments.check_at_least(1, top=top)
  trained_lib.require(trained, "fill", "fill in words", "Continue texts with `bertgpt generate`")
  trained = word_tables.extend_vocabulary_to(trained, texts)
  tokenizer = trained.tokenizer
  rows = [encode_row(trained, text) for text in texts]
  trained_lib.note_untrained(trained, trained_lib.count_untrained(trained, rows), len(rows))
  trained = trained._replace(params=jax.device_put(trained.params))
  continues_V = tokenizer.continues_word()
  return [[top_guesses(tokenizer, p_V, continues_V, top)
           for p_V in predict_masked(trained, row, np.flatnonzero(row == tokenizer.mask_id))]
          for row in rows]


def encode_row(trained: Trained, text: str) -> np.ndarray:
  """Returns the row of a text with masks, between [CLS] and [SEP].

  Args:
    trained: the model.
    text: text with [MASK] in place of one word or more.
  Returns:
    int32 [N].
  Raises:
    ConfigError: the text has no mask, or more tokens than the model has positions.
  """
  tokenizer, positions = trained.tokenizer, trained.config.model.max_positions
  around = marks.of_encoder(tokenizer, families.find(trained.config).cls_last)
  row = around.enclose(encode_template(tokenizer, text))
  if tokenizer.mask_id not in row:
    raise ConfigError(f"{text[:40]!r}: has no {MASK}. Write {MASK} in place of a word")
  if len(row) > positions:
    raise ConfigError(f"{text[:40]!r}: its {len(row)} tokens exceed the model's {positions} "
                      "positions. Shorten it")
  return row


def top_guesses(tokenizer: Tokenizer, p_V: np.ndarray, continues_V: np.ndarray,
                top: int) -> list[Guess]:
  """Returns the likeliest guesses of one mask.

  Args:
    tokenizer: tokenizer of the model.
    p_V: float [vocab_size], the probability of every token.
    continues_V: bool [vocab_size], result of `Tokenizer.continues_word`.
    top: number of guesses.
  """
  return [Guess(name_token(tokenizer, token, continues_V[token]), float(p_V[token]))
          for token in likeliest(tokenizer, p_V, top)]


def predict_masked(trained: Trained, tokens: np.ndarray,
                   positions: Sequence[int] | np.ndarray) -> np.ndarray:
  """Returns the distribution of the token at each position, with [MASK] at all these positions.

  Args:
    trained: the model.
    tokens: int [N], one sequence with its [CLS] and [SEP].
    positions: indices into `tokens`, M of them.
  Returns:
    float32 [M, vocab_size] probabilities.
  """
  tokens = np.array(tokens, np.int32)
  # A model that was trained without [MASK] does not read the token that it guesses.
  tokens[list(positions)] = max(trained.tokenizer.mask_id, 0)
  length = buckets.bucket(len(tokens), trained.config.model.max_positions)
  predict_1M = np.array([positions], np.int32)
  with precision.matmul_precision(trained.config):
    p_MV = _predict(trained.model, trained.params, buckets.pad([tokens], length, 1),
                    np.array([len(tokens)]), predict_1M)[0]
  return np.asarray(p_MV)


def likeliest(tokenizer: Tokenizer, p_V: np.ndarray, top: int) -> np.ndarray:
  """Returns the likeliest tokens that a reader can see, the likeliest first.

  Special and unused tokens are left out. So is [UNK]: training predicts it, but it is not a word.

  Args:
    tokenizer: tokenizer of the model.
    p_V: float [vocab_size], the probability of every token.
    top: number of tokens; fewer are returned if the vocabulary has fewer.
  Returns:
    int64 [top] ids.
  """
  shown = np.setdiff1d(np.arange(tokenizer.vocab_size), list(tokenizer.hidden_ids))
  return shown[np.argsort(-p_V[shown], kind="stable")[:top]]


@functools.partial(jax.jit, static_argnums=0)
def _predict(model, params, tokens_BL, lengths_B, predict_BM):
  cls_last = families.FAMILIES[model.config.family].cls_last
  inputs = Inputs.of_texts(tokens_BL, lengths_B, cls_last)._replace(predict_positions_BK=predict_BM)
  logits_BMV = model.apply({"params": params}, inputs, method="predict").logits()
  return jax.nn.softmax(logits_BMV[..., :model.config.vocab_size])


def name_token(tokenizer: Tokenizer, token: int, continues: bool) -> str:
  """Returns the text of a token.

  Args:
    tokenizer: tokenizer of the model.
    token: id.
    continues: whether the token continues a word; its text then begins with ##, as in a WordPiece
      vocabulary.
  Returns:
    Its text; its name in the vocabulary if that is white space or a part of a character.
  """
  text = tokenizer.decode([token]).strip()
  if continues and tokenizer.kind == "wordpiece":
    text = text.removeprefix("##")
  if not text or "\N{REPLACEMENT CHARACTER}" in text:
    return tokenizer.pieces[token]
  return f"##{text}" if continues else text


# ------------------------------------------------------------------ bertgpt fill


def run(path: pathlib.Path, text: str, top: int,
        dtype: str = trained_lib.SCORING_DTYPE) -> list[str]:
  """Returns the lines of `bertgpt fill`: one per mask, with its guesses and their probabilities.

  Args:
    path: folder of the run, or of a model of `transformers`.
    text: text with [MASK] in place of one word or more.
    top: guesses per mask.
    dtype: see `runs.trained.make_trained`.
  Raises:
    ConfigError: there is no model in `path`; see also `fill`.
    DataError: see `hub.opening`.
  """
  trained = opening.open_model(path, dtype=dtype)
  masks, = fill(trained, [text], top)
  trained_lib.note_dtype(trained.config)
  return [f"{MASK} {i}: " + ", ".join(f"{token} {p:.1%}" for token, p in guesses)
          for i, guesses in enumerate(masks, 1)]
