"""The train step, a pure function of the state and a batch, and the state itself."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh

from bertgpt import config as config_lib
from bertgpt import models
from bertgpt.config import ConfigDict, choices, compiler_options
from bertgpt.data.batches import formats
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.devices import data_parallel, sharding
from bertgpt.models import Module, remat
from bertgpt.training import objectives, optimizers, schedules, spikes
from bertgpt.training.optimizers import transforms

# Independent random streams of a run.
MASK_STREAM, DROPOUT_STREAM, INIT_STREAM = range(3)


class Setup(NamedTuple):
  """Constants of a training run: all of its parts read them, and none changes them.

  Attributes:
    config: a whole config, with `model.vocab_size` set.
    mesh: mesh over the devices; an AbstractMesh if there are none.
    model: Flax module of the family.
    objective: pure functions of the objective.
    vocabulary: vocabulary of the tokenizer; None in fine-tuning.
    phase_index: index of the phase that `model` and `objective` belong to.
  """

  config: ConfigDict
  mesh: Any
  model: Module
  objective: objectives.Objective
  vocabulary: Vocabulary | None = None
  phase_index: int = 0

  @property
  def phase(self) -> ConfigDict:
    """The phase that `model` and `objective` belong to."""
    return self.config.phases[self.phase_index]


def make_setup(config: ConfigDict, mesh: Mesh | AbstractMesh, vocabulary: Vocabulary,
               phase_index: int = 0, in_evaluation: bool = False) -> Setup:
  """Returns the model and the objective of a phase, to be trained on a mesh.

  The shares of masked tokens and the bases of rotary positions may differ between phases. The
  parameters are the same.

  Args:
    config: a whole config, with `model.vocab_size` set.
    mesh: mesh over the devices; an AbstractMesh if there are none.
    vocabulary: vocabulary of the tokenizer.
    phase_index: index of the phase.
    in_evaluation: see `config.config_of_phase`.
  """
  own = config_lib.config_of_phase(config, phase_index, in_evaluation)
  return Setup(config, mesh, models.make_model(own), objectives.make_objective(own, vocabulary),
               vocabulary, phase_index)


def at_phase(setup: Setup, index: int, in_evaluation: bool = False) -> Setup:
  """Returns the same training at another phase; for the arguments, see `make_setup`."""
  return make_setup(setup.config, setup.mesh, setup.vocabulary, index, in_evaluation)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Arrays that a step changes.

  Attributes:
    step: int32 scalar, steps done; also the position in the data.
    params: nested dicts of float32 arrays.
    opt_state: state of the optimizer.
    bad_steps: int32 scalar, number of consecutive steps up to now that were not applied.
    spike_guard: state of the guard against spikes, see `spikes.init_guard`; () without one.
    carry: name -> [batch size, ...], state that rows carry to the next step, see `Objective.carry`.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  bad_steps: jax.Array
  spike_guard: Any = ()
  carry: objectives.Carry = dataclasses.field(default_factory=dict)


# -------------------------------------------------------------- one step


def make_train_step(setup: Setup) -> Callable:
  """Returns the pure function (state, batch) -> (state, metrics) of a phase.

  A step whose loss or gradient is not finite, or that the guard against spikes skips, changes only
  the step counters.

  Args:
    setup: constants of the training, at the phase.
  Returns:
    The function. `state` is a `TrainState`; `batch` has the arrays of `formats.specs`, for the
    global batch; `metrics` maps names to (sum, weight) pairs of scalars.
  """
  schedule = schedules.make_schedule(setup.config)
  optimizer = optimizers.make_optimizer(setup.config)
  compute_gradients = make_gradients(setup)

  def train_step(state: TrainState, batch):
    (grads, loss, sums), carry = compute_gradients(state.params, batch, state.step, state.carry)
    grads = optimizers.zero_frozen(setup.config, grads)
    grads = remat.gpu_barrier(grads)  # One kernel then updates an array and both of its moments.
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, step=state.step)
    learning_rate = schedule(state.step)
    params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)

    grad_norm = optax.tree.norm(grads)
    is_applied, spike_guard = spikes.judge(setup.config, state.spike_guard, state.step, loss,
                                           grad_norm)
    params, opt_state, carry = jax.tree.map(
        functools.partial(jnp.where, is_applied), (params, opt_state, carry),
        (state.params, state.opt_state, state.carry))
    bad_steps = jnp.where(is_applied, 0, state.bad_steps + 1)
    scalars = {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate,
               "bad_steps": bad_steps, "tokens": (batch["sequence_ids"] > 0).sum()}
    return (TrainState(state.step + 1, params, opt_state, bad_steps, spike_guard, carry),
            sums | {name: (value, 1) for name, value in scalars.items()})

  return train_step


class Part(NamedTuple):
  """Gradients, loss and metrics of a part of a batch, or of all of it; those of parts add up."""

  grads: Any
  loss: jax.Array
  sums: objectives.Sums


def make_gradients(setup: Setup) -> Callable:
  """Returns (params, batch, step, carry) -> (`Part`, carry) for a whole batch.

  The batch is corrupted, and the weights of its losses are computed, before it is split, and `hash`
  dropout depends on the index of a row in the whole batch, so the loss does not depend on the
  number of micro-batches. The replicas of the model sum their gradients once, after the last
  micro-batch; over several slices, they do so even if there is only one.

  Args:
    setup: constants of the training, at the phase.
  """
  config, objective = setup.config, setup.objective

  def compute_gradients(params, batch, step, carry):
    row_ids = jnp.arange(batch["tokens"].shape[0])
    batch = dict(objective.corrupt(batch, make_key(config, MASK_STREAM, step), row_ids))
    compute_part = functools.partial(_compute_part, setup, params, objective.weights(batch))
    key = make_key(config, DROPOUT_STREAM, step)
    if setup.phase.micro_batches == 1 and not data_parallel.sums_by_slice():
      return compute_part(batch, carry, key)
    part, carry = _compute_by_replicas(setup, compute_part, batch, carry, key)
    # The only sum over the replicas.
    grads = jax.tree.map(lambda grad, param: grad.astype(param.dtype),
                         data_parallel.sum_gradients(part.grads), params)
    loss, sums = jax.tree.map(lambda x: x.sum(0), (part.loss, part.sums))
    return Part(grads, loss, sums), carry

  return compute_gradients


def _compute_part(setup: Setup, params: Any, weights: Any, rows: Any, carry: objectives.Carry,
                  key: jax.Array) -> tuple[Part, objectives.Carry]:
  """Returns the gradients of corrupted rows and their carry; the weights are of the whole batch."""
  def loss_fn(params):
    bound = objectives.BoundModel(setup.model, params, key, carry)
    sums, new_carry = setup.objective.compute_sums(bound, rows)
    return objectives.total_loss(sums, weights), (sums, new_carry)

  (loss, (sums, new_carry)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
  return Part(grads, loss, sums), new_carry


def _compute_by_replicas(setup: Setup, compute_part: Callable, batch: Any, carry: objectives.Carry,
                         key: jax.Array) -> tuple[Part, objectives.Carry]:
  """Returns the gradients of every replica over its rows of all micro-batches, and all carries."""
  config, micro_batches = setup.config, setup.phase.micro_batches
  split, carries = jax.tree.map(functools.partial(_split, micro_batches), (batch, carry))

  def part_of(m):
    key_of_m = _fold_in(setup, key, m)
    with data_parallel.use_micro_batch(m, micro_batches):
      return data_parallel.map_replicas(lambda rows, carry: compute_part(rows, carry, key_of_m),
                                        *jax.tree.map(lambda x: x[m], (split, carries)))

  if micro_batches == 1:
    part, carry = part_of(0)
    part = part._replace(grads=_round_matrices(config, part.grads))
    carries = jax.tree.map(lambda x: x[None], carry)
  else:
    part, carries = _accumulate(part_of, carries, micro_batches, models.axes_of(config))
  return part, jax.tree.map(_join, carries)


def _accumulate(part_of: Callable, carries: Any, micro_batches: int, axes_of: Callable
                ) -> tuple[Part, Any]:
  """Returns the sum of the parts of all micro-batches, computed in a loop, and their carries.

  Args:
    part_of: index of a micro-batch -> (`Part`, carry), per replica.
    carries: carries of all micro-batches before the step, [micro_batches, ...].
    micro_batches: their number.
    axes_of: path of a parameter -> its logical axes.
  """
  def add(m, totals):
    total, carries = totals
    part, carry = part_of(m)
    total = jax.tree.map(jnp.add, total, part)
    carries = jax.tree.map(lambda x, x_m: x.at[m].set(x_m), carries, carry)
    return total._replace(grads=data_parallel.constrain_gradients(total.grads, axes_of)), carries

  zeros, _ = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part_of, 0))
  return jax.lax.fori_loop(0, micro_batches, add, (zeros, carries))


def _round_matrices(config: ConfigDict, grads: Any) -> Any:
  """Returns the gradients of a batch, those of hidden matrices in the dtype of their matmuls.

  A result of such a matmul loses nothing, and the network between slices carries half the bytes.
  """
  is_matrix = transforms.label(models.parameter_table(config), lambda param: param.is_matrix)(grads)
  return jax.tree.map(lambda grad, rounds: grad.astype(config.model.dtype) if rounds else grad,
                      grads, is_matrix)


def _fold_in(setup: Setup, key: jax.Array, m: jax.Array) -> jax.Array:
  """Returns the key of micro-batch m; `hash` needs no other key, as its masks number all rows."""
  if setup.phase.micro_batches == 1 or setup.config.model.dropout_rng == "hash":
    return key
  return jax.random.fold_in(key, m)


def _split(micro_batches: int, x: jax.Array) -> jax.Array:
  """Returns [micro-batches, replicas, rows of each, ...] from the rows of a batch.

  Micro-batch m holds rows m, m + micro_batches, ...: every device splits its own rows.
  """
  x = x.reshape(data_parallel.num_replicas(), -1, micro_batches, *x.shape[1:])
  return data_parallel.constrain_replicas(jnp.moveaxis(x, 2, 0))


def _join(x: jax.Array) -> jax.Array:
  """Returns the rows of a batch; the inverse of `_split`."""
  x = jnp.moveaxis(data_parallel.constrain_replicas(x), 0, 2)
  return x.reshape(-1, *x.shape[3:])


def make_key(config: ConfigDict, stream: int, step: jax.Array | int) -> jax.Array:
  """Returns the key of a random stream at a step.

  Masked positions and initial values use threefry, whose bits are the same on every mesh;
  dropout may use the cheaper rbg (`hash` derives its words from a threefry key).

  Args:
    config: a whole config; `seed` and `model.dropout_rng` are read.
    stream: one of the streams of this module.
    step: int32 scalar.
  """
  use_rbg = stream == DROPOUT_STREAM and config.model.dropout_rng == "rbg"
  key = jax.random.key(config.seed, impl="rbg" if use_rbg else "threefry2x32")
  return jax.random.fold_in(jax.random.fold_in(key, stream), step)


def init_state(setup: Setup) -> TrainState:
  """Returns the state at step 0; jit it with `out_shardings` to build it in place.

  Args:
    setup: constants of the training.
  """
  config, objective = setup.config, setup.objective
  blank = jax.tree.map(jnp.asarray, formats.make_zeros(objective.specs(config.phases[0]), 1))
  params = setup.model.init(make_key(config, INIT_STREAM, 0),
                            objective.init_inputs(blank))["params"]
  zero = jnp.zeros((), jnp.int32)
  carry = objectives.make_zero_carry(objective, config.phases[0].batch_size)
  return TrainState(zero, params, optimizers.make_optimizer(config).init(params), zero,
                    spikes.init_guard(config), carry)


def make_abstract_state(setup: Setup) -> TrainState:
  """Returns shapes, dtypes and shardings of the state; nothing is computed.

  Args:
    setup: constants of the training.
  Returns:
    A `TrainState` of `jax.ShapeDtypeStruct`.
  """
  shapes = jax.eval_shape(functools.partial(init_state, setup))
  shardings = sharding.shard_state(shapes, shapes.params, setup.mesh, setup.config,
                                   models.axes_of(setup.config))
  of_rows = sharding.batch_sharding(setup.mesh, setup.config)
  shardings = dataclasses.replace(shardings, carry=jax.tree.map(lambda _: of_rows, shapes.carry))
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                      shapes, shardings)


def make_state(setup: Setup, abstract_state: TrainState) -> TrainState:
  """Returns the state at step 0, each shard computed on its own device.

  Args:
    setup: constants of the training.
    abstract_state: result of `make_abstract_state`.
  """
  shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
  return jax.jit(functools.partial(init_state, setup), out_shardings=shardings)()


def move_to(state: TrainState, step: int) -> TrainState:
  """Returns a state whose step count includes steps that were left out.

  Args:
    state: state on the devices.
    step: steps done.
  """
  number = np.asarray(step, state.step.dtype)
  return dataclasses.replace(state, step=jax.make_array_from_callback(
      (), state.step.sharding, lambda index: number))


def jit_train_step(setup: Setup, abstract_state: TrainState) -> Any:
  """Returns the jitted train step, which reuses the memory of the old state for the new one.

  Args:
    setup: constants of the training, at the phase.
    abstract_state: result of `make_abstract_state`; its shardings are those of the result.
  """
  state_shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
  options = compiler_options.choose(setup.config.system.xla_options, sharding.platform(),
                                    jax.sharding.get_abstract_mesh().size)
  return jax.jit(make_train_step(setup), donate_argnums=0,
                 out_shardings=(state_shardings, None), compiler_options=options)


# Fields of a phase that its train step does not depend on: every step has the schedule of the whole
# run. A field that is not listed is assumed to change the program.
NOT_IN_PROGRAM = ("steps", "mixture", "learning_rate_rule", *choices.CURVE)
# The batches of an evaluation have `eval.batch_size` rows and are not split.
NOT_IN_EVALUATION = (*NOT_IN_PROGRAM, "batch_size", "micro_batches")


def program_key(config: ConfigDict, index: int, in_evaluation: bool = False) -> str:
  """Returns a key that is the same for two phases of a run only if their programs are the same.

  Args:
    config: a whole config.
    index: index of the phase.
    in_evaluation: whether the program is that of the evaluation, not the train step.
  """
  fields = dict(config_lib.leaves(config_lib.config_of_phase(config, index, in_evaluation)))
  for name in NOT_IN_EVALUATION if in_evaluation else NOT_IN_PROGRAM:
    del fields[f"phases[0].{name}"]
  return str(fields)
