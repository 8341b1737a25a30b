"""Continuations of a GPT, with a cache of keys and values.

A draw is a function of (seed, row, position) and of the distribution alone, where a row stands for
a prompt and the number of its sample: a continuation does not depend on what else is in the batch.

Axes: B rows, S slots of a row, V vocabulary.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.data.batches import buckets
from bertgpt.errors import ConfigError
from bertgpt.models import layers
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.trained import Trained

DEFAULT_TOKENS = 100


class Sampling(NamedTuple):
  """How a token is drawn.

  Attributes:
    temperature: the logits are divided by it; 0 takes the likeliest token.
    top_k: draw among the k likeliest; 0: among all.
    top_p: draw among the fewest of these that together have this share of their probability
      (Holtzman et al. 2020, arXiv:1904.09751).
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0


class Batch(NamedTuple):
  """Rows that are continued together.

  Attributes:
    tokens: int32 [B, S]; what is beyond the prompt is written over.
    lengths: int [B], tokens of the prompts.
    ends: int [B], the most tokens that a row may come to have.
    rows: uint32 [B], numbers that stand for the rows in the draws.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  ends: np.ndarray
  rows: np.ndarray


PLAIN, GREEDY = Sampling(), Sampling(temperature=0.0)


def continue_prompts(trained: Trained, prompts: Sequence[np.ndarray],
                     max_tokens: int | Sequence[int], sampling: Sampling = PLAIN, *,
                     seed: int = 0, rows: Sequence[int] | None = None,
                     batch_size: int = 8) -> list[np.ndarray]:
  """Goes on with prompts until a document ends or `max_tokens` are added.

  Compiled once for every (rows of a batch, bucket of its prompts, bucket of the longest with what
  is added).

  Args:
    prompts: int [N] each, of at least one token.
    max_tokens: of all prompts, or of each; with it they must fit into the model's positions.
    rows: numbers below 2^32 that stand for the prompts in the draws; default: 0, 1, ...
    batch_size: prompts at a time.
  Returns:
    What was added to each: int32, without the end-of-document token that stopped it.
  Raises:
    ValueError: an empty prompt, or one that is too long.
  """
  window = trained.config.model.max_positions
  lengths = np.array([len(prompt) for prompt in prompts])
  ends = lengths + max_tokens
  if lengths.min() == 0:
    raise ValueError("the prompt is empty; [end of document] starts a new one")
  if ends.max() > window:
    raise ValueError(f"a prompt and what is added are {ends.max()} tokens, which exceed the "
                     f"model's {window} positions")
  rows = np.asarray(range(len(prompts)) if rows is None else rows, np.uint32)
  params, added = jax.device_put(trained.params), [np.zeros(0, np.int32)] * len(prompts)
  for which, prompt_size in buckets.batches(lengths, batch_size, window):
    slots = buckets.bucket(int(ends[which].max()), window)
    tokens_BS = buckets.pad([prompts[i] for i in which], slots, batch_size)
    fill = (0, len(tokens_BS) - len(which))  # Rows that are at their end when they begin.
    starts_B = np.pad(lengths[which], fill, constant_values=1)
    ends_B = np.pad(ends[which], fill, constant_values=1)
    batch = Batch(tokens_BS, starts_B, ends_B, np.pad(rows[which], fill))
    tokens_BS, lengths_B = jax.device_get(_continue(
        trained.model, prompt_size, params, batch, trained.tokenizer.eod_id,
        jax.random.key(seed), sampling))
    for i, tokens_S, start, end in zip(which, tokens_BS, starts_B, lengths_B, strict=False):
      added[i] = tokens_S[start:end]
  return added


@functools.partial(jax.jit, static_argnums=(0, 1))
def _continue(model, prompt_size, params, batch, stop_id, key, sampling):
  """(tokens_BS with what is added, lengths_B of all)."""
  tokens_BS, lengths_B, ends_B, rows_B = batch
  num_rows, slots = tokens_BS.shape
  apply = functools.partial(model.apply, {"params": params})
  key_of = jax.vmap(lambda row, at: jax.random.fold_in(jax.random.fold_in(key, row), at))

  def add(state):
    tokens_BS, cache, lengths_B, is_done_B = state
    last_B1 = lengths_B[:, None] - 1
    x_B1D, cache = apply(jnp.take_along_axis(tokens_BS, last_B1, axis=1), last_B1, cache,
                         method="extend")
    logits_BV = apply(x_B1D[:, 0], method="logits")[:, :model.config.vocab_size]
    drawn_B = draw(logits_BV, sampling, key_of(rows_B, lengths_B))
    is_done_B |= drawn_B == stop_id
    at_B = jnp.where(is_done_B, slots, lengths_B)
    tokens_BS = tokens_BS.at[jnp.arange(num_rows), at_B].set(drawn_B, mode="drop")
    lengths_B += ~is_done_B
    return tokens_BS, cache, lengths_B, is_done_B | (lengths_B >= ends_B)

  # What follows a shorter prompt is written over before it is seen.
  positions_BP = jnp.broadcast_to(jnp.arange(prompt_size), (num_rows, prompt_size))
  _, cache = apply(tokens_BS[:, :prompt_size], positions_BP,
                   layers.make_cache(model.config, num_rows, slots), method="extend")
  tokens_BS, _, lengths_B, _ = jax.lax.while_loop(
      lambda state: ~state[-1].all(), add, (tokens_BS, cache, lengths_B, lengths_B >= ends_B))
  return tokens_BS, lengths_B


def draw(logits_BV: jax.Array, sampling: Sampling, keys_B: jax.Array) -> jax.Array:
  """A token for every row of logits: int32 [B]."""
  temperature, top_k, top_p = (jnp.asarray(x) for x in sampling)

  def pick(logits_BV):
    logits_BV = jax.lax.cond((top_k > 0) | (top_p < 1), lambda x: restrict(x, top_k, top_p),
                             lambda x: x, logits_BV / temperature)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV)

  return jax.lax.cond(temperature == 0, lambda x: x.argmax(-1), pick, logits_BV).astype(jnp.int32)


def restrict(logits_BV: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
  """The logits with those outside of `Sampling.top_k` and `top_p` at -inf; equal ones stay."""
  ranked_BV = -jnp.sort(-logits_BV, axis=-1)
  is_top = jnp.arange(ranked_BV.shape[-1]) < jnp.where(top_k > 0, top_k, ranked_BV.shape[-1])
  p_BV = jax.nn.softmax(jnp.where(is_top, ranked_BV, -jnp.inf), axis=-1)
  likelier_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
  # Rounding may not take the last ones away where all are wanted.
  is_in_BV = is_top & ((likelier_BV < top_p) | (top_p >= 1))
  smallest_B1 = jnp.where(is_in_BV, ranked_BV, jnp.inf).min(-1, keepdims=True)
  return jnp.where(logits_BV < smallest_B1, -jnp.inf, logits_BV)


# ------------------------------------------------------------ bertgpt generate


def run(path: pathlib.Path, prompts: Sequence[str], max_tokens: int | None, sampling: Sampling, *,
        seed: int, num_samples: int, batch_size: int) -> list[str]:
  """What `bertgpt generate` prints: prompt after prompt, each `num_samples` times with its text.

  Args:
    max_tokens: None: DEFAULT_TOKENS, or what the rows that the model was trained on leave.
  Raises:
    ConfigError: no GPT in `path`, or a prompt that is empty or too long.
  """
  trained = trained_lib.load_trained(path)
  trained_lib.require(trained, path, "generate", "continue a text; `bertgpt fill` guesses its "
                      "masked words")
  window = trained.config.model.max_positions
  tokens = trained.tokenizer.encode(prompts)
  for i, (text, ids) in enumerate(zip(prompts, tokens, strict=True), 1):
    if not len(ids):
      raise ConfigError(f"prompt {i}: is empty; give a text to go on with")
    if len(ids) + (max_tokens or 1) > window:
      raise ConfigError(f"prompt {i}, {text[:40]!r}: its {len(ids)} tokens and {max_tokens or 1} "
                        f"more exceed the model's {window} positions; shorten it or --max_tokens")
  repeated = [ids for ids in tokens for _ in range(num_samples)]
  room = [max_tokens or default_tokens(trained, len(ids)) for ids in repeated]
  # The draws of a sample do not depend on how many there are; those of the first 2^16 prompts are
  # all different.
  rows = [i + sample * 2**16 for i in range(len(tokens)) for sample in range(num_samples)]
  added = continue_prompts(trained, repeated, room, sampling, seed=seed,
                           rows=np.array(rows) % 2**32, batch_size=batch_size)
  return [trained.tokenizer.decode([*ids, *more])
          for ids, more in zip(repeated, added, strict=True)]


def default_tokens(trained: Trained, length: int) -> int:
  """Tokens to add to a prompt: not beyond the rows of the training, unless the prompt is."""
  trained_on = trained_lib.window(trained)
  room = (trained_on if length < trained_on else trained.config.model.max_positions) - length
  return min(DEFAULT_TOKENS, room)
