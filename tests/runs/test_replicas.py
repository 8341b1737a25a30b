"""bertgpt.runs.replicas: a state whose copies differ is not saved."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bertgpt.errors import PeerError
from bertgpt.runs import checkpoint

REPLICATED, SHARDED = PartitionSpec(), PartitionSpec("b")


def make_state(values, spec):
  """Returns a state on 4 devices (2 x 2); device i holds what values(i) gives, [4] or a part."""
  mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"),
              axis_types=(AxisType.Auto,) * 2)
  layout = NamedSharding(mesh, spec)
  pieces = [jax.device_put(values(i), device) for i, device in enumerate(jax.devices()[:4])]
  return {"params": {"w": jax.make_array_from_single_device_arrays((4,), layout, pieces),
                     "v": jax.device_put(jnp.arange(4.0), layout)}, "step": jnp.int32(1)}


@pytest.mark.parametrize("spec, values", [
    (REPLICATED, lambda i: jnp.arange(4.0)),
    (SHARDED, lambda i: jnp.arange(2.0) + i % 2)], ids=["replicated", "sharded"])
def test_equal_copies_are_saved(tmp_path, spec, values):
  with contextlib.closing(checkpoint.Checkpoints(tmp_path, every_steps=1, every_minutes=0,
                                                 keep=1)) as checkpoints:
    checkpoints.save(1, make_state(values, spec), {}, wait=True)
  assert checkpoint.committed_steps(tmp_path) == [1]


@pytest.mark.parametrize("spec, values", [
    (REPLICATED, lambda i: jnp.arange(4.0) + (i == 3) * 1e-6),
    (SHARDED, lambda i: jnp.arange(2.0) + i % 2 + (i == 3) * 1e-6)],
    ids=["replicated", "sharded"])
def test_a_copy_that_differs_is_named_and_not_saved(tmp_path, spec, values):
  with contextlib.closing(checkpoint.Checkpoints(tmp_path, every_steps=1, every_minutes=0,
                                                 keep=1)) as checkpoints:
    checkpoints.save(1, make_state(lambda i: values(0) if spec == REPLICATED else
                                   values(i % 2), spec), {}, wait=True)
    with pytest.raises(PeerError, match=r"step 2: .*params/w: differs between .*Nothing was saved"):
      checkpoints.save(2, make_state(values, spec), {}, wait=True)
  assert checkpoint.committed_steps(tmp_path) == [1]
