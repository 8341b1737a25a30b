"""Attention over packed rows.

Axes: B batch, L query length, S key length, N heads, H width of a head.
"""

import jax
import jax.numpy as jnp

from bertgpt.models.dropout import drop


def attend(q_BLNH: jax.Array, k_BSNH: jax.Array, v_BSNH: jax.Array, sequence_ids_BL: jax.Array, *,
           causal: bool, dropout: float, dropout_key: jax.Array | None) -> jax.Array:
  """Scaled dot-product attention in which a token sees only its own sequence.

  Logits and softmax are float32 whatever the inputs are.

  Args:
    sequence_ids_BL: int32; tokens with different ids do not see each other.
    causal: a token sees no later one.
    dropout: share of attention weights dropped when there is a key.
    dropout_key: None: no dropout.

  Returns:
    [B, L, N, H], the dtype of `v_BSNH`.
  """
  scale = q_BLNH.shape[-1] ** -0.5
  logits_BNLS = jnp.einsum("BLNH,BSNH->BNLS", q_BLNH * jnp.asarray(scale, q_BLNH.dtype), k_BSNH,
                           preferred_element_type=jnp.float32)
  mask_B1LS = make_mask(sequence_ids_BL, causal)
  weights_BNLS = jax.nn.softmax(jnp.where(mask_B1LS, logits_BNLS, -1e30), axis=-1)
  weights_BNLS = drop(weights_BNLS.astype(v_BSNH.dtype), dropout, dropout_key)
  return jnp.einsum("BNLS,BSNH->BLNH", weights_BNLS, v_BSNH)


def make_mask(sequence_ids_BL: jax.Array, causal: bool) -> jax.Array:
  """True where query l may look at key s: bool [B, 1, L, L]."""
  mask_BLS = sequence_ids_BL[:, :, None] == sequence_ids_BL[:, None, :]
  if causal:
    length = sequence_ids_BL.shape[1]
    mask_BLS &= jnp.tril(jnp.ones((length, length), bool))
  return mask_BLS[:, None]
