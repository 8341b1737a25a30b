"""launch/: which ends of a run are followed by another attempt. The schedulers are stand-ins."""

import os
import pathlib
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"


def stand_in(folder, name, code):
  path = folder / name
  path.write_text(f"#!/usr/bin/env bash\n{code}\n")
  path.chmod(0o755)


def run(folder, script, **variables):
  return subprocess.run(["bash", LAUNCH / script, "--config", "a b"], cwd=folder, timeout=1200,
                        capture_output=True, text=True,
                        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", **variables})


def run_pod(folder, codes):
  """Each attempt takes the next line of codes, one code per host."""
  (folder / "codes").write_text("\n".join(codes) + "\n")
  stand_in(folder, "sleep", "")
  stand_in(folder, "gcloud", """
codes=$(head -n 1 codes); sed -i 1d codes; echo attempt >> attempts
worst=0
for code in $codes; do echo "bertgpt ended with code $code"; [ $code = 0 ] || worst=1; done
exit $worst""")
  result = run(folder, "tpu_pod.sh", TPU="slice", ZONE="zone")
  return result, len((folder / "attempts").read_text().split())


@pytest.mark.parametrize("codes, code, attempts", [
    (["0 0"], 0, 1), (["75 75", "0 0"], 0, 2),
    (["137 69", "69 74", "143 75", "134 69", "0 0"], 0, 5),
    (["2 69", "0 0"], 2, 1), (["69 65", "0 0"], 65, 1), (["70 70", "0 0"], 70, 1),
    (["75 75", "130 75", "0 0"], 130, 2), (["69 69"] * 9, 1, 5)])
def test_a_pod_is_started_again_unless_that_is_useless(tmp_path, codes, code, attempts):
  result, count = run_pod(tmp_path, codes)
  assert (result.returncode, count) == (code, attempts), result.stderr


@pytest.mark.parametrize("code, requeued", [
    (0, False), (2, False), (65, False), (70, False), (130, False), (69, True), (74, True),
    (75, True), (134, True), (137, True), (143, True), (1, True)])
def test_a_slurm_job_is_requeued_unless_that_is_useless(tmp_path, code, requeued):
  stand_in(tmp_path, "srun", f"exit {code}")
  stand_in(tmp_path, "scontrol", 'echo "$@" >> requeued')
  result = run(tmp_path, "slurm.sbatch", SLURM_JOB_ID="7")
  assert result.returncode == code
  assert (tmp_path / "requeued").exists() == requeued


def test_a_slurm_job_without_progress_ends(tmp_path):
  stand_in(tmp_path, "srun", "exit 69")
  stand_in(tmp_path, "scontrol", 'echo "$@" >> requeued')
  results = [run(tmp_path, "slurm.sbatch", SLURM_JOB_ID="7") for _ in range(5)]
  assert (tmp_path / "requeued").read_text() == "requeue 7\n" * 4
  assert "gave up" in results[-1].stderr and results[-1].returncode == 69
