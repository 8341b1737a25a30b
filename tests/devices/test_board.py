"""bertgpt.devices.board: process 0 reads what the processes of a run post."""

from one_run import run_together


def test_process_0_reads_what_the_others_post():
  results = run_together("""
measures = board.Board("test", 0.05)
measures.post({"own": 10.0 + index})
while index == 0 and len(measures.read()) < 2: time.sleep(0.01)
print(measures.read())
barrier.wait_for_all("the end")""")
  assert [code for code, _ in results] == [0] * 2, results
  assert "{0: {'own': 10.0}, 1: {'own': 11.0}}" in results[0][1]
  assert "{}" in results[1][1]
