"""The train step and the loop around it."""

import collections
import contextlib
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from bertgpt import (
    checkpoint,
    compiler_options,
    evaluate,
    metrics,
    models,
    objectives,
    optimizers,
    process,
    recipes,
    sharding,
    workdir,
)
from bertgpt import config as config_lib
from bertgpt.config import ConfigDict
from bertgpt.data import corpus as corpus_lib
from bertgpt.data import loader
from bertgpt.errors import ConfigError, DataError, DivergedError, Preempted
from bertgpt.models import Module, attention

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


# -------------------------------------------------------------- the loop


def train(config: ConfigDict, path: pathlib.Path,
          allow_change: Sequence[str] = ()) -> dict[str, float]:
  """Trains, or goes on training, the run in the directory `path`.

  Args:
    allow_change: config fields that may differ from those the run was started with.
  Returns:
    The held-out metrics at the end.
  Raises:
    UserError: see `errors`; `Preempted` after a signal, with a checkpoint saved.
  """
  with contextlib.ExitStack() as stack:
    run = stack.enter_context(open_run(config, path, allow_change))
    config, last_step = run.config, config_lib.total_steps(run.config)
    checkpoints = stack.enter_context(contextlib.closing(make_checkpoints(run)))
    state = restore_or_init(run, checkpoints)
    if jax.process_index() == 0:  # Only now: a start that is refused changes nothing.
      workdir.write_run(path, config, run.corpus.tokenizer)
    first_step = int(state.step)
    log = stack.enter_context(contextlib.closing(StepLog(run, first_step)))
    if 0 < first_step < last_step and is_due(config.eval.every_steps, first_step):
      log.evaluate(first_step, state.params)  # The signal or crash came before it.
    should_stop = stack.enter_context(process.catch_signals())
    trace = stack.enter_context(process.tracer(config.profile.steps, path / "profile"))
    stack.callback(process.disarm_watchdog)
    batches = stack.enter_context(contextlib.closing(make_steps(run, first_step)))
    for step, train_step, batch in batches:  # `step` counts from 1: it is done below.
      process.arm_watchdog(config.system.hang_timeout_minutes)
      trace(step, log.flush)
      state, step_metrics = train_step(state, batch)
      log.add(step, step_metrics)
      stop = should_stop(step)
      if stop or step == last_step or checkpoints.due(step):
        is_finite = log.flush()  # Raises if the run has diverged, before anything is saved.
        wait = stop or step == last_step
        if wait or is_finite:  # A row of bad steps must not push the good checkpoints out.
          checkpoints.save(step, state, run.metadata | {"step": step}, wait=wait)
      if stop and step < last_step:
        raise Preempted(f"stopped at step {step} with a checkpoint saved; "
                        "the same command goes on from there")
      if is_due(config.eval.every_steps, step) and step < last_step:
        log.evaluate(step, state.params)
    return log.evaluate(last_step, state.params)


class Run(NamedTuple):
  """What the loop needs and does not change.

  Attributes:
    abstract_state: TrainState of ShapeDtypeStructs with their shardings.
    metadata: what a checkpoint carries besides the state.
  """

  config: ConfigDict
  path: pathlib.Path
  mesh: Mesh
  model: Module
  objective: objectives.Objective
  corpus: corpus_lib.Corpus
  evaluator: evaluate.Evaluator
  abstract_state: TrainState
  metadata: dict[str, Any]


@contextlib.contextmanager
def open_run(config: ConfigDict, path: pathlib.Path, allow_change: Sequence[str]) -> Iterator[Run]:
  """Checks everything that can be checked, prepares the corpus and lays out the state.

  Holds the lock of the directory, and the mesh, while it is open.
  """
  config_lib.validate(config, jax.device_count(), jax.default_backend())
  process.use_compilation_cache(config.system.compilation_cache)
  with workdir.claim(path, jax.process_index() == 0):
    workdir.check_unchanged(path, config, allow_change)
    train_set, held_out = open_corpus(config)
    config = workdir.resolve(config, train_set.tokenizer)
    loader.check_rows(train_set, config)
    mesh = sharding.make_mesh(config)
    with sharding.use_mesh(mesh, config):
      model = models.make_model(config)
      objective = objectives.make_objective(config, workdir.make_vocabulary(train_set.tokenizer))
      evaluator = evaluate.make_evaluator(config, mesh, held_out, model, objective)
      metadata = {"config": recipes.to_json(config), "corpus": train_set.identity,
                  "tokenizer": train_set.tokenizer.fingerprint(),
                  "data_order": loader.ORDER_VERSION}
      abstract = make_abstract_state(config, mesh, model, objective)
      yield Run(config, path, mesh, model, objective, train_set, evaluator, abstract, metadata)


def open_corpus(config: ConfigDict) -> tuple[corpus_lib.Corpus, corpus_lib.Corpus]:
  """The train and validation splits, the same on every host."""
  path = workdir.find_corpus(config)
  train_set, held_out = (corpus_lib.open_corpus(path, split) for split in corpus_lib.SPLITS)
  if jax.process_count() > 1:
    digest = np.frombuffer(bytes.fromhex(train_set.identity), np.int32)
    multihost_utils.assert_equal(digest, f"{path}: not the same corpus on every host")
  return train_set, held_out


def make_abstract_state(config: ConfigDict, mesh: Mesh, model: Module,
                        objective: objectives.Objective) -> TrainState:
  """Shapes, dtypes and shardings of the state; nothing is computed."""
  shapes = jax.eval_shape(functools.partial(init_state, config, model, objective))
  shardings = sharding.shard_state(shapes, shapes.params, mesh, config)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                      shapes, shardings)


def make_checkpoints(run: Run) -> checkpoint.Checkpoints:
  options = run.config.checkpoint
  return checkpoint.Checkpoints(run.path, every_steps=options.every_steps,
                                every_minutes=options.every_minutes, keep=options.keep)


def restore_or_init(run: Run, checkpoints: checkpoint.Checkpoints) -> TrainState:
  """The newest good checkpoint of the run, or a fresh state, or another run's parameters."""
  restored = checkpoints.restore_latest(run.abstract_state)
  if restored is not None:
    state, metadata = restored
    for name in ("corpus", "tokenizer"):
      if metadata[name] != run.metadata[name]:
        raise DataError(f"{run.path}: its checkpoints were made with another {name}; "
                        f"bring that {name} back, or use another --workdir")
    if metadata["data_order"] != loader.ORDER_VERSION:
      raise DataError(f"{run.path}: its rows were read in order {metadata['data_order']}, this "
                      f"program reads them in order {loader.ORDER_VERSION}; go on with the program "
                      "that began it, or start another run with --config.init_from")
    check_phases(run, recipes.from_json(metadata["config"]), int(state.step))
    return state
  init = functools.partial(init_state, run.config, run.model, run.objective)
  state = jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, run.abstract_state))()
  if run.config.init_from:
    state = dataclasses.replace(state, params=load_params(run))
  return state


def check_phases(run: Run, old: ConfigDict, step: int) -> None:
  """Steps may be added to a run; what is behind it stays as it was.

  Args:
    old: config of the checkpoint at `step`.
  Raises:
    ConfigError: under the new config the run would not be where it is.
  """
  steps = config_lib.total_steps(run.config)
  if step > steps:
    raise ConfigError(f"phases[].steps: {steps} in all, but the run in {run.path} has done "
                      f"{step} already; raise them, or use another --workdir")
  if step and config_lib.phase_at(old, step - 1) != config_lib.phase_at(run.config, step - 1):
    raise ConfigError(f"phases[].steps: the run in {run.path} has done {step} steps; those of the "
                      "phases that are behind it cannot change; change the last one's")


def load_params(run: Run) -> Any:
  """The parameters of `config.init_from`, laid out for this run."""
  source = workdir.load_trained(pathlib.Path(run.config.init_from).expanduser())
  if source.tokenizer.fingerprint() != run.metadata["tokenizer"]:
    raise ConfigError(f"init_from={run.config.init_from}: trained with another tokenizer; set "
                      f"--config.tokenizer.path={run.config.init_from}/tokenizer")
  wanted = {sharding.path_of(p): x for p, x in
            jax.tree_util.tree_leaves_with_path(run.abstract_state.params)}
  found = {sharding.path_of(p): x for p, x in jax.tree_util.tree_leaves_with_path(source.params)}
  wrong = [f"{path}: {found[path].shape if path in found else 'absent'}, needs {x.shape}"
           for path, x in wanted.items() if path not in found or found[path].shape != x.shape]
  if wrong:
    raise ConfigError(f"init_from={run.config.init_from}: not the parameters of this model:\n  "
                      + "\n  ".join(wrong))
  if jax.process_index() == 0:
    print(f"note: starting from the parameters of step {source.step} of {run.config.init_from}, "
          "with a fresh optimizer", file=sys.stderr)
  return jax.tree_util.tree_map_with_path(
      lambda path, x: jax.device_put(found[sharding.path_of(path)], x.sharding),
      run.abstract_state.params)


# -------------------------------------------------------- the loop's parts


def make_steps(run: Run, first_step: int) -> Iterator[tuple[int, Callable, Any]]:
  """(number of the step counted from 1, jitted step, batch on the devices), phase by phase."""
  phase_start = 0
  for i, phase in enumerate(run.config.phases):
    phase_end = phase_start + phase.steps
    if first_step < phase_end:
      start = max(first_step, phase_start)
      train_step = jit_train_step(run.config, run.model, run.objective, phase.micro_batches,
                                  run.abstract_state)
      with contextlib.closing(device_batches(run, i, start - phase_start)) as batches:
        for step, batch in zip(range(start + 1, phase_end + 1), batches, strict=False):
          yield step, train_step, batch
    phase_start = phase_end


def jit_train_step(config, model, objective, micro_batches: int, abstract_state: TrainState):
  """The step, compiled once; the old state's memory is given to the new one."""
  state_shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
  options = compiler_options.choose(config.system.xla_options, sharding.platform(),
                                    jax.sharding.get_abstract_mesh().size)
  return jax.jit(make_train_step(config, model, objective, micro_batches), donate_argnums=0,
                 out_shardings=(state_shardings, None), compiler_options=options)


def device_batches(run: Run, phase_index: int, first_step: int) -> Iterator[dict[str, jax.Array]]:
  """Batches of a phase from its step `first_step` on, `data.prefetch` of them in flight."""
  batch_size = run.config.phases[phase_index].batch_size
  rows = sharding.local_rows(run.mesh, run.config, batch_size)
  queue: collections.deque = collections.deque()
  with contextlib.closing(loader.make_train_batches(run.corpus, run.config, phase_index, first_step,
                                                    rows)) as batches:
    for batch in batches:
      queue.append(sharding.make_global_batch(batch, run.mesh, run.config, batch_size))
      if len(queue) > run.config.data.prefetch:
        yield queue.popleft()
    yield from queue


class StepLog:
  """Reads the metrics of a step after the next one was started; logs; finds divergence."""

  def __init__(self, run: Run, first_step: int, *, is_static: bool = True):
    """Args: is_static: all rows are as long as their phase says; else there is no MFU."""
    config = run.config
    self._run, self._is_static = run, is_static
    self._writer = metrics.Writer(run.path, first_step=first_step,
                                  last_step=config_lib.total_steps(config),
                                  tensorboard=config.log.tensorboard,
                                  active=jax.process_index() == 0)
    for line in attention.explain(config) if is_static else ():
      self._writer.message(line)
    self._pending: tuple[int, Any] | None = None
    self._restart()

  def add(self, step: int, step_metrics: Any) -> None:
    self.flush()
    self._pending = step, step_metrics

  def flush(self) -> bool:
    """Waits for the step added last, logs it, and says whether it was finite.

    Raises:
      DivergedError: too many steps in a row were not finite.
    """
    if self._pending is None:
      return True
    step, sums = self._pending[0], jax.device_get(self._pending[1])
    self._pending = None
    is_finite = sums["bad_steps"][0] == 0
    # A NaN would spoil the window; what was not applied is counted instead.
    self._window.add(sums if is_finite else {"tokens": sums["tokens"]})
    self._skipped += not is_finite
    limit = self._run.config.train.max_bad_steps
    if sums["bad_steps"][0] >= limit:
      raise DivergedError(f"step {step}: loss or gradient not finite in {limit} steps in a row; "
                          "none of them was applied. Lower phases[].learning_rate or look at "
                          "the data")
    self._last = step, sums
    if is_due(self._run.config.log.every_steps, step):
      self._write(step, sums)
    return is_finite

  def evaluate(self, step: int, params: Any) -> dict[str, float]:
    self.settle()
    phase_index, _ = config_lib.phase_at(self._run.config, step - 1)
    results = evaluate.run(self._run.evaluator, params, phase_index)
    self.record(step, self._run.evaluator.name, results)
    return results

  def settle(self) -> None:
    """Logs all steps added so far, before an evaluation."""
    self.flush()
    if self._window.steps:
      self._write(*self._last)

  def record(self, step: int, name: str, results: dict[str, float]) -> None:
    """Logs an evaluation on the set `name`."""
    self._writer.write(step, {f"eval/{name}/{metric}": value for metric, value in results.items()})
    self._writer.message(f"step {step}  {name}: "
                         + "  ".join(f"{metric} {value:.4g}" for metric, value in results.items()))
    self._restart()  # Evaluation is no step time.

  def close(self) -> None:
    self._writer.close()

  def _write(self, step: int, last: Any) -> None:
    config, window = self._run.config, self._window
    seconds = (time.monotonic() - self._clock) / window.steps
    scalars = {f"train/{name}": mean for name, mean in window.means().items()
               if name not in ("tokens", "bad_steps")}
    scalars |= {"train/learning_rate": float(last["learning_rate"][0]),
                "train/skipped_steps": self._skipped, "perf/step_seconds": seconds,
                "perf/tokens_per_second": window.total("tokens") / window.steps / seconds}
    peak = metrics.peak_flops(jax.devices()[0].device_kind)
    if peak and self._is_static:
      phase = config.phases[config_lib.phase_at(config, step - 1)[0]]
      scalars["perf/mfu"] = (metrics.flops_per_step(config, phase) / seconds
                             / (peak * jax.device_count()))
    self._writer.write(step, scalars)
    self._writer.progress(step, scalars)
    self._restart()

  def _restart(self) -> None:
    self._window, self._skipped, self._clock = metrics.Window(), 0, time.monotonic()


def is_due(every: int, step: int) -> bool:
  return every > 0 and step % every == 0
