"""Runs in a bucket end like runs on a disk, despite kills and faults of the storage."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading

import bucket_server
import jax
import numpy as np
import program as program_lib
import pytest

from bertgpt import cli, files
from bertgpt import config as config_lib
from bertgpt.devices import preemption, profiler, timeline
from bertgpt.errors import ConfigError, DataError, StorageError, UserError
from bertgpt.hub import opening
from bertgpt.report import goodput
from bertgpt.runs import checkpoint, folder_kinds
from bertgpt.runs import workdir as workdir_lib
from bertgpt.training import sweep_processes

KEEP_ONE = "--config.checkpoint.keep=1"


@dataclasses.dataclass
class Killer:
  """Kills a process when a request arrives, before or after passing the request on."""

  process: subprocess.Popen
  method: str
  pattern: str
  when: str
  at: int = 1  # Index of the matching request, from 1.
  has_killed: bool = False

  def __post_init__(self):
    self._mutex = threading.Lock()

  def __call__(self, method, path, when):
    is_meant = re.fullmatch(self.method, method) and re.search(self.pattern, path)
    if when != self.when or not is_meant:
      return self.has_killed
    with self._mutex:
      self.at -= 1
      if self.at == 0:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.has_killed = True
      return self.has_killed


def test_compiled_programs_are_kept_in_a_bucket(bucket):
  code = f"""
import jax
from bertgpt.devices import compilation_cache
compilation_cache.enable("{bucket}/xla")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.monitoring.register_event_listener(lambda name, **_: print(name.split("/")[-1]))
jax.jit(lambda x: x @ x + 3)(jax.numpy.ones((8, 8))).block_until_ready()"""
  first, second = program_lib.run_python(code), program_lib.run_python(code)
  assert "cache_hits" not in first.stdout and "cache_hits" in second.stdout, second
  assert "cache_misses" not in second.stdout


@pytest.fixture
def program(tmp_path):
  return program_lib.make_program(tmp_path)


def start(program, workdir, *arguments, module="bertgpt", seconds=60):
  env = os.environ | {
      "PYTHONPATH": str(program_lib.ROOT), "PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "XDG_CACHE_HOME": str(program.folder / "host"), "BERTGPT_BUCKET_SECONDS": str(seconds)}
  return subprocess.Popen(
      [sys.executable, "-m", module, "train", f"--config={program.folder}/recipe.py",
       f"--workdir={workdir}", KEEP_ONE, *arguments], env=env, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def train(program, workdir, *arguments, **options):
  return program_lib.finish(start(program, workdir, *arguments, **options))


# Requests at which the process is killed, in the order of a run.
KILLS = [
    ("PUT|POST", "/10/params", "before", 2),     # The first checkpoint, half written.
    ("POST", "/10/manifest", "before", 1),       # The first checkpoint, but for its manifest.
    ("POST", "/20/manifest", "after", 1),        # A checkpoint that is just complete.
    ("DELETE", "/20/manifest", "after", 1),      # An old checkpoint, half deleted.
    ("POST", "metrics.jsonl", "before", 2),       # The curves, at the checkpoint of the last step.
]


@pytest.mark.slow
def test_a_run_that_is_killed_five_times_ends_as_one_on_a_disk(program, bucket, storage, tmp_path):
  """One request in thirty gets a 503, and all data that can be in the bucket are there."""
  whole = train(program, tmp_path / "disk")
  assert whole.returncode == 0, whole.stderr
  source = bucket / "text.txt"
  source.write_bytes((tmp_path / "text.txt").read_bytes())
  fields = (f"--config.data.source=text:{source}", f"--config.data.cache_dir={bucket}/cache")
  storage.faults.share = 1 / 30
  for method, pattern, when, at in KILLS:
    process = start(program, bucket / "run", *fields)
    storage.faults.on_request = killer = Killer(process, method, pattern, when, at)
    result = program_lib.finish(process)
    assert killer.has_killed and result.returncode == -signal.SIGKILL, (pattern, result.stderr)
  storage.faults.on_request = None
  assert (bucket / "run" / ".lock").is_file()
  last = train(program, bucket / "run", *fields)
  assert last.returncode == 0, last.stderr
  assert "resuming after step" in last.stderr
  assert_equal_runs(bucket / "run", tmp_path / "disk")
  assert not (bucket / "run" / ".lock").exists()
  attempts = goodput.summarize(bucket / "run").attempts
  assert [attempt.code for attempt in attempts] == [None] * len(KILLS) + [0]
  assert attempts[-1].last_step == 40
  assert not re.search("events.jsonl.*cannot be written", last.stderr)
  assert [p.name for p in (bucket / "run" / "checkpoints").iterdir()] == ["40"]


def assert_equal_runs(found, expected):
  assert program_lib.fingerprints(found) == program_lib.fingerprints(expected)
  assert program_lib.curves(found) == program_lib.curves(expected)
  a, b = (checkpoint.restore_params(path)[0] for path in (found, expected))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert report_of(found) == report_of(expected)


def report_of(run):
  """Returns the report without the paths that lead to the run and its text."""
  text = (run / "report.md").read_text().replace(f"{run}/", "")
  return re.sub("corpus-[0-9a-f]+", "corpus", text)


@pytest.mark.slow
def test_a_bucket_that_goes_away_ends_the_run_with_74_and_it_continues(program, bucket, storage,
                                                                       tmp_path):
  whole = train(program, tmp_path / "disk")
  process = start(program, bucket / "run", seconds=3)

  def go_away(method, path, when):
    if method == "POST" and "/20/manifest" in path and when == "before":
      storage.faults.is_down = True

  storage.faults.on_request = go_away
  result = program_lib.finish(process)
  storage.clear()
  assert result.returncode == 74, result.stderr
  error = result.stderr.strip().splitlines()[-1]
  assert re.search("could not be saved .*does not answer|gs://.* does not answer", error), error
  assert "Traceback" not in result.stderr
  again = train(program, bucket / "run")
  assert again.returncode == whole.returncode == 0, again.stderr
  assert "resuming after step 10" in again.stderr
  assert_equal_runs(bucket / "run", tmp_path / "disk")


def test_programs_leave_no_copies(program, bucket, tmp_path):
  """Neither those of worker processes, which are killed, nor those of a process that fails."""
  copies = tmp_path / "copies"
  copies.mkdir()
  (bucket / "model" / "config.json").write_bytes(b'{"model_type": "bert"}')
  address = f"--distributed=127.0.0.1:{program_lib.free_port()},1,0"
  prepare = ["prepare", f"--config={program.folder}/recipe.py", f"--out={bucket}/corpus"]
  for arguments, code in (
      ([*prepare, "--train_tokenizer"], 0),
      ([*prepare, "--part=0/1", "--config.data.prepare_workers=2"], 0),
      (["finetune", "--config=finetune_glue", "--task=sst2", f"--init={bucket}/model",
        f"--config.task.data={tmp_path}", f"--workdir={tmp_path / 'run'}", address],
       DataError.exit_code)):
    result = subprocess.run(
        [sys.executable, "-m", "bertgpt", *arguments], text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(program_lib.ROOT), "TMPDIR": str(copies),
                          "JAX_PLATFORMS": "cpu"})
    assert result.returncode == code, result.stderr
    assert not list(copies.glob("bertgpt-*"))


@pytest.mark.slow
def test_two_processes_share_a_bucket(program, bucket):
  port = program_lib.free_port()
  started = [start(program, bucket / "run", f"--distributed=127.0.0.1:{port},2,{i}",
                   "--config.mesh.fsdp=2") for i in range(2)]
  for result in map(program_lib.finish, started):
    assert result.returncode == 0, result.stderr
  alone = train(program, bucket / "run")  # One process reads what two have written.
  assert alone.returncode == 0 and "done, 40 steps" in alone.stderr, alone.stderr


# ------------------------------------------------------------------ commands


@pytest.fixture
def run_in_bucket(storage, finished_bert, bucket):  # `storage` first: it may skip the test.
  """Returns a finished run, copied from a disk into the bucket."""
  for path in sorted(finished_bert.rglob("*")):
    if path.is_file() and path.name != ".lock":
      (bucket / "run" / path.relative_to(finished_bert)).upload(path)
  return bucket / "run"


def test_a_run_is_verified_exported_and_used_from_a_bucket(storage, run_in_bucket, finished_bert,
                                                           bucket, capsys, tmp_path):
  assert cli.main(["verify", f"--workdir={run_in_bucket}"]) == 0
  assert "checkpoints/20: good" in capsys.readouterr().out
  assert cli.main(["export", f"--workdir={run_in_bucket}", f"--out={bucket}/export"]) == 0
  assert cli.main(["export", f"--workdir={finished_bert}", f"--out={tmp_path}/export"]) == 0
  for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
    assert (bucket / "export" / name).read_bytes() == (tmp_path / "export" / name).read_bytes()
  capsys.readouterr()
  outputs = []
  for workdir in (finished_bert, run_in_bucket, bucket / "export"):
    assert cli.main(["fill", f"--workdir={workdir}", "--text=the cat [MASK] the dog"]) == 0
    outputs.append(capsys.readouterr().out)
  assert outputs[0] != "" and outputs == 3 * outputs[:1]


def test_the_model_of_init_from_and_finetune_comes_from_a_bucket(storage, run_in_bucket,
                                                                 finished_bert):
  found, expected = (opening.open_model(path, "--init") for path in (run_in_bucket, finished_bert))
  jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
  assert found.tokenizer.fingerprint() == expected.tokenizer.fingerprint()
  assert found.step == expected.step == 20


@pytest.mark.slow
def test_a_fine_tuning_in_a_bucket_is_that_on_a_disk(storage, finished_bert, tuning, bucket,
                                                     tmp_path, monkeypatch):
  """The command may be stopped in the middle of a run and given again."""
  finetune = lambda path: cli.main([
      "finetune", f"--config={tuning}", f"--init={finished_bert}", f"--workdir={path}",
      "--config.epochs=4", "--config.seeds=0,1"])
  assert finetune(tmp_path / "disk") == 0
  calls = iter(range(100))
  with monkeypatch.context() as patch:
    patch.setattr(preemption, "catch_signals", lambda: contextlib.nullcontext(
        lambda: next(calls) == 2))
    assert finetune(bucket / "tuned") == 75
  (state,) = (bucket / "tuned").glob("*/unfinished/checkpoints/*/manifest.json")
  assert finetune(bucket / "tuned") == 0
  assert not state.is_file()
  found, expected = (json.loads((path / "results.json").read_bytes()) for path in (
      bucket / "tuned", tmp_path / "disk"))
  without_time = lambda results: [{**run, "seconds": 0} for run in results["runs"]]
  assert without_time(found) == without_time(expected) and found["best_run"] == expected["best_run"]
  for path in (tmp_path / "disk").glob("*/predictions/*"):
    name = path.relative_to(tmp_path / "disk")
    assert (bucket / "tuned" / name).read_bytes() == path.read_bytes()
  assert cli.main(["export", f"--workdir={bucket}/tuned", f"--out={tmp_path / 'model'}"]) == 0
  assert cli.main(["verify", f"--workdir={bucket}/tuned"]) == 0


def test_a_damaged_checkpoint_in_a_bucket_is_told_from_an_unfinished_one(storage, run_in_bucket,
                                                                         capfd):
  from bertgpt.runs import step_folders
  root = run_in_bucket / "checkpoints"
  for name in (root / "20").list_tree():
    if name != "manifest.json":
      (root / "30" / name).write_bytes(b"half")
    (root / "40" / name).write_bytes((root / "20" / name).read_bytes())
  assert checkpoint.find_steps(root) == [20, 40]  # 30 has no manifest; 40 has that of 20.
  assert checkpoint.committed_steps(run_in_bucket) == [20]
  step_folders.clean(root)
  assert {p.name for p in root.iterdir() if p.is_dir()} == {"20", "40"}
  step_folders.set_aside(root / "40", "is damaged")
  assert "It is set aside as damaged-40-0" in capfd.readouterr().err
  assert checkpoint.find_steps(root) == [20]
  assert len((root / "damaged-40-0").list_tree()) == len((root / "20").list_tree())


def test_a_run_whose_lock_was_taken_over_ends_though_the_other_has_saved_later_steps(bucket):
  """The error is about the lock: another --workdir would not help."""
  root, state = bucket / "checkpoints", {"params": {"w": jax.numpy.ones(4)}}
  with files.lock(bucket / ".lock", lambda holder: None):
    checkpoints = checkpoint.Checkpoints(bucket, every_steps=10, every_minutes=0, keep=2)
    checkpoints.save(10, state, {}, wait=True)
    (bucket / ".lock").write_bytes(b'{"holder": "process 8 on other", "key": "1"}')
    for name in (root / "10").list_tree():
      (root / "30" / name).write_bytes((root / "10" / name).read_bytes())
    with pytest.raises(StorageError, match="process 8 on other has taken the lock over") as e:
      checkpoints.save(20, state, {})
    checkpoints.close()
  assert e.value.exit_code == 74 and checkpoint.find_steps(root) == [10, 30]


@pytest.mark.parametrize("arguments, message", [
    (["verify", "--workdir=s3://b/run"], "Mount the bucket"),
    (["predict", "--workdir=gs://b/r", "--input=x"], "only local paths"),
    (["verify", "--workdir=gs://"], "names no bucket")])
def test_what_is_not_supported_is_said_in_a_line(arguments, message, capsys):
  assert cli.main(arguments) == 2
  error = capsys.readouterr().err
  assert message in error and len(error.splitlines()) == 1


def test_a_bucket_that_is_not_there_is_said_in_a_line(bucket, capsys):
  assert cli.main(["verify", f"--workdir={bucket}/none"]) == 2
  assert "no such folder" in capsys.readouterr().err


def test_events_reach_a_bucket_at_the_start_and_with_checkpoints_and_at_the_end(bucket, capsys):
  kinds = lambda: [event["event"] for event in timeline.read(bucket)]
  for first, before in ((0, []), (3, ["start", "work", "end"])):
    with timeline.recording():
      timeline.open_in(first, bucket)
      assert kinds() == [*before, "start"]  # A kill leaves an attempt without an end.
      timeline.begin_step(first + 1, compiles=False)
      timeline._recorder._write("work")
      assert kinds() == [*before, "start"]
      files.upload_all()  # As a checkpoint does.
      assert kinds() == [*before, "start", "work"]
    assert kinds() == [*before, "start", "work", "end"]
  assert [a.code for a in goodput.summarize(bucket).attempts] == [0, 0]
  assert capsys.readouterr().err == ""


def test_the_report_reads_the_events_up_to_now(bucket):
  with timeline.recording():
    timeline.open_in(0, bucket)
    timeline.begin_step(1, compiles=False)
    timeline.flush()
    assert timeline.read(bucket)[-1]["step"] == 1


def test_events_that_cannot_be_stored_cost_one_line(bucket, storage, monkeypatch, capsys):
  monkeypatch.setenv("BERTGPT_BUCKET_SECONDS", "0")
  with timeline.recording():
    storage.faults.on_request = lambda method, path, when: method == "POST"
    timeline.open_in(0, bucket)
    timeline.begin_step(1, compiles=False)
    timeline.flush()
  assert capsys.readouterr().err.count("events.jsonl: cannot be written") == 1


def test_the_logs_of_a_sweep_reach_a_bucket(bucket, tmp_path, monkeypatch, capsys):
  (program := tmp_path / "program").write_text("#!/bin/sh\necho $4\n[ $4 = --run=0/2 ]\n")
  program.chmod(0o755)
  monkeypatch.setattr(sys, "executable", str(program))
  (bucket / "part-0.log").write_bytes(b"earlier\n")
  with pytest.raises(UserError, match="part 1 of the sweep ended with exit code 1"):
    sweep_processes.train_parts([["--run=0/2"], ["--run=1/2"]], bucket)
  logs = [(bucket / f"part-{k}.log").read_text() for k in (0, 1)]
  assert logs == ["earlier\n--run=0/2\n", "--run=1/2\n"]
  for line in capsys.readouterr().out.splitlines():  # Files that can be read while it runs.
    assert re.fullmatch(r"part \d: see /.*/part-\d.log", line)


def test_the_test_server_keeps_its_word(storage, bucket):
  """These tests' server enforces the precondition on which the lock relies."""
  assert bucket_server.ROOT in str(bucket)
  (bucket / "x").write_bytes(b"1", generation="0")
  with pytest.raises(FileExistsError):
    (bucket / "x").write_bytes(b"2", generation="0")


def test_a_trace_in_a_bucket_survives_an_error_and_the_next_start(bucket):
  def trace(first):
    with profiler.trace_steps((2, 3), bucket / "profile") as visit:
      for step in range(first, 6):
        visit(step, lambda: None)
        jax.block_until_ready(jax.numpy.ones(3) + step)
      raise KeyboardInterrupt

  for first in (1, 4):  # In the second start, nothing is traced.
    with pytest.raises(KeyboardInterrupt):
      trace(first)
    traces = [name for name in (bucket / "profile").list_tree() if name.endswith(".xplane.pb")]
    assert len(traces) == 1


def test_checkpoints_of_another_program_are_refused_and_stay(bucket):
  (bucket / "run" / "checkpoints" / "1000" / "_METADATA").write_text("{}")
  with pytest.raises(ConfigError, match="holds checkpoints, but no config.json"):
    workdir_lib.check_unchanged(bucket / "run", config_lib.base(), [])
  assert (bucket / "run" / "checkpoints" / "1000" / "_METADATA").is_file()


def test_a_folder_of_other_objects_is_refused_as_a_workdir(bucket):
  (bucket / "docs" / "a.md").write_text("")
  (bucket / "run" / "metrics.jsonl").write_text("")
  for name in ("run", "new"):
    folder_kinds.check_unused(bucket / name)
  for path in (bucket / "docs", bucket):
    with pytest.raises(ConfigError, match="holds files, but no run"):
      folder_kinds.check_unused(path)
