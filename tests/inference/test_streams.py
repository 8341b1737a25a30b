"""bertgpt.inference.streams: windows do not depend on where work was interrupted, which resumes."""

import itertools
import json
import multiprocessing
import os
import subprocess
import sys

import pytest
import small_runs
from program import ROOT

from bertgpt.errors import ConfigError
from bertgpt.inference import streams

TEXTS = [c * n for c, n in zip(itertools.cycle("abcde\u0928"), [*range(50), 0, 0, 300, 7, 90, 1, 1],
                               strict=False)]


@pytest.fixture
def small_windows(monkeypatch):
  monkeypatch.setattr(streams, "WINDOW_CHARS", 100)


def test_windows_hold_all_texts_in_order_within_the_limits(small_windows):
  windows = list(streams.windows(TEXTS, 7))
  assert [text for window in windows for text in window] == TEXTS
  for window in windows:
    assert 1 <= len(window) <= 7 and (len(window) == 1 or sum(map(len, window)) <= 100)
  assert list(streams.windows([], 7)) == []


def test_the_windows_that_follow_do_not_depend_on_where_reading_begins(small_windows):
  windows, done = list(streams.windows(TEXTS, 7)), 0
  for i, window in enumerate(windows):
    assert list(streams.windows(TEXTS[done:], 7)) == windows[i:]
    done += len(window)


def test_texts_are_told_apart_by_all_their_borders():
  lists = [["ab", "c"], ["a", "bc"], ["abc"], ["ab", "c", ""], [], ["", "ab", "c"], ["ab", "d"],
           ["1:ab"], ["2:a", "b"]]
  found = [streams.measure(texts) for texts in lists]
  assert [count for count, _ in found] == [len(texts) for texts in lists]
  assert len({digest for _, digest in found}) == len(lists)
  assert streams.measure(iter(lists[0])) == found[0]


def test_a_line_says_how_far_the_work_is(monkeypatch, capsys):
  clock = iter([0.0, 4.0, 11.0, 12.0, 31.0, 60.0])
  monkeypatch.setattr(streams.time, "monotonic", lambda: next(clock))
  progress = streams.Progress(1000, done=100)
  assert [progress.add(110) for _ in range(4)] == [210, 320, 430, 540]
  progress.add(460)  # The last texts need no line.
  assert capsys.readouterr().err.splitlines() == [
      "note: resuming after 100 of 1,000 texts",
      "320 of 1,000 texts, 20 per second, 34 s left",
      "540 of 1,000 texts, 14 per second, 32 s left"]


@pytest.mark.parametrize("seconds, words", [(0.4, "0 s"), (89, "89 s"), (100, "2 min"),
                                            (5399, "90 min"), (9000, "2.5 h")])
def test_durations_in_words(seconds, words):
  assert streams.describe_seconds(seconds) == words


# ------------------------------------------------------------------- resumable


def test_only_what_was_committed_is_found_again(tmp_path):
  out = tmp_path / "a.npy"
  with pytest.raises(KeyError), streams.resumable(out, {"x": 1}) as work:
    assert work.state == {}
    work.open("rows").write(b"one")
    work.commit(texts=1)
    work.open("rows").write(b"two")
    work.open("more").write(b"three")
    raise KeyError
  assert not out.exists()
  with streams.resumable(out, {"x": 1}) as work:
    assert work.state == {"texts": 1}
    assert work.open("more").read() == b"" and work.open("more").tell() == 0
    work.open("rows").write(b"zwei")
    work.publish("rows")
  assert out.read_bytes() == b"onezwei"
  assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_work_without_a_result_leaves_nothing(tmp_path):
  with pytest.raises(KeyError), streams.resumable(tmp_path / "a.npy", {}) as work:
    work.open("rows").write(b"one")
    raise KeyError
  assert not list(tmp_path.iterdir())


def test_work_of_another_identity_begins_again(tmp_path, capsys):
  out = tmp_path / "a[b].npy"
  with pytest.raises(KeyError), streams.resumable(out, {"x": 1}) as work:
    work.open("rows").write(b"one")
    work.commit(texts=1)
    raise KeyError
  (tmp_path / "a[b].npy.unfinished-0123abcd").write_bytes(b"left by version 0.2")
  (tmp_path / "other.npy.unfinished-0123abcd").write_bytes(b"not ours")
  with streams.resumable(out, {"x": 2}) as work:
    assert work.state == {}
    work.open("rows").write(b"two")
    work.publish("rows")
  assert "was begun with other texts, flags or weights" in capsys.readouterr().err
  assert sorted(path.name for path in tmp_path.iterdir()) == [
      "a[b].npy", "other.npy.unfinished-0123abcd"]


def test_a_folder_of_the_same_key_with_another_identity_begins_again(tmp_path):
  """As if the hashes of two identities began alike."""
  out = tmp_path / "a.npy"
  with pytest.raises(KeyError), streams.resumable(out, {"x": [1, 2]}) as work:
    work.open("rows").write(b"one")
    work.commit(texts=1)
    raise KeyError
  folder, = tmp_path.iterdir()
  assert streams.Unfinished(folder, out, {"x": (1, 2)}).state == {"texts": 1}
  other = streams.Unfinished(folder, out, {"x": [1, 3]})
  assert other.state == {} and other.open("rows").read() == b""
  other.close()


def hold(out, identity, entered, leave):
  with streams.resumable(out, identity):
    entered.set()
    leave.wait(60)


@pytest.mark.parametrize("identity", [{"x": 1}, {"x": 2}])
def test_two_processes_do_not_write_one_file(tmp_path, identity):
  context = multiprocessing.get_context("spawn")
  entered, leave = context.Event(), context.Event()
  process = context.Process(target=hold, args=(tmp_path / "a.npy", {"x": 1}, entered, leave))
  process.start()
  try:
    assert entered.wait(120)
    with pytest.raises(ConfigError, match=f"a.npy: is being written by process {process.pid}"):
      with streams.resumable(tmp_path / "a.npy", identity):
        pass
  finally:
    leave.set()
    process.join()
  with streams.resumable(tmp_path / "a.npy", identity) as work:
    assert json.dumps(work.state) == "{}"


# ---------------------------------------------------------------------- memory


PEAK = """
import resource, sys
from bertgpt import cli
code = cli.main(sys.argv[1:])
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak_mib(*argv):
  """Returns the largest memory of a process that runs a command."""
  env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
  out = subprocess.run([sys.executable, "-c", PEAK, *argv], env=env, capture_output=True, text=True,
                       check=True, timeout=600).stdout
  code, peak = out.splitlines()[-1].split()
  assert code == "0"
  return int(peak)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["embed", "evaluate"])
def test_memory_does_not_grow_with_the_file(request, tmp_path, command):
  """Ten times the text, which as one string alone would be 36 MB more."""
  run = request.getfixturevalue("finished_bert" if command == "embed" else "finished_gpt")
  sentences = small_runs.make_text(2000).replace("\n", " ")
  peaks = []
  for size in (4, 40):
    path = tmp_path / f"{size}.txt"
    with path.open("w") as file:
      for i in range(size * 250):
        file.write(f"{i} {sentences[i % 50 * 100:][:4000]}\n")
    flags = ([f"--input={path}", f"--out={tmp_path / f'{size}.npy'}"] if command == "embed" else
             [f"--suite=text={path}", "--stride=31", "--batch_size=64"])
    peaks.append(peak_mib(command, f"--workdir={run}", *flags))
  assert peaks[1] < peaks[0] + 32, peaks
