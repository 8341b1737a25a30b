"""bertgpt.progress: a line says how far the work is, and how long it will take."""

import pytest

from bertgpt import progress as progress_lib
from bertgpt.progress import Progress


def test_a_line_says_how_far_the_work_is(monkeypatch, capsys):
  clock = iter([0.0, 4.0, 11.0, 12.0, 31.0, 60.0])
  monkeypatch.setattr(progress_lib.time, "monotonic", lambda: next(clock))
  progress = Progress(1000, done=100)
  assert [progress.add(110) for _ in range(4)] == [210, 320, 430, 540]
  progress.add(460)  # There is no line when the work is done.
  assert capsys.readouterr().err.splitlines() == [
      "note: resuming after 100 of 1,000 texts",
      "320 of 1,000 texts, 20 per second, 34 s left",
      "540 of 1,000 texts, 14 per second, 32 s left"]


@pytest.mark.parametrize("seconds, words", [(0.4, "0 s"), (89, "89 s"), (100, "2 min"),
                                            (5399, "90 min"), (9000, "2.5 h")])
def test_durations_in_words(seconds, words):
  assert progress_lib.describe_seconds(seconds) == words


def test_a_line_without_a_total(monkeypatch, capsys):
  clock = iter([0.0, 4.0, 12.0])
  monkeypatch.setattr(progress_lib.time, "monotonic", lambda: next(clock))
  progress = Progress(0, "predictions")
  assert [progress.add(600) for _ in range(2)] == [600, 1200]
  assert capsys.readouterr().err == "1,200 predictions, 100 per second\n"
