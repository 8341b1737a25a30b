"""The state that a run starts from: its newest checkpoint, or fresh or trained parameters."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.config import ConfigDict, mixtures, resuming
from bertgpt.config.derived import ranges_to_train
from bertgpt.config.stored import from_json
from bertgpt.data.batches.rows import ORDER_VERSION
from bertgpt.data.corpus import frequencies
from bertgpt.data.corpus.corpus import Corpus
from bertgpt.devices import cluster, timeline
from bertgpt.errors import ConfigError, DataError
from bertgpt.runs import checkpoint, history, metrics_file, word_tables, workdir
from bertgpt.runs.manifest import parse_type
from bertgpt.training import init_from, schedules, steps
from bertgpt.training.open_run import Run
from bertgpt.training.steps import TrainState


@timeline.during("restore")
def restore_or_init(run: Run, checkpoints: checkpoint.Checkpoints) -> TrainState:
  """Returns the state to start from.

  This is the newest good checkpoint of the run. If there is none, it is a fresh state, with the
  parameters of `config.init_from` if that is set.

  Args:
    run: the opened run.
    checkpoints: checkpoints of the run.
  Raises:
    ConfigError: the new config does not fit the steps that are done, or needs another state, or
      `init_from` does not fit.
    DataError: the checkpoint belongs to another corpus, tokenizer or order of rows, or the
      checkpoints of the run are gone.
  """
  try:
    restored = checkpoints.restore_latest(run.abstract_state, with_saved_guard)
  except checkpoint.OtherStateError as e:
    # Without --allow_change, the config was compared with that of the run.
    if lines := workdir.find_changes(run.path, run.config):
      raise ConfigError(f"{run.path}: its checkpoints do not fit one of these changes, whatever "
                        "--allow_change says. Leave it out, or start another run with "
                        f"--config.init_from={run.path}\n  " + "\n  ".join(lines)) from e
    raise
  if restored is not None:
    state, metadata = restored
    state = with_own_guard(run, state)
    for name in ("corpus", "tokenizer"):
      if metadata[name] != run.metadata[name]:
        raise DataError(f"{run.path}: its checkpoints were made with another {name}. "
                        f"Restore that {name}, or use another --workdir" + (
                            ". If that corpus is in another folder, name it with "
                            "--config.data.corpus=PATH" if name == "corpus" else ""))
    check_corpora(metadata.get("corpora", {}), run)
    order = metadata.get("data_order", 0)  # The oldest checkpoints lack this entry.
    if order != ORDER_VERSION:
      raise DataError(f"{run.path}: its rows were read in order {order}, but this program reads "
                      f"them in order {ORDER_VERSION}. Resume it with the program that "
                      "started it, or start another run with --config.init_from")
    old = from_json(metadata["config"])
    check_phases(old, run.config, int(state.step), run.path)
    check_skipped(old, run.config, int(state.step))
    change = schedules.describe_change(old, run.config, int(state.step))
    cluster.say_once(change and f"note: {change}")
    return state
  history.check_start(run.path, metrics_file.last_step(run.path), run.config.checkpoint.every_steps)
  state = steps.make_state(run.setup, run.abstract_state)
  if run.config.init_from:
    state = dataclasses.replace(state, params=init_from.load(
        run.config, run.corpus, state.params))
    return state
  if run.config.objective.bias_init == "frequencies":
    corpora = {**run.others, mixtures.MAIN: run.corpus}
    shares = mixtures.find_shares(run.config.phases[0])
    state = dataclasses.replace(state, params=add_frequencies(
        state.params, [(float(share), corpora[name]) for name, share in shares.items()],
        run.config.model.vocab_size))
  return dataclasses.replace(state, params=word_tables.add_words(
      run.config, state.params, run.corpus.tokenizer))


def with_saved_guard(abstract_state: TrainState, types: Mapping[str, str]) -> TrainState:
  """Returns the abstract state with the spike guard as it is in a checkpoint.

  The guard can be switched on and off, and the number of its values changed, when a run resumes. So
  the checkpoints of a run may have different guards.

  Args:
    abstract_state: the state that the config asks for.
    types: dtypes and shapes of the leaves of the checkpoint by name, such as 'float32[2,128]'.
  """
  guard = {}
  for name, kind in types.items():
    if name.startswith("spike_guard/"):
      guard[name.removeprefix("spike_guard/")] = jax.ShapeDtypeStruct(
          *parse_type(kind), sharding=abstract_state.step.sharding)
  return dataclasses.replace(abstract_state, spike_guard=guard or ())


def with_own_guard(run: Run, state: TrainState) -> TrainState:
  """Returns a restored state with the guard that the config asks for; empty if the size differs.

  Args:
    run: the opened run.
    state: the restored state.
  """
  wanted = run.abstract_state.spike_guard
  shapes = lambda guard: jax.tree.map(lambda x: (x.shape, x.dtype), guard)
  if shapes(wanted) == shapes(state.spike_guard):
    return state
  fresh = jax.tree.map(lambda x: jax.jit(lambda: jnp.zeros(x.shape, x.dtype),
                                         out_shardings=x.sharding)(), wanted)
  return dataclasses.replace(state, spike_guard=fresh)


def check_skipped(old: ConfigDict, new: ConfigDict, step: int) -> None:
  """Checks that `train.skip_steps` has changed only after the steps that are done.

  Args:
    old: config of the checkpoint.
    new: config of this start.
    step: steps done at the checkpoint.
  Raises:
    ConfigError: the config leaves out steps that were trained, or includes steps that were not.
  """
  trained = lambda config: ranges_to_train(config.train.skip_steps, 0, step)
  if trained(old) != trained(new):
    raise ConfigError(f"train.skip_steps={new.train.skip_steps}: the run has done {step} steps "
                      f"with {old.train.skip_steps}. Change only what comes after step {step}, or "
                      "go back with `bertgpt rollback`")


def add_frequencies(params: Any, sources: Sequence[tuple[float, Corpus]], vocab_size: int) -> Any:
  """Returns the parameters with the log frequencies of the tokens of a text as output bias.

  Otherwise a short run spends its first steps on learning these frequencies, and the bias moves
  only by about the learning rate per step. With a large vocabulary, the run distorts the embedding
  table for this purpose: the vectors of all rare tokens become similar.

  Args:
    params: parameters of a masked LM, on the devices.
    sources: (share of the text, documents it comes from).
    vocab_size: number of ids.
  """
  found = sum(share * frequencies.unigram_probabilities(corpus, vocab_size, is_causal=False)
              for share, corpus in sources)
  bias = params["mlm"]["bias"]
  whole = np.zeros(bias.shape, np.float32)
  whole[:vocab_size] = np.log(found)
  placed = jax.make_array_from_callback(whole.shape, bias.sharding, lambda index: whole[index])
  return {**params, "mlm": {**params["mlm"], "bias": placed}}


def check_corpora(saved: Mapping[str, str], run: Run) -> None:
  """Checks that the corpora of mixtures are those of a checkpoint.

  Args:
    saved: name -> identity of the corpora that the checkpoint was made with.
    run: the opened run.
  Raises:
    DataError: a name now stands for another corpus.
  """
  found = run.metadata.get("corpora", {})
  for name, identity in saved.items():
    if found.get(name, identity) != identity:
      raise DataError(f"{run.path}: its checkpoints were made with another corpus {name}. If that "
                      f"corpus is in another folder, name it with --config.data.corpora={name}="
                      "PATH. For another corpus, choose another name")


def check_phases(old: ConfigDict, new: ConfigDict, step: int, path: pathlib.Path) -> None:
  """Checks that a config only adds steps to a run: the phases that are done must be unchanged.

  Args:
    old: config of the checkpoint.
    new: config of this start.
    step: steps done at the checkpoint.
    path: workdir of the run.
  Raises:
    ConfigError: with the new config, the step would be at a different place in the phases.
  """
  if problem := resuming.find_phase_problem(old, new, step, path):
    raise ConfigError(problem)
