"""launch/tpu_pod.sh with a stand-in for gcloud, whose hosts are folders of this machine.

The commands for the hosts are run for real, with a program that ends as the test says.
"""

import contextlib
import os
import re
import signal
import subprocess

import pytest
import stand_in
from program import children_of
from stand_in import wait_for

# The hosts are hosts/SLICE/0 and hosts/SLICE/1. `states` has the answers of `describe`, the last of
# which is repeated; created slices are ACTIVE. `refusals` counts lost connections.
GCLOUD = r"""
echo "$*" >> calls
for argument; do case $argument in
  --command=*) command=${argument#*=} ;; --worker=*) worker=${argument#*=} ;; esac; done
case "$*" in
  *" describe "*)
    state=$(head -n 1 states)
    [ "$(wc -l < states)" -le 1 ] || sed -i 1d states
    case $state in *"not found"*) echo "$state" >&2; exit 1 ;; esac
    echo "$state" ;;
  *" create "*)
    for pid in hosts/*/*/bertgpt-run/pid; do [ -e "$pid" ] && pkill -KILL -s "$(cat "$pid")"; done
    echo ACTIVE > states; rm -rf hosts ;;
  *" delete "*) echo "not found" > states ;;
  *" ssh "*)
    [ "$(cat states)" = ACTIVE ] || [ "$(cat states)" = READY ] || exit 255
    [ "$worker" = all ] && [ -s refusals ] && { sed -i 1d refusals; exit 255; }
    code=0
    [ "$worker" = all ] && workers="0 1" || workers=$worker
    for i in $workers; do
      home=$PWD/hosts/$5/$i
      mkdir -p $home
      (cd $home && HOME=$home ALL=$PWD TEST=$OLDPWD bash -c "$command") || code=$?
    done
    exit $code ;;
esac"""
# A run ends with the next code of its host, or when it gets SIGTERM.
PROGRAM = r"""
host=${HOME#*/hosts/}
trap 'echo stopping; exit 75' TERM
codes=$TEST/codes-${host//\//-}
code=$(head -n 1 "$codes"); sed -i 1d "$codes"
echo "$host: $*" >> "$TEST/runs"
if [ "$code" = waits ]; then while true; do /bin/sleep 0.05; done; fi
exit "$code"
"""


@pytest.fixture
def cloud(tmp_path):
  stand_in.add(tmp_path, "gcloud", GCLOUD)
  stand_in.add(tmp_path, "sleep", "/bin/sleep 0.02")
  stand_in.add(tmp_path, "program", PROGRAM)
  (tmp_path / "states").write_text("READY\n")
  (tmp_path / "runs").write_text("")
  (tmp_path / "calls").touch()
  yield tmp_path
  for pid in tmp_path.glob("hosts/*/*/bertgpt-run/pid"):
    subprocess.run(["pkill", "-KILL", "-s", pid.read_text().strip()], check=False)


def prepare(cloud, *attempts, slices=("slice",)):
  """Each attempt has one code per host."""
  hosts = [f"{name}-{i}" for name in slices for i in (0, 1)]
  for i, host in enumerate(hosts):
    (cloud / f"codes-{host}").write_text("".join(f"{codes.split()[i]}\n" for codes in attempts))


SETUP = 'mkdir -p bertgpt/.venv/bin && ln -s "$TEST/program" bertgpt/.venv/bin/bertgpt'


def run(cloud, *arguments, **variables):
  return stand_in.run(cloud, "tpu_pod.sh", *(arguments or ("--config", "a b")),
                      **{"TPU": "slice", "ZONE": "zone", "SETUP": SETUP, "PAUSE": "0.02",
                         "PATIENCE": "300",  # A host may be slow.
                         **variables})


def runs(cloud):
  return (cloud / "runs").read_text().splitlines()


@pytest.mark.parametrize("codes, code, attempts", [
    (["0 0"], 0, 1), (["75 75", "0 0"], 0, 2),
    (["137 69", "69 74", "143 75", "134 69", "0 0"], 0, 5),
    (["2 69", "0 0"], 2, 1), (["69 65", "0 0"], 65, 1), (["70 70", "0 0"], 70, 1),
    (["75 75", "130 75", "0 0"], 130, 2), (["69 69"] * 9, 69, 5)])
def test_a_run_is_started_again_unless_that_is_useless(cloud, codes, code, attempts):
  prepare(cloud, *codes)
  result = run(cloud)
  assert (result.returncode, len(runs(cloud))) == (code, 2 * attempts), result.stderr
  assert set(runs(cloud)) == {f"slice/{i}: train --distributed=auto --config a b" for i in (0, 1)}


@pytest.mark.parametrize("codes, seconds, attempts", [
    ("69 1", 2_000, 5), ("74 69", 2_000, 5), ("69 69", 2_000, 7), ("1 1", 20_000, 7)])
def test_a_run_that_hangs_or_fills_the_disk_ends(cloud, codes, seconds, attempts):
  prepare(cloud, *[codes] * 6, "0 0")
  stand_in.add(cloud, "date", f'[ "$*" = +%s ] || exec /bin/date "$@"; echo >> looks\n'
                              f'echo $(($(wc -l < looks) * {seconds}))')
  result = run(cloud)
  assert len(runs(cloud)) == 2 * attempts, result.stderr
  assert result.returncode == (69 if attempts == 5 else 0)


def test_lost_connections_do_not_end_a_run(cloud):
  prepare(cloud, "0 0")
  stand_in.add(cloud, "program", PROGRAM.replace(
      'exit "$code"', 'if [ "$host" = slice/0 ]; then yes "" | head -n 9 > "$TEST/refusals"\n'
                      'else /bin/sleep 0.3; fi; exit $code'))
  result = run(cloud)
  assert (result.returncode, (cloud / "refusals").read_text()) == (0, ""), result.stderr
  assert len(runs(cloud)) == 2


def test_slices_that_are_gone_are_created_again(cloud):
  """The first attempt loses its slices; the second one finishes the run."""
  slices = ("slice-0", "slice-1")
  prepare(cloud, "waits waits waits waits", "0 0 0 0", slices=slices)
  (cloud / "states").write_text("not found\n")
  start = cloud / "taken"
  stand_in.add(cloud, "watcher", 'until [ "$(wc -l < runs)" = 4 ]; do /bin/sleep 0.05; done\n'
                                 'echo SUSPENDED > new; mv new states; echo > taken')
  with subprocess.Popen([cloud / "watcher"], cwd=cloud):
    result = run(cloud, TYPE="v5litepod-16", VERSION="v2-alpha-tpuv5-lite", SPOT="1", SLICES="2",
                 PATIENCE="40")
  assert result.returncode == 0 and start.exists(), result.stderr
  assert len(runs(cloud)) == 8
  calls = (cloud / "calls").read_text().splitlines()
  changes = [line for line in calls if " create " in line or " delete " in line]
  queued = "compute tpus queued-resources"
  create = (f"{queued} create slice --zone=zone --node-prefix=slice --node-count=2 "
            "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot")
  assert changes == [create, f"{queued} delete slice --zone=zone --force --quiet", create]


def test_flags_of_gcloud_are_passed_on(cloud):
  prepare(cloud, "0 0")
  (cloud / "states").write_text("not found\n")
  result = run(cloud, TYPE="v5litepod-16", VERSION="v2-alpha-tpuv5-lite", SSH_FLAGS="--internal-ip",
               CREATE_FLAGS="--reserved\n  --network=a --data-disk=source=b,mode=read-only")
  assert result.returncode == 0, result.stderr
  calls = (cloud / "calls").read_text().splitlines()
  create, = (line for line in calls if " create " in line)
  assert create.endswith(" --reserved --network=a --data-disk=source=b,mode=read-only")
  logins = [line for line in calls if " ssh " in line]
  assert logins and all(" ssh slice --zone=zone --internal-ip --worker=" in line for line in logins)


def test_a_host_without_tpus_does_not_train_on_its_cpus(cloud):
  prepare(cloud, "0 0")
  stand_in.add(cloud, "program", 'echo "$JAX_PLATFORMS" >> "$TEST/platforms"\n' + PROGRAM)
  run(cloud)
  assert (cloud / "platforms").read_text() == "tpu,cpu\n" * 2


@pytest.mark.parametrize("value", ["true", "false", "2"])
def test_spot_is_one_or_zero(cloud, value):
  result = run(cloud, SPOT=value)
  assert result.returncode == 2 and f"SPOT={value}: set it to 1 or 0" in result.stderr


def test_a_slice_that_is_gone_ends_the_script_if_it_may_not_create_one(cloud):
  (cloud / "states").write_text("PREEMPTED\n")
  result = run(cloud)
  assert result.returncode == 69 and "slice is PREEMPTED. Create it again" in result.stderr


def test_a_cloud_that_refuses_ends_the_script(cloud):
  (cloud / "states").write_text("ERROR: (gcloud) you have no active account\n")
  result = run(cloud, PATIENCE="15")
  assert result.returncode == 69 and "gcloud has failed 15 times in a row" in result.stderr


def test_failures_of_gcloud_count_only_in_a_row_and_its_notices_are_ignored(cloud):
  """A slice may wait for capacity for days."""
  prepare(cloud, "0 0")
  notice = 'case "$*" in *" describe "*) echo "Updates are available: gcloud update" >&2 ;; esac\n'
  stand_in.add(cloud, "gcloud", notice + GCLOUD)
  (cloud / "states").write_text(
      "ERROR: (gcloud) timed out\nWAITING_FOR_RESOURCES\n" * 16 + "ACTIVE\n")
  result = run(cloud, TYPE="v5litepod-16", VERSION="v2-alpha-tpuv5-lite", PATIENCE="15")
  assert (result.returncode, len(runs(cloud))) == (0, 2), result.stderr


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_process_that_got_the_id_of_a_run_after_a_reboot_is_left_alone(cloud, how):
  """A process with a child stands for a service of the host."""
  with started(["bash", "-c", "/bin/sleep 1000; true"], start_new_session=True) as service:
    for i in (0, 1):
      folder = cloud / "hosts" / "slice" / str(i) / "bertgpt-run"
      folder.mkdir(parents=True)
      (folder / "pid").write_text(str(service.pid))
    wait_for(lambda: children_of(service.pid))
    if how == "stop":
      result = run(cloud, "stop")
      assert result.returncode == 1 and "does not run on all hosts" in result.stderr
    else:
      subprocess.run(["bash", "-c", kill_of_script()], cwd=cloud, check=True,
                     env=stand_in.environment(cloud, HOME=str(folder.parent)))
    assert service.poll() is None and children_of(service.pid)
    os.killpg(service.pid, signal.SIGKILL)


def kill_of_script():
  """Returns the command that ends hosts that hang."""
  script = (stand_in.LAUNCH / "tpu_pod.sh").read_text()
  return re.search(r"^KILL='(.*)'$", script, re.MULTILINE)[1]


def test_ctrl_c_leaves_the_log_although_gcloud_catches_it(cloud):
  stand_in.add(cloud, "gcloud", "trap 'exit 1' INT\necho >> started\n"
                                "while true; do /bin/sleep 0.05; done")
  calls = lambda: len((cloud / "started").read_text()) if (cloud / "started").exists() else 0
  environment = stand_in.environment(cloud, TPU="slice", ZONE="zone", PAUSE="0.02")
  with started(["bash", stand_in.LAUNCH / "tpu_pod.sh", "attach"], cwd=cloud, env=environment,
               start_new_session=True) as script:
    wait_for(lambda: calls() == 1)
    os.killpg(script.pid, signal.SIGINT)
    wait_for(lambda: script.poll() is not None or calls() > 1)
    code = script.poll()
    if code is None:
      os.killpg(script.pid, signal.SIGKILL)
    assert code == 130


@pytest.mark.parametrize("end", [";", "  # from the repository", "\n"])
def test_the_installation_may_end_as_any_command(cloud, end):
  prepare(cloud, "0 0")
  result = run(cloud, SETUP=f"{SETUP}{end}")
  assert (result.returncode, len(runs(cloud))) == (0, 2), result.stderr


def test_a_missing_program_is_named(cloud):
  result = run(cloud, SETUP="")
  assert "bertgpt/.venv/bin/bertgpt is missing, and SETUP is not set" in result.stderr
  assert result.returncode == 69 and runs(cloud) == []


def test_a_run_outlives_its_script_and_is_stopped_with_a_checkpoint(cloud):
  prepare(cloud, "waits waits", "0 0")
  watching = ["bash", stand_in.LAUNCH / "tpu_pod.sh", "--config", "a b"]
  environment = stand_in.environment(cloud, TPU="slice", ZONE="zone", SETUP=SETUP, PAUSE="0.02",
                                     PATIENCE="300")
  with started(watching, cwd=cloud, env=environment) as script:
    wait_for(lambda: (cloud / "calls").read_text().count("tail -n") == 1 and len(runs(cloud)) == 2)
    script.terminate()
    assert script.wait(stand_in.TIMEOUT_S) in (143, -signal.SIGTERM)
  with started(watching, cwd=cloud, env=environment, stderr=subprocess.PIPE, text=True) as script:
    wait_for(lambda: (cloud / "calls").read_text().count("tail -n") > 1)
    assert run(cloud, "stop").returncode == 0
    assert script.wait(stand_in.TIMEOUT_S) == 75
    assert "2 bertgpt ended with code 75, stopped" in script.stderr.read()
  assert len(runs(cloud)) == 2


@contextlib.contextmanager
def started(command, **options):
  """A process that ends with the `with` block, even if an assertion fails in it."""
  with subprocess.Popen(command, **options) as process:
    try:
      yield process
    finally:
      process.kill()


def test_hosts_that_hang_are_ended_when_another_one_has_ended(cloud):
  prepare(cloud, "137 waits", "0 0")
  # None ends before the other one has started.
  stand_in.add(cloud, "program", PROGRAM.replace(
      'exit "$code"', 'until [ $(($(wc -l < "$TEST/runs") % 2)) = 0 ]; do /bin/sleep 0.05; done\n'
                      'exit "$code"'))
  result = run(cloud, PATIENCE="40")
  assert (result.returncode, len(runs(cloud))) == (0, 4), result.stderr


def test_unknown_words_are_refused(cloud):
  result = run(cloud, "restart")
  assert result.returncode == 2 and "attach, stop, delete" in result.stderr
