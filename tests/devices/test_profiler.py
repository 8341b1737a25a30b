"""bertgpt.devices.profiler: traces that cannot be made cost a line, not the run."""

import program
import pytest

from bertgpt.devices import profiler


def visited(steps, path, first, last):
  """Visits steps as the loop does, and returns those before which it waits for the one before."""
  waits = []
  with profiler.trace_steps(steps, path) as visit:
    for step in range(first, last + 1):
      visit(step, lambda step=step: waits.append(step))
  return waits


def test_a_profile_that_cannot_be_written_costs_a_line(tmp_path, capfd):
  path = tmp_path / "profile"
  path.touch()
  assert visited((1, 2), path, 1, 5) == [1]
  (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("WARNING")]
  assert f"{path}: the trace could not be stored" in line


@pytest.mark.parametrize("last", [2, 5])
def test_a_profile_that_can_no_longer_be_written_costs_a_line(tmp_path, last):
  """The run ends within the steps of the profile, or after them."""
  result = program.run_python("import pathlib, shutil\nfrom bertgpt.devices import profiler\n"
                              f"path = pathlib.Path('{tmp_path}/profile')\n"
                              "with profiler.trace_steps((1, 2), path) as visit:\n"
                              "  visit(1, lambda: None); shutil.rmtree(path); path.touch()\n"
                              f"  for step in range(2, {last + 1}): visit(step, lambda: None)\n"
                              "print('done')")
  assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr
  assert result.stderr.count("the trace could not be stored") == 1


def test_a_run_that_resumes_within_the_steps_of_the_profile_traces_the_rest(tmp_path, capfd):
  path = tmp_path / "profile"
  assert visited((10, 15), path, 13, 20) == [13, 16]
  assert list(path.rglob("*.xplane.pb"))
  assert visited((10, 15), path, 16, 20) == []
  assert "nothing is traced" not in capfd.readouterr().err


def test_a_run_that_resumes_after_the_steps_of_the_profile_says_so(tmp_path, capfd):
  assert visited((10, 15), tmp_path / "profile", 16, 20) == []
  (line,) = [line for line in capfd.readouterr().err.splitlines() if "profile" in line]
  assert line.startswith("note: profile.steps=(10, 15): these steps are done")
