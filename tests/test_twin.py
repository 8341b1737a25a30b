"""benchmarks/twin.py: the verdict, and that both sides start, step and score alike."""

import json
import math
import pathlib

import jax
import numpy as np
import pytest

from benchmarks import twin
from benchmarks.twin import compare
from bertgpt import files
from bertgpt.config import recipes
from bertgpt.config.overrides import override
from bertgpt.data.batches import loader
from bertgpt.data.corpus.corpus import open_corpus
from bertgpt.devices import sharding
from bertgpt.errors import ConfigError
from bertgpt.hub import conversion
from bertgpt.runs import corpora
from bertgpt.training import evaluate, steps

RECIPE = pathlib.Path(__file__).parents[1] / "configs" / "twins.py"
SIZE = {"num_layers": 2, "width": 32, "num_heads": 2, "mlp_dim": 48, "max_positions": 32}
SIZES = {
    "bert": {}, "gpt2": {}, "roberta": {}, "albert": {"embedding_width": 16},
    "electra": {"embedding_width": 16, "generator_width": 16, "generator_num_heads": 2,
                "generator_mlp_dim": 24},
    "modernbert": {"window": 4},
}
# BERT and GPT-2 have the optimizers and schedules of all others but ModernBERT.
MODELS = [pytest.param(name, marks=() if name in ("bert", "gpt2", "modernbert")
                       else pytest.mark.slow)
          for name in SIZES]

# StableAdamW shortens the step of a matrix as a whole. Those of transformers hold queries, keys and
# values together, or gate and up, which are arrays of their own here.
TOLERANCES = {"modernbert": 2e-2}


# ------------------------------------------------------------------- verdict


def make_curves(*losses):
  """Returns the curves of runs whose losses at step 10 are given."""
  return [{"mlm_loss": [(10, loss)]} for loss in losses]


@pytest.mark.parametrize("theirs, agrees", [
    ((2.0, 3.0, 4.0), True), ((4.0, 5.0, 6.0), False), ((2.0, math.nan, 2.0), False)])
def test_means_agree_within_two_standard_errors(theirs, agrees):
  """Deviations of 1 with three seeds each: the standard error is sqrt(2 / 3)."""
  row, = compare(make_curves(1.0, 2.0, 3.0), make_curves(*theirs))
  assert row.agrees == agrees
  if not math.isnan(row.theirs):
    assert (row.loss, row.step, row.ours, row.our_spread) == ("mlm_loss", 10, 2.0, 1.0)
    assert row.errors == pytest.approx((2.0 - np.mean(theirs)) / math.sqrt(2 / 3))


def test_equal_runs_agree_and_any_difference_without_a_spread_does_not():
  assert compare(make_curves(1.0, 1.0), make_curves(1.0, 1.0))[0].agrees
  assert not compare(make_curves(1.0, 1.0), make_curves(1.5, 1.5))[0].agrees


@pytest.mark.parametrize("theirs", [
    [{"mlm_loss": [(10, 1.0), (20, 1.0)]}] * 2, [{"lm_loss": [(10, 1.0)]}] * 2,
    make_curves(1.0)])
def test_runs_that_cannot_be_compared_are_refused(theirs):
  with pytest.raises(ValueError, match="evaluations|two seeds"):
    compare(make_curves(1.0, 2.0), theirs)


def test_the_report_names_the_evaluations_that_differ(tmp_path):
  ours = [{"mlm_loss": [(10, 3.0 + x), (20, 1.0 + x)]} for x in (0.0, 0.1)]
  theirs = [{"mlm_loss": [(10, 3.0 + x), (20, 2.0 + x)]} for x in (0.0, 0.1)]
  report = twin.make_report(compare(ours, theirs), seeds=[0, 1])
  assert (report["agrees"], report["outside"], report["evaluations"]) == (False, 1, 2)
  lines = twin.to_lines(report)
  assert "(!)" not in lines[2] and lines[3].endswith("-14.1 (!) |")
  assert "NOT within two standard errors at 1 of 2 evaluations" in lines[-1]
  assert json.loads(json.dumps(report))["rows"][1]["step"] == 20
  twin.draw(report, tmp_path / "picture.svg")
  assert "held-out mlm_loss" in (tmp_path / "picture.svg").read_text()


def test_numbers_that_json_lacks_are_null_in_the_file(tmp_path, monkeypatch, capsys):
  """Without a spread, any difference is infinitely many standard errors."""
  rows = compare(make_curves(1.0, 1.0), make_curves(2.0, 2.0))
  monkeypatch.setattr(twin, "train", lambda *_: twin.make_report(rows))
  out = tmp_path / "twin.json"
  assert twin.main([f"--config={RECIPE}", f"--workdir={tmp_path}", f"--out={out}"]) == 1
  report = files.read_json(out, "")
  assert (report["rows"][0]["errors"], report["rows"][0]["ours"]) == (None, 1.0)
  assert "| -inf (!) |" in capsys.readouterr().out


def test_all_evaluations_are_read_however_many_there_are(tmp_path):
  points = [(step, 1.0 / step) for step in range(1, 1001)]
  (tmp_path / "metrics.jsonl").write_text("".join(
      json.dumps({"step": step, "eval/validation/mlm_loss": loss}) + "\n" for step, loss in points))
  assert twin.read_losses(tmp_path) == {"mlm_loss": points}


@pytest.mark.parametrize("seeds", ["0", "1,1", "a"])
def test_seeds_are_different_numbers(seeds, capsys):
  assert twin.main(["--workdir=x", f"--seeds={seeds}"]) == ConfigError.exit_code
  assert "--seeds" in capsys.readouterr().err


# ----------------------------------------------------------------- both sides


class Pair:
  """Both sides of a small model, without dropout and from our initial values.

  Args:
    name: model of configs/twins.py.
    fields: flags that name text and cache.
  """

  def __init__(self, name, fields):
    from benchmarks import twin_pytorch
    config = override(recipes.load(f"{RECIPE}:{name}"), fields)
    config.model.update(SIZE | SIZES[name])
    self.train_set, self.held_out = (
        open_corpus(corpora.find_corpus(config, reports=False), split)
        for split in ("train", "validation"))
    self.config = config = corpora.resolve(config, self.train_set.tokenizer)
    self.initial = twin_pytorch.make(config, self.train_set.tokenizer.pad_id, seed=0)
    config.model.update(dropout=0.0, attention_dropout=0.0)
    config.objective.rtd_weight = 0.0  # Samples are random, and only this loss depends on them.
    self.mesh = sharding.make_mesh(config, jax.devices()[:1])
    self.setup = steps.make_setup(config, self.mesh, self.train_set.vocabulary)
    with sharding.use_mesh(self.mesh, config):
      self.abstract = steps.make_abstract_state(self.setup)
      self.state = steps.make_state(self.setup, self.abstract)
    self.params = jax.device_get(self.state.params)
    self.twin = twin_pytorch.Twin(config, self.train_set.tokenizer.pad_id, seed=0)

  def tensors(self, params):
    """Yields (model of the twin, our parameters in the names of transformers)."""
    pad_id = self.train_set.tokenizer.pad_id
    parts = {"discriminator": "", "generator": "generator"}
    for attribute, part in parts.items() if hasattr(self.twin.model, "generator") else [("", "")]:
      yield attribute, conversion.to_hugging_face(params, self.config, pad_id, part=part)

  def copy_weights(self):
    """Gives our initial values to the twin."""
    import torch
    for attribute, tensors in self.tensors(self.params):
      model = self.twin.model.get_submodule(attribute)
      missing, unknown = model.load_state_dict(
          {name: torch.from_numpy(np.array(x)) for name, x in tensors.items()}, strict=False)
      assert not unknown and all("decoder" in name or "lm_head" in name for name in missing)


@pytest.fixture(scope="module")
def fields(story):
  """Flags that make the training of a twin last seconds."""
  return [f"--config.{field}" for field in (
      f"data.source=text:{story}", f"data.cache_dir={story.parent / 'cache'}",
      "data.prepare_workers=1", "data.validation_fraction=0.1", "tokenizer.vocab_size=90",
      "phases[0].seq_len=32", "phases[0].batch_size=8", "phases[0].max_predictions=0",
      "phases[0].steps=20", "phases[0].learning_rate=0.01", "eval.batch_size=8",
      "eval.every_steps=10", "log.tensorboard=False", "system.compilation_cache=")]


@pytest.fixture(scope="module", params=MODELS)
def pair(request, fields):
  pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
  return Pair(request.param, fields)


@pytest.mark.hf
def test_initial_values_have_the_same_distribution(pair):
  """Every tensor has the same mean and deviation on both sides; zeros and ones are equal."""
  for attribute, tensors in pair.tensors(pair.params):
    theirs = dict(pair.initial.get_submodule(attribute).named_parameters())
    for key, ours in tensors.items():
      found = theirs[key].detach().numpy()
      if "position_embeddings" in key and "roberta" in key:
        ours, found = ours[2:], found[2:]  # The first rows are never read.
      assert ours.shape == found.shape, key
      if ours.std() == 0:
        np.testing.assert_array_equal(found, ours, err_msg=key)
      else:
        limit = 5 * ours.std() / math.sqrt(ours.size)
        assert abs(ours.mean() - found.mean()) < 2 * limit, key
        assert abs(ours.std() - found.std()) < limit, key
        if pair.config.model.truncated_init:
          assert np.abs(found).max() < 1.2 * np.abs(ours).max(), key


@pytest.mark.hf
def test_the_same_weights_have_the_same_losses_and_take_the_same_steps(pair):
  """Optimizers, schedules and losses of both sides, on the masked batches of a run."""
  from benchmarks import twin_pytorch
  pair.copy_weights()
  evaluator = evaluate.Evaluator(pair.setup, pair.held_out)
  expected = evaluate.evaluate_corpus(evaluator, pair.state.params, 0)
  found = pair.twin.evaluate([twin_pytorch.to_torch(batch, "cpu") for batch in
                              twin.held_out_batches(pair.config, pair.held_out)])
  for loss, value in found.items():
    if loss != "rtd_loss":
      assert value == pytest.approx(expected[loss], abs=1e-4), loss

  ours, theirs = [], []
  with sharding.use_mesh(pair.mesh, pair.config):
    step = steps.jit_train_step(pair.setup, pair.abstract)
    layout = sharding.batch_sharding(pair.mesh, pair.config)
    rows, state = slice(0, 8), steps.make_state(pair.setup, pair.abstract)  # A step deletes it.
    with loader.make_train_batches(pair.train_set, pair.config, 0, 0, rows) as batches:
      for batch in batches:
        state, sums = step(state, sharding.make_global_batch(batch, layout, 8))
        ours.append(float(sums["loss"][0]))
  for batch in twin.train_batches(pair.config, pair.train_set, 0):
    theirs.append(pair.twin.step(twin_pytorch.to_torch(batch, "cpu")))
  assert len(ours) == len(theirs) == 20
  np.testing.assert_allclose(theirs, ours, rtol=TOLERANCES.get(pair.config.model.family, 2e-3))
  assert ours[-1] < ours[0] - 0.1  # The steps do train.


@pytest.mark.hf
def test_a_loss_without_targets_is_left_out_as_in_our_evaluation(pair):
  from benchmarks import twin_pytorch
  batches = [twin_pytorch.to_torch(batch, "cpu")
             for batch in twin.held_out_batches(pair.config, pair.held_out)]
  losses = pair.twin.evaluate(batches)
  weights = [name for name in batches[0] if name in ("nsp_weights", "sop_weights")]
  for batch in batches:
    batch.update({name: 0 * batch[name] for name in weights})
  left = pair.twin.evaluate(batches)
  is_fixed = lambda name: name != "rtd_loss"  # It depends on samples.
  assert {name: left[name] for name in left if is_fixed(name)} == {
      name: losses[name] for name in losses if is_fixed(name) and name[:3] not in ("nsp", "sop")}


# ---------------------------------------------------------------- the command


@pytest.mark.hf
@pytest.mark.slow
def test_the_command_trains_both_sides_and_finds_another_optimizer(fields, tmp_path, monkeypatch,
                                                                   capsys):
  """Two seeds cannot prove that the sides agree, but the means must be close."""
  pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
  from benchmarks import twin_updates
  sizes = [f"--config.model.{field}={value}" for field, value in SIZE.items()]
  command = [f"--config={RECIPE}", f"--workdir={tmp_path}", "--seeds=0,1", "--steps=10",
             f"--out={tmp_path / 'twin.json'}", f"--picture={tmp_path / 'twin.svg'}", *fields,
             *sizes, "--config.model.num_layers=1"]
  code = twin.main(command)
  report = json.loads((tmp_path / "twin.json").read_text())
  assert [(row["loss"], row["step"]) for row in report["rows"]] == [("mlm_loss", 10),
                                                                    ("nsp_loss", 10)]
  assert code == (0 if report["agrees"] else 1)
  row = report["rows"][0]
  assert row["ours"] == pytest.approx(row["theirs"], abs=0.15)
  assert len(set(report["config_sha256"])) == 2
  assert all(len(report["seconds"][side]) == 2 for side in (twin.OURS, twin.THEIRS))
  assert "The means lie" in capsys.readouterr().out
  assert (tmp_path / "twin.svg").stat().st_size > 1_000

  # With Adam's bias correction, which BERT's optimizer lacks, the first steps are shorter.
  for path in tmp_path.glob("pytorch-*.pt"):
    path.unlink()
  monkeypatch.setitem(twin_updates.UPDATES, "bert_adamw", twin_updates.update_adam)
  assert twin.main(command) == 1
  changed = json.loads((tmp_path / "twin.json").read_text())
  assert not changed["rows"][0]["agrees"]
  assert changed["curves"][twin.OURS] == report["curves"][twin.OURS]  # Not trained again.


@pytest.mark.hf
def test_a_twin_that_was_stopped_continues_bit_for_bit(fields, tmp_path):
  pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
  from benchmarks import twin_pytorch
  pair = Pair("gpt2", fields)
  pair.config.model.update(dropout=0.1, attention_dropout=0.1)
  held_out = twin.held_out_batches(pair.config, pair.held_out)

  def train(stops):
    path = tmp_path / f"{stops}.pt"
    for stop in stops:
      made = twin_pytorch.Twin(pair.config, 0, seed=3)
      if path.exists():
        made.load(path)
      batches = twin.train_batches(pair.config, pair.train_set, made.done)
      made.train(list(batches)[:stop - made.done], held_out, path)
    return made.curve

  assert train([20]) == train([14, 20])


@pytest.mark.hf
@pytest.mark.parametrize("field, problem", [
    ("optimizer.name=muon", "optimizer.name='muon': the twin has only"),
    ("objective.bias_init=frequencies", "objective.bias_init='frequencies': the twin has only"),
    ("data.packing=True", "Set --config.data.packing=False")])
def test_what_the_twin_lacks_is_refused(field, problem, capsys):
  pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
  assert twin.main(["--workdir=x", f"--config={RECIPE}",
                    f"--config.{field}"]) == ConfigError.exit_code
  assert problem in capsys.readouterr().err
