"""Fingerprints of arrays on devices, which show whether a restored state is the saved one."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bertgpt import trees


def fingerprint(state: Any) -> dict[str, int]:
  """Returns a number per leaf that depends on all of its bits and on the order of its elements.

  The number is the sum, modulo 2^32, of a hash of every element's bits and position. Addition in
  uint32 is exact in any order, so the mesh, the number of devices and the compiler do not matter.

  Args:
    state: pytree of numeric, bool or PRNG-key arrays, with any sharding.
  Returns:
    {path of a leaf: number in [0, 2^32)}.
  """
  leaves = trees.named_leaves(state)
  return dict(zip(leaves, np.asarray(sum_leaves(list(leaves.values()))).tolist(), strict=True))


def sum_leaves(leaves: list[Any]) -> jax.Array:
  """Returns the fingerprints of arrays without waiting for them.

  Args:
    leaves: N arrays, with any sharding.
  Returns:
    uint32 [N], replicated over the leaves' mesh.
  """
  shardings = (getattr(x, "sharding", None) for x in leaves)
  meshes = [s.mesh for s in shardings if isinstance(s, NamedSharding)]
  return _make_sum(NamedSharding(meshes[0], PartitionSpec()) if meshes else None)(leaves)


@functools.cache
def _make_sum(sharding: NamedSharding | None) -> Callable[[list[Any]], jax.Array]:
  """Returns the jitted sum of leaves, whose result has the given sharding."""
  return jax.jit(lambda leaves: jnp.stack([_sum_leaf(x) for x in leaves]), out_shardings=sharding)


@jax.jit  # So that leaves of the same shape and type are traced and lowered once.
def _sum_leaf(x: jax.Array) -> jax.Array:
  """Returns the fingerprint of an array: a scalar, uint32. Each axis in turn is summed up."""
  bits = _to_bits(x)
  while bits.ndim:
    position = _mix(jnp.arange(1, bits.shape[-1] + 1, dtype=jnp.uint32))
    bits = _mix(jnp.sum(_mix(bits ^ position), axis=-1, dtype=jnp.uint32))
  return bits


def _to_bits(x: jax.Array) -> jax.Array:
  """Returns the bits of x as uint32; types of more than 32 bits get one more axis."""
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.random.key_data(x).astype(jnp.uint32)
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
  return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
  """Applies the bijection on uint32 that is the last part of MurmurHash3 (Appleby 2011)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
