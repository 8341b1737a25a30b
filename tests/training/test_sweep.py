"""bertgpt.training.sweep: every run is trained once, and problems are reported before the first.
"""

import ast
import contextlib
import itertools
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import types

import pytest

from bertgpt import cli
from bertgpt.commands import sweep as sweep_command
from bertgpt.config import recipes
from bertgpt.config.overrides import override
from bertgpt.config.stored import to_json
from bertgpt.devices import preemption
from bertgpt.errors import ConfigError, DataError, DivergedError, Preempted, UserError
from bertgpt.report import compare
from bertgpt.runs import checkpoint, metrics_file
from bertgpt.training import loop as train
from bertgpt.training import mapped_fields, sweep, sweep_processes

SHORT = ["--config.phases[0].steps=4", "--config.eval.max_rows=8"]


def mtimes(path):
  return {p: p.stat().st_mtime_ns for p in path.rglob("*")
          if p.name not in ("sweep.json", "sweep.html")}


@pytest.mark.slow
def test_two_runs_and_their_table_and_no_run_again(tmp_path, recipe, monkeypatch, capfd):
  monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")  # Compiles faster.
  path = tmp_path / "sweep"
  command = ["sweep", f"--config={recipe}", f"--workdir={path}", *SHORT,
             f"--config.system.compilation_cache={tmp_path / 'xla'}"]
  assert cli.main(command) == 0
  rows = json.loads((path / "sweep.json").read_text())
  assert [row["phases[0].learning_rate"] for row in rows] == [1e-2, 1e-3]
  assert rows[0]["eval/validation/mlm_loss"] != rows[1]["eval/validation/mlm_loss"]
  assert sweep.final_scores(path / "001").items() <= rows[1].items()
  *_, header, first, second, _, last = capfd.readouterr().out.splitlines()
  lines = [first, second]
  assert last == f"Curves, configs and samples: {path / 'sweep.html'}"
  assert "eval/validation/mlm_loss" in header
  assert f"{rows[1]['eval/validation/mlm_loss']:.5g}" in lines[1].split()

  before = mtimes(path)
  assert cli.main(command) == 0
  assert mtimes(path) == before
  assert json.loads((path / "sweep.json").read_text()) == rows

  config = override(recipes.load(str(recipe)),
                    [*SHORT, "--config.phases[0].learning_rate=1e-2"])
  assert sweep.is_done(path / "000", config)
  for change in ("--config.phases[0].steps=5", "--config.seed=1"):
    assert not sweep.is_done(path / "000", override(config, [change])), change
  assert not sweep.is_done(path / "002", config)

  # The run was prolonged and stopped, so it is no longer done.
  longer = override(config, ["--config.phases[0].steps=6"])
  with pytest.MonkeyPatch.context() as patch, pytest.raises(Preempted):
    patch.setattr(preemption, "catch_signals", lambda: contextlib.nullcontext(lambda: True))
    train.train(longer, path / "000")
  assert not sweep.is_done(path / "000", longer)


def test_problems_of_all_runs_are_listed_before_the_first_starts(tmp_path, recipe, capsys):
  text = recipe.read_text().split("def get_sweep")[0]
  broken = tmp_path / "broken.py"
  broken.write_text(f'{text}def get_sweep():\n  return [{{"seed": 1}}, {{"sead": 1}}, '
                    '{"model.num_heads": 3, "model.dropout": 2.0}]\n')
  assert cli.main(["sweep", f"--config={broken}", f"--workdir={tmp_path / 'w'}"]) == 2
  lines = capsys.readouterr().err.splitlines()
  assert [line.split("run ")[1].split(":")[0] for line in lines] == ["1", "2", "2"]
  assert not (tmp_path / "w").exists()


def test_a_flag_for_a_field_that_the_sweep_sets_is_refused(tmp_path, recipe, capsys):
  flag = "--config.phases[0].learning_rate=0.5"
  assert cli.main(["sweep", f"--config={recipe}", f"--workdir={tmp_path / 's'}", flag]) == 2
  error = capsys.readouterr().err
  assert f"{flag}: get_sweep() of the recipe sets this field in every run" in error
  assert not (tmp_path / "s").exists()


def test_a_folder_of_other_files_is_refused(tmp_path, recipe, capsys):
  (tmp_path / "a.md").write_text("")
  assert cli.main(["sweep", f"--config={recipe}", f"--workdir={tmp_path}"]) == 2
  assert "holds files, but no run (a.md)" in capsys.readouterr().err
  for path in (tmp_path / "a.md", tmp_path / "a.md" / "sweep"):
    assert cli.main(["sweep", f"--config={recipe}", f"--workdir={path}"]) == 2
    assert "is a file. Give a folder" in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == ["a.md"]


def test_a_sweep_can_be_listed_without_training(tmp_path, recipe, capsys):
  """The list says how far every run is, and the folder stays as it was."""
  path, flags = tmp_path / "w", ["--config.phases[0].steps=3", "--config.checkpoint.every_steps=2"]
  command = ["sweep", f"--config={recipe}", f"--workdir={path}", "--list", *flags]
  names = [f"[{i}/2] --config.phases[0].learning_rate={rate}" for i, rate in
           ((1, 0.01), (2, 0.001))]

  def find_states():
    capsys.readouterr()
    assert cli.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    return [line.removeprefix(f"{name}: ") for line, name in zip(lines, names, strict=False)], lines

  assert find_states() == (["not begun"] * 2, [f"{name}: not begun" for name in names])
  assert not path.exists()
  train = ["train", f"--config={recipe}", f"--workdir={path / '000'}", *flags,
           "--config.phases[0].learning_rate=0.01"]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(preemption, "catch_signals", lambda: contextlib.nullcontext(lambda: True))
    assert cli.main(train) == 75
  before = mtimes(path)
  assert find_states()[0] == ["step 1/3", "not begun"]
  assert mtimes(path) == before
  assert cli.main(train) == 0
  states, lines = find_states()
  assert states == ["finished", "not begun"] and "eval/validation/mlm_loss" in lines[2]
  assert not (path / "sweep.json").exists()
  for flag, problem in (
      ("--config.seed=7", f"run 0: {path / '000'} holds another run"),
      ("--config.phases[0].steps=2",
       f"run 0: phases[].steps: 2 in total, but the run in {path / '000'} has already done 3")):
    assert cli.main([*command, flag]) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("flags, code, text", [
    (["--mapped", "--run=0/1"], 0, ": not begun"),
    (["--run=5/6"], 0, "none of the 2 runs is in this share"),
    (["--max_parallel=2"], 2, "with --list, nothing is trained")])
def test_list_shows_only_a_share_and_refuses_max_parallel(tmp_path, recipe, capsys, flags, code,
                                                          text):
  path = tmp_path / "w"
  assert cli.main(["sweep", f"--config={recipe}", f"--workdir={path}", "--list", *flags]) == code
  printed = capsys.readouterr()
  assert text in (printed.err if code else printed.out) and not path.exists()


def stand_in_for_train(monkeypatch):
  """Replaces training; returns the folder names of runs that count as finished."""
  done = set()

  def train(arguments, i):
    folder = pathlib.Path(arguments[1].removeprefix("--workdir="))
    folder.mkdir(parents=True)
    done.add(folder.name)

  monkeypatch.setattr(sweep_processes, "train_run", train)
  monkeypatch.setattr(sweep, "is_done", lambda folder, config: folder.name in done)
  monkeypatch.setattr(sweep, "final_scores", lambda folder: {"eval/loss": 1.5})
  return done


def test_every_finished_run_is_read_once(tmp_path, recipe, monkeypatch):
  """In a bucket, reading all of them after every run would take hours."""
  five, read = tmp_path / "five.py", []
  body = recipe.read_text().split("def get_sweep")[0]
  five.write_text(f'{body}def get_sweep():\n  return [{{"seed": seed}} for seed in range(5)]\n')
  stand_in_for_train(monkeypatch).update({"000", "003"})
  monkeypatch.setattr(sweep, "final_scores", lambda folder: read.append(folder.name) or {})
  assert cli.main(["sweep", f"--config={five}", f"--workdir={tmp_path / 'sweep'}"]) == 0
  assert sorted(read) == [f"{i:03d}" for i in range(5)]
  table = json.loads((tmp_path / "sweep/sweep.json").read_text())
  assert [row["seed"] for row in table] == list(range(5))


def test_shares_of_a_sweep_make_the_whole(tmp_path, recipe, monkeypatch, capsys):
  """Three processes train each of five runs exactly once; the table has all finished runs."""
  five = tmp_path / "five.py"
  body = recipe.read_text().split("def get_sweep")[0]
  five.write_text(f'{body}def get_sweep():\n  return [{{"seed": seed}} for seed in range(5)]\n')
  done = stand_in_for_train(monkeypatch)
  found = []
  for i in (2, 0, 1):
    before = set(done)
    assert cli.main(["sweep", f"--config={five}", f"--workdir={tmp_path / 'w'}",
                     f"--run={i}/3"]) == 0
    found.append(sorted(done - before))
    rows = json.loads((tmp_path / "w" / "sweep.json").read_text())
    assert [pathlib.Path(row["workdir"]).name for row in rows] == sorted(done)
  assert found == [["002"], ["000", "003"], ["001", "004"]]
  assert [row["seed"] for row in rows] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("mapped", [[], ["--mapped"]])
def test_a_run_that_diverges_does_not_keep_the_others_from_the_table(tmp_path, recipe, monkeypatch,
                                                                     capsys, mapped):
  done, path = stand_in_for_train(monkeypatch), tmp_path / "w"

  def train(arguments, i):
    if i == 0:
      sweep_processes.check_end("run 0 of the sweep", DivergedError.exit_code, False)
    done.add(f"{i:03d}")

  def train_mapped(configs, paths):
    done.add("001")
    raise DivergedError(f"{paths[0]}: step 3: loss or gradient not finite")

  monkeypatch.setattr(sweep_processes, "train_run", train)
  monkeypatch.setattr(sweep_command, "train_mapped", train_mapped)
  path.mkdir()
  assert cli.main(["sweep", f"--config={recipe}", f"--workdir={path}", *mapped]) == 70
  (row,) = json.loads((path / "sweep.json").read_text())
  assert row["workdir"].endswith("001")
  out, err = capsys.readouterr()
  assert "001" in out.splitlines()[-1] and len(err.splitlines()) == 1, (out, err)


@pytest.mark.parametrize("name, content", [
    ("sweep.html", "<p>my page"), ("sweep.json", '{"method": "grid"}'), ("sweep.json", "{"),
    ("sweep.json", None)])
def test_a_file_that_would_be_replaced_is_refused_before_the_first_run(
    tmp_path, recipe, monkeypatch, capsys, name, content):
  (tmp_path / "w" / "000").mkdir(parents=True)
  file, done = tmp_path / "w" / name, stand_in_for_train(monkeypatch)
  file.mkdir() if content is None else file.write_text(content)
  assert cli.main(["sweep", f"--config={recipe}", f"--workdir={tmp_path / 'w'}"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "--workdir" in line and name in line and "it is not replaced" in line
  assert not done and (content is None or file.read_text() == content)


@pytest.mark.parametrize("share", ["3/3", "1", "a/2", "-1/2", "0/0"])
def test_a_share_that_is_none_is_one_line(tmp_path, recipe, capsys, share):
  assert cli.main(["sweep", f"--config={recipe}", f"--workdir={tmp_path / 'w'}",
                   f"--run={share}"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert f"{share}: give I/N with 0 <= I < N, such as 0/4" in line


@pytest.mark.parametrize("count, share", [(6, "7/8"), (2, "2/3")])
@pytest.mark.parametrize("mapped", [[], ["--mapped"]])
def test_a_share_without_runs_trains_none(tmp_path, recipe, monkeypatch, capsys, mapped, count,
                                          share):
  """Four hosts with two runs at a time have eight shares of six runs."""
  file = tmp_path / "recipe.py"
  body = recipe.read_text().split("def get_sweep")[0]
  file.write_text(f'{body}def get_sweep():\n  return [{{"seed": i}} for i in range({count})]\n')
  done = stand_in_for_train(monkeypatch)
  monkeypatch.setattr(sweep_command, "train_mapped", lambda *_: pytest.fail("trained"))
  assert cli.main(["sweep", f"--config={file}", f"--workdir={tmp_path / 'w'}", f"--run={share}",
                   *mapped]) == 0
  assert not done and json.loads((tmp_path / "w" / "sweep.json").read_text()) == []
  assert capsys.readouterr().err == ""


def test_only_runs_that_will_be_trained_need_open_files(tmp_path, recipe, monkeypatch, capsys):
  file, path, trained = tmp_path / "recipe.py", tmp_path / "w", []
  body = recipe.read_text().split("def get_sweep")[0]
  file.write_text(f'{body}def get_sweep():\n  return [{{"seed": i}} for i in range(4)]\n')
  command = ["sweep", f"--config={file}", f"--workdir={path}", "--mapped"]
  stand_in_for_train(monkeypatch).update({"000", "002"})
  monkeypatch.setattr(sweep_command, "train_mapped", lambda configs, _: trained.extend(configs))
  monkeypatch.setattr(mapped_fields.files, "raise_open_limit",
                      lambda wanted: mapped_fields.OTHER_FILES + mapped_fields.FILES_PER_RUN)
  assert cli.main([*command, "--list"]) == 0
  assert cli.main(command) == 2 and "--mapped: 2 runs need" in capsys.readouterr().err
  assert not trained and not path.exists()
  assert cli.main([*command, "--run=1/4"]) == 0 and [config.seed for config in trained] == [1]


@pytest.mark.slow
def test_more_mapped_parts_than_runs_end_well(tmp_path, recipe, finished_bert, capfd):
  """The runs are finished, so that nothing is trained."""
  file, path = tmp_path / "recipe.py", tmp_path / "w"
  body = recipe.read_text().split("def get_sweep")[0]
  file.write_text(f'{body}def get_sweep():\n  return [{{"seed": 0}}] * 2\n')
  for name in ("000", "001"):
    shutil.copytree(finished_bert, path / name, ignore=shutil.ignore_patterns("checkpoints"))
  assert cli.main(["sweep", f"--config={file}", f"--workdir={path}", "--mapped",
                   "--max_parallel=3"]) == 0, (capfd.readouterr(), list(path.glob("*.log")))
  assert len(json.loads((path / "sweep.json").read_text())) == 2
  assert not [log.read_text() for log in path.glob("part-*.log") if "bertgpt" in log.read_text()]


def test_medians_over_seeds():
  rows = [{"workdir": f"w/{i}", "seed": i, "optimizer.b2": b2, "eval/loss": loss}
          for i, (b2, loss) in enumerate([(0.9, 3.0), (0.99, 1.0), (0.9, 1.0), (0.9, 1.5)])]
  assert sweep.medians_over_seeds(rows) == [{"optimizer.b2": 0.9, "seeds": 3, "eval/loss": 1.5}]
  assert sweep.medians_over_seeds([{"workdir": "w", "optimizer.b2": 1, "eval/loss": 1.0}] * 2) == []


@pytest.mark.parametrize("gpus, shares", [
    ("0,1,2,3", ["0,2", "1,3"]), ("5", [None, None]), ("a,b", ["a", "b"]), ("", [None, None])])
def test_parts_share_the_gpus(monkeypatch, gpus, shares):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
  found = [sweep_processes.share_of_gpus(k, 2).get("CUDA_VISIBLE_DEVICES") for k in (0, 1)]
  assert found == shares


def test_the_gpus_of_a_container_are_numbered_from_0(tmp_path, monkeypatch):
  """Their names in /dev are those of the host."""
  for name in ("nvidia4", "nvidia6", "nvidiactl", "nvidia-uvm"):
    (tmp_path / name).touch()
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
  monkeypatch.setattr(sweep_processes, "pathlib",
                      types.SimpleNamespace(Path={"/dev": tmp_path}.get))
  assert [sweep_processes.share_of_gpus(k, 2) for k in (0, 1)] == [
      {"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
  assert sweep_processes.share_of_gpus(0, 3) == {}


def parts(tmp_path, monkeypatch, script):
  """Replaces the program in the processes of the parts."""
  program = tmp_path / "program"
  program.write_text(f"#!/bin/sh\n{script}\n")
  program.chmod(0o755)
  monkeypatch.setattr(sys, "executable", str(program))
  return lambda: sweep_processes.train_parts([["--run=0/2"], ["--run=1/2"]], tmp_path / "w")


def test_parts_run_at_the_same_time(tmp_path, monkeypatch):
  """Each part waits for the other one."""
  parts(tmp_path, monkeypatch, f"echo $4; cd {tmp_path}; touch started-$$\n"
                               "until [ $(ls started-* | wc -l) = 2 ]; do sleep 0.05; done")()
  logs = [(tmp_path / "w" / f"part-{k}.log").read_text() for k in (0, 1)]
  assert logs == ["--run=0/2\n", "--run=1/2\n"]


def test_a_part_that_fails_ends_the_sweep_after_the_others(tmp_path, monkeypatch):
  run = parts(tmp_path, monkeypatch,
              f'[ $4 = --run=0/2 ] && exit 70\nsleep 0.3; touch {tmp_path}/ok')
  with pytest.raises(UserError, match="part 0 of the sweep ended with exit code 70") as e:
    run()
  assert e.value.exit_code == 70 and (tmp_path / "ok").exists()


def test_a_signal_reaches_all_parts(tmp_path, monkeypatch):
  run = parts(tmp_path, monkeypatch,
              f"cd {tmp_path}; trap 'touch saved-$$; exit 75' TERM; touch started-$$\n"
              "until [ $(ls started-* | wc -l) = 2 ]; do sleep 0.05; done\n"
              "[ $4 = --run=1/2 ] && kill -TERM $PPID\n"
              "for i in $(seq 3000); do sleep 0.05; done")
  with pytest.raises(Preempted, match="stopped in part 0 of the sweep"):
    run()
  assert len(list(tmp_path.glob("saved-*"))) == 2


def test_values_of_numpy_are_written(tmp_path, recipe, monkeypatch):
  """JSON has no such types."""
  numbers = tmp_path / "numbers.py"
  body = recipe.read_text().split("def get_sweep")[0]
  numbers.write_text(f'{body}import numpy as np\ndef get_sweep():\n'
                     '  return [{"seed": seed} for seed in np.arange(2)]\n')
  done = stand_in_for_train(monkeypatch)
  assert cli.main(["sweep", f"--config={numbers}", f"--workdir={tmp_path / 'w'}"]) == 0
  assert done == {"000", "001"}
  rows = json.loads((tmp_path / "w" / "sweep.json").read_text())
  assert [row["seed"] for row in rows] == [0, 1]


def test_the_page_of_the_runs_is_named(tmp_path, recipe, finished_bert, monkeypatch, capsys):
  path, file = tmp_path / "w", tmp_path / "recipe.py"
  file.write_text(recipe.read_text().split("def get_sweep")[0] + "get_sweep = lambda: [{}, {}]\n")
  for name in ("000", "001"):
    shutil.copytree(finished_bert, path / name, ignore=shutil.ignore_patterns("checkpoints"))
  stand_in_for_train(monkeypatch).update(("000", "001"))
  assert cli.main(["sweep", f"--config={file}", f"--workdir={path}"]) == 0
  assert capsys.readouterr().out.splitlines()[-1].endswith(f": {path / 'sweep.html'}")
  assert (path / "sweep.html").is_file()


def write_table(path):
  sweep.write_table(None, path)


def write_page(path):
  sweep_command.write_page(path)


@pytest.mark.parametrize("module, read, write", [
    (sweep, "make_table", write_table), (compare, "read", write_page)])
def test_of_two_shares_that_end_together_the_later_view_stays(tmp_path, monkeypatch, module, read,
                                                              write):
  """Share 0 has read the runs when run 1 ends, and share 1 would write before it does."""
  runs, has_read, has_written, written = ["run 0"], threading.Event(), threading.Event(), []

  def read_slowly(_):
    view = list(runs)
    if not has_read.is_set():
      has_read.set()
      has_written.wait(1)  # The other share is as fast as it can be.
    return view

  monkeypatch.setattr(module, read, read_slowly)
  monkeypatch.setattr(compare, "find_runs", lambda paths: ["a run"])
  monkeypatch.setattr(compare, "write_page", lambda view, *_: written.append(view))
  monkeypatch.setattr(sweep.files, "write_json", lambda _, view: written.append(view))
  first = threading.Thread(target=write, args=(tmp_path,))
  first.start()
  has_read.wait()
  runs.append("run 1")
  write(tmp_path)
  has_written.set()
  first.join()
  assert written[-1] == ["run 0", "run 1"]


@pytest.mark.parametrize("text, fragment", [
    ("", "defines no get_sweep()"), ("return []", "must return a dict"),
    ("return 1 / 0", "ZeroDivisionError"), ("return ['seed=1']", "must return a dict")])
def test_a_sweep_that_is_none_is_one_line(tmp_path, recipe, capsys, text, fragment):
  broken = tmp_path / "broken.py"
  body = recipe.read_text().split("def get_sweep")[0]
  broken.write_text(body + (f"def get_sweep():\n  {text}\n" if text else ""))
  assert cli.main(["sweep", f"--config={broken}", f"--workdir={tmp_path / 'w'}"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert str(broken) in line and fragment in line


def test_a_run_that_fails_ends_the_sweep_with_its_exit_code(tmp_path, recipe, capfd):
  code = cli.main(["sweep", f"--config={recipe}", f"--workdir={tmp_path / 'w'}",
                   f"--config.data.source=text:{tmp_path}/none.txt"])
  assert code == DataError.exit_code
  first, last = capfd.readouterr().err.splitlines()
  assert first.startswith("bertgpt train: data.source: no file matches")
  assert "run 0 of the sweep ended with exit code 65" in last


def test_ctrl_c_lets_the_run_save():
  """The terminal interrupts both processes, and the sweep waits until the run has ended."""
  script = ("import signal, sys, time\n"
            "signal.signal(signal.SIGINT, lambda *_: (sys.stdin.readline(), sys.exit(75)))\n"
            "print('ready', flush=True)\n"
            "time.sleep(1200)")

  def interrupt(*_):
    child.stdin.write(b"\n")  # The child ends after the parent was interrupted.
    child.stdin.flush()
    signal.raise_signal(signal.SIGINT)

  with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE) as child:
    child.stdout.readline()
    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
      os.kill(child.pid, signal.SIGINT)
      signal.setitimer(signal.ITIMER_REAL, 1)
      assert sweep_processes.wait(child) == (75, True)
    finally:
      signal.signal(signal.SIGALRM, handler)


def test_a_killed_run_is_no_success(monkeypatch):
  monkeypatch.setattr(sys, "executable", "/bin/false")
  with pytest.raises(UserError, match="exit code 1") as e:
    sweep_processes.train_run([], 3)
  assert e.value.exit_code == 1


def test_a_run_that_a_signal_killed_before_it_saved_is_resumed(monkeypatch, tmp_path):
  killed = tmp_path / "killed"
  killed.write_text("#!/bin/sh\nkill $PPID\nkill $$\n")
  killed.chmod(0o755)
  monkeypatch.setattr(sys, "executable", str(killed))
  with pytest.raises(Preempted, match="ended before it saved its work. .* its last checkpoint"):
    sweep_processes.train_run([], 3)


def test_a_run_that_was_stopped_is_no_failure(monkeypatch, tmp_path):
  stopped = tmp_path / "stopped"
  stopped.write_text(f"#!/bin/sh\nexit {Preempted.exit_code}\n")
  stopped.chmod(0o755)
  monkeypatch.setattr(sys, "executable", str(stopped))
  with pytest.raises(Preempted, match="stopped in run 3 of the sweep"):
    sweep_processes.train_run([], 3)


def signal_the_sweep(folder, monkeypatch, before, after):
  """Lets a shell script stand for runs, which continues once the sweep waits for it."""
  run, wait = folder / "run", subprocess.Popen.wait
  run.write_text(f"#!/bin/sh\n{before}\n"
                 f"until [ -e {folder}/waits ]; do sleep 0.01; done\n{after}\n")
  run.chmod(0o755)
  monkeypatch.setattr(sys, "executable", str(run))
  monkeypatch.setattr(subprocess.Popen, "wait", lambda child: (
      (folder / "waits").touch(), wait(child))[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_sweep_alone_reaches_its_run(monkeypatch, tmp_path, number):
  name = number.name[3:]
  signal_the_sweep(tmp_path, monkeypatch, f"trap 'exit {Preempted.exit_code}' {name}",
                   f"kill -{name} $PPID\nfor i in $(seq 3000); do sleep 0.01; done")
  with pytest.raises(Preempted, match="stopped in run 2 of the sweep. The same"):
    sweep_processes.train_run([], 2)


def test_parts_of_a_sweep_get_the_flags_that_were_given(recipe, tmp_path, monkeypatch):
  """Each of them adds the group of the trackers itself, which the runs may set too."""
  path, parts = tmp_path / "sweep.py", []
  path.write_text(f"from bertgpt.config.recipes import load\n"
                  f"def get_config():\n  config = load({str(recipe)!r})\n"
                  "  config.log.trackers = 'wandb'\n  return config\n"
                  "get_sweep = lambda: [{'log.group': 'a'}, {'log.group': 'b'}]\n")
  monkeypatch.setattr(sweep_processes, "train_parts",
                      lambda arguments, path: parts.extend(arguments))
  sweep.run(str(path), tmp_path / "runs", ["--config.seed=3"], max_parallel=2)
  assert [part[2:] for part in parts] == [["--config.seed=3", f"--run={i}/2"] for i in range(2)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_when_a_run_is_done_still_ends_the_sweep(monkeypatch, tmp_path, number):
  signal_the_sweep(tmp_path, monkeypatch, "trap '' TERM INT",
                   f"kill -{number.name[3:]} $PPID\nsleep 0.5")
  with pytest.raises(Preempted, match="stopped in run 2 of the sweep"):
    sweep_processes.train_run([], 2)


def test_a_run_with_a_field_that_nothing_reads_is_refused_before_the_first(recipe, tmp_path):
  """Otherwise, the sweep would fail at that run, hours later."""
  path = tmp_path / "sweep.py"
  path.write_text(f"from bertgpt.config.recipes import load\n"
                  f"get_config = lambda: load({str(recipe)!r})\n"
                  "get_sweep = lambda: [{'seed': 1}, {'optimizer.momentum': 0.5}]\n")
  with pytest.raises(ConfigError, match="run 1: optimizer.momentum=0.5"):
    sweep.run(str(path), tmp_path / "runs", [])
  assert not (tmp_path / "runs" / "000").exists()


def test_a_run_whose_place_in_the_list_has_changed_is_refused_before_the_first(recipe, tmp_path):
  """Otherwise, the sweep would fail at the second run, after the first has been trained."""
  path, folder = tmp_path / "sweep.py", tmp_path / "runs" / "001"
  text = (f"from bertgpt.config.recipes import load\nget_config = lambda: load({str(recipe)!r})\n"
          "get_sweep = lambda: [{'seed': 0}, {'seed': SEED}]\n")
  path.write_text(text.replace("SEED", "1"))
  folder.mkdir(parents=True)
  stored = override(recipes.load(str(path)), ["--config.seed=1"])
  (folder / "config.json").write_text(to_json(stored))
  path.write_text(text.replace("SEED", "2"))
  with pytest.raises(ConfigError, match=r"^run 1: .*/001 holds another run, seed: 1 -> 2. Set the"):
    sweep.run(str(path), tmp_path / "runs", [])
  assert not (tmp_path / "runs" / "000").exists()


# --------------------------------------------------------------------- Optuna

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "sweeps.md"
SEARCH = PAGE.read_text("utf-8").split("## Optuna")[1].split("```python\n")[1].split("```")[0]


def search(folder, recipe, trials, steps, pruner):
  """Runs the script of the page with a recipe of seconds, in a process of its own."""
  (folder / "long.py").write_text(recipe.read_text().replace("steps=20", f"steps={steps}"))
  script = SEARCH.replace('"demo", pathlib.Path("runs/optuna"), 20',
                          f'"long.py", pathlib.Path("runs/optuna"), {trials}')
  script = script.replace("300", "5").replace("MedianPruner()", pruner)
  assert script.count("long.py") == 1 and pruner in script
  subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, timeout=1200,
                 env=os.environ | {"PYTHONPATH": os.fspath(PAGE.parents[1])})


def test_the_search_of_the_page_is_short():
  assert ast.parse(SEARCH) and len(SEARCH.splitlines()) <= 48


@pytest.mark.slow
def test_the_search_of_the_page_finds_the_best_and_ends_runs_that_are_behind(recipe, tmp_path):
  optuna = pytest.importorskip("optuna", reason="optuna is not installed")
  search(tmp_path, recipe, 2, 10, "NopPruner()")
  search(tmp_path, recipe, 3, 100_000, "ThresholdPruner(upper=0.0)")  # Every score is too high.
  study = optuna.load_study(study_name="bertgpt",
                            storage=f"sqlite:///{tmp_path}/runs/optuna/study.db")
  assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED"]
  for trial in study.trials:
    points = metrics_file.read_curves(tmp_path / f"runs/optuna/{trial.number:03d}")[
        "eval/validation/mlm_loss"]
    reported = list(trial.intermediate_values.items())
    assert reported and reported == points[:len(reported)]
    assert trial.value == points[-1][1] or trial.state.name == "PRUNED"
  assert study.best_value == min(trial.value for trial in study.trials[:2])
  assert checkpoint.committed_steps(tmp_path / "runs/optuna/002")  # SIGTERM saved one.


def test_a_run_that_diverges_while_the_sweep_is_stopped_ends_the_sweep():
  """Otherwise the next run would begin after the signal that asked to stop."""
  with pytest.raises(Preempted):
    sweep_processes.check_end("run 0", DivergedError.exit_code, True)


def test_the_median_of_what_is_not_a_number_is_none():
  """Its place among the others would depend on the order of the seeds."""
  rows = [{"workdir": f"w{i}", "optimizer.b2": 0.9, "seed": i, "eval/loss": loss}
          for i, loss in enumerate((math.nan, 3.0, 4.0))]
  assert all(math.isnan(row["eval/loss"]) for order in itertools.permutations(rows)
             for row in sweep.medians_over_seeds(order))
