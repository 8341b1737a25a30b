"""Loss, gradient and masks of a batch do not depend on its layout."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from bertgpt import models, trees
from bertgpt.config import families
from bertgpt.devices import data_parallel, sharding
from bertgpt.errors import ConfigError
from bertgpt.training import objectives, steps

MESHES = ((1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 4))
ALL = list(itertools.product(MESHES, (1, 4), ("none", "full"), (1, 0)))
# Every mesh, with and without each of the other choices.
SOME = [((8, 1, 1), 4, "full", 0), ((1, 8, 1), 4, "products", 1), ((2, 2, 2), 1, "dots", 1),
        ((1, 1, 4), 4, "none", 1), ((1, 1, 1), 4, "full", 1)]


OPTIONS = {"plm_memory": {"permutation_block": 8, "memory": 12}}  # Fields of config.objective.


def make_state(setup):
  """Returns the state at step 0, computed on this mesh; `setup.init` may copy that of another."""
  return steps.make_state(setup.training, setup.abstract)


def compute(objective, mesh, micro_batches, remat, unroll, num_slices=0, **model):
  """Returns parameters, gradients, loss, sums and new carry; the old carry is not empty."""
  config = tiny.make_config(objective, mesh=mesh, remat=remat, scan_unroll=unroll, **model)
  config.objective.update(OPTIONS.get(objective, {}))
  with tiny.Setup(config, num_slices) as setup:
    state, batch = make_state(setup), setup.put(tiny.make_batch(config))
    rng, layout = np.random.default_rng(1), sharding.batch_sharding(setup.mesh, config)
    draw = lambda x: (rng.random(x.shape) < 0.7 if x.dtype == bool
                      else rng.normal(size=x.shape).astype(x.dtype))
    carry = jax.tree.map(lambda x: jax.device_put(draw(x), layout), state.carry)
    step = jax.jit(steps.make_gradients(setup.split(micro_batches)))
    (grads, loss, sums), carry = step(state.params, batch, 3, carry)
    return jax.device_get((state.params, grads, loss, sums, carry))


@functools.cache
def reference(objective, **model):
  return compute(objective, (1, 1, 1), 1, "none", 1, **model)


def check_equal(objective, *layout, num_slices=0, **model):
  params, grads, loss, sums, carry = compute(objective, *layout, num_slices, **model)
  expected_params, expected_grads, expected_loss, expected_sums, expected_carry = reference(
      objective, **model)
  jax.tree.map(np.testing.assert_array_equal, params, expected_params)
  assert loss == pytest.approx(expected_loss, rel=1e-5)
  close = functools.partial(np.testing.assert_allclose, atol=1e-5)
  jax.tree.map(functools.partial(close, rtol=1e-4), sums, expected_sums)
  jax.tree.map(functools.partial(close, rtol=0), grads, expected_grads)
  jax.tree.map(lambda x, y: close(np.float32(x), np.float32(y), rtol=0), carry, expected_carry)


@pytest.mark.parametrize("layout", [
    SOME[2], *(pytest.param(SOME[i], marks=pytest.mark.slow) for i in (0, 1, 3, 4))], ids=str)
def test_loss_and_gradients_do_not_depend_on_the_layout(layout, capfd):
  check_equal("mlm_nsp", *layout)
  assert "Involuntary full rematerialization" not in capfd.readouterr().err


@pytest.mark.parametrize("layout", [((2, 2, 2), 4, "none", 1)], ids=str)
def test_causal_loss_and_gradients_do_not_depend_on_the_layout(layout, capfd):
  check_equal("causal", *layout)
  assert "Involuntary full rematerialization" not in capfd.readouterr().err


SHARED = [{"layer_groups": 1, "embedding_width": 16},
          {"layer_groups": 2, "num_layers": 4, "embedding_width": 16}]


@pytest.mark.slow
@pytest.mark.parametrize("model, layout", [
    (SHARED[1], ((1, 8, 1), 1, "full", 0)),
    pytest.param(SHARED[1], ((8, 1, 1), 4, "dots", 1), marks=pytest.mark.slow)], ids=str)
def test_layers_that_share_do_not_depend_on_the_layout(model, layout, capfd):
  check_equal("mlm_sop", *layout, **model)
  assert "Involuntary full rematerialization" not in capfd.readouterr().err


MODERN = {objective: {**families.FAMILIES[name].presets["base"], **tiny.SIZE, "mlp_dim": 64,
                      "window": 4, "dropout": 0.0}
          for objective, name in (("mlm", "modernbert"), ("causal", "modernbert_decoder"))}


@pytest.mark.parametrize("objective, layout", [
    ("mlm", ((2, 2, 2), 4, "none", 1))], ids=str)
def test_modernbert_does_not_depend_on_the_layout(objective, layout, capfd):
  check_equal(objective, *layout, **MODERN[objective])
  assert "Involuntary full rematerialization" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("layout", [((1, 8, 1), 1, "full", 0)], ids=str)
def test_two_streams_do_not_depend_on_the_layout(layout, capfd):
  check_equal("plm", *layout)
  assert "Involuntary full rematerialization" not in capfd.readouterr().err


EVERY = {
    "bert": ("mlm_nsp", {}), "gpt": ("causal", {}), "diffusion": ("diffusion", {}),
    "albert": ("mlm_sop", SHARED[0]), "albert, two groups": ("mlm_sop", SHARED[1]),
    "electra": ("rtd", {"embedding_width": 16, "generator_width": 24, "generator_num_heads": 4,
                        "generator_mlp_dim": 48, "activation": "gelu_erf"}),
    "modernbert": ("mlm", MODERN["mlm"]), "modernbert decoder": ("causal", MODERN["causal"]),
    "xlnet": ("plm", {}), "xlnet with memory": ("plm_memory", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("layout", ALL, ids=str)
def test_every_model_on_every_layout(name, layout, capfd):
  objective, model = EVERY[name]
  check_equal(objective, *layout, **model)
  assert "Involuntary full rematerialization" not in capfd.readouterr().err


@pytest.mark.parametrize("objective, mesh, micro_batches", [
    ("mlm_nsp", (8, 1, 1), 1), pytest.param("mlm_nsp", (4, 2, 1), 1, marks=pytest.mark.slow),
    pytest.param("mlm_nsp", (8, 1, 1), 4, marks=pytest.mark.slow),
    pytest.param("plm_memory", (8, 1, 1), 1, marks=pytest.mark.slow)])
def test_slices_sum_the_same_gradients(objective, mesh, micro_batches):
  check_equal(objective, mesh, micro_batches, "none", 1, num_slices=2)


@pytest.mark.parametrize("sizes", [(3, 5), (2 * 16 * 128, 7), (40 * 4 * 16 * 128, 9, 11)])
def test_gradients_are_summed_as_matrices_of_whole_tiles(sizes):
  """Over 2 slices of 4 chips, every chip of a slice gets 16 rows; arrays of a type go together."""
  config = tiny.make_config(mesh=(8, 1, 1))
  mesh = sharding.make_mesh(config, tiny.devices_of(config))
  rng = np.random.default_rng(0)
  grads = {str(size): rng.integers(-9, 9, (8, size)).astype(np.float32) for size in sizes}
  grads["half"] = jnp.asarray(rng.integers(-9, 9, (8, 2, 3)), jnp.bfloat16)
  with sharding.use_mesh(mesh, config, num_slices=2):
    total = jax.jit(data_parallel.sum_gradients)(grads)
    matrices = {x.aval.shape for eqn in jax.make_jaxpr(data_parallel.sum_gradients)(grads).eqns
                if eqn.primitive.name == "reduce_sum" for x in eqn.invars}
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, np.asarray(y).sum(0)), total, grads)
  assert all(shape[1] == 4 * 16 and shape[2] % 128 == 0 for shape in matrices)
  assert total["half"].dtype == jnp.bfloat16


@pytest.mark.parametrize("objective, layouts", [
    ("mlm_nsp", [((2, 2, 2), 4, "full", 1)]),
    pytest.param("mlm_nsp", [((1, 1, 1), 4, "none", 1), ((8, 1, 1), 1, "none", 0)],
                 marks=pytest.mark.slow),
    pytest.param("plm", [((8, 1, 1), 4, "none", 0), ((2, 2, 2), 1, "full", 1)],
                 marks=pytest.mark.slow)])
def test_dropout_does_not_depend_on_the_layout(objective, layouts):
  """The rows that a mask belongs to are numbered in the whole batch."""
  run = functools.partial(compute, dropout=0.1, attention_dropout=0.1)
  single = run(objective, (1, 1, 1), 1, "none", 1)
  assert abs(single[2] - reference(objective)[2]) > 1e-3
  for layout in layouts:
    close = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=0)
    jax.tree.map(close, run(objective, *layout)[1:3], single[1:3])


@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 2, 2)])
def test_masks_do_not_depend_on_the_mesh(mesh):
  def masks(mesh):
    config = tiny.make_config(mesh=mesh)
    with tiny.Setup(config) as setup:
      corrupt = jax.jit(objectives.make_objective(config, tiny.make_vocabulary()).corrupt)
      rows = np.arange(tiny.ROWS)
      return jax.device_get(corrupt(setup.put(tiny.make_batch(config)), jax.random.key(1), rows))

  jax.tree.map(np.testing.assert_array_equal, masks(mesh), masks((1, 1, 1)))


def test_parameters_and_moments_are_split_as_the_table_says():
  config = tiny.make_config(mesh=(2, 2, 2))
  with tiny.Setup(config) as setup:
    state = make_state(setup)
  leaves = jax.tree_util.tree_leaves_with_path(state)
  specs = {trees.path_of(path): x.sharding.spec for path, x in leaves}
  kernel = "encoder/layers/attention/query/kernel"
  assert specs[f"params/{kernel}"] == P(None, "fsdp", "tensor")
  assert specs["params/embeddings/token/embedding"] == P(("tensor", "fsdp"), None)
  moments = [spec for path, spec in specs.items()
             if path.startswith("opt_state") and path.endswith(kernel)]
  assert moments == [P(None, "fsdp", "tensor")] * 2


def test_fsdp_divides_the_memory_of_the_state():
  config = tiny.make_config(mesh=(1, 8, 1))
  with tiny.Setup(config) as setup:
    leaves = jax.tree.leaves(make_state(setup))
  local = sum(x.addressable_shards[0].data.size for x in leaves)
  assert local < 0.25 * sum(x.size for x in leaves)


def test_a_parameter_without_a_rule_is_an_error():
  axes_of = models.axes_of(tiny.make_config())
  with pytest.raises(ValueError, match="encoder/layers/new/kernel"):
    axes_of("encoder/layers/new/kernel")


def test_an_axis_that_does_not_divide_a_dimension_splits_the_next_one_that_names_it():
  axes = {"vocab": ("tensor", "fsdp"), "embed": ("fsdp",)}
  mesh_shape = {"tensor": 4, "fsdp": 64}
  spec = functools.partial(sharding._spec, models.axes_of(tiny.make_config())(
      "embeddings/token/embedding"), mesh_shape=mesh_shape, axes=axes)
  assert spec((30592, 128)) == P(("tensor",), ("fsdp",))  # 239 x 128: 256 does not divide it.
  assert spec((30592, 8)) == P(("tensor",), None)
  assert spec((32768, 128)) == P(("tensor", "fsdp"), None)


def test_loss_and_gradients_of_a_token_table_that_is_split_over_its_width(monkeypatch):
  make_config = tiny.make_config

  def make_split(*args, **fields):
    config = make_config(*args, **fields)
    config.mesh.axes.vocab = ("tensor",)
    return config

  monkeypatch.setattr(tiny, "make_config", make_split)
  with tiny.Setup(tiny.make_config(mesh=(2, 2, 2))) as setup:
    table = make_state(setup).params["embeddings"]["token"]["embedding"]
  assert table.sharding.spec == P(("tensor",), ("fsdp",))
  check_equal("mlm_nsp", (2, 2, 2), 4, "none", 1)


@pytest.mark.parametrize("mesh, host, rows", [
    ((2, 2, 2), range(8), range(16)),
    ((8, 1, 1), (0, 1, 4, 5), (0, 1, 2, 3, 8, 9, 10, 11)),  # The devices of a host of a TPU slice.
    ((2, 2, 2), (0, 1, 4, 5), (0, 1, 2, 3, 8, 9, 10, 11)),
    ((2, 1, 4), (3,), range(8))], ids=str)
def test_rows_of_a_host_are_those_of_its_devices(mesh, host, rows):
  config = tiny.make_config(mesh=mesh)
  devices = [jax.devices()[i] for i in host]
  layout = sharding.batch_sharding(sharding.make_mesh(config, jax.devices()), config)
  found = sharding.local_rows(layout, 16, devices)
  assert found.tolist() == list(rows)


def test_constrain_is_the_identity_without_a_mesh():
  x = np.ones((2, 3), np.float32)
  assert sharding.constrain(x, "batch", None) is x


# -------------------------------------------------------------- map_shards


def _scale_and_count(x_BN, names):
  """Returns twice the part, the index of this device along the batch, and the batch's sum."""
  rank = jax.lax.axis_index(names["batch"]) if names["batch"] else 0
  return 2 * x_BN, jnp.full((1,), rank), jax.lax.psum(x_BN.sum(0), names["batch"])


@pytest.mark.parametrize("mesh", [(1, 1, 1), (8, 1, 1), (2, 2, 2)])
def test_map_shards_gives_every_device_its_part(mesh):
  config = tiny.make_config(mesh=mesh)
  x_BN = np.arange(32.0, dtype=np.float32).reshape(8, 4)
  axes = ("batch", "heads")
  apply = lambda x: sharding.map_shards(_scale_and_count, [axes],
                                        (axes, ("batch",), ("heads",)), x)
  with sharding.use_mesh(sharding.make_mesh(config, tiny.devices_of(config)), config):
    doubled_BN, ranks, total_N = jax.jit(apply)(x_BN)
  np.testing.assert_array_equal(doubled_BN, 2 * x_BN)
  np.testing.assert_array_equal(ranks, np.arange(mesh[0] * mesh[1]))
  np.testing.assert_array_equal(total_N, x_BN.sum(0))


def test_map_shards_outside_a_mesh_is_the_function():
  x_BN = np.ones((4, 4), np.float32)
  doubled_BN, _, _ = sharding.map_shards(_scale_and_count, [("batch", "heads")], None, x_BN)
  np.testing.assert_array_equal(doubled_BN, 2 * x_BN)


@dataclasses.dataclass(frozen=True)
class OfTwoNodes:
  """What a mesh reads of a device of two nodes, or slices, with eight devices each."""

  id: int
  platform: str
  device_kind: str = "any"

  @property
  def slice_index(self):
    return self.id // 8

  process_index = slice_index


@pytest.mark.parametrize("fsdp, tensor, nodes", [(8, 1, 1), (4, 2, 1), (16, 1, 2), (4, 4, 2)])
def test_gpus_share_parameters_over_nodes_only_if_one_is_too_small(fsdp, tensor, nodes):
  config = tiny.make_config(mesh=(-1, fsdp, tensor))
  grid = sharding.make_mesh(config, [OfTwoNodes(i, "cuda") for i in range(16)]).devices
  assert grid.shape == (16 // (fsdp * tensor), fsdp, tensor)
  assert sorted(device.id for device in grid.flat) == list(range(16))
  for replica in grid:  # The devices that share one copy of the parameters.
    assert len({device.slice_index for device in replica.flat}) == nodes


def test_slices_of_tpus_never_share_parameters():
  config = tiny.make_config(mesh=(-1, 16, 1))
  with pytest.raises(ConfigError, match="the network between 2 slices"):
    sharding.make_mesh(config, [OfTwoNodes(i, "tpu") for i in range(16)])
