"""launch/slurm.sbatch with stand-ins for SLURM's programs: when it tries again and when not."""

import signal
import subprocess

import pytest
import stand_in

JOB = {"SLURM_JOB_ID": "7"}
TASK = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "3", "SLURM_ARRAY_TASK_COUNT": "4"}


def add_slurm(folder, code, state="RUNNING"):
  stand_in.add(folder, "srun", f'printf "%s\\n" "$@" > step; exit {code}')
  stand_in.add(folder, "squeue", f'echo "$@" >> asked; echo {state}')
  stand_in.add(folder, "scontrol", 'echo "$@" >> requeued')
  stand_in.add(folder, "scancel", 'echo "$@" >> cancelled')
  stand_in.add(folder, "sleep", "")


def run(folder, *arguments, **variables):
  return stand_in.run(folder, "slurm.sbatch", *arguments, **{**JOB, **variables})


@pytest.mark.parametrize("code, requeued", [
    (0, False), (2, False), (65, False), (70, False), (130, False), (69, True), (71, True),
    (74, True), (75, True), (134, True), (137, True), (143, True), (1, True)])
def test_a_job_is_requeued_unless_that_is_useless(tmp_path, code, requeued):
  add_slurm(tmp_path, code)
  assert run(tmp_path).returncode == code
  assert (tmp_path / "requeued").exists() == requeued


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "TIMEOUT", "PENDING", ""])
def test_a_job_that_was_cancelled_is_not_requeued(tmp_path, state):
  add_slurm(tmp_path, 75, state)
  result = run(tmp_path)
  assert result.returncode == 75 and not (tmp_path / "requeued").exists()
  assert result.stderr == f"not requeued: the state of job 7 is {state or 'unknown'}\n"


def test_a_controller_that_does_not_answer_at_once_is_asked_again(tmp_path):
  add_slurm(tmp_path, 75)
  stand_in.add(tmp_path, "squeue", "echo >> asked; [ $(wc -l < asked) = 3 ] && echo RUNNING")
  run(tmp_path)
  assert (tmp_path / "requeued").read_text() == "requeue 7\n"


def test_a_job_without_progress_ends(tmp_path):
  add_slurm(tmp_path, 69)
  results = [run(tmp_path) for _ in range(5)]
  assert (tmp_path / "requeued").read_text() == "requeue 7\n" * 4
  assert "gave up" in results[-1].stderr and results[-1].returncode == 69


def test_a_job_whose_attempts_cannot_be_counted_ends(tmp_path):
  (tmp_path / "bertgpt-7.short").symlink_to("/dev/full")
  add_slurm(tmp_path, 74)
  result = run(tmp_path)
  assert result.returncode == 74 and not (tmp_path / "requeued").exists()
  assert "cannot be written to bertgpt-7.short" in result.stderr


@pytest.mark.parametrize("set_by_user, used", [({}, "cuda,cpu"), ({"JAX_PLATFORMS": "cpu"}, "cpu")])
def test_a_node_without_gpus_does_not_train_on_its_cpus(tmp_path, monkeypatch, set_by_user, used):
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  add_slurm(tmp_path, 0)
  stand_in.add(tmp_path, "srun", 'echo "$JAX_PLATFORMS" > platforms')
  run(tmp_path, **set_by_user)
  assert (tmp_path / "platforms").read_text() == f"{used}\n"


@pytest.mark.parametrize("code, seconds, tries", [
    (1, 2_000, 5), (74, 2_000, 5), (1, 20_000, None), (69, 2_000, None)])
def test_a_job_that_hangs_or_fills_the_disk_ends(tmp_path, code, seconds, tries):
  add_slurm(tmp_path, code)
  stand_in.add(tmp_path, "date", f"echo >> looks; echo $(($(wc -l < looks) * {seconds}))")
  results = [run(tmp_path) for _ in range(5)]
  assert ("gave up" in results[-1].stderr) == (tries is not None)
  requeued = (tmp_path / "requeued").read_text().splitlines()
  assert len(requeued) == (4 if tries else 5)


def test_the_processes_get_the_cores_of_the_job(tmp_path):
  add_slurm(tmp_path, 0)
  stand_in.add(tmp_path, "srun", 'echo "$SRUN_CPUS_PER_TASK" > cores')
  run(tmp_path, SLURM_CPUS_PER_TASK="8")
  assert (tmp_path / "cores").read_text() == "8\n"


def test_a_task_of_an_array_trains_its_share_and_requeues_only_itself(tmp_path):
  add_slurm(tmp_path, 75)
  run(tmp_path, "--config", "a b", **TASK)
  assert (tmp_path / "step").read_text().splitlines()[-6:] == [
      ".venv/bin/bertgpt", "sweep", "--run", "2/4", "--config", "a b"]
  assert "--jobs=7_2 " in (tmp_path / "asked").read_text()
  assert (tmp_path / "requeued").read_text() == "requeue 7_2\n"


def in_array(numbers, tasks=""):
  """Yields the variables of every task of an array, with the TASKS of the user."""
  for number in numbers:
    yield {**TASK, "SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_MIN": str(min(numbers)),
           "SLURM_ARRAY_TASK_MAX": str(max(numbers)), "SLURM_ARRAY_TASK_COUNT": str(len(numbers)),
           "TASKS": tasks}


@pytest.mark.parametrize("numbers, tasks, expected", [
    (range(3), "", ["0/3", "1/3", "2/3"]), (range(1, 4), "", ["0/3", "1/3", "2/3"]),
    ([7], "", ["0/1"]), ([3, 5], "8", ["3/8", "5/8"]), ([3], "8", ["3/8"])])
def test_the_tasks_of_an_array_leave_out_no_run(tmp_path, numbers, tasks, expected):
  add_slurm(tmp_path, 0)
  for variables, part in zip(in_array(numbers, tasks), expected, strict=True):
    assert run(tmp_path, "--config", "a", **variables).returncode == 0
    assert (tmp_path / "step").read_text().splitlines()[-4:] == ["--run", part, "--config", "a"]


@pytest.mark.parametrize("numbers", [range(0, 8, 2), [3, 5]])
def test_an_array_that_would_leave_out_runs_is_refused(tmp_path, numbers):
  add_slurm(tmp_path, 0)
  for variables in in_array(numbers):
    result = run(tmp_path, "--config", "a", **variables)
    assert result.returncode == 2 and not (tmp_path / "step").exists()
    assert "--array: leaves out numbers between" in result.stderr and "set TASKS" in result.stderr


@pytest.mark.parametrize("container, mounts, expected", [
    ("", "/shared,/data", [".venv/bin/bertgpt"]),
    ("a b.sif", "/shared,/data",
     ["apptainer", "exec", "--nv", "--bind", "/shared,/data", "a b.sif", "bertgpt"]),
    ("a.sqsh", "/shared,/data", ["--container-image=a.sqsh",
                                 "--container-mounts=/shared:/shared,/data:/data", "bertgpt"]),
    ("a.sqsh", "/a b,/lustre/me:/data,/c:/d:ro",
     ["--container-image=a.sqsh", "--container-mounts=/a b:/a b,/lustre/me:/data,/c:/d:ro",
      "bertgpt"])])
def test_the_program_runs_in_a_container(tmp_path, container, mounts, expected):
  add_slurm(tmp_path, 0)
  run(tmp_path, "--config", "a b", CONTAINER=container, MOUNTS=mounts)
  assert (tmp_path / "step").read_text().splitlines() == [
      "--kill-on-bad-exit=0", "--wait=600", *expected, "train", "--distributed=auto", "--config",
      "a b"]


@pytest.mark.parametrize("number, requeued", [(signal.SIGUSR1, False), (signal.SIGTERM, True)])
def test_a_signal_to_the_script_waits_for_the_checkpoint(tmp_path, number, requeued):
  """SIGUSR1 asks for a stop: the processes get SIGTERM, and save for as long as they need."""
  add_slurm(tmp_path, 75)
  stand_in.add(tmp_path, "srun", "echo started; until [ -e cancelled ]; do /bin/sleep 0.05; done\n"
                                 "/bin/sleep 0.3; echo > saved; exit 75")
  with subprocess.Popen(["bash", stand_in.LAUNCH / "slurm.sbatch"], cwd=tmp_path, text=True,
                        stdout=subprocess.PIPE,
                        env=stand_in.environment(tmp_path, **JOB)) as script:
    assert script.stdout.readline() == "started\n"
    script.send_signal(number)
    if requeued:  # SLURM sends SIGTERM to the processes too.
      (tmp_path / "cancelled").write_text("")
    assert script.wait(stand_in.TIMEOUT_S) == 75
  assert (tmp_path / "saved").exists()
  assert (tmp_path / "requeued").exists() == requeued
  assert requeued or (tmp_path / "cancelled").read_text() == "--signal=TERM 7\n"
