"""Continuations of texts, with a cache of keys and values.

    trained = load_trained(pathlib.Path("runs/demo_gpt"))
    print(generate(trained, ["The function returns"], sampling=Sampling(top_k=40))[0])

A draw depends only on (seed, row, position) and on the distribution. The number of a row stands for
a prompt and a sample of it, so a continuation does not depend on the rest of its batch.

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
from bertgpt.hub import opening
from bertgpt.models.cache import make_cache
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.trained import Trained

DEFAULT_TOKENS = 100


class Sampling(NamedTuple):
  """Settings of the draws.

  Attributes:
    temperature: divides the logits; 0: the likeliest token is taken.
    top_k: tokens to draw among, the likeliest ones (Fan et al. 2018, arXiv:1805.04833); 0: all.
    top_p: share of the probability of these tokens; the draw is among the fewest of them that
      reach it together (Holtzman et al. 2020, arXiv:1904.09751).
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0


class Prompts(NamedTuple):
  """Prompts that are continued together.

  Attributes:
    tokens: int32 [B, S]; the slots after a prompt are overwritten.
    lengths: int [B], tokens of the prompts.
    ends: int [B], most tokens of a prompt with its continuation.
    rows: uint32 [B], numbers that stand for the rows in the draws.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  ends: np.ndarray
  rows: np.ndarray


UNRESTRICTED, GREEDY = Sampling(), Sampling(temperature=0.0)


def generate(trained: Trained, prompts: Sequence[str], *, max_tokens: int | None = None,
             sampling: Sampling = UNRESTRICTED, seed: int = 0, num_samples: int = 1,
             batch_size: int = 8) -> list[str]:
  """Continues texts.

  Args:
    trained: the model.
    prompts: texts; an empty one begins a document, if the tokenizer has an end of document.
    max_tokens: most tokens added to a prompt; None: result of `default_tokens`.
    sampling: settings of the draws.
    seed: seed of the draws, below 2^32. With the same seed, the first samples of a prompt are the
      same for any `num_samples`.
    num_samples: continuations of each prompt.
    batch_size: rows per batch.
  Returns:
    The prompts with their continuations: all samples of the first prompt, then of the second, ...
  Raises:
    ConfigError: the model cannot continue a text, or a prompt has no tokens or too many.
  """
  trained_lib.require(trained, "generate", "continue a text",
                      "Guess its masked words with `bertgpt fill`")
  positions = trained.config.model.max_positions
  tokens = trained.tokenizer.encode(prompts)
  for i, (text, ids) in enumerate(zip(prompts, tokens, strict=True), 1):
    if not len(ids) and text.strip():
      raise ConfigError(f"prompt {i}, {text[:40]!r}: the tokenizer finds no tokens in it. Give "
                        "another text to continue")
    if not len(ids) and trained.tokenizer.eod_id < 0:
      raise ConfigError(f"prompt {i}: is empty, and the tokenizer has no end-of-document token to "
                        "begin a document with. Give a text to continue")
    length = len(ids) or 1  # An empty prompt becomes the end of the document before it.
    if length + (max_tokens or 1) > positions:
      raise ConfigError(f"prompt {i}, {text[:40]!r}: its {length} token{'s' * (length > 1)} and "
                        f"{max_tokens or 1} more exceed the model's {positions} positions. "
                        "Shorten it or --max_tokens")
  repeated = [ids for ids in tokens for _ in range(num_samples)]
  limits = [max_tokens or default_tokens(trained, len(ids) or 1) for ids in repeated]
  # The draws of a sample do not depend on the number of samples; those of the first 2^16 prompts
  # all differ.
  rows = [i + sample * 2**16 for i in range(len(tokens)) for sample in range(num_samples)]
  added = continue_prompts(trained, repeated, limits, sampling, seed=seed,
                           rows=np.array(rows) % 2**32, batch_size=batch_size)
  return [trained.tokenizer.decode([*ids, *more])
          for ids, more in zip(repeated, added, strict=True)]


def default_tokens(trained: Trained, length: int) -> int:
  """Returns how many tokens are added to a prompt by default.

  At most DEFAULT_TOKENS, and not beyond the rows of the training, unless the prompt is longer.

  Args:
    trained: the model.
    length: tokens of the prompt.
  """
  trained_on = trained_lib.longest_row(trained)
  room = (trained_on if length < trained_on else trained.config.model.max_positions) - length
  return min(DEFAULT_TOKENS, room)


# --------------------------------------------------------------------- tokens


def continue_prompts(trained: Trained, prompts: Sequence[np.ndarray],
                     max_tokens: int | Sequence[int], sampling: Sampling = UNRESTRICTED, *,
                     seed: int = 0, rows: Sequence[int] | np.ndarray | None = None,
                     batch_size: int = 8) -> list[np.ndarray]:
  """Continues prompts until a document ends or `max_tokens` are added.

  Compiled once for every combination of (rows of a batch, bucket of its prompts, bucket of the
  longest prompt with its continuation).

  Args:
    trained: the model.
    prompts: int [N] each; an empty one stands for [end of document], which begins a document.
    max_tokens: most tokens added, for all prompts or for each; a prompt and its continuation must
      fit into the model's positions.
    sampling: settings of the draws.
    seed: seed of the draws.
    rows: numbers below 2^32 that stand for the prompts in the draws; None: 0, 1, ...
    batch_size: prompts per batch.
  Returns:
    The tokens added to each prompt: int32 [N], without the end-of-document token that stopped it.
  Raises:
    ValueError: a prompt is too long, or is empty and the tokenizer has no end of document.
  """
  window, eod_id = trained.config.model.max_positions, trained.tokenizer.eod_id
  if eod_id >= 0:
    prompts = [prompt if len(prompt) else np.array([eod_id]) for prompt in prompts]
  lengths = np.array([len(prompt) for prompt in prompts])
  ends = lengths + max_tokens
  if lengths.min() == 0:
    raise ValueError("the prompt is empty, and the tokenizer has no [end of document] that starts "
                     "a new one")
  if ends.max() > window:
    raise ValueError(f"a prompt and its continuation are {ends.max()} tokens, which exceed the "
                     f"model's {window} positions")
  rows = np.asarray(range(len(prompts)) if rows is None else rows, np.uint32)
  params, added = jax.device_put(trained.params), [np.zeros(0, np.int32)] * len(prompts)
  for which, prompt_size in buckets.batches(lengths, batch_size, window):
    slots = buckets.bucket(int(ends[which].max()), window)
    tokens_BS = buckets.pad([prompts[i] for i in which], slots, batch_size)
    fill = (0, len(tokens_BS) - len(which))  # Added rows have nothing to continue.
    starts_B = np.pad(lengths[which], fill, constant_values=1)
    ends_B = np.pad(ends[which], fill, constant_values=1)
    batch = Prompts(tokens_BS, starts_B, ends_B, np.pad(rows[which], fill))
    with trained_lib.exact_products(trained.config):
      tokens_BS, lengths_B = jax.device_get(_continue(
          trained.model, prompt_size, params, batch, eod_id, jax.random.key(seed), sampling))
    for i, tokens_S, start, end in zip(which, tokens_BS, starts_B, lengths_B, strict=False):
      added[i] = tokens_S[start:end]
  return added


@functools.partial(jax.jit, static_argnums=(0, 1))
def _continue(model, prompt_size, params, prompts, stop_id, key, sampling):
  """Returns (tokens_BS, lengths_B), both with the continuations."""
  tokens_BS, lengths_B, ends_B, rows_B = prompts
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

  # The slots after a shorter prompt are overwritten before a token sees them.
  positions_BP = jnp.broadcast_to(jnp.arange(prompt_size), (num_rows, prompt_size))
  _, cache = apply(tokens_BS[:, :prompt_size], positions_BP,
                   make_cache(model.config, num_rows, slots), method="extend")
  tokens_BS, _, lengths_B, _ = jax.lax.while_loop(
      lambda state: ~state[-1].all(), add, (tokens_BS, cache, lengths_B, lengths_B >= ends_B))
  return tokens_BS, lengths_B


def draw(logits_BV: jax.Array, sampling: Sampling, keys_B: jax.Array) -> jax.Array:
  """Draws a token for every row of logits.

  Args:
    logits_BV: float32.
    sampling: settings of the draws; the fields may be traced.
    keys_B: one random key per row.
  Returns:
    int32 [B].
  """
  temperature, top_k, top_p = (jnp.asarray(x) for x in sampling)

  def pick(logits_BV):
    logits_BV = jax.lax.cond((top_k > 0) | (top_p < 1), lambda x: restrict(x, top_k, top_p),
                             lambda x: x, logits_BV / temperature)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV)

  return jax.lax.cond(temperature == 0, lambda x: x.argmax(-1), pick, logits_BV).astype(jnp.int32)


def restrict(logits_BV: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
  """Returns the logits with those outside `Sampling.top_k` and `top_p` at -inf.

  Logits that equal the smallest kept logit are kept too.

  Args:
    logits_BV: float32.
    top_k: int; 0: all.
    top_p: float, 0 to 1.
  Returns:
    float32 [B, V].
  """
  ranked_BV = -jnp.sort(-logits_BV, axis=-1)
  is_top = jnp.arange(ranked_BV.shape[-1]) < jnp.where(top_k > 0, top_k, ranked_BV.shape[-1])
  p_BV = jax.nn.softmax(jnp.where(is_top, ranked_BV, -jnp.inf), axis=-1)
  likelier_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
  # Rounding must not remove the least likely tokens if all are wanted.
  is_in_BV = is_top & ((likelier_BV < top_p) | (top_p >= 1))
  smallest_B1 = jnp.where(is_in_BV, ranked_BV, jnp.inf).min(-1, keepdims=True)
  return jnp.where(logits_BV < smallest_B1, -jnp.inf, logits_BV)


# ------------------------------------------------------------ bertgpt generate


def run(path: pathlib.Path, prompts: Sequence[str], max_tokens: int | None, sampling: Sampling, *,
        seed: int, num_samples: int, batch_size: int,
        dtype: str = trained_lib.SCORING_DTYPE) -> list[str]:
  """Returns the texts that `bertgpt generate` prints.

  Args:
    path: folder of the run, or of a model of `transformers`.
    prompts, max_tokens, sampling, seed, num_samples, batch_size: see `generate`.
    dtype: see `runs.trained.make_trained`.
  Raises:
    ConfigError: there is no model in `path`; see also `generate`.
    DataError: see `hub.opening`.
  """
  trained = opening.open_model(path, dtype=dtype)
  texts = generate(trained, prompts, max_tokens=max_tokens, sampling=sampling, seed=seed,
                   num_samples=num_samples, batch_size=batch_size)
  trained_lib.note_dtype(trained.config)
  return texts
