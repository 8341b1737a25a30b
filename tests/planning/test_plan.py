"""bertgpt.planning.plan: the command's output, with the real TPU compiler if it is installed."""

import json
import math
import os
import pathlib
import subprocess
import sys

import pytest
import tiny
from fake_slice import on_fake_devices

from bertgpt import cli
from bertgpt.planning import aot, plan, roofline, topologies

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


@pytest.fixture(scope="module")
def small():
  """Returns (phases, topology) of a tiny run of two phases on eight devices."""
  config = tiny.make_config(mesh=(8, 1, 1))
  phase = config.phases[0]
  config.phases = (phase, phase.copy_and_resolve_references())
  config.phases[1].steps = 2_000
  topology = on_fake_devices()
  return aot.make_plan(config, topology, [0, 1]), topology


def test_a_table_says_that_it_is_a_prediction(small):
  text = plan.show(*small, price=2.0)
  assert text.startswith("PREDICTION for 8 x fake")
  assert text.count("predicted  ") == 2
  chip_hours = sum(phase.chip_hours for phase in small[0])
  assert f"{2 * chip_hours:.2g} at 2 per chip-hour" in text


def test_a_single_phase_is_not_called_the_run(small):
  plans, topology = small
  assert "\nthe run " in plan.show(plans, topology, None)
  text = plan.show(plans[1:], topology, None)
  assert "\nphase 1 " in text and "the run" not in text


def test_a_phase_says_which_steps_are_not_counted(small):
  (first, second), topology = small
  config = first.step.config.copy_and_resolve_references()
  config.train.skip_steps = ((3, 4),)
  skipping = first._replace(step=first.step._replace(config=config))
  lines = plan.show([skipping, second], topology, None).splitlines()
  titles = [line for line in lines if line.startswith("phase ")]
  assert titles[0].endswith(", 2 of them left out") and "left out" not in titles[1]


@pytest.mark.parametrize("hours, price, shown", [
    (100, 2.0, "4.2 days predicted, 800.0 chip-hours, 1,600 at 2"),
    (2, 1.2, "2.00 hours predicted, 16.0 chip-hours, 19 at 1.2"),
    (0.2, 1.2, "12 minutes predicted, 1.6 chip-hours, 1.9 at 1.2"),
    (0.01, 1.5, "36 seconds predicted, 0.08 chip-hours, 0.12 at 1.5"),
    (0.01, 0.0, "36 seconds predicted, 0.08 chip-hours, 0 at 0")])
def test_short_and_cheap_runs_are_not_rounded_to_nothing(small, hours, price, shown):
  plans, topology = small
  first, second = (one._replace(hours=share * hours, chip_hours=8 * share * hours)
                   for one, share in zip(plans, (0.75, 0.25), strict=True))
  line = plan.show([first, second], topology, price).splitlines()[-1]
  assert line.startswith(f"the run      {shown} per chip-hour (")


def test_json_is_json_and_adds_up(small):
  answer = json.loads(json.dumps(plan.to_json(*small, price=3.0), allow_nan=False))
  assert answer["prediction"] is True and answer["chips"] == answer["devices"] == 8
  assert answer["price"] == pytest.approx(3 * answer["chip_hours"])
  assert answer["chip_hours"] == pytest.approx(8 * answer["hours"])
  assert answer["hours"] == pytest.approx(sum(p["hours"] for p in answer["phases"]))
  for phase in answer["phases"]:
    memory = phase["memory_bytes_per_chip"]
    parts = [memory[name] for name in aot.Memory._fields]
    assert memory["total"] == pytest.approx(sum(parts))
    assert memory["free"] == pytest.approx(answer["usable_hbm_per_chip"] - memory["total"])
    assert sum(phase["seconds_by_resource"].values()) == pytest.approx(phase["step_seconds"])
    assert phase["collectives"][0]["axes"] == "data"


def test_kernels_are_in_text_and_json(small):
  text = plan.show(*small, price=None, num_kernels=3)
  assert text.count("kernels    the 3 that take longest") == 2
  answer = json.loads(json.dumps(plan.to_json(*small, price=None, num_kernels=3)))
  for phase in answer["phases"]:
    assert len(phase["kernels"]) == 3
    seconds = [kernel["seconds"] for kernel in phase["kernels"]]
    assert seconds == sorted(seconds, reverse=True) and seconds[0] < phase["step_seconds"]
    assert all(kernel["use"][kernel["bound"]] == 1 for kernel in phase["kernels"])


def test_several_slices_show_what_the_slow_network_costs(small):
  """The figures are sums over the collectives of a step."""
  plans, topology = small
  totals = [roofline.CollectiveTotals("all-reduce", axes, fast_bytes=fast, slow_bytes=slow,
                                      slow_seconds=slow / 1e9, slow_exposed_seconds=slow / 2e9)
            for axes, fast, slow in (("data", 8e6, 3e6), ("fsdp", 1e6, 0), ("data+fsdp", 2e6, 1e6))]
  step = plans[0].step
  plans = [plans[0]._replace(step=step._replace(
      roofline=step.roofline._replace(collectives=totals)))]
  joined = topologies.with_network(topology._replace(num_slices=2), gbps=10)
  answer = json.loads(json.dumps(plan.to_json(plans, joined, None)))
  assert answer["phases"][0]["networks"] == pytest.approx(
      {"fast_bytes": 11e6, "slow_bytes": 4e6, "slow_seconds": 4e-3, "slow_exposed_seconds": 2e-3})
  lines = plan.show(plans, joined, None).splitlines()
  (i,) = (i for i, line in enumerate(lines) if line.startswith("  networks"))
  assert lines[i].endswith("11.00 MB sent per chip over the fast one, 4.00 MB over the slow one, "
                           "which at 10 Gbit/s per chip takes 4.00 ms")
  assert lines[i + 1].endswith("makes the step 2.00 ms longer")
  assert "networks" not in plan.show(*small, None)


def overflow(small, *needs):
  phases, topology = small
  step = phases[0].step._replace(memory=None, roofline=None, overflow=aot.Overflow(*needs))
  return [aot.predict(step, topology)], topology


def test_a_program_beyond_the_memory_of_a_gpu_has_no_price(small):
  """The compiler for GPUs does not refuse it."""
  phases, topology = small
  chip = topology.chip._replace(usable_hbm=phases[0].step.memory.total - 1)
  topology = topology._replace(chip=chip)
  phases = [aot.predict(phases[0].step, topology)]
  assert "DOES NOT FIT" in plan.show(phases, topology, price=None)
  answer = json.loads(json.dumps(plan.to_json(phases, topology, 1.0), allow_nan=False))
  assert answer["fits"] is False and answer["hours"] is answer["price"] is None


def test_too_little_memory_is_an_answer(small):
  phases, topology = overflow(small, 20 * 2**30, 15.75 * 2**30, [("3G", "logits", "f32[8]")])
  text = plan.show(phases, topology, price=None)
  assert "DOES NOT FIT: 20.00 GiB needed per chip, 15.75 GiB available, 4.25 GiB over" in text
  assert "--config.phases[0].micro_batches=2" in text and "--config.model.remat=full" in text
  assert "3G  f32[8]  logits" in text and "the run" not in text
  answer = json.loads(json.dumps(plan.to_json(phases, topology, 1.0), allow_nan=False))
  assert answer["fits"] is False and answer["hours"] is answer["price"] is None
  assert math.isnan(phases[0].mfu)


@pytest.mark.libtpu
def test_the_command(capsys, recipe):
  code = cli.main(["plan", f"--config={recipe}", "--topology=v5e:2x2", "--json"])
  answer = json.loads(capsys.readouterr().out)
  assert code == 0 and answer["fits"] and answer["topology"] == "v5e:2x2"


@pytest.mark.libtpu
def test_a_signal_does_not_wait_for_the_compiler(recipe):
  code = ("import sys, time\nfrom bertgpt import cli\nfrom bertgpt.planning import aot\n"
          "def compile_step(lowered, platform):\n  print('READY', flush=True)\n  time.sleep(1e6)\n"
          "aot.compile_step = compile_step\nsys.exit(cli.run_program())")
  process = subprocess.Popen(
      [sys.executable, "-c", code, "plan", f"--config={recipe}", "--topology=v5e:1x1"], text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"})
  try:
    assert process.stdout.readline() == "READY\n"
    process.terminate()
    _, err = process.communicate(timeout=1200)
  finally:
    process.kill()
  assert process.returncode == 143, err
  assert err.splitlines()[-1] == "bertgpt plan: stopped by SIGTERM. The same command starts over"


@pytest.mark.parametrize("arguments, fragment", [
    (["--topology=v5e:4x5"], "--topology=v5e:4x5: a slice of v5e has two sides"),
    (["--topology=v5e:1x1", "--price_per_chip_hour=-1"], "-1: give a number of at least 0"),
    (["--topology=v5e:1x1", "--price_per_chip_hour=nan"], "nan: give a number of at least 0"),
    (["--topology=v5e:1x1", "--price_per_chip_hour=inf"], "inf: give a finite number of at least"),
    ([], "required: --topology")])
def test_wrong_flags_are_one_line(capsys, recipe, arguments, fragment):
  code = cli.main(["plan", f"--config={recipe}", *arguments])
  (line,) = capsys.readouterr().err.splitlines()
  assert code == 2 and fragment in line


@pytest.mark.libtpu
@pytest.mark.parametrize("arguments, fragment", [
    (["--phase=3"], "--phase=3: the config has phases 0 to 0"),
    (["--network_gbps=10"], "so nothing is sent between slices or nodes. Omit"),
    (["--config.mesh.fsdp=3"], "does not divide the 4 devices"),
    (["--config.optimizer.name=adamm"], "optimizer.name='adamm': choose one of bert_adamw"),
    (["--compare", "optimizer.name=adamm"], "optimizer.name='adamm': choose one of bert_adamw"),
    (["--compare", "optimizer.b1=0.8", "optimizer.name=adafactor"], "optimizer.b1=0.8: ")])
def test_a_config_that_does_not_fit_the_machine_is_one_line(capsys, recipe, arguments, fragment):
  code = cli.main(["plan", f"--config={recipe}", "--topology=v5e:2x2", *arguments])
  (line,) = capsys.readouterr().err.splitlines()
  assert code == 2 and fragment in line
