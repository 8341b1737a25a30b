"""Models and batches that compile in a second, for many tests."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt import config as config_lib
from bertgpt import trees
from bertgpt.config import families
from bertgpt.config.overrides import override
from bertgpt.config.stored import to_json
from bertgpt.data.batches import formats
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.devices import sharding
from bertgpt.training import steps

VOCAB, UNK, CLS, SEP, MASK = 250, 1, 2, 3, 4
LENGTH, ROWS = 32, 32
SIZE = {"num_layers": 3, "width": 32, "num_heads": 4, "mlp_dim": 48, "max_positions": LENGTH,
        "vocab_size": VOCAB}


def make_config(objective="mlm_nsp", *, mesh=(1, 1, 1), **model):
  able = [name for name, family in families.FAMILIES.items() if objective in family.objectives]
  family = "bert" if "bert" in able else able[0]
  is_encoder = families.FAMILIES[family].kind == "encoder"
  config = config_lib.base()
  config.objective.name = objective
  config.objective.mask_prob = 0.25
  config.model.update({
      "family": family, "num_layers": 2, "width": 32, "num_heads": 4, "mlp_dim": 64,
      "max_positions": LENGTH, "vocab_size": VOCAB, "dtype": "float32", "dropout": 0.0,
      "attention_dropout": 0.0, "filters": ((1, 8), (2, 8), (3, 16)), "num_highways": 1,
      "num_segments": 2 if is_encoder else 0,
      "norm": "post" if is_encoder else "pre",
      "layer_norm_epsilon": 1e-12 if is_encoder else 1e-5,
      "position": families.FAMILIES[model.get("family", family)].only["position"][0], **model})
  config.phases = (config_lib.phase(seq_len=LENGTH, batch_size=ROWS, steps=50, learning_rate=1e-2),)
  config.mesh.data, config.mesh.fsdp, config.mesh.tensor = mesh
  config.eval.batch_size = 8
  return config


def make_vocabulary():
  return Vocabulary(VOCAB, MASK, (0, CLS, SEP, MASK), np.arange(VOCAB) % 3 == 0,
                    np.zeros(VOCAB, bool), UNK)


def make_batch(config, seed=0, rows=ROWS):
  """Returns rows with one or two sequences of random length, so that rows differ in weight."""
  rng = np.random.default_rng(seed)
  at = np.arange(LENGTH)
  cut, end = rng.integers(8, 16, (rows, 1)), rng.integers(17, LENGTH + 1, (rows, 1))
  sequence_ids = np.where(at < cut, 1, np.where(at < end, 2, 0)).astype(np.int32)
  positions = np.where(at < cut, at, np.where(at < end, at - cut, 0)).astype(np.int32)
  tokens = np.where(sequence_ids > 0, rng.integers(5, VOCAB, (rows, LENGTH)), 0).astype(np.int32)
  batch = {"tokens": tokens, "sequence_ids": sequence_ids, "positions": positions}
  if config.objective.name == "causal":
    return batch | {"targets": np.roll(tokens, -1, 1),
                    "loss_weights": (sequence_ids > 0).astype(np.float32)}
  if config.objective.name == "bilm":
    others = {name: rng.integers(5, VOCAB, (rows, LENGTH)).astype(np.int32)
              for name in ("targets", "backward_tokens", "backward_targets")}
    return batch | others | {"sequence_ids": np.minimum(sequence_ids, 1)}
  tokens[:, 0] = tokens[np.arange(rows), cut[:, 0]] = CLS
  batch["segment_ids"] = (positions > 5).astype(np.int32)
  if name := formats.find(config).pair_name:
    starts = np.concatenate([np.zeros_like(cut), cut], 1)
    batch |= {f"{name}_positions": starts.astype(np.int32),
              f"{name}_labels": rng.integers(0, 2, (rows, 2)).astype(np.int32),
              f"{name}_weights": np.concatenate([np.ones_like(cut), rng.integers(0, 2, cut.shape)],
                                                1).astype(np.float32)}
  return batch


@functools.partial(jax.jit, static_argnames=("model", "method"))
def apply(model, params, *arguments, method=None, rngs=None):
  """Returns `model.apply`, compiled as one program; JAX would compile one for each operation.

  Other calls with this model, method and mesh run the same program, even if a test has patched a
  function that it calls since then.

  Args:
    model: a Flax module.
    params: its parameters.
    arguments: arguments of the method.
    method: a method, or a function of the module and the arguments; None: `__call__`.
    rngs: names -> keys, such as that of dropout.
  """
  return model.apply({"params": params}, *arguments, method=method, rngs=rngs)


def random_params(model, inputs, seed=0, std=0.1):
  """Returns random parameters around 0, around 1 for scales; unlike `model.init`, not compiled.

  No bias and no norm is without effect, which would hide an error.
  """
  shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
  rng = np.random.default_rng(seed)
  return jax.tree_util.tree_map_with_path(
      lambda path, x: jnp.asarray((trees.path_of(path).endswith("scale"))
                                  + std * rng.normal(size=x.shape), x.dtype), shapes)


def devices_of(config):
  return jax.devices()[:config.mesh.data * config.mesh.fsdp * config.mesh.tensor]


_STATES: dict[str, steps.TrainState] = {}


class Setup:
  """Model, objective and mesh of a config, as a context manager.

  With `num_slices`, programs are those for this number of TPU slices, on the devices of the CPU.
  """

  def __init__(self, config, num_slices=0):
    self.config, self.num_slices = config, num_slices
    self.mesh = sharding.make_mesh(config, devices_of(config))
    self.training = steps.make_setup(config, self.mesh, make_vocabulary())
    self.model, self.objective = self.training.model, self.training.objective

  def __enter__(self):
    self._context = sharding.use_mesh(self.mesh, self.config, num_slices=self.num_slices)
    self._context.__enter__()
    self.abstract = steps.make_abstract_state(self.training)
    return self

  def __exit__(self, *exc):
    self._context.__exit__(*exc)

  def init(self):
    """Returns the state at step 0. It is computed once for all setups that differ in their mesh.

    A test of initial values calls `steps.make_state`, which computes them on the mesh of the setup.
    """
    fields = json.loads(to_json(self.config))
    del fields["mesh"]
    for name in ("attention", "attention_dropout", "dropout", "remat"):  # They change no parameter.
      del fields["model"][name]
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), self.abstract)  # Tests patch the carry.
    key = json.dumps(fields) + repr(shapes)
    if key not in _STATES:
      _STATES[key] = jax.device_get(steps.make_state(self.training, self.abstract))
    layouts = jax.tree.map(lambda x: x.sharding, self.abstract)
    # `device_put` may share the memory of a NumPy array, and a step donates its state.
    return jax.device_put(jax.tree.map(np.copy, _STATES[key]), layouts)

  def put(self, batch, rows=None):
    """Returns the global batch; `rows` is the number of its rows if `batch` has only some."""
    layout = sharding.batch_sharding(self.mesh, self.config)
    return sharding.make_global_batch(batch, layout, rows or len(batch["tokens"]))

  def step(self, micro_batches=1):
    return steps.jit_train_step(self.split(micro_batches), self.abstract)

  def split(self, micro_batches):
    """Returns the setup of the training, with batches split into pieces."""
    config = override(self.config, [f"--config.phases[0].micro_batches={micro_batches}"])
    return self.training._replace(config=config)

  def gradients(self, micro_batches=1):
    """Returns the jitted (params, batch, step) -> (gradients, (loss, sums)), without a carry."""
    compute = steps.make_gradients(self.split(micro_batches))

    def without_carry(params, batch, step):
      (grads, loss, sums), _ = compute(params, batch, step, {})
      return grads, (loss, sums)

    return jax.jit(without_carry)
