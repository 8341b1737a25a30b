"""The loop: it runs every step of every phase once, wherever a run resumes; its profile."""

import contextlib
import pathlib
import re
import shutil
import time
import types

import jax
import jax.numpy as jnp
import memory_corpus
import numpy as np
import pytest
import small_runs
import tiny

from bertgpt import cli
from bertgpt import config as config_lib
from bertgpt.config import choices, recipes
from bertgpt.config.overrides import override
from bertgpt.config.stored import to_json
from bertgpt.data.corpus import frequencies
from bertgpt.devices import preemption, profiler
from bertgpt.errors import ConfigError, DataError, DivergedError, Preempted
from bertgpt.runs import checkpoint, corpora, metrics_file, workdir
from bertgpt.runs import trained as trained_lib
from bertgpt.training import initial_state, metrics, objectives, step_log
from bertgpt.training import loop as train
from bertgpt.training.open_run import open_run


@pytest.mark.parametrize("added, refused", [
    ((1, 2, 9), False), ((1, 2, 4), False), ((1, 1, 5), True), ((1, 3, 4), True), ((1, 1, 2), True),
    ((2, 1, 4), True), ((1, 2), True), ((1, 2, 2), False), ((7,), True)], ids=str)
def test_steps_may_be_added_only_ahead_of_the_run(added, refused):
  """The run has phases of 1, 2 and 4 steps, of which 5 are done."""
  old, new = tiny.make_config(), tiny.make_config()
  old.phases = tuple(config_lib.phase(steps=n) for n in (1, 2, 4))
  new.phases = tuple(config_lib.phase(steps=n) for n in added)
  with pytest.raises(ConfigError, match="5") if refused else contextlib.nullcontext():
    initial_state.check_phases(old, new, 5, pathlib.Path("run"))


@pytest.mark.parametrize("new, refused", [
    (((7, 9),), False), (((7, 8), (9, 9)), False), (((7, 9), (15, 20)), False),
    (((7, 9), (14, 20)), True), (((7, 8),), True), ((), True)])
def test_steps_that_are_done_stay_left_out_however_it_is_written(new, refused):
  configs = [tiny.make_config(), tiny.make_config()]
  for config, skipped in zip(configs, (((7, 9),), new), strict=True):
    config.train.skip_steps = skipped
  with pytest.raises(ConfigError, match="14") if refused else contextlib.nullcontext():
    initial_state.check_skipped(*configs, 14)


@pytest.mark.parametrize("mesh", [
    (2, 2, 2), pytest.param((1, 1, 1), marks=pytest.mark.slow)])
def test_the_output_bias_may_start_at_the_frequencies(mesh):
  """If no other parameter has an effect, the model predicts like a unigram model of the mixture."""
  config = tiny.make_config("mlm", mesh=mesh)
  corpus, other = (memory_corpus.MemoryCorpus(np.arange(n) * 20, lengths, lengths)
                   for n, lengths in ((8, np.arange(1, 9)), (3, np.array([9, 50, 20]))))
  with tiny.Setup(config) as setup:
    state = setup.init()
    params = initial_state.add_frequencies(state.params, [(0.3, corpus), (0.7, other)], tiny.VOCAB)
    bias, table = params["mlm"]["bias"], params["embeddings"]["token"]["embedding"]
    assert bias.sharding == state.params["mlm"]["bias"].sharding
    silent = params | {"embeddings": params["embeddings"]
                       | {"token": {"embedding": jnp.zeros_like(table)}}}
    batch = jax.jit(setup.objective.corrupt)(setup.put(tiny.make_batch(config)),
                                             jax.random.key(0), jnp.arange(tiny.ROWS))
    loss, weight = jax.jit(lambda params: setup.objective.compute_sums(
        objectives.BoundModel(setup.model, params), batch)[0]["mlm_loss"])(silent)
  q = np.average([frequencies.unigram_probabilities(text, tiny.VOCAB, is_causal=False)
                  for text in (corpus, other)], axis=0, weights=[3, 7])
  assert len(set(q)) > 1
  batch = jax.device_get(batch)
  nats = np.average(-np.log(q)[batch["predict_targets"]], weights=batch["predict_weights"])
  assert float(loss / weight) == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize("overrides", [
    [], ["--config.mesh.fsdp=2", "--config.mesh.tensor=2"]], ids=["replicated", "sharded"])
def test_a_finished_run_is_handed_over_whole(finished_bert, recipe, tmp_path, overrides):
  """Returned parameters equal those of the checkpoint, on any mesh; corpora are the run's."""
  path = shutil.copytree(finished_bert, tmp_path / "run")
  stored = trained_lib.load_trained(path)
  finished = train.train(override(recipes.load(f"{recipe}:mlm_nsp"), overrides), path)
  found = finished.trained
  assert all(type(x) is np.ndarray for x in jax.tree.leaves(found.params))
  jax.tree.map(np.testing.assert_array_equal, found.params, stored.params)
  assert (found.step, found.model) == (20, stored.model)
  assert found.corpus_identity == stored.corpus_identity
  assert found.tokenizer.fingerprint() == stored.tokenizer.fingerprint()
  assert finished.path == path
  assert finished.train_set.identity == finished.held_out.identity == stored.corpus_identity
  assert len(finished.train_set) > len(finished.held_out) > 0


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_run_resumes_with_its_corpus_though_its_tokenizer_is_gone_or_another_one(
    finished_bert, recipe, tmp_path, is_gone):
  """Its own tokenizer and its corpus are enough; a new run is refused."""
  path = shutil.copytree(finished_bert, tmp_path / "run")
  given = shutil.copytree(path / "tokenizer", tmp_path / "given")
  config = workdir.read_config(path)
  config.data.corpus = str(corpora.find_corpus(config, reports=False))
  config.tokenizer.path = str(given)
  (path / "config.json").write_text(to_json(config))
  if is_gone:
    shutil.rmtree(given)
  else:
    file = given / "tokenizer.json"
    file.write_text(file.read_text().replace("river", "rivet"))
  again = override(recipes.load(f"{recipe}:mlm_nsp"), [
      f"--config.data.corpus={config.data.corpus}", f"--config.tokenizer.path={given}",
      "--config.phases[0].steps=22"])
  assert train.train(again, path).trained.step == 22
  with pytest.raises(DataError if is_gone else ConfigError, match=f"{given}"):
    train.train(again, tmp_path / "new")


def test_a_longer_run_says_how_its_rate_changes(finished_gpt, recipe, tmp_path, capsys):
  """By hand: update s has the rate 0.02 * (1 - s / steps); 19 was the last, 20 is the next."""
  path = shutil.copytree(finished_gpt, tmp_path / "run")
  resume = lambda *fields: train.train(override(recipes.load(f"{recipe}:causal"), fields),
                                       path)
  (path / "report.md").touch()
  resume()
  assert not (path / "report.md").exists(), "an evaluation that is made again belongs to no report"
  assert "the learning rate of the next step" not in capsys.readouterr().err
  resume("--config.phases[0].steps=40", "--config.log.every_steps=1")
  written = capsys.readouterr().err.splitlines()
  assert sum("tokens per row: attention by" in line for line in written) == 1
  lines = [line for line in written if "the learning rate of the next step" in line]
  assert lines == ["note: the learning rate of the next step is 0.01, that of the last step was "
                   "0.001, because the run now has 40 steps instead of 20"]
  rates = dict(metrics_file.read_curves(path)["train/learning_rate"])
  assert (rates[20], rates[21]) == (pytest.approx(0.001), pytest.approx(0.01))
  scores = dict(metrics_file.read_curves(path)["eval/validation/lm_loss"])
  assert {20, 40} <= scores.keys(), "no later evaluation is one of step 20"


def resume(recipe, path, steps):
  """Resumes a run that saves every four steps and logs none."""
  train.train(override(recipes.load(f"{recipe}:causal"), [
      f"--config.phases[0].steps={steps}", "--config.checkpoint.every_steps=4",
      "--config.checkpoint.keep=9", "--config.log.every_steps=100"]), path)


def resume_badly(recipe, path, monkeypatch, bad_steps):
  """Resumes a run up to step 30, of which some steps are said not to be applied."""
  push = metrics.LateMetrics.push
  bad = {"tokens": (1, 1), "bad_steps": (1, 1), "loss": (0, 1), "grad_norm": (0, 1)}
  monkeypatch.setattr(metrics.LateMetrics, "push", lambda late, step, found: push(
      late, step, found | bad if step in bad_steps else found))
  resume(recipe, path, 30)


def test_a_save_waits_for_a_step_that_is_applied(finished_gpt, recipe, tmp_path, monkeypatch):
  """The last save does not: the parameters are those of the last step that was applied."""
  path = shutil.copytree(finished_gpt, tmp_path / "run")
  resume_badly(recipe, path, monkeypatch, (24, 25, 30))
  assert [step for step in checkpoint.committed_steps(path) if step > 20] == [26, 28, 30]


def test_a_signal_saves_even_a_step_that_was_not_applied(finished_gpt, recipe, tmp_path,
                                                         monkeypatch):
  path, calls = shutil.copytree(finished_gpt, tmp_path / "run"), iter(range(9))
  monkeypatch.setattr(preemption, "catch_signals",
                      lambda: contextlib.nullcontext(lambda: next(calls) == 4))
  with pytest.raises(Preempted, match="stopped at step 25 with a checkpoint saved"):
    resume_badly(recipe, path, monkeypatch, (24, 25))
  assert checkpoint.committed_steps(path)[-1] == 25


def test_a_run_that_has_diverged_is_not_saved(finished_gpt, recipe, tmp_path, monkeypatch):
  path = shutil.copytree(finished_gpt, tmp_path / "run")
  monkeypatch.setattr(step_log, "has_diverged", lambda config, sums: sums["bad_steps"][0] > 0)
  with pytest.raises(DivergedError, match="step 24: "):
    resume_badly(recipe, path, monkeypatch, (24,))
  assert checkpoint.committed_steps(path)[-1] == 20
  assert metrics_file.read_curves(path)["train/skipped_steps"][-1] == (24, 1)


def test_a_signal_logs_the_steps_since_the_last_line(finished_gpt, recipe, tmp_path, monkeypatch):
  path = shutil.copytree(finished_gpt, tmp_path / "run")
  calls, save, clock = iter(range(3)), checkpoint.Checkpoints.save, [0.0]

  def save_slowly(*args, **options):
    clock[0] += 9e7
    save(*args, **options)

  monkeypatch.setattr(preemption, "catch_signals",
                      lambda: contextlib.nullcontext(lambda: next(calls) == 2))
  monkeypatch.setattr(checkpoint.Checkpoints, "save", save_slowly)
  monkeypatch.setattr(step_log, "time", types.SimpleNamespace(
      monotonic=lambda: time.monotonic() + clock[0]))
  with pytest.raises(Preempted):
    resume(recipe, path, 40)
  curves = metrics_file.read_curves(path)
  assert curves["train/loss"][-1][0] == 23
  assert curves["perf/step_seconds"][-1][1] < 1e7, "the time of the save is not that of a step"


def test_a_signal_stops_the_evaluation_that_is_made_again(finished_gpt, recipe, tmp_path,
                                                          monkeypatch):
  """The run keeps its checkpoint, and the same command evaluates it."""
  path = shutil.copytree(finished_gpt, tmp_path / "run")
  with monkeypatch.context() as patch:
    patch.setattr(preemption, "catch_signals", lambda: contextlib.nullcontext(lambda: True))
    with pytest.raises(Preempted, match="stopped at step 20 with a checkpoint saved"):
      resume(recipe, path, 20)
  evaluated = lambda: dict(metrics_file.read_curves(path).get("eval/validation/lm_loss", ()))
  assert 20 not in evaluated() and checkpoint.committed_steps(path)[-1] == 20
  resume(recipe, path, 20)
  assert 20 in evaluated()


def test_the_time_of_a_save_is_not_that_of_a_step(finished_gpt, recipe, tmp_path, monkeypatch):
  path = shutil.copytree(finished_gpt, tmp_path / "run")
  saved, save, year = [], checkpoint.Checkpoints.save, 3e7

  def save_slowly(checkpoints, step, *args, **options):
    saved.append(step)
    save(checkpoints, step, *args, **options)

  monkeypatch.setattr(checkpoint.Checkpoints, "save", save_slowly)
  monkeypatch.setattr(step_log, "time", types.SimpleNamespace(
      monotonic=lambda: time.monotonic() + year * len(saved)))
  resume(recipe, path, 30)
  times = metrics_file.read_curves(path)["perf/step_seconds"]
  assert saved == [24, 28, 30] and times[-1][0] == 30
  assert max(seconds for _, seconds in times) < year / 30


@pytest.mark.slow
def test_an_evaluation_that_predicts_nothing_is_not_taken_for_a_signal(recipe, tmp_path, capsys):
  """The run fails with advice, keeps its checkpoint, and can be finished after the change."""
  argv = ["train", f"--config={recipe}:mlm", f"--workdir={tmp_path / 'run'}",
          "--config.objective.mask_rule=bernoulli", "--config.phases[0].steps=2"]
  assert cli.main([*argv, "--config.eval.mask_prob=1e-7"]) == DataError.exit_code
  line = capsys.readouterr().err.splitlines()[-1]
  assert "predict no token of the validation split" in line and "Raise eval.max_rows" in line
  assert checkpoint.committed_steps(tmp_path / "run") == [2]
  assert cli.main(argv) == 0
  assert (tmp_path / "run" / "report.md").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", small_runs.FAMILIES)
def test_a_run_in_two_parts_is_the_whole_one_bit_for_bit(recipe, tmp_path, name):
  """The run has dropout, so every random stream of a step matters. The whole state is compared."""
  objective, *fields = small_runs.FAMILIES[name]
  argv = ["train", f"--config={recipe}:{objective}", *fields, "--config.model.dropout=0.1",
          "--config.phases[0].schedule=constant", "--config.log.every_steps=1"]
  for folder, ends in (("whole", (12,)), ("parts", (5, 12))):
    for end in ends:
      assert cli.main([*argv, f"--workdir={tmp_path / folder}",
                       f"--config.phases[0].steps={end}"]) == 0
  whole, parts = (checkpoint.verify(tmp_path / folder / "checkpoints" / "12")["leaves"]
                  for folder in ("whole", "parts"))
  assert whole == parts and any(path.startswith("opt_state") for path in whole)
  assert any(path.startswith("carry") for path in whole) == choices.OBJECTIVES[
      objective].continues_rows
  whole, parts = (metrics_file.read_curves(tmp_path / folder) for folder in ("whole", "parts"))
  assert whole["train/loss"] == parts["train/loss"] and len(whole["train/loss"]) == 12


def test_train_and_data_warn_of_many_unknown_tokens(recipe, tmp_path, capsys):
  pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", ".", "cat", "sees"]
  (tmp_path / "vocab.txt").write_text("\n".join(pieces))
  fields = [f"--config={recipe}", f"--config.tokenizer.path={tmp_path / 'vocab.txt'}",
            f"--config.data.cache_dir={tmp_path}", "--config.phases[0].steps=1"]
  assert cli.main(["data", *fields, "--steps=0"]) == 0
  printed = capsys.readouterr().out
  warning = re.search(r"does not know ([\d.]+)% of the \w+ in the \w+ split", printed)
  assert 5 < float(warning[1]) < 90
  config = override(recipes.load(str(recipe)), fields[1:])
  with open_run(config, tmp_path / "run", ()):
    assert warning[0] in capsys.readouterr().err


def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_made(recipe, tmp_path):
  """This holds even for Python callers of `train`, whose config nothing has checked before."""
  config = override(recipes.load(str(recipe)), ["--config.mesh.data=3"])
  with pytest.raises(ConfigError, match="mesh data=3 .* but there are 8"):
    train.train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_trace_is_written_also_by_a_run_resumed_inside_it(tmp_path):
  for first in (1, 3, 4):
    folder = tmp_path / str(first)
    with profiler.trace_steps((2, 3), folder) as visit:
      for step in range(first, 6):
        visit(step, lambda: None)
        jax.block_until_ready(jnp.ones(3) + step)
    assert bool(list(folder.rglob("*.xplane.pb"))) == (first < 4)


def test_a_trace_ends_though_the_step_after_it_is_skipped(tmp_path):
  with profiler.trace_steps((2, 3), tmp_path) as visit:
    for step in (1, 2, 3, 6):
      visit(step, lambda: None)
    assert list(tmp_path.rglob("*.xplane.pb"))
