"""Fingerprints of arrays on devices, which show whether a restored state is the saved one."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bertgpt import trees

PIECE_BYTES = 2**26  # Largest piece of an array on the host that is summed at once, in copies.


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
  """Returns the fingerprints of arrays, of those on devices without waiting for them.

  NumPy arrays are read on the host, piece by piece: a model need not fit on a device.

  Args:
    leaves: N arrays, with any sharding, or N NumPy arrays.
  Returns:
    uint32 [N], replicated over the leaves' mesh.
  """
  if all(isinstance(x, np.ndarray) for x in leaves):
    with jax.default_device(_find_host()):
      return jnp.array([_sum_on_host(x) for x in leaves], jnp.uint32)
  shardings = (getattr(x, "sharding", None) for x in leaves)
  meshes = [s.mesh for s in shardings if isinstance(s, NamedSharding)]
  return _make_sum(NamedSharding(meshes[0], PartitionSpec()) if meshes else None)(leaves)


def _find_host() -> jax.Device | None:
  """Returns the CPU as a device of JAX; None if JAX_PLATFORMS leaves it out."""
  with contextlib.suppress(RuntimeError):
    return jax.local_devices(backend="cpu")[0]
  return None


def _sum_on_host(x: np.ndarray) -> np.ndarray:
  """Returns the fingerprint of an array; a large one is summed up along its first axis last."""
  if x.ndim < 2 or x.nbytes <= PIECE_BYTES:
    return np.asarray(_sum_leaf(x))
  if number := PIECE_BYTES * len(x) // x.nbytes:
    sums = [np.asarray(_sum_parts(x[i:i + number])) for i in range(0, len(x), number)]
    return np.asarray(_sum_leaf(np.concatenate(sums)))
  return np.asarray(_sum_leaf(np.stack([_sum_on_host(part) for part in x])))


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


_sum_parts = jax.jit(jax.vmap(_sum_leaf))  # Fingerprints of the parts along the first axis.


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
