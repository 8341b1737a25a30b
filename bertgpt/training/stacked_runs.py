"""The program of a mapped sweep: the states of all runs in one stack, and their common step.

The states are stacked along a first axis, and one jitted step maps `steps.make_train_step` over it.
The devices form groups, as many as divide both the runs and the axis `data`; each group has its
share of the runs and splits their batches, as usual.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bertgpt.config import MESH_AXES, compiler_options
from bertgpt.data.batches import formats, loader
from bertgpt.devices import sharding
from bertgpt.training import feed, mapped_fields, per_run, steps
from bertgpt.training.open_run import Run
from bertgpt.training.steps import TrainState


class StackedRuns:
  """The runs of one program, and the layout of their stacked states.

  Attributes:
    runs: the opened runs.
    mesh: mesh with the axis `sharding.RUNS` before the axes of a single run, over the same devices.
    abstract_states: `TrainState` of ShapeDtypeStructs [runs, ...] with their shardings.
  """

  def __init__(self, runs: Sequence[Run]):
    """Lays out the states.

    Args:
      runs: runs whose configs `mapped_fields.find` accepts.
    """
    self.runs, single = tuple(runs), runs[0].setup.mesh
    self._programs: dict[int, Any] = {}
    self._fields = mapped_fields.find([run.config for run in runs])
    parts = math.gcd(len(runs), single.shape["data"])
    axes = sharding.RUNS, *MESH_AXES
    self.mesh = Mesh(single.devices.reshape(parts, -1, *single.devices.shape[1:]), axes,
                     axis_types=(AxisType.Auto,) * len(axes))
    self.abstract_states = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((len(runs), *x.shape), x.dtype,
                                       sharding=self._layout(x.sharding.spec)),
        runs[0].abstract_state)

  def _layout(self, spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec(sharding.RUNS, *spec))

  def make_states(self) -> TrainState:
    """Returns states of zeros, which `put` replaces."""
    zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.abstract_states)
    return jax.jit(zeros, out_shardings=_shardings(self.abstract_states))()

  @functools.cached_property
  def put(self) -> Callable[[TrainState, TrainState, int], TrainState]:
    """Returns (states, state, i) -> the states with another one for run i; reuses their memory."""

    def put(states, state, i):
      return jax.tree.map(lambda all_runs, x: jnp.where(_is_run(i, all_runs), x, all_runs),
                          states, state)

    return jax.jit(put, donate_argnums=0, out_shardings=_shardings(self.abstract_states))

  @functools.cached_property
  def take(self) -> Callable[[TrainState, int], TrainState]:
    """Returns (states, i) -> the state of run i, laid out as that of a single run."""

    def pick(i, x):
      # A sum over the devices, of which one has the run. An index would copy all runs to all.
      if x.dtype == bool:
        return (x & _is_run(i, x)).any(0)
      bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
      bits = jnp.where(_is_run(i, bits), bits, 0).sum(0, dtype=bits.dtype)
      return jax.lax.bitcast_convert_type(bits, x.dtype)

    return jax.jit(lambda states, i: jax.tree.map(functools.partial(pick, i), states),
                   out_shardings=_shardings(self.runs[0].abstract_state))

  def jit_train_step(self, phase_index: int) -> Any:
    """Returns the jitted step (states, batches, is_active) -> (states, metrics) of a phase.

    The batches are arrays [runs, batch size, ...], `is_active` is bool [runs], and the metrics are
    those of `steps.make_train_step`, [runs]. The state of a run that is not active stays as it is.

    Args:
      phase_index: index of the phase.
    """
    if phase_index in self._programs:
      return self._programs[phase_index]
    run = self.runs[0]

    def step_of_run(number, state, batch, is_active):
      config = per_run.put(run.config, self._fields, number)
      setup = steps.at_phase(run.setup._replace(config=config), phase_index)
      new_state, metrics = steps.make_train_step(setup)(state, batch)
      return jax.tree.map(functools.partial(jnp.where, is_active), new_state, state), metrics

    def train_step(states, batches, is_active):
      step = jax.vmap(step_of_run, spmd_axis_name=sharding.RUNS)
      return step(jnp.arange(len(self.runs)), states, batches, is_active)

    options = compiler_options.choose(run.config.system.xla_options, sharding.platform(),
                                      self.mesh.size)
    self._programs[phase_index] = jax.jit(
        train_step, donate_argnums=0, compiler_options=options,
        out_shardings=(_shardings(self.abstract_states), None))
    return self._programs[phase_index]

  def check(self) -> None:
    """Traces the steps of all phases, without computing anything.

    Raises:
      ConfigError: a field has values that need different programs.
    """
    config, number = self.runs[0].config, len(self.runs)
    with sharding.use_mesh(self.mesh, config):
      for i, phase in enumerate(config.phases):
        zeros = formats.make_zeros(self.runs[0].setup.objective.specs(phase), phase.batch_size)
        batches = {name: jax.ShapeDtypeStruct((number, *x.shape), x.dtype)
                   for name, x in zeros.items()}
        jax.eval_shape(self.jit_train_step(i), self.abstract_states, batches,
                       jax.ShapeDtypeStruct((number,), bool))

  def read(self, phase_index: int, first_step: int) -> Generator[dict[str, jax.Array], None, None]:
    """Yields the batches of a phase, [runs, batch size, ...], on the devices.

    Runs with the same seed have the same batches, which are read once. `data.prefetch` batches are
    on their way to the devices.

    Args:
      phase_index: index of the phase.
      first_step: first batch, counted from the start of the phase.
    """
    config = self.runs[0].config
    layout = self._layout(sharding.batch_sharding(self.mesh, config).spec)
    seeds = list(dict.fromkeys(run.config.seed for run in self.runs))
    which = [seeds.index(run.config.seed) for run in self.runs]
    with contextlib.ExitStack() as stack:
      readers = []
      for seed in seeds:
        run = self.runs[which.index(seeds.index(seed))]
        readers.append(stack.enter_context(contextlib.closing(loader.make_train_batches(
            run.corpus, run.config, phase_index, first_step, slice(None), run.others))))
      stacked = ({name: np.stack([parts[k][name] for k in which]) for name in parts[0]}
                 for parts in zip(*readers, strict=True))
      yield from feed.prefetch((sharding.make_global_batch(batch, layout, len(self.runs))
                                for batch in stacked), config.data.prefetch)


def _shardings(abstract_state: TrainState) -> TrainState:
  return jax.tree.map(lambda x: x.sharding, abstract_state)


def _is_run(i, x):
  """Returns bool [runs, 1, ...], true for run i, for an array [runs, ...]."""
  return (jnp.arange(len(x)) == i).reshape(-1, *[1] * (x.ndim - 1))
