"""Draws of tokens from logits. Axes: B rows, V vocabulary."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sampling(NamedTuple):
  """Settings of the draws.

  Attributes:
    temperature: divides the logits; 0: the likeliest token is taken.
    top_k: tokens to draw among, the likeliest ones (Fan et al. 2018, arXiv:1805.04833); 0: all.
    top_p: share of the probability of these tokens; the draw is among the fewest of them that
      together reach this share (Holtzman et al. 2020, arXiv:1904.09751).
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0


UNRESTRICTED, GREEDY = Sampling(), Sampling(temperature=0.0)


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

  # A smaller temperature would make several logits infinite, and chance would choose among them.
  token_B = jax.lax.cond(temperature < 1e-30, lambda x: x.argmax(-1), pick, logits_BV)
  return token_B.astype(jnp.int32)


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
  # Rounding must not remove the least likely tokens if `top_p` is 1. The likeliest is always kept.
  is_in_BV = is_top & ((likelier_BV < top_p) | (top_p >= 1) | (likelier_BV == 0))
  smallest_B1 = jnp.where(is_in_BV, ranked_BV, jnp.inf).min(-1, keepdims=True)
  return jnp.where(logits_BV < smallest_B1, -jnp.inf, logits_BV)
