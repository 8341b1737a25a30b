"""bertgpt.devices.lost: messages of jaxlib 0.10 and what they mean."""

import pytest

from bertgpt.devices import lost

TASK = "/job:jax_worker/replica:0/task:"
BARRIER = ("DEADLINE_EXCEEDED: Barrier timed out. Id: save/20::0. This usually happens because a "
           "task triggered the barrier too early or too slowly. Please look at the task logs (both "
           "timed out and first task) to debug further.\n# of tasks that reached the barrier: 1/3."
           f"\nThe first task at the barrier: {TASK}0. Some timed out task names:\n{TASK}2\n{TASK}1"
           "\n")
UNHEALTHY = ("UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n"
             f"{TASK}3\nThe tasks have crashed. Check the task logs for an earlier error, or "
             "scheduler events (e.g. preemption, eviction) to debug further.")
UNHEALTHY_NOW = UNHEALTHY.replace(TASK, "")  # Newer versions print only the numbers.
CLOSED = ("INTERNAL: [1] Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:547] "
          "Connection closed by peer [10.0.0.7]:40211")
LATE = ("UNKNOWN: Gloo context initialization failed: DEADLINE_EXCEEDED: GetKeyValue() timed out "
        "with key: cpu:gloo/0,2048,4096/2 and duration: 29.99s")


@pytest.mark.parametrize("message, sentence", [
    (BARRIER, "processes 1, 2 of the run did not answer"),
    (UNHEALTHY, "process 3 of the run is gone: no heartbeats"),
    (UNHEALTHY_NOW, "process 3 of the run is gone: no heartbeats"),
    (BARRIER.replace(TASK, ""), "processes 1, 2 of the run did not answer"),
    (CLOSED, "another process of the run is gone"),
    (LATE, "process 5 of the run did not join a collective within 30 s"),
    ("UNAVAILABLE: failed to connect to all addresses", "another process of the run is gone")])
def test_a_message_is_explained_and_quoted(message, sentence):
  assert lost.MESSAGE.search(message)
  line = lost.explain(message, {0: 0, 2048: 1, 4096: 5})
  assert line.startswith(sentence) and "\n" not in line
  assert f"({' '.join(message.split())[:100]}" in line
  assert line.endswith(". Start all of them again to resume from the last checkpoint")


def test_a_late_process_without_a_known_device_is_another_one():
  assert lost.explain(LATE).startswith("another process of the run did not join")
