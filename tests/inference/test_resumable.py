"""bertgpt.inference.resumable: interrupted work resumes, and has the same chunks."""

import errno
import itertools
import json
import multiprocessing
import os
import subprocess
import sys

import pytest
import small_runs
from program import ROOT

from bertgpt import files
from bertgpt.errors import ConfigError, DataError
from bertgpt.inference import resumable

TEXTS = [c * n for c, n in zip(itertools.cycle("abcde\u0928"), [*range(50), 0, 0, 300, 7, 90, 1, 1],
                               strict=False)]


@pytest.fixture
def small_chunks(monkeypatch):
  monkeypatch.setattr(resumable, "CHUNK_CHARS", 100)


def test_chunks_hold_all_texts_in_order_within_the_limits(small_chunks):
  chunks = list(resumable.chunks(TEXTS, 7))
  assert [text for chunk in chunks for text in chunk] == TEXTS
  for chunk in chunks:
    assert 1 <= len(chunk) <= 7 and (len(chunk) == 1 or sum(map(len, chunk)) <= 100)
  assert list(resumable.chunks([], 7)) == []


def test_the_chunks_that_follow_do_not_depend_on_where_reading_begins(small_chunks):
  chunks, done = list(resumable.chunks(TEXTS, 7)), 0
  for i, chunk in enumerate(chunks):
    assert list(resumable.chunks(TEXTS[done:], 7)) == chunks[i:]
    done += len(chunk)


def test_texts_are_told_apart_by_all_their_borders():
  lists = [["ab", "c"], ["a", "bc"], ["abc"], ["ab", "c", ""], [], ["", "ab", "c"], ["ab", "d"],
           ["1:ab"], ["2:a", "b"]]
  found = [resumable.measure(texts) for texts in lists]
  assert [count for count, _ in found] == [len(texts) for texts in lists]
  assert len({digest for _, digest in found}) == len(lists)
  assert resumable.measure(iter(lists[0])) == found[0]


# ------------------------------------------------------------------- resumable


def test_only_what_was_committed_is_found_again(tmp_path):
  out = tmp_path / "a.npy"
  with pytest.raises(KeyError), resumable.open_unfinished(out, {"x": 1}) as work:
    assert work.state == {}
    work.open("rows").write(b"one")
    work.commit(texts=1)
    work.open("rows").write(b"two")
    work.open("more").write(b"three")
    raise KeyError
  assert not out.exists()
  with resumable.open_unfinished(out, {"x": 1}) as work:
    assert work.state == {"texts": 1}
    assert work.open("more").read() == b"" and work.open("more").tell() == 0
    work.open("rows").write(b"zwei")
    work.publish("rows")
  assert out.read_bytes() == b"onezwei"
  assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_work_without_a_result_leaves_nothing(tmp_path):
  with pytest.raises(KeyError), resumable.open_unfinished(tmp_path / "a.npy", {}) as work:
    work.open("rows").write(b"one")
    raise KeyError
  assert not list(tmp_path.iterdir())


def interrupt(out, identity):
  """Leaves unfinished work, in which the text "one" is committed."""
  with pytest.raises(KeyError), resumable.open_unfinished(out, identity) as work:
    work.open("rows").write(b"one")
    work.commit(texts=1)
    raise KeyError


def finish(out, identity):
  with resumable.open_unfinished(out, identity) as work:
    work.open("rows").write(b"two")
    work.publish("rows")


def folder_of(out):
  return out.with_name(f"{out.name}.unfinished-results")


def test_an_error_of_a_file_that_is_open_names_the_folder(tmp_path):
  with (pytest.raises(OSError) as e,
        resumable.open_unfinished(tmp_path / "out.jsonl", {"flags": 1})):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  assert e.value.errno == errno.ENOSPC and "out.jsonl" in e.value.filename


def test_work_of_another_identity_is_kept_and_named(tmp_path):
  out = tmp_path / "a[b].npy"
  identity = {"batch_size": 8, "flags": {"window": 16, "limit": 0}, "texts": "0" * 64, "dtype": "a"}
  interrupt(out, identity)
  other = identity | {"batch_size": 9, "flags": {"window": 8, "limit": 0}, "texts": "1" * 64}
  with pytest.raises(ConfigError) as e:
    finish(out, other)
  assert str(e.value) == (
      f"--out {out}: {folder_of(out).name} holds unfinished results of batch_size 8, window 16, "
      f"other texts. Go back to that to finish them, or remove {folder_of(out)} to begin again")
  finish(out, identity)
  assert out.read_bytes() == b"onetwo"
  assert list(tmp_path.iterdir()) == [out]


def test_temporary_files_of_others_are_left_alone(tmp_path):
  """Another command may be writing the same file at the same time."""
  out = tmp_path / "a.npy"
  with files.publish_when_done(out) as scratch:
    scratch.write_bytes(b"theirs")
    other = tmp_path / "a.npy.unfinished-0123abcd"
    other.mkdir()
    finish(out, {})
    out.unlink()
    interrupt(out, {})
    with pytest.raises(ConfigError):
      finish(out, {"x": 1})
    resumable.check_out(out, (".npy",))
    assert scratch.read_bytes() == b"theirs" and other.is_dir()
  assert out.read_bytes() == b"theirs"


@pytest.fixture(params=[True, False], ids=["links", "no_links"])
def links(request, monkeypatch):
  """A file system with hard links, and one without."""
  def refuse(*args, **options):
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

  if not request.param:
    monkeypatch.setattr(files.writing.os, "link", refuse)


@pytest.mark.parametrize("is_link", [False, True])
def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path, links, is_link):
  out = tmp_path / "a.npy"
  with pytest.raises(ConfigError, match="a.npy: was made by another program meanwhile"):
    with resumable.open_unfinished(out, {}) as work:
      work.open("rows").write(b"one")
      work.commit(texts=1)
      out.symlink_to("nowhere") if is_link else out.write_bytes(b"precious")
      work.publish("rows")
  assert out.is_symlink() if is_link else out.read_bytes() == b"precious"
  with (pytest.raises(ConfigError, match="a.npy: exists already"),
        resumable.open_unfinished(out, {})):
    pass
  out.unlink()
  finish(out, {})  # What was computed is still there.
  assert out.read_bytes() == b"onetwo" and list(tmp_path.iterdir()) == [out]


def test_refusing_a_file_that_exists_keeps_unfinished_work(tmp_path):
  out = tmp_path / "a.npy"
  interrupt(out, {})
  out.write_bytes(b"precious")
  with pytest.raises(ConfigError, match="exists already"):
    resumable.check_out(out, (".npy",))
  out.unlink()
  resumable.check_out(out, (".npy",))
  finish(out, {})
  assert out.read_bytes() == b"onetwo"


def test_a_folder_that_was_left_after_the_file_was_made_is_removed(tmp_path, monkeypatch):
  out = tmp_path / "a.npy"
  with monkeypatch.context() as killed:
    killed.setattr(resumable.shutil, "rmtree", lambda *args, **options: None)
    finish(out, {})
  assert folder_of(out).is_dir()
  with pytest.raises(ConfigError, match="exists already"):
    resumable.check_out(out, (".npy",))
  assert list(tmp_path.iterdir()) == [out] and out.read_bytes() == b"two"


def test_a_published_folder_whose_file_is_gone_begins_again(tmp_path, monkeypatch):
  out = tmp_path / "a.npy"
  with monkeypatch.context() as killed:
    killed.setattr(resumable.shutil, "rmtree", lambda *args, **options: None)
    finish(out, {})
  out.unlink()
  finish(out, {"x": 1})
  assert list(tmp_path.iterdir()) == [out] and out.read_bytes() == b"two"


@pytest.mark.parametrize("name, content, fragment", [
    ("rows", b"on", "rows: is shorter than was saved. Remove "),
    ("rows", None, "rows: is shorter than was saved. Remove "),
    ("state.json", b"{", "state.json: is not valid JSON"),
    ("state.json", b"{}", "state.json: is not the state of unfinished results. Remove ")])
def test_damaged_work_is_an_error(tmp_path, name, content, fragment):
  out = tmp_path / "a.npy"
  interrupt(out, {})
  path = folder_of(out) / name
  path.unlink() if content is None else path.write_bytes(content)
  with pytest.raises(DataError) as e:
    finish(out, {})
  assert fragment in str(e.value) and str(folder_of(out)) in str(e.value)
  assert not out.exists()


@pytest.mark.parametrize("again", [["a", "b"], ["a", "b", "c", "d"], ["a", "b", "d"], [],
                                   ["a", "bc"], ["b", "a", "c"]])
def test_texts_that_change_are_an_error_and_what_they_gave_is_removed(tmp_path, again):
  measured = resumable.measure(["a", "b", "c"])
  assert list(resumable.reread(["a", "b", "c"], measured, "--input a")) == ["a", "b", "c"]
  computed = []
  with pytest.raises(DataError, match="--input a: changed while it was read"):
    with resumable.open_unfinished(tmp_path / "a.npy", {}) as work:
      for chunk in resumable.chunks(resumable.reread(again, measured, "--input a"), 1):
        computed += chunk
        work.commit(texts=len(computed))
  assert len(computed) < 3 and not list(tmp_path.iterdir())


def hold(out, identity, entered, leave):
  with resumable.open_unfinished(out, identity):
    entered.set()
    leave.wait(1200)


@pytest.mark.parametrize("identity", [{"x": 1}, {"x": 2}])
def test_two_processes_do_not_write_one_file(tmp_path, identity):
  context = multiprocessing.get_context("spawn")
  entered, leave = context.Event(), context.Event()
  process = context.Process(target=hold, args=(tmp_path / "a.npy", {"x": 1}, entered, leave))
  process.start()
  try:
    assert entered.wait(1200)
    with pytest.raises(ConfigError, match=f"a.npy: is being written by process {process.pid}"):
      with resumable.open_unfinished(tmp_path / "a.npy", identity):
        pass
  finally:
    leave.set()
    process.join()
  with resumable.open_unfinished(tmp_path / "a.npy", identity) as work:
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
                       check=True, timeout=1200).stdout
  code, peak = out.splitlines()[-1].split()
  assert code == "0"
  return int(peak)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["embed", "evaluate"])
def test_memory_does_not_grow_with_the_file(request, tmp_path, command):
  """The text is ten times as long; the string alone would take 36 MB more."""
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
