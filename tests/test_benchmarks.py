"""benchmarks/: figures are correct, unequal work is refused, and each command runs."""

import importlib
import json
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

import benchmarks
from benchmarks import (
    bare_step,
    device,
    device_parts,
    device_speed,
    packing,
    real_loop,
    side_by_side,
    step,
)
from benchmarks.device_parts import Row
from bertgpt.config import recipes
from bertgpt.config.stored import to_json
from bertgpt.data.batches.rows import TrainRows
from bertgpt.errors import ConfigError
from bertgpt.runs import corpora, metrics_file
from bertgpt.training import feed

COMMANDS = ("step", "packing", "input", "loop", "scaling")


def run(name: str, *argv) -> int:
  module = importlib.import_module(f"benchmarks.{name}")
  return side_by_side.main(f"benchmarks.{name}", module.__doc__, module.FLAGS, module.measure,
                           [str(a) for a in argv])


def measured(path: pathlib.Path) -> dict[str, dict]:
  return {row["what"]: row for row in json.loads(path.read_text())["rows"]}


# ---------------------------------------------------------------- turns


def test_sides_take_turns_forwards_and_backwards():
  order = []
  side_by_side.time_in_turns({name: lambda name=name: order.append(name) or 1.0
                              for name in "ABC"}, rounds=2)
  assert "".join(order) == "ABCCBA" * 2


def test_a_machine_that_slows_down_steadily_does_not_change_the_ratio():
  """B takes twice as long as A, and every call takes 10 s longer than the one before."""
  calls = []

  def side(seconds):
    calls.append(seconds)
    return seconds + 10 * len(calls)

  times = side_by_side.time_in_turns({"A": lambda: side(100.0), "B": lambda: side(200.0)}, 1)
  # A has the 1st and 4th call, B the 2nd and 3rd: both are 25 s slower on average.
  assert times == {"A": [125.0], "B": [225.0]}


def test_ratios_are_taken_within_a_round():
  """The second round is ten times slower, which affects times but not ratios."""
  assert side_by_side.ratio([3.0, 30.0, 3.6], [2.0, 20.0, 2.0]) == (1.5, 1.5, 1.8)
  assert side_by_side.per_second(6.0, [2.0, 1.0, 3.0]) == (3.0, 2.0, 6.0)


def test_work_is_repeated_until_it_lasts_long_enough():
  assert [side_by_side.repeats(s, 2.0) for s in (0.3, 1.0, 2.0, 50.0)] == [7, 2, 1, 1]


@pytest.mark.parametrize("other", [[9.0, 8.0002], [9.0, float("nan")]])
def test_unequal_losses_are_refused(other):
  side_by_side.assert_equal_work({"a": [9.0, 8.0], "b": [9.00005, 7.99995]})
  with pytest.raises(SystemExit, match="'a' and 'b'"):
    side_by_side.assert_equal_work({"a": [9.0, 8.0], "b": other})


def make_counter(start: int):
  """Returns the functions of the worker in the test below."""
  total = [start]

  def add(n):
    if n < 0:
      raise ConfigError("must not be negative")
    total[0] += n
    return total[0]

  return {"add": add}


def test_a_worker_keeps_its_state_and_passes_errors_on():
  worker = side_by_side.Worker(make_counter, 5)
  try:
    assert [worker("add", 2), worker("add", 3)] == [7, 10]
    with pytest.raises(ConfigError, match="must not be negative"):
      worker("add", -1)
    with pytest.raises(RuntimeError, match="KeyError"):
      worker("subtract", 1)
    assert worker("add", 1) == 11
  finally:
    worker.close()


# ---------------------------------------------------------------- our step


def test_the_bare_step_computes_what_the_run_does(recipe, finished_bert):
  """`bertgpt train` logged the means of two steps' losses on the same batches."""
  config = recipes.load(str(recipe))
  bare = bare_step.from_corpus(bare_step.open_train_set(config), config)
  logged = metrics_file.read_curves(finished_bert)["train/loss"][:2]
  assert [number for number, _ in logged] == [2, 4]
  losses = np.reshape(bare.losses(bare_step.BATCHES), (2, 2)).mean(1)
  np.testing.assert_allclose(losses, [loss for _, loss in logged], rtol=1e-5)


@pytest.mark.slow
def test_the_clock_of_the_real_loop_sees_every_step_and_leaves_no_trace(recipe):
  before = feed.make_steps
  clock = real_loop.run(recipes.load(str(recipe)), 5)
  assert feed.make_steps is before
  assert len(clock.asked) == len(clock.got) == real_loop.WARM_UP + 5 + 1
  assert all(a <= b for a, b in zip(clock.asked, clock.got, strict=True))
  assert all(b <= a for a, b in zip(clock.asked[1:], clock.got, strict=False))


def test_waiting_is_the_share_between_asking_and_getting():
  """After the warm-up, every step takes 4 s, of which 1 s is waiting."""
  asked = [float(i) for i in range(real_loop.WARM_UP)] + [100.0, 104.0, 108.0]
  clock = real_loop.Clock(asked, [t + 1 for t in asked])
  assert (clock.seconds(), clock.waiting()) == (4.0, 0.25)


def test_real_tokens_are_counted_as_the_batches_have_them(recipe):
  config = packing.at_length(recipes.load(str(recipe)), 64, 8, packing=True)
  corpus = bare_step.open_train_set(config)
  config = corpora.resolve(config, corpus.tokenizer)
  rows = TrainRows(corpus, config, 0, config.seed)
  batch = rows.read(np.arange(rows.rows_per_epoch))
  assert packing.fill(corpus, config) == (batch["sequence_ids"] > 0).mean()


# ----------------------------------------------------------- equal work


@pytest.fixture(params=["bert_nano", "gpt_nano"])
def sides(request):
  """Returns a function that makes both sides of step.py in this process.

  Its argument is a dict of config fields in which the Hugging Face side differs.
  """
  pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
  pytest.importorskip("transformers", reason="needs transformers: make test-hf")
  from benchmarks import step_bertgpt, step_hugging_face
  arguments = side_by_side.parse("step", "", step.FLAGS, ["--config.system.compilation_cache="])
  config = step.make_config(step.CASES[request.param], arguments)
  ours = step_bertgpt.make(to_json(config), "cpu", {step.OURS: {}})

  def make(fields):
    theirs = step_hugging_face.make(
        to_json(step_bertgpt.with_fields(config, fields)), "cpu", compiled=False)
    return ours, theirs

  return make


def check(ours, theirs):
  step.check_equal_work(lambda name, *a: ours[name](*a), lambda name, *a: theirs[name](*a))


@pytest.mark.hf
def test_the_same_weights_and_optimizer_give_the_same_losses(sides):
  check(*sides({}))


@pytest.mark.hf
def test_other_weights_are_not_the_same_work(sides):
  ours, theirs = sides({})
  weights = ours["weights"]()
  largest = max(weights, key=lambda name: weights[name].size)
  changed = weights | {largest: weights[largest] * np.float32(1.01)}
  with pytest.raises(SystemExit, match="not the same work"):
    check(ours | {"weights": lambda: changed}, theirs)


@pytest.mark.hf
def test_another_update_is_not_the_same_work(sides):
  """The first losses are equal, but not those after an update."""
  with pytest.raises(SystemExit, match="not the same work"):
    check(*sides({"phases[0].learning_rate": 2e-4}))


def test_without_pytorch_one_line_says_what_to_install(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "torch", None)
  monkeypatch.delitem(sys.modules, "benchmarks.step_hugging_face", raising=False)
  monkeypatch.delattr(benchmarks, "step_hugging_face", raising=False)
  assert run("step", "--cases=bert_nano") == ConfigError.exit_code
  assert capsys.readouterr().err == (
      "benchmarks.step: torch is not installed. Install it with pip install -e '.[hf]', or give "
      "--ablate to measure only our own step\n")


# ------------------------------------------------------------ the commands


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_wrong_flags(name, capsys):
  with pytest.raises(SystemExit) as e:
    run(name, "--help")
  assert e.value.code == 0
  assert "--out FILE" in capsys.readouterr().out
  assert run(name, "--ruonds=2") == ConfigError.exit_code
  assert "unknown argument --ruonds=2" in capsys.readouterr().err


@pytest.mark.slow
def test_packing_runs(recipe, tmp_path):
  assert run("packing", f"--config={recipe}", "--lengths=64", "--tokens=256", "--rounds=1",
             "--seconds=0.01", f"--out={tmp_path / 'p.json'}") == 0
  rows = measured(tmp_path / "p.json")
  gain, share, ideal = (rows[f"64 tokens: {what}"]["median"] for what in (
      "packed over padded, real tokens per second", "share of the ideal", "the same, ideal"))
  assert share == pytest.approx(gain / ideal)
  assert ideal > 1


@pytest.mark.slow
def test_input_runs(recipe, tmp_path):
  assert run("input", f"--config={recipe}", "--rounds=1", "--seconds=0.01", "--steps=3",
             f"--out={tmp_path / 'i.json'}") == 0
  rows = measured(tmp_path / "i.json")
  assert 0 <= rows["share of a run's time that waits for a batch"]["median"] < 1


@pytest.mark.libtpu
@pytest.mark.slow
def test_what_a_chip_sends_does_not_grow_with_the_slices(recipe, tmp_path):
  """With s slices of m chips, 1 / m of the sums crosses the slow network, 2 (s - 1) / s times."""
  model = {"num_layers": 2, "width": 256, "num_heads": 4, "mlp_dim": 1024, "dtype": "bfloat16"}
  assert run("scaling", f"--config={recipe}", "--shapes=2x4,2x4:4",
             *(f"--config.model.{field}={value}" for field, value in model.items()),
             f"--out={tmp_path / 's.json'}") == 0
  rows = {name: row["median"] for name, row in measured(tmp_path / "s.json").items()}
  growth = rows["payload per chip from 8 chips on, most over that of the fewest chips"]
  assert 1 <= growth <= 1.05
  summed = rows["v5e:2x4:4: payload of the collectives"]
  slow = rows["v5e:2x4:4: sent per chip over the slow network"]
  assert slow == pytest.approx(2 * summed / 8 * 3 / 4, rel=0.05)
  assert rows["v5e:2x4: sent per chip over the slow network"] == 0


@pytest.mark.slow
def test_loop_runs(recipe, tmp_path):
  assert run("loop", f"--config={recipe}", "--rounds=1", "--steps=10", "--parts=saving",
             f"--out={tmp_path / 'l.json'}") == 0
  report = json.loads((tmp_path / "l.json").read_text())
  assert report["command"].startswith(f"python -m benchmarks.loop --config={recipe}")
  assert "saving, once" in measured(tmp_path / "l.json")


@pytest.mark.hf
@pytest.mark.slow
def test_step_runs(tmp_path):
  assert run("step", "--cases=bert_nano,gpt_nano", "--rounds=1", "--seconds=0.01",
             "--config.system.compilation_cache=", f"--out={tmp_path / 's.json'}") == 0
  rows = measured(tmp_path / "s.json")
  assert rows["bert_nano 4 x 32: bertgpt over Hugging Face eager, masked head"]["median"] > 0
  assert rows["gpt_nano 2 x 32: bertgpt over Hugging Face eager, as shipped"]["median"] > 0


@pytest.mark.slow
def test_ablation_runs(tmp_path):
  assert run("step", "--cases=bert_nano", "--ablate", "--rounds=1", "--seconds=0.01",
             "--config.system.compilation_cache=", f"--out={tmp_path / 'a.json'}") == 0
  assert len(measured(tmp_path / "a.json")) >= len(step.ABLATIONS) - 2


# ------------------------------------------------------------- the device


PARTS = '''
import argparse
import json
import os
import sys
import time
from benchmarks import device_parts
from benchmarks.device_parts import Row, at_most


def good(rehearse):
  yield Row("speed", 1234.5678, "TFLOP/s", "predicted 1000")
  yield at_most("error", 0.25 if rehearse else 9.0, 0.5)


def bad(rehearse):
  yield Row("before", 1)
  raise ValueError("no such kernel")


def wrong(rehearse):
  yield at_most("error", float("nan"), 0.5)


def slow(rehearse):
  yield Row("before", 1)
  time.sleep(600)


if __name__ == "__main__":
  device_parts.FUNCTIONS = {name: ("", "") for name in ("good", "bad", "wrong", "slow")}
  name, path = sys.argv[1:3]
  device_parts.run(name, device_parts.pathlib.Path(path), globals()[name], "--rehearse" in sys.argv)
'''


@pytest.fixture
def device_module(tmp_path, monkeypatch):
  """Returns the name of a module that replaces `device_parts`; its parts do nothing."""
  (tmp_path / "parts_for_tests.py").write_text(PARTS)
  root = pathlib.Path(__file__).parents[1]
  monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")
  return "parts_for_tests"


@pytest.mark.slow
def test_parts_that_fail_are_lines_and_the_next_part_follows(device_module, tmp_path, capsys,
                                                             monkeypatch):
  monkeypatch.setattr(device, "PATIENCE", 1)
  out = tmp_path / "out.json"
  limits = {"bad": 60.0, "slow": 60.0, "wrong": 60.0, "good": 60.0}
  assert device.main(["--rehearse", f"--out={out}"], limits, device_module) == 1
  parts = json.loads(out.read_text())["parts"]
  assert {name: part["good"] for name, part in parts.items()} == {
      "bad": False, "slow": False, "wrong": False, "good": True}
  assert parts["bad"]["error"] == "exit code 1: ValueError: no such kernel"
  assert parts["slow"]["error"].startswith("stopped after 6")
  assert [row["what"] for name in ("bad", "slow") for row in parts[name]["rows"]] == ["before"] * 2
  assert [row["value"] for row in parts["good"]["rows"]] == [1234.5678, 0.25]
  assert parts["wrong"]["rows"][0]["value"] == "nan" and not parts["wrong"]["error"]
  table = capsys.readouterr().out
  assert "  FAILED: exit code 1: ValueError: no such kernel\n" in table
  assert "speed        1235 TFLOP/s  predicted 1000\n" in table
  assert "at most 0.5  good\n" in table and "at most 0.5  WRONG\n" in table


@pytest.mark.slow
def test_what_was_measured_before_is_in_the_file_if_the_time_is_up(device_module, tmp_path):
  out = tmp_path / "out.json"
  arguments = ["--minutes=1", f"--out={out}"]
  assert device.main(arguments, {"good": 60.0, "slow": 60.0, "bad": 60.0}, device_module) == 1
  parts = json.loads(out.read_text())["parts"]
  assert [row["what"] for row in parts["good"]["rows"]] == ["speed", "error"]
  assert parts["good"]["rows"][1]["ok"] is False  # Without a rehearsal, the error differs.
  assert parts["bad"]["error"] == "not started: no time left"


def test_checks_share_the_device_and_the_other_parts_have_it_alone(monkeypatch):
  monkeypatch.setattr(device.side_by_side, "cores", lambda: 2 * device.CORES_PER_CHECK)
  is_main, together = {}, threading.Barrier(2, timeout=60)

  def run(name):
    if name in ("attention", "losses"):
      together.wait()  # Passes only if both run.
    is_main[name] = threading.current_thread() is threading.main_thread()
    return name, device.Outcome(1.0, [], "")

  names = ["speed", "attention", "products", "losses"]
  ended = [name for name, _ in device.run_all(run, names, threading.Event())]
  assert sorted(ended[:2]) == ["attention", "losses"] and ended[2:] == ["speed", "products"]
  assert is_main == {"attention": False, "losses": False, "speed": True, "products": True}


def test_an_error_stops_the_parts_that_run(monkeypatch):
  monkeypatch.setattr(device.side_by_side, "cores", lambda: 2 * device.CORES_PER_CHECK)
  stopped, begun, ended = threading.Event(), threading.Event(), {}
  with subprocess.Popen(["sleep", "600"]) as process:

    def run(name):
      if name == "losses":
        assert begun.wait(60)
        raise KeyError("a fault")
      begun.set()
      ended[name] = device.wait(process, 600, stopped)

    try:
      with pytest.raises(KeyError, match="a fault"):
        list(device.run_all(run, ["losses", "attention", "recipes", "speed"], stopped))
    finally:
      process.kill()
  assert ended["attention"] is None and "speed" not in ended


@pytest.mark.parametrize("kernel, kind", [
    ("nvjet_sm90_tst_192x192_64x3_2x1_v_bz_coopB_splitK_NTN", "matmuls"),
    ("void cublasLt::splitKreduce_kernel<32, 16, int, float>", "matmuls"),
    ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16", "attention"),
    ("flash_attention_forward", "attention"), ("input_add_reduce_fusion_35", "everything else"),
    ("memcpy128", "everything else")])
def test_kernels_are_sorted_by_their_names(kernel, kind):
  assert device_speed.kind_of(kernel) == kind


@pytest.mark.parametrize("flag, problem", [
    ("--parts=speeed", "--parts=speeed: there is no part 'speeed'. Choose among attention, "),
    ("--minutes=0", "--minutes=0: must be above 0"), ("--part=speed", "--part=speed")])
def test_wrong_flags_of_the_device_benchmark_are_one_line(flag, problem, capsys):
  assert device.main([flag]) == ConfigError.exit_code
  error = capsys.readouterr().err
  assert problem in error and error.count("\n") == 1


def test_every_part_has_its_function():
  assert list(device.PARTS) == list(device_parts.FUNCTIONS)
  for module, function in device_parts.FUNCTIONS.values():
    assert callable(getattr(importlib.import_module(f"benchmarks.{module}"), function))


def test_a_part_runs():
  rows = list(device_speed.products(rehearse=True))
  assert [row.unit for row in rows] == ["", "", "", "us"]
  assert all(row.value > 0 for row in rows[1:])


def test_an_error_in_the_middle_is_a_row():
  def rows():
    yield Row("before", 1)
    raise ValueError("no such kernel\nand more")

  assert list(device_parts.guard("kernel", rows())) == [
      Row("before", 1), Row("kernel", "failed", "", "ValueError: no such kernel", False)]
