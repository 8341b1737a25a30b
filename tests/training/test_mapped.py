"""training.mapped and stacked_runs: runs of one program are the runs that train alone."""

import contextlib
import dataclasses
import json
import operator
import shutil
import time
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bertgpt import cli, files
from bertgpt.config import choices, phase, recipes
from bertgpt.config.overrides import override
from bertgpt.config.stored import to_json
from bertgpt.devices import preemption, sharding
from bertgpt.errors import ConfigError, Preempted
from bertgpt.planning import topologies
from bertgpt.report import goodput
from bertgpt.runs import checkpoint, corpora, metrics_file, workdir
from bertgpt.training import (
  evaluate,
  evaluate_run,
  loop,
  mapped,
  mapped_fields,
  per_run,
  schedules,
  stacked_runs,
  step_log,
  steps,
)
from bertgpt.training.open_run import Run

STEPS = 6
SHORT = ["--config.phases[0].steps=8", "--config.eval.max_rows=8", "--config.eval.every_steps=4",
         "--config.log.every_steps=1", "--config.checkpoint.every_steps=2"]


def configs_of(base, changes):
  """Returns the config of every run: `base` with some fields changed."""
  return [override(base, [f"--config.{field}={value}" for field, value in run.items()])
          for run in changes]


def train_alone(config, batches):
  """Returns the losses of a run, and its state."""
  losses = []
  with tiny.Setup(config) as setup:
    state, step = setup.init(), setup.step(config.phases[0].micro_batches)
    for batch in batches:
      state, sums = step(state, setup.put(batch))
      losses.append(float(sums["loss"][0]))
  return losses, jax.device_get(state)


def train_together(configs, batches_of):
  """Returns the losses of every run, their stack, and their states on the devices."""
  runs, initial = [], []
  for config in configs:
    with tiny.Setup(config) as setup:
      runs.append(Run(config, None, setup.training, None, None, setup.abstract, {}))
      initial.append(setup.init())
  stacked = stacked_runs.StackedRuns(runs)
  stacked.check()
  states = stacked.make_states()
  for i, state in enumerate(initial):
    states = stacked.put(states, state, i)
  layout = jax.sharding.NamedSharding(stacked.mesh, jax.sharding.PartitionSpec(
      sharding.RUNS, *sharding.batch_sharding(stacked.mesh, configs[0]).spec))
  losses, everyone = [], np.ones(len(runs), bool)
  with sharding.use_mesh(stacked.mesh, configs[0]):
    step = stacked.jit_train_step(0)
    for batches in zip(*batches_of, strict=True):
      batch = {name: np.stack([b[name] for b in batches]) for name in batches[0]}
      states, sums = step(states, sharding.make_global_batch(batch, layout, len(runs)), everyone)
      losses.append(jax.device_get(sums["loss"][0]))
  return np.transpose(losses), stacked, states


NUMBERS = [{"seed": 3, "phases[0].learning_rate": 1e-3, "optimizer.b2": 0.95,
            "optimizer.weight_decay": 0.0, "model.dropout": 0.2, "optimizer.layer_decay": 0.9,
            "optimizer.momentum": 0.9},
           {"optimizer.b1": 0.8, "optimizer.epsilon": 1e-3, "optimizer.clip_norm": 0.1,
            "phases[0].end_fraction": 0.5, "optimizer.layer_decay": 0.7,
            "optimizer.initial_accumulator": 0.01, "model.attention_dropout": 0.3}]
RATES = [{"seed": 1, "model.dropout": 0.1, "phases[0].warmup_steps": 2},
         {"seed": 2, "model.dropout": 0.5, "phases[0].warmup_steps": 4}]
OTHERS = sorted(choices.OPTIMIZERS.keys() - {"bert_adamw"})
WIDE = {"adafactor": {"width": 128, "mlp_dim": 128}}  # It factors no smaller matrices.


def numbers_of(name):
  """Returns NUMBERS without the fields that an optimizer does not read."""
  unread = set().union(*choices.OPTIMIZERS.values()) - choices.OPTIMIZERS[name]
  return [{field: run[field] for field in run.keys() - unread} for run in NUMBERS]


@pytest.mark.parametrize("name, mesh, micro_batches, runs, split", [
    ("bert_adamw", (1, 1, 1), 1, numbers_of("bert_adamw"), 1),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("bert_adamw", (1, 2, 2), 1, numbers_of("bert_adamw"), 1),
        ("adamw", (4, 1, 1), 2, RATES, 2),
        *((name, (1, 1, 1), 1, numbers_of(name), 1) for name in OTHERS)))])
def test_losses_are_those_of_single_runs(name, mesh, micro_batches, runs, split):
  """This includes dropout, micro-batches, and several devices, which split runs or rows."""
  base = tiny.make_config(mesh=mesh, num_layers=1, dropout=0.1, attention_dropout=0.1,
                          attention="xla", **WIDE.get(name, {}))
  base.optimizer.name, base.phases[0].micro_batches = name, micro_batches
  configs = configs_of(base, runs)
  batches_of = [[tiny.make_batch(config, 10 * config.seed + i) for i in range(STEPS)]
                for config in configs]
  losses, stacked, states = train_together(configs, batches_of)
  for i, config in enumerate(configs):
    alone, state = train_alone(config, batches_of[i])
    np.testing.assert_allclose(losses[i], alone, rtol=1e-6, err_msg=str(runs[i]))
    taken = jax.device_get(stacked.take(states, i))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), taken) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state)
  assert len({tuple(run) for run in losses.tolist()}) == len(runs)
  assert stacked.mesh.shape[sharding.RUNS] == split
  assert {x.sharding.spec[0] for x in jax.tree.leaves(states)} == {sharding.RUNS}


def test_the_system_must_allow_the_files_of_all_runs(monkeypatch):
  asked = []
  monkeypatch.setattr(files, "raise_open_limit", lambda wanted: asked.append(wanted) or 1024)
  mapped_fields.check_number(32)
  with pytest.raises(ConfigError, match="33 runs need 1040 open files, and this process may have "
                                        "1024. Raise the limit .ulimit -n."):
    mapped_fields.check_number(33)
  assert asked == [2**16, 2**16]


def test_taking_what_was_put_changes_no_bit():
  """This includes values that a sum would change, such as -0.0."""
  config = tiny.make_config(mesh=(2, 1, 1), num_layers=1)
  with tiny.Setup(config) as setup:
    state = jax.tree.map(lambda x: -x, setup.init())  # Biases become -0.0.
    flags = jax.device_put(np.array([True, False, True]), state.step.sharding)
    state = dataclasses.replace(state, carry={"flags": flags})  # XLNet's memory has some.
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                            state)
    runs = [Run(config, None, setup.training, None, None, abstract, {})] * 2
  stacked = stacked_runs.StackedRuns(runs)
  states = stacked.put(stacked.make_states(), state, 1)
  bits = lambda tree: [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]
  assert bits(stacked.take(states, 1)) == bits(state)
  assert not any(np.asarray(x).any() for x in jax.tree.leaves(stacked.take(states, 0)))


def lower(configs, devices=None):
  """Returns the lowered step of some runs."""
  runs = []
  for config in configs:
    mesh = sharding.make_mesh(config, devices or tiny.devices_of(config))
    with sharding.use_mesh(mesh, config):
      setup = steps.make_setup(config, mesh, tiny.make_vocabulary())
      runs.append(Run(config, None, setup, None, None, steps.make_abstract_state(setup), {}))
  stacked = stacked_runs.StackedRuns(runs)
  layout = jax.sharding.NamedSharding(stacked.mesh, jax.sharding.PartitionSpec(
      sharding.RUNS, *sharding.batch_sharding(stacked.mesh, configs[0]).spec))
  batch = {name: jax.ShapeDtypeStruct((len(runs), *x.shape), x.dtype, sharding=layout)
           for name, x in tiny.make_batch(configs[0]).items()}
  with sharding.use_mesh(stacked.mesh, configs[0]):
    return stacked.jit_train_step(0).lower(
        stacked.abstract_states, batch, jax.ShapeDtypeStruct((len(runs),), bool))


FOUR = [{"seed": seed, "phases[0].learning_rate": rate, "model.dropout": rate}
        for seed in (0, 1) for rate in (0.1, 0.2)]
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@pytest.mark.slow
def test_runs_on_devices_of_their_own_do_not_communicate():
  config = tiny.make_config(mesh=(4, 1, 1), num_layers=1, dropout=0.1)
  text = lower(configs_of(config, FOUR)).compile().as_text()
  assert [name for name in COLLECTIVES if f"{name}(" in text or f"{name}-start(" in text] == []


@pytest.mark.libtpu
def test_the_step_compiles_for_tpus():
  config = tiny.make_config(mesh=(2, 2, 1), num_layers=1, dropout=0.1, attention="xla")
  topology = topologies.open_topology("v5e:2x2")
  assert lower(configs_of(config, FOUR), topology.devices).compile().as_text()


@pytest.mark.cuda
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_step_is_lowered_for_gpus_with_the_masks_of_cudnn(micro_batches):
  config = tiny.make_config(width=128, num_heads=2, num_layers=1, dtype="bfloat16")
  config.phases[0].micro_batches = micro_batches
  topology = topologies.open_topology("h100:1")
  text = lower(configs_of(config, [{"seed": 0}, {"seed": 1}]), topology.devices).as_text()
  assert "__cudnn$fmha" in text


# ------------------------------------------------------------------- numbers


def of_run(i, *values, fields=("optimizer.b2",)):
  return per_run.PerRun(fields, values, jnp.int32(i))


def test_numbers_are_rounded_once_as_those_of_a_single_run():
  """1 - 0.999 in float32 would be 5e-5 off."""
  for i, b2 in enumerate((0.999, 0.95)):
    numbers = of_run(i, 0.999, 0.95)
    for operate in (operator.add, operator.sub, operator.mul, operator.truediv, operator.pow):
      x = jnp.float32(3)
      assert jnp.asarray(operate(1, numbers)) == np.float32(operate(1, b2))
      assert jnp.asarray(operate(numbers, 2)) == np.float32(operate(b2, 2))
      for found, expected in ((operate(x, numbers), operate(x, np.float32(b2))),
                              (operate(numbers, x), operate(np.float32(b2), x))):
        assert isinstance(found, jax.Array) and found == expected
    assert jnp.asarray(numbers * numbers) == np.float32(b2 * b2)


def test_whole_numbers_stay_whole():
  assert jnp.asarray(of_run(1, 3, 2**31 + 5)).dtype == jnp.int32
  key = lambda seed: jax.random.key_data(jax.random.key(seed)).tolist()
  assert [key(of_run(i, 7, 2**31 + 5)) for i in (0, 1)] == [key(7), key(2**31 + 5)]


def test_a_question_has_one_answer_for_all_runs():
  assert of_run(0, 0.1, 0.2) and not of_run(0, 0.0, 0.0)
  assert of_run(0, 0.1, 0.2) != 0 and of_run(0, 0.1, 0.2) < 1 and max(of_run(0, 2, 3), 1) != 1
  for question in (bool, int, float, lambda rate: rate == 0, lambda rate: rate > 0.05):
    with pytest.raises(ConfigError, match="model.dropout: .*Leave out --mapped"):
      question(of_run(0, 0.0, 0.1, fields=("model.dropout",)))


CURVES = {"power": (2.0, 0.5), "end_fraction": (0.0, 0.3), "learning_rate": (1e-3, 2e-3),
          "decay_fraction": (0.5, 0.2)}


@pytest.mark.parametrize("warmup", [{"warmup_steps": (4, 7)}, {"warmup_fraction": (0.2, 0.35)}, {}],
                         ids=str)
@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_learning_rates_are_those_of_single_runs(schedule, warmup):
  fields = {f"phases[0].{field}": values for field, values in (CURVES | warmup).items()}
  config = tiny.make_config()
  config.phases = (phase(steps=20, schedule=schedule),)
  at = jnp.arange(25)
  rates = jax.jit(jax.vmap(lambda i: schedules.make_schedule(per_run.put(config, fields, i))(at)))(
      jnp.arange(2))
  for i, found in enumerate(rates):
    alone = override(config, [f"--config.{name}={v[i]}" for name, v in fields.items()])
    np.testing.assert_allclose(found, schedules.make_schedule(alone)(at), rtol=1e-6, atol=1e-9)
  assert not np.allclose(*rates)


# ----------------------------------------------------------------- whole runs


def make_sweep(recipe, path, runs):
  """Writes the recipe of `recipe` with these runs."""
  path.write_text(f"{recipe.read_text().split('def get_sweep')[0]}def get_sweep():\n"
                  f"  return {runs!r}\n")
  return path


def sweep(recipe, path, *arguments):
  return cli.main(["sweep", f"--config={recipe}", f"--workdir={path}", "--mapped", *SHORT,
                   *arguments])


def curves(path):
  """Returns the curves of a run that do not depend on the clock."""
  return {tag: points for tag, points in metrics_file.read_curves(path).items()
          if not tag.startswith("perf/")}


def config_of(recipe, run, *arguments):
  return override(recipes.load(str(recipe)), [
      *SHORT, *(f"--config.{field}={value}" for field, value in run.items()), *arguments])


@contextlib.contextmanager
def stopped_at(call):
  """Reports a signal from the given time on, counted from 1, that the loop asks for one."""
  calls = iter(range(1, 1000))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(preemption, "catch_signals",
                  lambda: contextlib.nullcontext(lambda: next(calls) >= call))
    yield


RUNS_OF_SWEEP = [{"seed": 0}, {"seed": 1, "phases[0].learning_rate": 5e-3},
                 {"seed": 1, "model.dropout": 0.1}, {"seed": 0, "model.dropout": 0.2}]


@pytest.fixture(scope="module")
def swept(recipe, tmp_path_factory):
  """A finished mapped sweep; without dropout in two runs, which is another program."""
  folder = tmp_path_factory.mktemp("swept")
  file = make_sweep(recipe, folder / "recipe.py", RUNS_OF_SWEEP[:2])
  assert sweep(file, folder / "sweep") == 0
  return folder / "sweep"


def test_runs_that_are_open_have_one_state_on_the_devices_and_their_own_warnings(
    recipe, tmp_path, monkeypatch, capsys):
  made, alive, restore = [], [], mapped.restore_or_init

  def remember(*arguments):
    state = restore(*arguments)
    made.append(weakref.ref(jax.tree.leaves(state.params)[0]))
    return state

  def stop(loop_of_steps):
    alive.extend(x for x in [ref() for ref in made] if x is not None)
    raise Preempted("enough")

  monkeypatch.setattr(mapped, "restore_or_init", remember)
  monkeypatch.setattr(mapped.MappedLoop, "run", stop)
  file = make_sweep(recipe, tmp_path / "recipe.py", [
      {"seed": 0, "phases[0].warmup_steps": 1}, {"seed": 1, "phases[0].warmup_steps": 100}])
  assert sweep(file, tmp_path / "sweep") == 75
  assert len(made) == 2 and alive == []
  assert capsys.readouterr().err.count("the warm-up takes 100 steps") == 1


@pytest.mark.slow
def test_a_mapped_sweep_makes_the_runs_of_a_sweep(recipe, swept, tmp_path, capsys):
  """Curves, scores and files are equal; other commands compare, evaluate, export, continue them."""
  for i, run in enumerate(RUNS_OF_SWEEP[:2]):
    alone, path = tmp_path / f"{i}", swept / f"{i:03d}"
    finished = loop.train(config_of(recipe, run), alone)
    assert curves(path).keys() == curves(alone).keys()
    for tag, points in curves(alone).items():
      np.testing.assert_allclose(curves(path)[tag], points, rtol=1e-6, atol=1e-12, err_msg=tag)
    assert (path / "config.json").read_text() == (alone / "config.json").read_text()
    assert checkpoint.committed_steps(path) == checkpoint.committed_steps(alone)
    assert finished.scores == pytest.approx(evaluate_run.evaluate_workdir(path), rel=1e-5)
    assert goodput.summarize(path).attempts[0].code == 0
    longer = config_of(recipe, run, "--config.phases[0].steps=10")
    shutil.copytree(path, tmp_path / "copy" / path.name)
    a, b = (loop.train(longer, folder).scores for folder in (tmp_path / "copy" / path.name, alone))
    assert a == pytest.approx(b, rel=1e-5)
  rows = json.loads((swept / "sweep.json").read_text())
  assert [row["seed"] for row in rows] == [0, 1]
  assert cli.main(["compare", str(swept), f"--out={tmp_path / 'page.html'}"]) == 0
  assert cli.main(["export", f"--workdir={swept / '001'}", f"--out={tmp_path / 'model'}"]) == 0
  assert cli.main(["verify", f"--workdir={swept / '001'}"]) == 0


@pytest.mark.slow
def test_one_program_evaluates_all_runs_and_takes_none_of_the_time_of_their_steps(
    recipe, tmp_path, monkeypatch):
  """With a clock that evaluations and saves move on by a year. All trackers end together."""
  made, evaluated, ended, saved, year = [], [], [], [], 3e7
  logs, add = [], step_log.StepLog.add  # Before the end, only the first run saves.

  def add_and_reject(log, step, sums, num_runs):
    add(log, step, sums, num_runs)
    logs.append(log)
    log.is_applied = log is logs[0]

  monkeypatch.setattr(step_log.StepLog, "add", add_and_reject)
  save = checkpoint.Checkpoints.save
  monkeypatch.setattr(checkpoint.Checkpoints, "save",
                      lambda *args, **how: saved.append(1) or save(*args, **how))
  make_eval_step, evaluate_corpus = evaluate.make_eval_step, evaluate.evaluate_corpus

  def evaluate_for_long(*arguments):
    results = evaluate_corpus(*arguments)
    evaluated.append(results)
    return results

  monkeypatch.setattr(evaluate, "make_eval_step",
                      lambda setup: made.append(setup) or make_eval_step(setup))
  monkeypatch.setattr(evaluate, "evaluate_corpus", evaluate_for_long)
  monkeypatch.setattr(step_log.StepLog, "end", lambda log: ended.append(log))
  moved = types.SimpleNamespace(
      monotonic=lambda: time.monotonic() + year * len(evaluated + saved))
  monkeypatch.setattr(step_log, "time", moved)  # Not that of the watchdog.
  file = make_sweep(recipe, tmp_path / "recipe.py", [{"seed": 0}, {"seed": 1}])
  assert sweep(file, tmp_path / "sweep", "--config.phases[0].steps=6",
               "--config.log.every_steps=3") == 0
  assert (len(made), len(evaluated), len(ended)) == (1, 4, 2) and len(saved) >= 3
  for name in ("000", "001"):  # Steps 4 and 6 are evaluated.
    times = metrics_file.read_curves(tmp_path / "sweep" / name)["perf/step_seconds"]
    assert [step for step, _ in times] == [3, 4, 6]
    assert 0 < max(seconds for _, seconds in times) < year / 6


@pytest.mark.slow
def test_a_stopped_sweep_continues_as_if_it_had_not_been(recipe, swept, tmp_path, monkeypatch):
  """One run may be behind the other, for example after a kill between two checkpoints.

  The time in which the other one waits is not that of its own steps.
  """
  file = make_sweep(recipe, tmp_path / "recipe.py", RUNS_OF_SWEEP[:2])
  path = tmp_path / "sweep"
  with stopped_at(3):
    assert sweep(file, path) == 75
  assert [checkpoint.committed_steps(path / name) for name in ("000", "001")] == [[2, 3]] * 2
  for file_of_step in sorted((path / "000" / "checkpoints" / "3").rglob("*"), reverse=True):
    file_of_step.rmdir() if file_of_step.is_dir() else file_of_step.unlink()
  (path / "000" / "checkpoints" / "3").rmdir()
  alone, finish_step, year = [], mapped.MappedLoop._finish_step, 365 * 86400.0

  def finish_slowly(self):
    if self._late._pending and len(self._active) < 2:
      alone.append(self._late._pending[0])
    finish_step(self)

  with monkeypatch.context() as patch:
    patch.setattr(mapped.MappedLoop, "_finish_step", finish_slowly)
    patch.setattr(step_log, "time", types.SimpleNamespace(
        monotonic=lambda: time.monotonic() + year * len(alone)))
    assert sweep(file, path) == 0
  assert alone == [3]
  times = metrics_file.read_curves(path / "001")["perf/step_seconds"]
  assert max(seconds for _, seconds in times) < year / 6
  for name in ("000", "001"):
    assert curves(path / name) == curves(swept / name)
  before = {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file() and p.parent != path}
  assert sweep(file, path) == 0
  assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.mark.slow
def test_a_run_that_diverges_does_not_end_the_others(recipe, swept, tmp_path, capsys):
  file = make_sweep(recipe, tmp_path / "recipe.py",
                    [{"seed": 0, "phases[0].learning_rate": 1e30}, {"seed": 0}])
  assert sweep(file, tmp_path / "sweep", "--config.train.max_bad_steps=3") == 70
  lines = capsys.readouterr().err.splitlines()
  assert "/000: step 4: 3 consecutive steps were not applied" in lines[-1]
  assert sum("The other runs continue" in line for line in lines) == 1
  assert sum("tokens per row: attention by" in line for line in lines) == 1, "the same for all runs"
  (row,) = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
  assert row["workdir"].endswith("/001")
  first, second = (goodput.summarize(tmp_path / "sweep" / name).attempts[-1]
                   for name in ("000", "001"))
  assert (first.code, first.last_step, second.code, second.last_step) == (70, 4, 0, 8)
  assert first.message.startswith("step 4: 3 consecutive steps were not applied")
  assert first.end < second.end, "it is given the time of the others"
  assert not (tmp_path / "sweep" / "000" / "report.md").exists()
  skipped = curves(tmp_path / "sweep" / "000")["train/skipped_steps"]
  assert skipped[-1][0] == 4 and sum(count for _, count in skipped) == 3
  assert curves(tmp_path / "sweep" / "001").keys() == curves(swept / "000").keys()
  np.testing.assert_allclose(curves(tmp_path / "sweep" / "001")["train/loss"],
                             curves(swept / "000")["train/loss"], rtol=1e-6)


def test_runs_that_began_with_different_texts_are_refused(finished_bert, tmp_path):
  """Each of them keeps its own, and one program would read the batches of the first for all."""
  first, second = shutil.copytree(finished_bert, tmp_path / "000"), tmp_path / "001"
  configs = configs_of(workdir.read_config(first), [{"seed": 0}, {"seed": 1}])
  text = shutil.copy(configs[0].data.source.removeprefix("text:"), tmp_path / "text.txt")
  for config in configs:
    config.data.update(source=f"text:{text}", cache_dir=f"{tmp_path}/cache")
  (first / "config.json").write_text(to_json(configs[0]))
  corpora.find_corpus(configs[0])
  text.write_text(f"{text.read_text()}\n\nThe cat sees the dog near a tree.\n")
  before = {p: p.stat().st_mtime_ns for p in first.rglob("*") if p.is_file() and p.name != ".lock"}
  with pytest.raises(ConfigError, match="001 began with another corpus than .*000, because the "
                                        "text or the tokenizer has changed. Leave out --mapped"):
    mapped.train(configs, [first, second], pytest.fail)
  assert {p: p.stat().st_mtime_ns for p in before} == before and not second.exists()


@pytest.mark.parametrize("runs, field", [
    ([{"seed": 0}, {"model.width": 32}], "model.width: 16 and 32"),
    ([{"seed": 0}, {"optimizer.name": "lamb"}], "optimizer.name: 'adamw' and 'lamb'"),
    ([{"seed": 0}, {"phases[0].steps": 9}], "phases[0].steps: 8 and 9"),
    ([{"model.dropout": 0.0}, {"model.dropout": 0.1}], "model.dropout: these values"),
    ([{"optimizer.clip_norm": 0.0}, {"seed": 1}], "optimizer.clip_norm: these values"),
    ([{"model.attention_dropout": 0.1}, {"model.attention_dropout": 0.2}],
     "model.attention_dropout: no kernel but 'xla' has a rate per run"),
    ([{"model.dropout_rng": "rbg", "model.dropout": 0.1, "seed": seed} for seed in (0, 1)],
     "model.dropout_rng='rbg': JAX would draw the dropout of all runs")], ids=str)
def test_runs_of_different_programs_are_refused(recipe, tmp_path, capsys, runs, field):
  file = make_sweep(recipe, tmp_path / "recipe.py", runs)
  assert sweep(file, tmp_path / "sweep") == 2
  (line,) = [line for line in capsys.readouterr().err.splitlines() if "bertgpt sweep:" in line]
  assert field in line and "Leave out --mapped" in line
  assert not (tmp_path / "sweep").exists() or not list((tmp_path / "sweep").rglob("config.json"))
