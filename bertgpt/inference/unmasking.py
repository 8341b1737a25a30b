"""Continuations of texts by an encoder that fills in masks step by step.

A row is [CLS], the prompt, as many [MASK] as tokens are wanted, and [SEP]. In every step, the model
predicts all masked tokens, and some of them are revealed. With one token per step, drawn at
temperature 1 and revealed in random order, the text is a sample from the distribution whose
likelihood the objective `diffusion` bounds (Sahoo et al. 2024, MDLM, arXiv:2406.07524, 3.2).
Several tokens per step are drawn independently, which is faster and worse. At temperature 0 the
likeliest token of every position is taken, and the most certain ones are revealed first
(Ghazvininejad et al. 2019, Mask-Predict, arXiv:1904.09324; Nie et al. 2025, LLaDA,
arXiv:2502.09992, 2.4).

A draw depends only on (seed, row, position, step) and on the distribution. Special, unknown and
unused tokens are never drawn.

Axes: B rows, L length, M masks of a row, V vocabulary.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.data.batches import buckets
from bertgpt.data.tokens import marks
from bertgpt.inference.draws import UNRESTRICTED, Sampling, draw
from bertgpt.models import Inputs, precision
from bertgpt.runs.trained import Trained

NUM_MARKS = 2  # [CLS] and [SEP] around a text.


class Rows(NamedTuple):
  """Rows that hold texts to continue; a row without masks pads the batch.

  Attributes:
    tokens_BL: int32, with [MASK] where a token is wanted.
    lengths_B: integers, numbers of tokens, including both marks.
    starts_B: integers, the first masked positions.
    counts_B: integers, numbers of masks.
    steps_B: integers, steps in which they are revealed, at least 1.
    seeds_B: uint32, seeds of the draws of a row.
  """

  tokens_BL: jax.Array | np.ndarray
  lengths_B: jax.Array | np.ndarray
  starts_B: jax.Array | np.ndarray
  counts_B: jax.Array | np.ndarray
  steps_B: jax.Array | np.ndarray
  seeds_B: jax.Array | np.ndarray


def continue_prompts(trained: Trained, prompts: Sequence[np.ndarray],
                     max_tokens: int | Sequence[int], sampling: Sampling = UNRESTRICTED, *,
                     seed: int = 0, rows: Sequence[int] | np.ndarray | None = None,
                     batch_size: int = 8, steps: int | None = None) -> list[np.ndarray]:
  """Continues prompts with a given number of tokens.

  A program is compiled for every combination of (rows of a batch, bucket of the rows, bucket of the
  largest number of masks in a row).

  Args:
    trained: the model, with the ability "unmask".
    prompts: int [N] each, possibly empty.
    max_tokens: tokens added, for all prompts or for each; a prompt, its continuation and two marks
      must fit into the model's positions.
    sampling: settings of the draws.
    seed: seed of the draws.
    rows: ids of the prompts in the draws, below 2^32; None: 0, 1, ...
    batch_size: prompts per batch.
    steps: steps in which the tokens of a prompt are revealed, at most one per token; None: one per
      token.
  Returns:
    The tokens added to each prompt: int32 [max_tokens].
  Raises:
    ValueError: a prompt is too long.
  """
  if not len(prompts):
    return []
  tokenizer, most = trained.tokenizer, trained.config.model.max_positions
  starts = np.array([len(prompt) for prompt in prompts]) + 1  # [CLS] comes before the prompt.
  counts = np.broadcast_to(np.asarray(max_tokens), starts.shape)
  rows = np.asarray(range(len(prompts)) if rows is None else rows, np.uint32)
  enclose = marks.of_encoder(tokenizer).enclose
  whole = [enclose(np.array([*prompt, *[tokenizer.mask_id] * count], np.int32))
           for prompt, count in zip(prompts, counts, strict=True)]
  lengths = starts + counts + 1
  if lengths.max() > most:
    raise ValueError(f"a prompt, its continuation and two marks are {lengths.max()} tokens, which "
                     f"exceed the model's {most} positions")
  banned_V = np.isin(np.arange(trained.config.model.vocab_size), list(tokenizer.hidden_ids))
  params, added = jax.device_put(trained.params), [np.zeros(0, np.int32)] * len(prompts)
  for which, size in buckets.batches(lengths, batch_size, most):
    tokens_BL = buckets.pad([whole[i] for i in which], size, batch_size)
    fill = (0, len(tokens_BL) - len(which))  # Added rows have no masks.
    slots = buckets.bucket(int(counts[which].max()), size)
    steps_B = np.clip(counts[which], 1, steps)  # 1: also of a row without masks.
    with precision.matmul_precision(trained.config):
      batch = Rows(tokens_BL, np.pad(lengths[which], fill), np.pad(starts[which], fill),
                   np.pad(counts[which], fill), np.pad(steps_B, fill, constant_values=1),
                   np.pad(rows[which], fill))
      tokens_BL = jax.device_get(_unmask(trained.model, slots, params, batch, banned_V,
                                         jax.random.key(seed), sampling))
    for i, tokens_L in zip(which, tokens_BL, strict=False):
      added[i] = tokens_L[starts[i]:starts[i] + counts[i]]
  return added


@functools.partial(jax.jit, static_argnums=(0, 1))
def _unmask(model, slots, params, rows, banned_V, key, sampling):
  """Returns the tokens of `rows` without masks, [B, L]; `slots` is M."""
  num_rows, length = rows.tokens_BL.shape
  at_B1 = jnp.arange(num_rows)[:, None]
  places_BM = jnp.minimum(rows.starts_B[:, None] + jnp.arange(slots), length - 1)
  is_wanted_BM = jnp.arange(slots) < rows.counts_B[:, None]
  row_keys_B = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows.seeds_B)
  place_keys_BM = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(row_keys_B, places_BM)
  keys_of = lambda number: jax.vmap(jax.vmap(lambda k: jax.random.fold_in(k, number)))(
      place_keys_BM)
  order_BM = jax.vmap(jax.vmap(jax.random.uniform))(keys_of(0))  # The largest comes first.

  def reveal(step, state):
    tokens_BL, is_masked_BM = state
    inputs = Inputs.of_texts(tokens_BL, rows.lengths_B)._replace(predict_positions_BK=places_BM)
    logits_BMV = model.apply({"params": params}, inputs, method="predict").logits()
    logits_BMV = jnp.where(banned_V, -jnp.inf, logits_BMV[..., :model.config.vocab_size])
    drawn_BM = draw(logits_BMV.reshape(-1, logits_BMV.shape[-1]), sampling,
                    keys_of(step + 1).reshape(-1)).reshape(num_rows, slots)
    certainty_BM = jax.nn.log_softmax(logits_BMV).max(-1)
    score_BM = jnp.where(sampling.temperature == 0, certainty_BM, order_BM)
    rank_BM = jnp.argsort(jnp.argsort(jnp.where(is_masked_BM, -score_BM, jnp.inf), axis=1), axis=1)
    # After step s of S, s / S of the tokens are revealed, rounded down.
    done_B = lambda step: rows.counts_B * jnp.minimum(step, rows.steps_B) // rows.steps_B
    is_new_BM = is_masked_BM & (rank_BM < (done_B(step + 1) - done_B(step))[:, None])
    places = jnp.where(is_new_BM, places_BM, length)  # Others are dropped.
    tokens_BL = tokens_BL.at[at_B1, places].set(drawn_BM, mode="drop")
    return tokens_BL, is_masked_BM & ~is_new_BM

  start = rows.tokens_BL, is_wanted_BM
  return jax.lax.fori_loop(0, rows.steps_B.max(), reveal, start)[0]
