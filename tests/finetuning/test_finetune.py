"""Fine-tuning from a checkpoint to results, through the command."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import program
import pytest
import small_runs
import tiny
from ml_collections import FrozenConfigDict

from bertgpt import cli, trees
from bertgpt.config import families, finetuning
from bertgpt.config.stored import from_json
from bertgpt.devices import barrier, preemption, sharding, watchdog
from bertgpt.errors import ConfigError, DataError
from bertgpt.finetuning import evaluation, resume
from bertgpt.finetuning import objectives as task_objectives
from bertgpt.finetuning.initial_state import init_from_pretrained, put_pretrained
from bertgpt.finetuning.tasks import rows as rows_lib
from bertgpt.finetuning.tuning import Program, Tuning
from bertgpt.runs import metrics_file
from bertgpt.runs import trained as trained_lib
from bertgpt.training import steps
from bertgpt.training.metrics import LateMetrics


def run(tuning, init, out, *arguments):
  return cli.main(["finetune", f"--config={tuning}", f"--init={init}", f"--workdir={out}",
                   *arguments])


def results_of(out):
  return json.loads((out / "results.json").read_text())


def losses_of(out, name):
  return metrics_file.read_curves(out / name)["train/task_loss"]


def predictions_of(out, name, file_name):
  text = (out / name / "predictions" / file_name).read_text()
  return [line.split("\t")[1] for line in text.splitlines()[1:]]


def test_sixteen_examples_are_memorized(tuned):
  results = results_of(tuned)
  assert [run["dev"]["accuracy"] for run in results["runs"]] == [1.0, 1.0]
  assert results["medians"] == [
      {"learning_rate": 1e-2, "seeds": 2, "dev": {"accuracy": 1.0}}]
  assert results["init"]["step"] == 20
  assert "100.0%" in (tuned / "report.md").read_text()


def test_predictions_are_those_that_were_scored(tuned, glue):
  labels = [line.split("\t")[1] for line in
            (glue / "SST-2" / "dev.tsv").read_text().splitlines()[1:]]
  for file_name in ("SST-2.dev.tsv", "SST-2.tsv"):  # The test set has the sentences of dev.
    assert predictions_of(tuned, "lr0.01-seed1", file_name) == labels


def test_a_run_is_a_function_of_its_seed(tuned, tuning, finished_bert, tmp_path):
  """A run does not depend on runs with other seeds before it."""
  assert run(tuning, finished_bert, tmp_path / "again", "--config.seeds=1,") == 0
  first, again = (losses_of(out, "lr0.01-seed1") for out in (tuned, tmp_path / "again"))
  assert first == again
  assert first != losses_of(tuned, "lr0.01-seed0")


def test_the_weights_of_the_best_run_are_kept(tuned, finished_bert):
  """Both runs have perfect scores; the first one counts as the best."""
  assert results_of(tuned)["best_run"] == "lr0.01-seed0"
  assert weights_under(tuned) == {"lr0.01-seed0"}
  found = trained_lib.load_any(tuned / "lr0.01-seed0")
  assert set(found.params) == {"body", "head"}
  assert (found.task["name"], found.task["labels"], found.task["seed"]) == (
      "sst2", ["negative", "positive"], 0)
  params = trained_lib.load_trained(finished_bert).params
  before = params["encoder"]["layers"]["mlp"]["up"]["kernel"]
  after = found.params["body"]["encoder"]["layers"]["mlp"]["up"]["kernel"]
  assert 0 < np.abs(after - before).max() < 0.5


def weights_under(out) -> set[str]:
  """Returns the folders of runs with weights; all others must hold no weights at all."""
  folders = {path.parent.name for path in out.glob("*/checkpoints")}
  for name in ("config.json", "tokenizer"):
    assert {path.parent.name for path in out.glob(f"*/{name}")} == folders
  return folders


@pytest.mark.parametrize("save, kept", [
    ("best", {"lr0.01-seed0"}), pytest.param("none", set(), marks=pytest.mark.slow),
    pytest.param("all", {"lr1e-09-seed0", "lr0.01-seed0"}, marks=pytest.mark.slow)])
def test_weights_are_kept_as_asked(tuning, finished_bert, tmp_path, save, kept):
  """The first rate learns nothing, and the second one replaces it as the best."""
  rates = "--config.learning_rates=1e-9,1e-2"
  assert run(tuning, finished_bert, tmp_path, rates, f"--config.save={save}") == 0
  assert results_of(tmp_path)["best_run"] == "lr0.01-seed0"
  assert weights_under(tmp_path) == kept


@pytest.mark.slow
def test_weights_that_were_kept_before_stay(tuning, finished_bert, tmp_path, capsys):
  """A later start with save=best, or with nothing to save, leaves the weights of earlier starts."""
  def tune(*arguments):
    assert run(tuning, finished_bert, tmp_path, *SHORT, *arguments) == 0
    return results_of(tmp_path)["best_run"]

  assert tune("--config.save=all", "--config.learning_rates=1e-9,2e-9") == "lr1e-09-seed0"
  assert weights_under(tmp_path) == {"lr1e-09-seed0", "lr2e-09-seed0"}
  tune("--config.learning_rates=1e-9,2e-9,3e-9")
  assert weights_under(tmp_path) == {"lr1e-09-seed0", "lr2e-09-seed0"}
  assert f"Weights of the best run: {tmp_path}/lr1e-09-seed0" in capsys.readouterr().out

  tune("--config.save=none", "--config.learning_rates=4e-9,")
  assert tune("--config.learning_rates=4e-9,5e-9") == "lr4e-09-seed0"
  assert weights_under(tmp_path) == {"lr1e-09-seed0", "lr2e-09-seed0"}
  assert "The weights of the best run were not saved" in capsys.readouterr().out


def test_commands_that_cannot_use_a_fine_tuned_model_refuse_it(tuned, capsys):
  best = tuned / "lr0.01-seed0"
  for path, fragment in ((best, "holds a model fine-tuned on sst2. Use it with `bertgpt predict`"),
                         (tuned, "is a fine-tuning workdir. Use it with `bertgpt predict`, ")):
    assert cli.main(["fill", f"--workdir={path}", "the [MASK]"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--workdir {path}: {fragment}" in line
  with pytest.raises(ConfigError, match="--config.init_from .*: holds a model fine-tuned on sst2"):
    trained_lib.check_pretrained(best, "--config.init_from")


def test_checkpoints_of_runs_are_verified(tuned, capsys):
  assert cli.main(["verify", f"--workdir={tuned}"]) == 0
  assert ": good, " in capsys.readouterr().out


def test_runs_that_are_done_are_kept(tuned, tuning, finished_bert, tmp_path, capsys):
  """A seed may be added."""
  out = tmp_path / "out"
  shutil.copytree(tuned, out)
  left = out / "lr0.01-seed1" / resume.FOLDER  # As if it had been killed after its last line.
  left.mkdir()
  before = (out / "lr0.01-seed0" / "metrics.jsonl").stat().st_mtime_ns
  assert run(tuning, finished_bert, out, "--config.seeds=0,1,2") == 0
  assert (out / "lr0.01-seed0" / "metrics.jsonl").stat().st_mtime_ns == before
  assert [run["seed"] for run in results_of(out)["runs"]] == [0, 1, 2]
  assert not left.exists()
  assert "median" in capsys.readouterr().out


def test_a_test_set_that_completed_runs_did_not_predict_is_noted(tuned, tuning, finished_bert,
                                                                 glue, tmp_path, capsys):
  """Their scores stay right, so that seeds may still be added."""
  out, moved = tmp_path / "out", tmp_path / "moved"
  shutil.copytree(tuned, out)
  shutil.copytree(glue, moved)
  path = moved / "SST-2" / "test.tsv"

  def notes(*arguments):
    capsys.readouterr()
    assert run(tuning, finished_bert, out, f"--config.task.data={moved}", *arguments) == 0
    found = [line for line in capsys.readouterr().out.splitlines() if "did not predict" in line]
    assert found == [line for line in (out / "report.md").read_text().splitlines()
                     if "did not predict" in line]
    return found

  assert notes() == []
  path.write_text(path.read_text().replace("The", "A", 1))
  (note,) = notes()
  assert note.startswith("note: 2 of 2 completed runs did not predict test, which is new or has ")
  command = re.search("`bertgpt (.*)FILE`", note)[1].split()
  assert cli.main([*command, str(path), f"--out={tmp_path / 'SST-2.tsv'}"]) == 0
  path.unlink()
  assert notes() == []
  stored = results_of(out)
  del stored["predicted"]  # An earlier version wrote it.
  (out / "results.json").write_text(json.dumps(stored))
  shutil.copy(glue / "SST-2" / "test.tsv", path)
  assert notes() == []


def test_a_fine_tuning_that_set_a_field_without_effect_continues(tuned, tuning, finished_bert,
                                                                 tmp_path, capsys):
  """Earlier versions accepted such fields, so their runs have them."""
  out = tmp_path / "out"
  shutil.copytree(tuned, out)
  config = json.loads((out / "config.json").read_text())
  config["task"]["stride"] = 64
  (out / "config.json").write_text(json.dumps(config))
  assert run(tuning, finished_bert, out, "--config.task.stride=64") == 0, capsys.readouterr().err


@pytest.mark.slow
def test_a_gpt_learns_them_too(tuning, finished_gpt, tmp_path):
  """A GPT gets new tokens, and the language-model loss is added to the task's."""
  assert run(tuning, finished_gpt, tmp_path / "out") == 0
  assert results_of(tmp_path / "out")["runs"][0]["dev"]["accuracy"] == 1.0
  curves = metrics_file.read_curves(tmp_path / "out" / "lr0.01-seed0")
  losses = [value for _, value in curves["train/lm_loss"]]
  assert losses[-1] < losses[0]


SHORT = ("--config.epochs=2", "--config.log.every_steps=1")


@pytest.fixture(scope="module")
def short(tuning, finished_bert, tmp_path_factory):
  """Fine-tuning workdir with runs of two steps."""
  out = tmp_path_factory.mktemp("short") / "out"
  assert run(tuning, finished_bert, out, *SHORT) == 0
  return out


@pytest.mark.slow
def test_words_are_labeled(tuning, finished_bert, tmp_path):
  """The second word of every sentence and the last one are entities."""
  lines = []
  for sentence in [line for line in small_runs.make_text(20).splitlines() if line][:16]:
    words = sentence.rstrip(".").split()
    lines += [f"{word}\t{'B-who' if i == 1 else 'B-where' if i == len(words) - 1 else 'O'}"
              for i, word in enumerate(words)] + [""]
  for name in ("train", "dev"):
    (tmp_path / f"{name}.txt").write_text("\n".join(lines))
  assert run(tuning, finished_bert, tmp_path / "out", "--task=ner",
             f"--config.task.data={tmp_path}", "--config.epochs=60") == 0
  assert results_of(tmp_path / "out")["runs"][0]["dev"] == {"f1": 1.0}
  written = (tmp_path / "out" / "lr0.01-seed0" / "predictions" / "dev.conll").read_text()
  assert [line.replace(" ", "\t").rsplit("\t", 1)[0] for line in written.splitlines()] == lines


@pytest.mark.slow
def test_questions_are_answered(tuning, finished_bert, tmp_path):
  """The answer is the second word, in one of two windows."""
  paragraphs = []
  for i, sentence in enumerate([x for x in small_runs.make_text(20).splitlines() if x][:16]):
    answer = sentence.split()[1]
    paragraphs.append({"context": sentence, "qas": [{
        "id": f"q{i}", "question": f"who {sentence.split()[2]} it", "answers": [
            {"answer_start": sentence.index(answer), "text": answer}]}]})
  for name in ("train", "dev"):
    (tmp_path / f"{name}-v1.1.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
  assert run(tuning, finished_bert, tmp_path / "out", "--task=squad",
             f"--config.task.data={tmp_path}", "--config.task.max_question=8",
             "--config.task.max_length=16", "--config.task.stride=3", "--config.epochs=60") == 0
  assert results_of(tmp_path / "out")["runs"][0]["dev"]["em"] == 1.0
  folder = tmp_path / "out" / "lr0.01-seed0" / "predictions"
  assert json.loads((folder / "predictions.json").read_text()) == {
      f"q{i}": p["qas"][0]["answers"][0]["text"] for i, p in enumerate(paragraphs)}


def test_a_task_that_a_gpt_cannot_do_is_refused(tuning, finished_gpt, tmp_path, capsys):
  assert run(tuning, finished_gpt, tmp_path / "out", "--task=squad") == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "--task squad needs a model of albert or bert or " in line
  assert ", but the run of --init is a gpt" in line
  assert files_under(tmp_path) == set()


def test_random_weights_are_another_start_of_the_same_model(short, tuning, finished_bert, tmp_path):
  assert run(tuning, finished_bert, tmp_path, *SHORT, "--config.from_scratch=true") == 0
  outs = short, tmp_path
  assert losses_of(short, "lr0.01-seed0") != losses_of(tmp_path, "lr0.01-seed0")
  shapes = [{name: leaf[0] for name, leaf in json.loads(
      (out / "lr0.01-seed0/checkpoints/2/manifest.json").read_text())["content"][
          "leaves"].items()} for out in outs]
  assert shapes[0] == shapes[1]


def test_new_tokens_leave_the_trained_rows_as_they_are():
  """The table has 256 rows: 250 of trained tokens, then padding, which new tokens replace."""
  import jax.numpy as jnp
  trained = np.arange(512, dtype=np.float32).reshape(256, 2)
  parameter = "body/embeddings/token/embedding", ("vocab", None)
  for rows in (256, 384):
    fresh = jnp.full((rows, 2), -1.0)
    table = np.asarray(put_pretrained(*parameter, fresh, trained, 250))
    assert (table[:250] == trained[:250]).all() and (table[250:] == -1).all()
  with pytest.raises(DataError, match="the checkpoint has"):
    put_pretrained(*parameter, jnp.zeros((256, 3)), trained, 250)


@pytest.mark.parametrize("family", [name for name, family in families.FAMILIES.items()
                                    if family.kind == "decoder"])
def test_new_tokens_may_need_more_rows(family):
  """All 256 rows are of trained tokens, so that the new tokens come after the padded size."""
  import jax
  config = tiny.make_config("causal", family=family, vocab_size=256, num_layers=1)
  with tiny.Setup(config) as setup:
    params = jax.tree.map(lambda x: np.full(x.shape, 2.5, np.float32), setup.abstract.params)
  trained = trained_lib.Trained(config, setup.model, params, None, 0, "")
  run = finetuning.run_config(config, finetuning.base(), steps=1, learning_rate=1e-5,
                              vocab_size=256 + rows_lib.NEW_TOKENS)
  head = task_objectives.find_task_head(config, "classes")
  training = steps.Setup(run, setup.mesh, head.make_model(FrozenConfigDict(run.model), 2),
                         head.make_objective(run, 0.5))
  with sharding.use_mesh(setup.mesh, run):
    abstract = steps.make_abstract_state(training)
    state = init_from_pretrained(
        Tuning(finetuning.base(), None, trained, None, head, None, setup.mesh, None, "", (), ()),
        Program(1e-5, training, abstract, None), 0)
  for name, x in trees.named_leaves(state.params["body"]).items():
    is_trained = np.asarray(x) == 2.5
    if len(x) == 384:
      assert is_trained[:256].all() and not is_trained[256:].any(), name
    else:
      assert is_trained.all(), name


# Family -> the head through which its features get to the output layer of a task on texts.
READ_HEADS = {"albert": "pooler", "bert": "pooler", "electra": "pooler", "xlnet": "pooler",
              "modernbert": "mlm", "modernbert_decoder": "lm", "gpt": "", "elmo": ""}


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_head_that_the_model_came_without_is_drawn_for_every_seed(family):
  """Other pretrained parameters are kept, and heads that the task does not read are not made."""
  import jax
  config = tiny.make_config(families.FAMILIES[family].objectives[0], family=family, num_layers=2,
                            vocab_size=256)
  with tiny.Setup(config) as setup:
    params = jax.tree.map(lambda x: np.full(x.shape, 2.5, np.float32), setup.abstract.params)
  trained = trained_lib.Trained(config, setup.model, params, None, 0, "",
                                fresh=tuple(families.HEADS))
  run = finetuning.run_config(config, finetuning.base(), steps=1, learning_rate=1e-5,
                              vocab_size=config.model.vocab_size)
  head = task_objectives.find_task_head(config, "classes")
  training = steps.Setup(run, setup.mesh, head.make_model(FrozenConfigDict(run.model), 2),
                         head.make_objective(run, 0.0))
  with sharding.use_mesh(setup.mesh, run):
    abstract = steps.make_abstract_state(training)
    tuning = Tuning(finetuning.base(), None, trained, None, head, None, setup.mesh, None, "", (),
                    ())
    first, second = (trees.named_leaves(init_from_pretrained(
        tuning, Program(1e-5, training, abstract, None), seed).params["body"]) for seed in (0, 1))
  found = set()
  for name, x in first.items():
    group = name.split("/")[0]
    if group in families.HEADS:
      found.add(group)
      assert name.endswith("kernel") == (not np.array_equal(x, second[name])), name
    else:
      assert (np.asarray(x) == 2.5).all() or group == "mix", name
  assert found == {READ_HEADS[family]} - {""}


@pytest.fixture
def with_params(finished_bert, monkeypatch):
  """Returns a function that edits, in place, the pretrained parameters that fine-tuning reads."""
  trained = trained_lib.load_trained(finished_bert)

  def change(edit):
    edit(trained.params)
    monkeypatch.setattr(trained_lib, "load_trained", lambda path, flag, dtype: trained)

  return change


def test_a_missing_parameter_is_named(with_params, tuning, finished_bert, tmp_path, capsys):
  with_params(lambda params: params["embeddings"].pop("segment"))
  assert run(tuning, finished_bert, tmp_path / "out", *SHORT) == 65
  (line,) = capsys.readouterr().err.splitlines()
  assert "body/embeddings/segment/embedding: is not in the checkpoint" in line


def test_a_pooler_may_be_missing(with_params, tuning, finished_bert, tmp_path, capsys):
  with_params(lambda params: params.pop("pooler"))
  assert run(tuning, finished_bert, tmp_path / "out", *SHORT) == 0
  assert "note: the checkpoint has no pooler" in capsys.readouterr().out


@pytest.mark.parametrize("freeze, fate", [
    ("^body/(?!mix|pooler|mlm|lm)", ""), ("^body/", ", and optimizer.freeze keeps them so")])
def test_a_pooler_with_random_weights_is_noted_as_a_missing_one_is(
    tuning, finished_bert, tmp_path, capsys, monkeypatch, freeze, fate):
  trained = trained_lib.load_trained(finished_bert)._replace(fresh=("pooler", "mlm"))
  monkeypatch.setattr(trained_lib, "load_trained", lambda path, flag, dtype: trained)
  assert run(tuning, finished_bert, tmp_path / "out", *SHORT,
             f"--config.optimizer.freeze={freeze}") == 0
  note, = (line for line in capsys.readouterr().out.splitlines() if line.startswith("note: "))
  assert note == ("note: the checkpoint has no pooler. Its dense layer, which the task reads, has "
                  f"random weights{fate}")


def test_untrained_positions_are_noted(tuning, finished_bert, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(trained_lib, "longest_row", lambda trained: 4)
  assert run(tuning, finished_bert, tmp_path / "out", *SHORT) == 0
  note, = (line for line in capsys.readouterr().out.splitlines() if line.startswith("note: "))
  assert "texts have more tokens than the rows of the training (4)" in note
  assert note.endswith("task.max_length makes rows shorter")
  assert note in (tmp_path / "out" / "report.md").read_text()


def test_other_weights_or_rows_are_not_mixed(short, with_params, tuning, finished_bert, glue,
                                             tmp_path, capsys):
  """The folder of the data may move, but not a single sentence or weight may change."""
  out, moved = tmp_path / "out", tmp_path / "moved"
  shutil.copytree(short, out)
  shutil.copytree(glue, moved)
  arguments = (*SHORT, f"--config.task.data={moved}")
  assert run(tuning, finished_bert, out, *arguments) == 0
  before = (out / "results.json").read_text()
  path = moved / "SST-2" / "dev.tsv"
  path.write_text(path.read_text().replace("The", "A", 1))
  with_params(lambda params: params["pooler"]["bias"].__setitem__(0, 7.0))
  capsys.readouterr()
  assert run(tuning, finished_bert, out, *arguments) == 2
  lines = capsys.readouterr().err.splitlines()
  assert "  --init: different from the earlier start: params" in lines
  assert "  task.data: different from the earlier start: dev" in lines
  assert (out / "results.json").read_text() == before


def test_a_rate_that_diverges_in_a_few_steps_is_left_out(tuning, finished_bert, tmp_path, capsys):
  """Fewer steps than `train.max_bad_steps`; the weights of the last good one would be scored."""
  assert run(tuning, finished_bert, tmp_path / "out", "--config.epochs=4", "--config.seeds=0,",
             "--config.optimizer.clip_norm=0", "--config.learning_rates=1e30,") == 70
  assert "lr1e+30-seed0 diverged" in capsys.readouterr().out
  (found,) = results_of(tmp_path / "out")["runs"]
  assert found["diverged"] and "dev" not in found


@pytest.mark.slow
def test_a_rate_that_diverges_is_left_out(tuning, finished_bert, tmp_path, capsys):
  """Weights of 1e30 overflow. If all runs diverge, it is an error."""
  out = tmp_path / "out"
  arguments = ("--config.epochs=30", "--config.optimizer.clip_norm=0", "--config.save=none")
  assert run(tuning, finished_bert, out, *arguments, "--config.learning_rates=1e30,1e-2") == 0
  first, second = results_of(out)["runs"]
  assert first == {"learning_rate": 1e30, "seed": 0, "folder": "lr1e+30-seed0", "diverged": True}
  assert second["dev"]["accuracy"] > 0
  assert [m["learning_rate"] for m in results_of(out)["medians"]] == [1e-2]
  assert results_of(out)["best_run"] == "lr0.01-seed0"
  assert "diverged" in (out / "report.md").read_text()
  assert not (out / "lr0.01-seed0" / "checkpoints").exists()
  capsys.readouterr()
  assert run(tuning, finished_bert, out, *arguments, "--config.learning_rates=1e30,") == 70
  assert "every run diverged" in capsys.readouterr().err


def test_an_error_disarms_the_watchdog(tuning, finished_bert, tmp_path, monkeypatch):
  """Otherwise the watchdog would later end a process that has caught the error."""
  armed = []
  monkeypatch.setattr(watchdog, "arm", lambda minutes: armed.append(minutes))
  monkeypatch.setattr(watchdog, "disarm", armed.clear)

  def fail(*arguments, **named):
    assert armed
    raise DataError("as it may happen")

  monkeypatch.setattr(evaluation, "evaluate", fail)
  assert run(tuning, finished_bert, tmp_path / "out", *SHORT) == 65
  assert not armed


def test_a_stop_between_runs_starts_none(short, tuning, finished_bert, tmp_path, monkeypatch):
  """No folder is made or removed for the next run."""
  import contextlib
  out = tmp_path / "out"
  shutil.copytree(short, out)
  monkeypatch.setattr(preemption, "catch_signals",
                      lambda: contextlib.nullcontext(lambda: True))
  assert run(tuning, finished_bert, out, *SHORT, "--config.seeds=0,1") == 75
  assert not (out / "lr0.01-seed1").exists()


@pytest.mark.slow
def test_every_mesh_learns_alike(short, tuning, finished_bert, tmp_path):
  """Losses are the same if examples, weights and matrices are split over the devices."""
  assert run(tuning, finished_bert, tmp_path, *SHORT, "--config.mesh.fsdp=2",
             "--config.mesh.tensor=2", "--config.micro_batches=2") == 0
  np.testing.assert_allclose(losses_of(tmp_path, "lr0.01-seed0"),
                             losses_of(short, "lr0.01-seed0"), rtol=1e-5)


# The pieces of Gloo's messages, which its threads may write in any order.
GLOO = (r"\[Gloo\] Rank | is connected to | peer ranks\. "
        r"|Expected number of connected peer ranks is : |\d+")


def start_two(tuning, init, out, *arguments, differing=((), ())):
  """Starts the command in two processes with two devices each."""
  port = program.free_port()
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(program.ROOT)}
  return [subprocess.Popen(
      [sys.executable, "-m", "bertgpt", "finetune", f"--config={tuning}", f"--init={init}",
       f"--workdir={out}", *arguments, *differing[i], f"--distributed=127.0.0.1:{port},2,{i}"],
      env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
          for i in range(2)]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(short, tuning, finished_bert, tmp_path):
  """Each process has half of the examples, and only the first one writes and prints."""
  out = tmp_path / "out"
  first, second = map(program.finish, start_two(tuning, finished_bert, out, *SHORT,
                                                "--config.seeds=0,1", "--config.save=all"))
  assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
  assert "Best on dev" in first.stdout
  assert re.sub(GLOO, "", second.stdout).split() == []
  np.testing.assert_allclose(losses_of(out, "lr0.01-seed0"), losses_of(short, "lr0.01-seed0"),
                             rtol=1e-5)
  assert {r["seed"]: r["dev"] for r in results_of(out)["runs"]}[0] == (
      results_of(short)["runs"][0]["dev"])
  assert weights_under(out) == {"lr0.01-seed0", "lr0.01-seed1"}
  assert trained_lib.load_any(out / "lr0.01-seed1").task["name"] == "sst2"


def test_every_program_is_compiled_together_once(tuning, finished_bert, tmp_path, monkeypatch):
  """Otherwise, Gloo waits only 30 s for a process that compiles for longer."""
  compile_together, compiled = barrier.compile_together, []

  def compile_and_note(name, system, program, *arguments):
    compiled.append((name, arguments[-1]["tokens"].shape))
    compile_together(name, system, program, *arguments)

  monkeypatch.setattr(barrier, "compile_together", compile_and_note)
  assert run(tuning, finished_bert, tmp_path, *SHORT, "--config.seeds=0,1",
             "--config.learning_rates=1e-2,2e-2", "--config.eval.batch_size=8") == 0
  assert {name for name, _ in compiled} == {"the train step", "the evaluation"}
  evaluated = [shape for name, shape in compiled if name == "the evaluation"]
  assert len(set(evaluated)) == len(evaluated) and {rows for rows, _ in evaluated} == {8}


@pytest.mark.slow
def test_two_processes_stop_together_and_resume(tuning, finished_bert, tmp_path):
  """One process gets a signal in the third run. The first run has diverged."""
  out = tmp_path / "out"
  arguments = ("--config.learning_rates=1e30,1e-9,1e-2", "--config.optimizer.clip_norm=0",
               "--config.epochs=60", "--config.log.every_steps=1")
  both = start_two(tuning, finished_bert, out, *arguments)
  program.wait_for((out / "lr0.01-seed0" / "metrics.jsonl").exists, both[0])
  both[1].send_signal(signal.SIGTERM)
  results = [program.finish(process) for process in both]
  assert [result.returncode for result in results] == [75, 75], results[0].stderr
  assert [r["learning_rate"] for r in results_of(out)["runs"]] == [1e30, 1e-9]
  assert weights_under(out) == {"lr1e-09-seed0"}

  results = list(map(program.finish, start_two(tuning, finished_bert, out, *arguments)))
  assert [result.returncode for result in results] == [0, 0], results[0].stderr
  assert results_of(out)["best_run"] == "lr0.01-seed0"
  assert "lr1e+30-seed0 diverged" not in results[1].stdout
  assert len(losses_of(out, "lr0.01-seed0")) == 60


@pytest.mark.slow
def test_processes_that_would_do_different_runs_are_refused(tuning, finished_bert, tmp_path):
  both = start_two(tuning, finished_bert, tmp_path / "out", *SHORT,
                   differing=(["--config.seeds=0,1"], ["--config.seeds=0,2"]))
  for result in map(program.finish, both):
    assert result.returncode == 2
    assert "seeds: [0, 1] in process 0, [0, 2] in process 1" in result.stderr
  assert files_under(tmp_path) == set()


# ---------------------------------------------------------------- bad input


def files_under(path: pathlib.Path) -> set[str]:
  return {str(p.relative_to(path)) for p in path.rglob("*")}


@pytest.mark.parametrize("arguments, code, fragment", [
    (["--task=sst3"], 2, "--task sst3: choose one of cola,"),
    (["--task=rte"], 65, "holds no RTE/train.tsv"),
    (["--config.task.data="], 2, "task.data: give the folder"),
    (["--config.task.data=/none"], 65, "task.data=/none: no such folder"),
    (["--config.task.max_length=500"], 2, "task.max_length=500 is longer than model.max_positions"),
    (["--config.save=false"], 2, "save='false': choose one of best, all, none"),
    (["--config.epoch=2"], 2, "--config.epoch: no such field. Did you mean --config.epochs?"),
    (["--config.task.stride=64"], 2, "task.stride=64: task.name='sst2' does not read it"),
    (["--config.task.dev=my.tsv"], 2, "task.dev=my.tsv: the files of sst2 have their"),
    (["--config.batch_size=12"], 2, "batch_size: a micro-batch of 12 rows cannot be divided"),
    (["--init=/none"], 2, "/none: no such folder. Give the folder of a run, or of"),
    (["--config.optimizer.freeze=^encoder"], 2, "optimizer.freeze='^encoder': matches no param"),
    (["--config.log.trackers=wandb"], 2, "Install bertgpt[wandb], or leave wandb out"),
])
def test_wrong_input_is_one_line_and_makes_nothing(tuning, finished_bert, tmp_path, capsys,
                                                   arguments, code, fragment):
  before = files_under(finished_bert)
  assert run(tuning, finished_bert, tmp_path / "out", *arguments) == code
  (line,) = capsys.readouterr().err.splitlines()
  assert fragment in line
  assert files_under(tmp_path) == set() and files_under(finished_bert) == before


def test_a_config_may_change_until_a_run_has_begun(tuning, finished_bert, tmp_path, monkeypatch):
  """Such as after a step that did not fit the memory of the device."""
  def fail(*args):
    raise MemoryError

  out = tmp_path / "out"
  with monkeypatch.context() as patch:
    patch.setattr(LateMetrics, "push", fail)
    with pytest.raises(MemoryError):
      run(tuning, finished_bert, out, *SHORT)
  assert (out / "config.json").exists() and not (out / "results.json").exists()
  assert run(tuning, finished_bert, out, *SHORT, "--config.batch_size=8") == 0
  assert run(tuning, finished_bert, out, *SHORT) == 2


def test_a_recipe_of_a_pretraining_is_refused(recipe, finished_bert, tmp_path, capsys):
  assert run(recipe, finished_bert, tmp_path / "out") == 2
  assert "is a recipe for `bertgpt train`, and not for this command" in capsys.readouterr().err


@pytest.mark.parametrize("argument, fragment", [
    ("--config.epochs=3", "epochs: 90 -> 3"),
    ("--config.from_scratch=true", "from_scratch: False -> True"),
    ("--task=cola", "task.name: 'sst2' -> 'cola'"),
])
def test_another_fine_tuning_needs_another_folder(tuned, tuning, finished_bert, glue, capsys,
                                                  argument, fragment):
  (glue / "CoLA").mkdir(exist_ok=True)
  for name in ("train", "dev"):
    (glue / "CoLA" / f"{name}.tsv").write_text("src\t1\t*\tthe cat\n")
  before = (tuned / "results.json").read_text()
  assert run(tuning, finished_bert, tuned, argument) == 2
  assert fragment in capsys.readouterr().err
  assert (tuned / "results.json").read_text() == before


def test_the_folder_of_a_pretraining_is_refused(tuning, finished_bert, capsys):
  before = files_under(finished_bert)
  assert run(tuning, finished_bert, finished_bert) == 2
  assert "is not a fine-tuning workdir" in capsys.readouterr().err
  assert files_under(finished_bert) == before


def test_a_stopped_fine_tuning_resumes_with_the_next_run(tuning, finished_bert, finished_gpt,
                                                         tmp_path, monkeypatch, capsys):
  """After SIGTERM in the second run, the first run is kept and the second continues.

  Before, another --init is refused as if no run were done: it would begin the second run again.
  """
  push, out = LateMetrics.push, tmp_path / "out"

  def push_and_stop(self, step, step_metrics):
    push(self, step, step_metrics)
    if step == 5 and (out / "lr0.01-seed1").exists():
      signal.raise_signal(signal.SIGTERM)

  arguments = ("--config.seeds=0,1", "--config.epochs=10")
  with monkeypatch.context() as patch:
    patch.setattr(LateMetrics, "push", push_and_stop)
    assert run(tuning, finished_bert, out, *arguments, "--config.log.every_steps=1000") == 75
  assert [r["seed"] for r in results_of(out)["runs"]] == [0]
  assert losses_of(out, "lr0.01-seed1")[-1][0] >= 5, "the last steps are logged before the end"
  (out / "results.json").rename(tmp_path / "results.json")  # As if no run were done.
  before = files_under(out)
  assert run(tuning, finished_gpt, out, *arguments) == 2
  assert ("the run lr0.01-seed1, which was stopped, began with another --init. Give that"
          in capsys.readouterr().err)
  assert files_under(out) == before
  (tmp_path / "results.json").rename(out / "results.json")
  assert run(tuning, finished_bert, out, *arguments) == 0
  assert [r["seed"] for r in results_of(out)["runs"]] == [0, 1]
  assert from_json((out / "config.json").read_text(), finetuning.base)
