"""Masked words of a BERT: what it expects where a text says [MASK].

Axes: B rows, L length, M masks, V vocabulary.
"""

import functools
import pathlib
import re
from collections.abc import Sequence

import jax
import numpy as np

from bertgpt.data.batches import buckets
from bertgpt.data.tokens.tokenizers import Tokenizer
from bertgpt.errors import ConfigError
from bertgpt.models import Inputs
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.trained import Trained

MASK = "[MASK]"


def predict_masked(trained: Trained, tokens: np.ndarray, positions: Sequence[int]) -> np.ndarray:
  """The distribution of the token at each position, all of them seen as [MASK].

  Args:
    tokens: int [N], one sequence with its [CLS] and [SEP].
    positions: indices into `tokens`, M of them.
  Returns:
    float32 [M, vocab_size] probabilities.
  """
  tokens = np.array(tokens, np.int32)
  tokens[list(positions)] = trained.tokenizer.mask_id
  length = buckets.bucket(len(tokens), trained.config.model.max_positions)
  predict_1M = np.array([positions], np.int32)
  p_MV = _predict(trained.model, trained.params, buckets.pad([tokens], length, 1),
                  np.array([len(tokens)]), predict_1M)[0]
  return np.asarray(p_MV)


def likeliest(tokenizer: Tokenizer, p_V: np.ndarray, top: int) -> np.ndarray:
  """Returns the likeliest tokens that a reader can see, the likeliest first.

  Special tokens are left out, [UNK] among them: it is a target of the training, but no word.

  Args:
    p_V: float [vocab_size], the probability of every token.
    top: how many tokens; fewer are returned if the vocabulary has fewer.
  Returns:
    int64 [top] ids.
  """
  hidden = {*tokenizer.special_ids, tokenizer.unk_id} - {-1}
  shown = np.setdiff1d(np.arange(tokenizer.vocab_size), list(hidden))
  return shown[np.argsort(-p_V[shown], kind="stable")[:top]]


@functools.partial(jax.jit, static_argnums=0)
def _predict(model, params, tokens_BL, lengths_B, predict_BM):
  inputs = Inputs.of_texts(tokens_BL, lengths_B)._replace(predict_positions_BK=predict_BM)
  logits_BMV, _ = model.apply({"params": params}, inputs)
  return jax.nn.softmax(logits_BMV[..., :model.config.vocab_size])


def encode_template(tokenizer: Tokenizer, text: str) -> np.ndarray:
  """The ids of a text in which [MASK], or the tokenizer's name for it, stands for one token.

  Returns:
    int32 [N], without [CLS] and [SEP].
  """
  name = tokenizer.pieces[tokenizer.mask_id]
  first, *rest = re.split("|".join(map(re.escape, {MASK, name})), text)
  # The space before a mask is part of the word that it hides.
  parts = [tokenizer.encode([first.rstrip() if rest else first])[0]]
  for i, part in enumerate(rest):
    parts += [[tokenizer.mask_id],
              encode_after(tokenizer, part.rstrip() if i + 1 < len(rest) else part)]
  return np.concatenate(parts).astype(np.int32)


def encode_after(tokenizer: Tokenizer, text: str) -> np.ndarray:
  """The ids of a text that goes on without a space where it begins without one."""
  ids = tokenizer.encode([text])[0]
  if tokenizer.kind != "sentencepiece" or text[:1].isspace() or not len(ids):
    return ids
  # SentencePiece begins every text with a space, as a piece or in the first one.
  rest = tokenizer.pieces[ids[0]].removeprefix("\u2581")
  if not rest:
    return ids[1:]
  return np.array([tokenizer.pieces.index(rest), *ids[1:]]) if rest in tokenizer.pieces else ids


# ------------------------------------------------------------------ bertgpt fill


def run(path: pathlib.Path, text: str, top: int) -> list[str]:
  """What `bertgpt fill` prints: a line a mask, with the likeliest tokens and their probabilities.

  Raises:
    ConfigError: no BERT in `path`, no mask in the text, or more text than the model has positions.
  """
  trained = trained_lib.load_trained(path)
  trained_lib.require(trained, path, "fill", "fill in words; `bertgpt generate` continues a text")
  tokenizer, window = trained.tokenizer, trained.config.model.max_positions
  tokens = np.array([tokenizer.cls_id, *encode_template(tokenizer, text), tokenizer.sep_id])
  masks = np.flatnonzero(tokens == tokenizer.mask_id)
  if not len(masks):
    raise ConfigError(f"{text[:40]!r}: has no {MASK}; write {MASK} in place of a word")
  if len(tokens) > window:
    raise ConfigError(f"{text[:40]!r}: its {len(tokens)} tokens exceed the model's {window} "
                      "positions; shorten it")
  continues = tokenizer.continues_word()
  lines = []
  for i, p_V in enumerate(predict_masked(trained, tokens, masks), 1):
    guesses = [f"{name_token(tokenizer, t, continues[t])} {p_V[t]:.1%}"
               for t in likeliest(tokenizer, p_V, top)]
    lines.append(f"{MASK} {i}: {', '.join(guesses)}")
  return lines


def name_token(tokenizer: Tokenizer, token: int, continues: bool) -> str:
  """The text of a token; one that goes on a word is led by ##."""
  text = tokenizer.decode([token]).strip().removeprefix("##")
  return f"##{text}" if continues else text
