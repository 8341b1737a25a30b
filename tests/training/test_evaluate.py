"""Held-out scores do not depend on how they are computed, and count every row once."""

import collections
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import small_runs
import tiny
from program import ROOT, curves

from bertgpt import config as config_lib
from bertgpt import models
from bertgpt.config.overrides import override
from bertgpt.config.stored import from_json, to_json
from bertgpt.data.batches import loader
from bertgpt.data.batches.rows import EVAL_SEED, TrainRows
from bertgpt.data.corpus import prepare
from bertgpt.data.corpus.corpus import open_corpus
from bertgpt.data.tokens.vocabulary import make_vocabulary
from bertgpt.devices import sharding
from bertgpt.errors import ConfigError, DataError
from bertgpt.runs import manifest
from bertgpt.runs import trained as trained_lib
from bertgpt.training import evaluate, evaluate_run, steps

# (batch size, devices)
LAYOUTS = [(8, 1), *(pytest.param(layout, marks=pytest.mark.slow) for layout in ((16, 1), (64, 1))),
           (8, 8), (64, 8)]


@pytest.fixture(scope="module")
def trained(finished_run):
  return trained_lib.load_trained(finished_run)


@pytest.fixture(scope="module")
def held_out(trained):
  return open_corpus(prepare.ensure_prepared(trained.config), "validation")


def make_evaluator(trained, held_out, batch_size, num_devices):
  config = trained.config.copy_and_resolve_references()
  config.eval.batch_size = batch_size
  mesh = sharding.make_mesh(config, jax.devices()[:num_devices])
  setup = steps.make_setup(config, mesh, make_vocabulary(trained.tokenizer))
  return evaluate.Evaluator(setup, held_out)


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda p: f"rows{p[0]}-devices{p[1]}")
def evaluator(request, trained, held_out):
  return make_evaluator(trained, held_out, *request.param)


@pytest.fixture(scope="module")
def last_scores(finished_run):
  """Returns the scores that the training run logged at its end."""
  return {tag.rsplit("/", 1)[1]: points[-1][1] for tag, points in curves(finished_run).items()
          if tag.startswith("eval/validation/")}


def test_layout_does_not_change_the_numbers_of_the_training_run(evaluator, trained, last_scores):
  params = jax.device_put(trained.params, sharding.shard_state(
      trained.params, trained.params, evaluator.setup.mesh, trained.config,
      models.axes_of(trained.config)))
  found = evaluate.evaluate_corpus(evaluator, params, 0)
  assert found.keys() == last_scores.keys()
  for name, value in found.items():
    assert value == pytest.approx(last_scores[name], rel=1e-5), name


def test_every_row_is_counted_once(trained, held_out):
  """The weights of all batches add up to those of the rows, taken one at a time."""
  mesh = sharding.make_mesh(trained.config)
  setup = steps.make_setup(trained.config, mesh, make_vocabulary(trained.tokenizer))
  step = jax.jit(evaluate.make_eval_step(setup))
  rows = TrainRows(held_out, trained.config, 0, EVAL_SEED, num_windows=1)

  def weigh(batches, size):
    weights = collections.Counter()
    for i, batch in enumerate(batches):
      row_ids = np.arange(i * size, (i + 1) * size, dtype=np.int32)
      sums, _ = step(trained.params, batch, row_ids, ())
      weights.update({name: float(weight) for name, (_, weight) in sums.items()})
    return weights

  one_by_one = weigh((rows.read(np.array([i])) for i in range(rows.rows_per_epoch)), 1)
  for size in (8, 16, 64):
    config = trained.config.copy_and_resolve_references()
    config.eval.batch_size = size
    batches = loader.make_eval_batches(held_out, config, 0, slice(0, size))
    assert weigh(batches, size) == one_by_one


@pytest.mark.parametrize("dtype, precision", [("float32", "HIGHEST"), ("bfloat16", "DEFAULT")])
def test_float32_products_are_exact_in_training_as_in_the_command(trained, held_out, dtype,
                                                                  precision):
  """Otherwise a GPU rounds operands to TF32 in one of the two, and the metrics differ."""
  config = trained.config.copy_and_resolve_references()
  config.model.dtype, found = dtype, set()
  evaluator = make_evaluator(trained._replace(config=config), held_out, 64, 1)
  program = evaluator.find_program(0)

  class Watched:
    """The program, which notes the precision of its products when it is lowered and when called."""

    def lower(self, *args):
      lowered = program.lower(*args)
      found.update(re.findall(r"stablehlo.dot_general.* precision = \[(\w+)", lowered.as_text()))
      return lowered

    def __call__(self, *args):
      self.lower(*args)
      return program(*args)

  evaluator.programs.update(dict.fromkeys(evaluator.programs, Watched()))
  evaluate.evaluate_corpus(evaluator, trained.params, 0)
  assert found == {precision}


def test_the_command_prints_the_numbers_of_the_training_run(finished_run, last_scores, trained,
                                                            held_out):
  env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
  result = subprocess.run([sys.executable, "-m", "bertgpt", "evaluate",
                           f"--workdir={finished_run}"], env=env, check=True, capture_output=True,
                          text=True, timeout=1200)
  printed = dict(line.split() for line in result.stdout.splitlines())
  assert printed == {name: f"{value:.6g}" for name, value in last_scores.items()}
  rows = sum(batch["sequence_ids"].any(axis=1).sum() for batch in
             loader.make_eval_batches(held_out, trained.config, 0, slice(None)))
  note = (f"note: step 40, {rows} rows of {trained.config.phases[0].seq_len} tokens from "
          f"{held_out.manifest['splits']['validation']['documents']} held-out documents, computed "
          "in float32")
  assert note in result.stderr.splitlines()


def test_a_mesh_that_does_not_fit_is_refused(finished_run):
  with pytest.raises(ConfigError, match="mesh data=3 .* but there are 8"):
    evaluate_run.evaluate_workdir(finished_run, ["--config.mesh.data=3"])


@pytest.mark.parametrize("mesh, num_devices, expected", [
    ((-1, 4, 1), 1, (-1, 1, 1)), ((-1, 4, 2), 4, (-1, 4, 1)), ((4, 1, 1), 8, (-1, 1, 1)),
    ((-1, 4, 1), 6, (-1, 2, 1)), ((-1, 2, 2), 8, None), ((2, 2, 2), 8, None),
    ((-1, 1, 1), 3, None)])
def test_a_mesh_of_the_training_that_does_not_fit_is_replaced(capsys, mesh, num_devices, expected):
  """Parameters that were sharded stay so, as one device may be too small for them."""
  config = config_lib.base()
  config.model.width = 16
  sizes = lambda: tuple(config.mesh[name] for name in ("data", "fsdp", "tensor"))
  config.mesh.update(data=mesh[0], fsdp=mesh[1], tensor=mesh[2])
  evaluate_run.fit_mesh(config, num_devices)
  assert sizes() == (expected or mesh)
  assert ("does not fit the devices here" in capsys.readouterr().err) == bool(expected)


def test_the_micro_batches_of_the_training_do_not_matter(finished_run, last_scores, tmp_path):
  """With 2 rows each, they could not be divided among 8 devices."""
  copy = shutil.copytree(finished_run, tmp_path / "run")
  config = from_json((copy / "config.json").read_bytes())
  config.phases[0].micro_batches = 8
  (copy / "config.json").write_text(to_json(config))
  scores = evaluate_run.evaluate_workdir(copy, [])
  assert scores == pytest.approx(last_scores, rel=1e-5)


def test_a_checkpoint_is_scored_as_in_its_own_phase(finished_run, last_scores, tmp_path):
  """The next phase, which has not begun, has longer rows and more masks."""
  copy = shutil.copytree(finished_run, tmp_path / "run")
  config = from_json((copy / "config.json").read_bytes())
  (first,) = config.phases
  config.phases = (first, config_lib.phase(**{**first, "seq_len": 16, "mask_prob": 0.5}))
  (copy / "config.json").write_text(to_json(config))
  assert evaluate_run.evaluate_workdir(copy) == pytest.approx(last_scores, rel=1e-5)


@pytest.mark.parametrize("fields", [
    ("model.num_layers=3",), ("model.num_heads=1",), ("model.activation=gelu_erf",),
    ("model.norm=pre",), ("model.layer_norm_epsilon=0.1",), ("objective.mask_prob=0.5",),
    ("data.packing=false",), ("tokenizer.lowercase=false",), ("model.num_heads=1", "seed=5")])
def test_a_field_of_the_model_or_objective_is_refused(finished_run, fields):
  with pytest.raises(ConfigError) as e:
    evaluate_run.evaluate_workdir(finished_run, ["--config.eval.batch_size=8",
                                                 *(f"--config.{field}" for field in fields)])
  lines = str(e.value).splitlines()
  assert len(lines) == len(fields)
  for line, field in zip(lines, fields, strict=True):
    name, value = field.split("=")
    assert line.startswith(f"--config.{name}: ")
    assert value.lower() in line.lower() and " -> " in line and "Leave the field out" in line


@pytest.mark.parametrize("field", [
    "eval.max_rows=3", "data.source=text:a.txt", "data.corpus=/a", "data.cache_dir=/c",
    "data.validation_fraction=0.5", "mesh.data=1", "log.tensorboard=false", "model.attention=xla",
    "model.remat=full", "model.scan_unroll=1", "model.dtype=bfloat16", "tokenizer.path=/t",
    "system.xla_options=none", "phases[0].seq_len=8"])
def test_text_devices_and_speed_of_an_evaluation_may_differ(trained, field):
  config = override(trained.config, [f"--config.{field}"])
  evaluate_run.check_same_model(trained.config, config, 0)


def test_only_the_phase_that_is_evaluated_may_have_rows_of_another_length():
  config = config_lib.base()
  config.phases = (config_lib.phase(seq_len=16), config_lib.phase(seq_len=32))
  changed = override(config, ["--config.phases[0].seq_len=8"])
  evaluate_run.check_same_model(config, changed, 0)
  with pytest.raises(ConfigError, match=r"phases\[0\].seq_len"):
    evaluate_run.check_same_model(config, changed, 1)


@pytest.mark.parametrize("most, length, expected", [
    (20, 128, 20), (20, 512, 80), (10, 512, 40), (10, 8, 1), (0, 512, 77)])
def test_rows_of_another_length_have_the_same_share_of_masks(most, length, expected):
  trained = config_lib.base()
  trained.phases = (config_lib.phase(seq_len=128, max_predictions=most),)
  config = override(trained, [f"--config.phases[0].seq_len={length}"])
  evaluate_run.keep_masked_share(trained, config, 0)
  assert config_lib.max_predictions(config, config.phases[0]) == expected
  assert trained.phases[0].max_predictions == most


def test_another_text_is_read_with_the_tokenizer_of_the_run(finished_run, last_scores, tmp_path):
  (tmp_path / "other.txt").write_text(small_runs.make_text(40, seed=9))
  scores = evaluate_run.evaluate_workdir(finished_run, [
      f"--config.data.source=text:{tmp_path}/other.txt", f"--config.data.cache_dir={tmp_path}",
      "--config.data.validation_fraction=0.5"])
  assert set(scores) == set(last_scores) and scores != last_scores


@pytest.fixture
def without_its_first_tokenizer(finished_run, tmp_path):
  """Returns a copy of the run that began with a tokenizer which is gone."""
  path = tmp_path / "run"
  shutil.copytree(finished_run, path)
  for checkpoints in path.glob("checkpoints/[0-9]*"):
    file = checkpoints / manifest.MANIFEST
    content = json.loads(file.read_text())["content"]
    stored = json.loads(content["metadata"]["config"])
    stored["tokenizer"]["path"] = str(tmp_path / "gone")
    content["metadata"]["config"] = json.dumps(stored)
    file.write_text(manifest.encode(content))
  return path


def test_a_run_whose_first_tokenizer_is_gone_is_scored_with_its_own(
    without_its_first_tokenizer, last_scores, tmp_path, capsys):
  path = without_its_first_tokenizer
  assert evaluate_run.evaluate_workdir(path, dtype="") == pytest.approx(last_scores)
  assert "cannot be read" in capsys.readouterr().err
  (tmp_path / "other.txt").write_text(small_runs.make_text(40, seed=9))
  other = [f"--config.data.source=text:{tmp_path}/other.txt",
           f"--config.data.cache_dir={tmp_path}", "--config.data.validation_fraction=0.5"]
  assert evaluate_run.evaluate_workdir(path, other)
  with pytest.raises(DataError, match="missing: no tokenizer there"):
    evaluate_run.evaluate_workdir(path, [
        *other, f"--config.tokenizer.path={tmp_path / 'missing'}"])


@pytest.mark.parametrize("field", ["data.source=text:a.txt", "data.validation_fraction=0.5"])
def test_a_text_that_a_prepared_corpus_replaces_is_refused(trained, field):
  of_run = override(trained.config, ["--config.data.corpus=/corpora/a"])
  with pytest.raises(ConfigError, match=(
      f"--config.{field.split('=')[0]}: data.corpus='/corpora/a' replaces this field")):
    evaluate_run.check_text_is_read(of_run, override(of_run, [f"--config.{field}"]))
  evaluate_run.check_text_is_read(of_run, override(of_run, [
      f"--config.{field}", "--config.data.corpus="]))


@pytest.mark.parametrize("objective, depends", [("mlm", False), ("bilm", True)])
def test_scores_of_rows_that_continue_depend_on_the_batch_size(objective, depends):
  config = tiny.make_config(objective)
  found = []
  for config.eval.batch_size in (4, 8):
    found.append(evaluate.conditions(config, 0))
  assert (found[0] != found[1]) == depends


def test_bits_per_byte_of_a_uniform_guess(held_out):
  """A uniform guess of every byte costs 8 bits, here spread over the tokens."""
  nats = held_out.num_bytes * 8 * np.log(2)
  num_predicted = held_out.document_lengths.sum() + len(held_out)
  assert evaluate.bits_per_byte(nats / num_predicted, held_out) == pytest.approx(8)


@pytest.mark.parametrize("changes, is_given", [
    ({"unknown_bytes": 4}, True), ({"unknown_bytes": 6}, False), ({"unknown": 4}, True),
    ({"unknown": 6}, False)])
def test_much_unknown_text_has_no_bits_per_byte(finished_gpt, changes, is_given):
  """An unknown token is likely whatever it stands for. Corpora of 0.1.0 counted only tokens."""
  trained = trained_lib.load_trained(finished_gpt)
  corpus = open_corpus(prepare.ensure_prepared(trained.config), "validation")
  info = {name: value for name, value in corpus.manifest["splits"]["validation"].items()
          if name not in ("unknown", "unknown_bytes")}
  info |= {name: percent * info["text_bytes" if "bytes" in name else "tokens"] // 100
           for name, percent in changes.items()}
  manifest = corpus.manifest | {"splits": corpus.manifest["splits"] | {"validation": info}}
  changed = dataclasses.replace(corpus, manifest=manifest)
  scores = evaluate.evaluate_corpus(make_evaluator(trained, changed, 8, 1), trained.params, 0)
  assert ("bits_per_byte" in scores) == is_given and "lm_perplexity" in scores


def test_the_command_says_what_bits_per_byte_can_be_compared_with(finished_gpt, capsys):
  assert "bits_per_byte" in evaluate_run.evaluate_workdir(finished_gpt)
  assert ("note: bits_per_byte is comparable only with tokenizers that lose case, accents and "
          "white space\n") in capsys.readouterr().err
