"""Fingerprints: the same on every mesh, different for every flipped bit."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bertgpt.runs import fingerprint as fingerprint_lib
from bertgpt.runs.fingerprint import fingerprint

# If these numbers change, checkpoints of older versions seem damaged.
GOLDEN = {"bfloat16": 2187580879, "bool": 1264046929, "float32": 4063337207, "int32": 2815426340,
          "key": 1641767345}


def test_fingerprints_stay_the_same_from_version_to_version():
  leaves = {"bfloat16": jnp.arange(16, dtype=jnp.bfloat16), "bool": jnp.array([True, False]),
            "float32": jnp.arange(64.0).reshape(8, 8), "int32": jnp.arange(64).reshape(8, 8),
            "key": jax.random.key(3)}
  assert fingerprint(leaves) == GOLDEN


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "uint32"])
def test_arrays_on_the_host_have_the_same_fingerprints_in_pieces(dtype, monkeypatch):
  rng = np.random.default_rng(0)
  leaves = [jnp.asarray(rng.normal(0, 50, shape)).astype(dtype)
            for shape in ((), (7,), (3, 5), (4, 3, 9), (2, 1, 6, 5))]
  expected = np.asarray(fingerprint_lib.sum_leaves(leaves))
  for size in (2**26, 100, 1):
    monkeypatch.setattr(fingerprint_lib, "PIECE_BYTES", size)
    np.testing.assert_array_equal(fingerprint_lib.sum_leaves(jax.device_get(leaves)), expected)


def test_fingerprint_is_the_same_on_every_mesh():
  x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
  expected = fingerprint({"x": x, "whole": x})
  for shape in ((8, 1), (2, 4), (1, 2)):
    mesh = jax.make_mesh(shape, ("a", "b"), axis_types=(AxisType.Auto,) * 2,
                         devices=jax.devices()[:math.prod(shape)])
    put = lambda *axes: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))  # noqa: B023
    assert fingerprint({"x": put("a", "b"), "whole": put()}) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint32", "int8",
                                   "bool"])
def test_fingerprint_changes_with_every_bit_and_with_the_order(dtype):
  width = 1 if dtype == "bool" else jnp.dtype(dtype).itemsize * 8
  unsigned = {1: np.uint8, 8: np.uint8, 16: np.uint16, 32: np.uint32}[width]
  bits = np.random.default_rng(0).integers(0, 2**width, (6, 5)).astype(unsigned)
  view = (lambda b: b.astype(bool)) if dtype == "bool" else (lambda b: b.view(jnp.dtype(dtype)))
  variants = [bits, bits[::-1].copy(), bits[:, ::-1].copy(), np.zeros_like(bits)]
  for i in (0, 7, 29):
    for bit in range(width):
      flipped = bits.copy()
      flipped.flat[i] ^= unsigned(1 << bit)
      variants.append(flipped)
  sums = [fingerprint({"x": view(b)})["x"] for b in variants]
  assert len(set(sums)) == len({b.tobytes() for b in variants})
