"""The train step: a pure function of the state and a batch, with the state it changes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from bertgpt.config import ConfigDict, compiler_options
from bertgpt.devices import sharding
from bertgpt.models import Module
from bertgpt.training import objectives, optimizers

MASK_STREAM, DROPOUT_STREAM, INIT_STREAM = range(3)  # Independent random streams of a run.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything a step changes.

  Attributes:
    step: int32, steps done; also the position in the data.
    params: float32.
    opt_state: the optimizer's.
    bad_steps: int32, steps in a row, up to now, that were not applied.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  bad_steps: jax.Array


# -------------------------------------------------------------- one step


def make_train_step(config: ConfigDict, model: Module, objective: objectives.Objective,
                    micro_batches: int) -> Callable:
  """The pure function (state, batch) -> (state, metrics) of one phase.

  A step whose loss or gradient is not finite changes nothing but the step counters.

  Returns metrics as (sum, weight) pairs of scalars.
  """
  schedule = optimizers.make_schedule(config)
  compute_gradients = make_gradients(config, model, objective, micro_batches)

  def train_step(state: TrainState, batch):
    grads, (loss, sums) = compute_gradients(state.params, batch, state.step)
    optimizer = optimizers.make_optimizer(config, state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    learning_rate = schedule(state.step)
    params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)

    grad_norm = optax.tree.norm(grads)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    params, opt_state = jax.tree.map(functools.partial(jnp.where, is_finite), (params, opt_state),
                                     (state.params, state.opt_state))
    bad_steps = jnp.where(is_finite, 0, state.bad_steps + 1)
    scalars = {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate,
               "bad_steps": bad_steps, "tokens": (batch["sequence_ids"] > 0).sum()}
    return (TrainState(state.step + 1, params, opt_state, bad_steps),
            sums | {name: (value, 1) for name, value in scalars.items()})

  return train_step


def make_gradients(config: ConfigDict, model: Module, objective: objectives.Objective,
                   micro_batches: int) -> Callable:
  """(params, batch, step) -> (gradients, (loss, sums)) of the whole batch.

  The batch is corrupted and weighed before it is split, so neither the masks nor the loss
  depend on the number of pieces. Piece m holds rows m, m + micro_batches, ...: every device
  splits its own rows. The replicas of the model sum their gradients once, after the last piece.
  """

  def compute_gradients(params, batch, step):
    rows = batch["tokens"].shape[0]
    batch = dict(objective.corrupt(batch, make_key(config, MASK_STREAM, step), jnp.arange(rows)))
    weights = objective.weights(batch)
    dropout_key = make_key(config, DROPOUT_STREAM, step)

    def loss_fn(params, piece, key):
      sums = objective.evaluate(model, params, piece, key)
      loss = objectives.total_loss(sums, weights)
      return loss, (loss, sums)

    grad_fn = jax.grad(loss_fn, has_aux=True)
    if micro_batches == 1:
      return grad_fn(params, batch, dropout_key)

    replicas = sharding.num_replicas()

    def split(x):
      x = x.reshape(replicas, -1, micro_batches, *x.shape[1:])
      return sharding.constrain_replicas(jnp.moveaxis(x, 2, 0))

    pieces = jax.tree.map(split, batch)

    def grads_of(m):
      key = jax.random.fold_in(dropout_key, m)
      return sharding.map_replicas(lambda piece: grad_fn(params, piece, key),
                                   jax.tree.map(lambda x: x[m], pieces))

    def add_piece(m, total):
      grads, sums = jax.tree.map(jnp.add, total, grads_of(m))
      return sharding.constrain_gradients(grads), sums

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(grads_of, 0))
    total = jax.lax.fori_loop(0, micro_batches, add_piece, zeros)
    return jax.tree.map(lambda x: x.sum(0), total)  # The one sum between replicas.

  return compute_gradients


def make_key(config: ConfigDict, stream: int, step) -> jax.Array:
  """The key of a random stream at a step.

  Masked positions and initial values use threefry, whose bits are the same on every mesh;
  dropout may use the cheaper rbg (`hash` takes its words from a threefry key).
  """
  use_rbg = stream == DROPOUT_STREAM and config.model.dropout_rng == "rbg"
  key = jax.random.key(config.seed, impl="rbg" if use_rbg else "threefry2x32")
  return jax.random.fold_in(jax.random.fold_in(key, stream), step)


def init_state(config: ConfigDict, model: Module, objective: objectives.Objective) -> TrainState:
  """The state at step 0; jit it with `out_shardings` to build it in place."""
  shape = (1, config.phases[0].seq_len)
  blank = {name: jnp.zeros(shape, jnp.int32) for name in
           ("tokens", "segment_ids", "sequence_ids", "positions", "predict_positions")}
  if config.objective.name == "mlm_nsp":
    blank["nsp_positions"] = jnp.zeros((1, 1), jnp.int32)
  params = model.init(make_key(config, INIT_STREAM, 0), *objective.init_inputs(blank))["params"]
  zero = jnp.zeros((), jnp.int32)
  return TrainState(zero, params, optimizers.make_optimizer(config, params).init(params), zero)


def make_abstract_state(config: ConfigDict, mesh: Mesh, model: Module,
                        objective: objectives.Objective) -> TrainState:
  """Shapes, dtypes and shardings of the state; nothing is computed."""
  shapes = jax.eval_shape(functools.partial(init_state, config, model, objective))
  shardings = sharding.shard_state(shapes, shapes.params, mesh, config)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                      shapes, shardings)


def jit_train_step(config, model, objective, micro_batches: int, abstract_state: TrainState):
  """The step, compiled once; the old state's memory is given to the new one."""
  state_shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
  options = compiler_options.choose(config.system.xla_options, sharding.platform(),
                                    jax.sharding.get_abstract_mesh().size)
  return jax.jit(make_train_step(config, model, objective, micro_batches), donate_argnums=0,
                 out_shardings=(state_shardings, None), compiler_options=options)
