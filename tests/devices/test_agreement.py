"""bertgpt.devices.agreement: processes of a run agree before they begin."""

from one_run import run_together

from bertgpt.devices import agreement, barrier, shutdown


def test_processes_that_agree_go_on():
  for code, out in run_together("""
agreement.check({"rate": 0.1, "steps": (1, 2)})
agreement.check({})
barrier.wait_for_all("end")"""):
    assert code == 0 and "DONE" in out, out


def test_a_single_process_agrees_with_itself():
  with shutdown.end_together():
    agreement.check({"a": object()})
    barrier.wait_for_all("end")


def test_the_first_process_is_that_of_the_devices():
  """TPUs number the hosts by their place in the slice, the coordinator by their own ids."""
  results = run_together("""
import dataclasses, jax
true = coordinator.open_store
coordinator.open_store = lambda: dataclasses.replace(true(), index=1 - true().index)
print("HEARD", agreement.broadcast_text(f"from {jax.process_index()}"))
measures = board.Board("a", 0.05)
measures.post({"x": jax.process_index()})
while jax.process_index() == 0 and len(measures.read()) < 2:
  time.sleep(0.05)
print("BOARD", jax.process_index() == 0 and {i: n["x"] for i, n in measures.read().items()})
coordinator.open_store = true
barrier.wait_for_all("end")""")
  for code, out in results:
    assert code == 0 and "HEARD from 0" in out, out
  assert "BOARD {0: 0, 1: 1}" in results[0][1] and "BOARD False" in results[1][1]


def test_every_difference_is_named_in_every_process():
  for code, out in run_together("""
values = {"rate": (0.1, 0.2, 0.1)[index], "same": 1, "steps": [1]}
if index == 2: values["more"] = values.pop("steps")
agreement.check(values)""", count=3):
    assert code == 2, out
    lines = [line.strip() for line in out.splitlines() if " in process 0, " in line]
    assert lines == ["rate: 0.1 in process 0, 0.2 in process 1", "more: absent in process 0, [1] "
                     "in process 2", "steps: [1] in process 0, absent in process 2"]


def test_other_versions_are_a_difference():
  for code, out in run_together("""
versions = agreement._versions()
agreement._versions = lambda: versions | ({"version of jax": "0.1"} if index else {})
agreement.check({})"""):
    assert code == 2 and "version of jax: '0." in out and "'0.1' in process 1" in out


def test_processes_that_read_different_checkpoints_end_alike():
  results = run_together("""
import types
from bertgpt.runs import trained
trained.check_same_step("runs/a", types.SimpleNamespace(step=24))
trained.check_same_step("runs/a", types.SimpleNamespace(step=24 + 4 * index))
barrier.wait_for_all("the end", 100)""")
  assert [code for code, _ in results] == [74, 74], results
  assert "ERROR runs/a: a checkpoint was saved while the newest one was read" in results[1][1]
  assert "process 0 has step 24, this one 28. Run the same command again" in results[1][1]
