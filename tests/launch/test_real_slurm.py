"""launch/slurm.sbatch on a real SLURM of one node, if it is installed (apt install slurm-wlm).

The training is a script that saves for two seconds after SIGTERM.
"""

import os
import shutil
import socket
import subprocess

import program
import pytest
import stand_in

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scancel", "squeue", "scontrol", "srun")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing := [name for name in PROGRAMS if not shutil.which(name)]),
                       reason=f"not installed: {', '.join(missing)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd starts jobs only as root"),
]
PROGRAM = r"""
trap 'sleep 2; echo saved >> "$SLURM_SUBMIT_DIR/saved"; exit 75' TERM
echo $$ > "$SLURM_SUBMIT_DIR/pid-$SLURM_PROCID"
echo "$SLURM_PROCID: $*" >> "$SLURM_SUBMIT_DIR/runs"
if [ -e "$SLURM_SUBMIT_DIR/code" ]; then exit "$(cat "$SLURM_SUBMIT_DIR/code")"; fi
while true; do sleep 0.1; done
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
  """Starts a cluster of one node and two partitions, `high` of which preempts jobs of `low`."""
  folder = tmp_path_factory.mktemp("slurm")
  (folder / "key").write_bytes(os.urandom(128))
  (folder / "key").chmod(0o600)
  for name in ("state", "spool"):
    (folder / name).mkdir()
  host = socket.gethostname().partition(".")[0]
  (folder / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={program.free_port()}
SlurmdPort={program.free_port()}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmdParameters=config_overrides
MpiDefault=none
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes={host} PriorityTier=2
""")
  os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
  # munged refuses files in folders that others may write, such as /tmp.
  daemons = [
      ["munged", "--foreground", "--force", f"--key-file={folder}/key", f"--socket={folder}/munge",
       f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log",
       f"--seed-file={folder}/seed"],
      ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-c"]]
  processes = [subprocess.Popen(daemon, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
               for daemon in daemons]
  try:
    wait_for(lambda: call("sinfo", "--noheader", "--partition=low", "--format=%T") == "idle")
    yield
    call("scancel", "--user=root")
    call("scancel", "--user=root", "--signal=KILL")
    wait_for(lambda: not call("squeue", "--noheader"))
  finally:
    for process in reversed(processes):
      process.terminate()
      process.wait(60)
    del os.environ["SLURM_CONF"]


def call(*command):
  return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def wait_for(is_so):
  return stand_in.wait_for(is_so, lambda: call("squeue"))


class Job:
  """A job that trains in a folder."""

  def __init__(self, folder, *options):
    self.folder = folder
    program = folder / ".venv" / "bin"
    program.mkdir(parents=True)
    stand_in.add(program, "bertgpt", PROGRAM)
    # The flags of sbatch come before the lines of the script.
    self.id = subprocess.run(
        ["sbatch", "--parsable", "--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1",
         "--gpus-per-node=0", *options, stand_in.LAUNCH / "slurm.sbatch", "--config",
         "a b"], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()

  def has(self, name, lines):
    path = self.folder / name
    return path.exists() and len(path.read_text().splitlines()) >= lines

  def started(self, tasks=2):
    wait_for(lambda: self.has("runs", tasks))
    return self

  def show(self):
    lines = call("scontrol", "show", "--oneliner", "job", self.id).split()
    return dict(field.partition("=")[::2] for field in lines)

  def ended(self):
    """Returns (state, restarts, lines of `saved`) when SLURM is done with this attempt."""
    over = ("PENDING", "CANCELLED", "FAILED", "TIMEOUT", "COMPLETED", "NODE_FAIL")
    wait_for(lambda: self.show()["JobState"] in over)
    saved = self.folder / "saved"
    shown = self.show()
    call("scancel", self.id)  # A job that was requeued would start again.
    return (shown["JobState"], int(shown["Restarts"]),
            len(saved.read_text().split()) if saved.exists() else 0)


def test_scancel_saves_and_stops(cluster, tmp_path):
  job = Job(tmp_path).started()
  call("scancel", job.id)
  assert job.ended() == ("CANCELLED", 0, 2)
  wait_for(lambda: not call("pgrep", "-F", tmp_path / "pid-0"))


def test_a_stop_saves_and_ends_the_job(cluster, tmp_path):
  job = Job(tmp_path).started()
  call("scancel", "--batch", "--signal=USR1", job.id)
  assert job.ended() == ("FAILED", 0, 2) and job.show()["ExitCode"] == "75:0"


def test_the_time_limit_saves_and_requeues(cluster, tmp_path):
  job = Job(tmp_path, "--time=1", "--signal=TERM@45").started()
  assert job.ended() == ("PENDING", 1, 2)


def test_a_preemption_saves_and_requeues(cluster, tmp_path):
  job = Job(tmp_path, "--ntasks-per-node=4", "--partition=low").started(4)
  urgent = subprocess.run(
      ["sbatch", "--parsable", "--partition=high", "--ntasks=4", "--output=/dev/null", "--wrap",
       "sleep 30"], check=True, capture_output=True, text=True, cwd=tmp_path).stdout.strip()
  try:
    assert job.ended() == ("PENDING", 1, 4)
  finally:
    call("scancel", urgent)


def test_a_lost_task_requeues(cluster, tmp_path):
  job = Job(tmp_path).started()
  for i in (0, 1):  # Its peer ends too, with 69 in a real run.
    call("kill", "-KILL", (tmp_path / f"pid-{i}").read_text().strip())
  assert job.ended() == ("PENDING", 1, 0)


def test_an_error_in_the_config_ends_the_job(cluster, tmp_path):
  (tmp_path / "code").write_text("2")
  job = Job(tmp_path).started()
  assert job.ended() == ("FAILED", 0, 0) and job.show()["ExitCode"] == "2:0"


def test_one_task_of_an_array_is_requeued_alone(cluster, tmp_path):
  job = Job(tmp_path, "--array=0-1", "--ntasks-per-node=1").started()

  def state(task):
    return call("squeue", "--noheader", "--jobs", f"{job.id}_{task}", "--format=%T")

  lines = (tmp_path / "runs").read_text().splitlines()
  assert sorted(lines) == [f"0: sweep --run {i}/2 --config a b" for i in (0, 1)]
  call("scancel", "--signal=TERM", f"{job.id}_1")
  wait_for(lambda: state(1) == "PENDING")
  assert state(0) == "RUNNING" and (tmp_path / "saved").read_text() == "saved\n"
  call("scancel", job.id)
