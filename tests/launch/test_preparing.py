"""The scripts for many machines of docs/data.md make every part once, and then merge the parts."""

import pathlib
import re
import subprocess

import pytest
import stand_in

from bertgpt import cli

yaml = pytest.importorskip("yaml")
PAGE = (stand_in.LAUNCH.parent / "docs" / "data.md").read_text()
PARTS = 64


def blocks(language):
  return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def bash(tmp_path):
  """A function that runs a script with stand-ins and returns the flags of its `bertgpt`."""
  programs, told = tmp_path / "programs", tmp_path / "told"
  programs.mkdir()
  stand_in.add(programs, "bertgpt", f"printf '%s\\0' \"$@\" > {told}")
  stand_in.add(programs, "srun", 'while [[ $1 == -* ]]; do shift; done; exec "$@"')
  # Of the two calls, one submits a file and the other one a command.
  stand_in.add(programs, "sbatch", 'case "$*" in *--wrap*) eval "${@: -1}" ;; *) echo 7 ;; esac\n'
               f'echo "$@" >> {tmp_path}/submitted')

  def run(script, **variables):
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, timeout=stand_in.TIMEOUT_S,
                   check=True, env=stand_in.environment(programs, **variables))
    return cli.parse(told.read_text().split("\0")[:-1])

  return run


def check(arguments, part):
  assert (arguments.command, arguments.part, arguments.merge) == ("prepare", part, part is None)
  assert arguments.out == pathlib.Path("/shared/corpora/c4")
  overrides = dict(line.split("=", 1) for line in arguments.overrides)
  assert overrides == {"--config.tokenizer.path": "/shared/vocab.txt",
                       "--config.data.source": "jsonl:/shared/c4/en/*.json.gz#text"}


@pytest.mark.parametrize("i", [0, PARTS - 1])
def test_a_task_of_the_array_makes_its_part(bash, i):
  script, = (text for text in blocks("bash") if "#SBATCH --array" in text)
  first, last = re.search(r"--array=(\d+)-(\d+)", script).groups()
  assert (int(first), int(last)) == (0, PARTS - 1)
  check(bash(script, SLURM_ARRAY_TASK_ID=str(i)), (i, PARTS))


def test_the_merge_waits_for_the_array(bash, tmp_path):
  script, = (text for text in blocks("bash") if "--dependency" in text)
  check(bash(script), None)
  array, merge = (tmp_path / "submitted").read_text().splitlines()
  assert array == "--parsable parts.sbatch" and merge.startswith("--dependency=afterok:7 ")


@pytest.mark.parametrize("i", [0, PARTS - 1])
def test_a_pod_of_the_job_makes_its_part(bash, i):
  job, = (yaml.safe_load(text) for text in blocks("yaml") if "completionMode: Indexed" in text)
  container, = job["spec"]["template"]["spec"]["containers"]
  assert container["command"] == ["bash", "-c"]
  assert job["spec"]["completions"] == PARTS
  check(bash(container["args"][0], JOB_COMPLETION_INDEX=str(i)), (i, PARTS))


def test_the_job_has_the_schema_of_kubernetes():
  validator = pytest.importorskip("kubernetes_validate")
  job, = (yaml.safe_load(text) for text in blocks("yaml") if "completionMode: Indexed" in text)
  validator.validate(job, "1.29", strict=True)
