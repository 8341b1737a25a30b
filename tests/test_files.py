"""bertgpt.files: atomic writes despite crashes, one holder of a lock, JSON errors on one line."""

import errno
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

import pytest

from bertgpt import files
from bertgpt.data.text import texts
from bertgpt.errors import ConfigError, DataError, StorageError
from bertgpt.files import writing

ROOT = pathlib.Path(__file__).parents[1]


def names_in(folder: pathlib.Path) -> list[str]:
  return sorted(path.name for path in folder.iterdir())


def start(code: str, *arguments) -> subprocess.Popen:
  """Starts Python code in a separate process, which can be killed; its output is text."""
  return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# ----------------------------------------------------------------- writing


@pytest.mark.parametrize("content", ["", "a\r\nb\n\u00e9\u2028", b"\x00\xff\r\n"])
def test_a_file_holds_what_was_written(tmp_path, content):
  path = tmp_path / "a.txt"
  for before in (None, b"what was there before, which is longer than the new content"):
    if before:
      path.write_bytes(before)
    files.write_atomically(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert names_in(tmp_path) == ["a.txt"]


def test_a_file_may_be_read_by_those_who_may_read_any_other(tmp_path):
  (tmp_path / "ordinary").write_text("")
  files.write_atomically(tmp_path / "a.txt", "")
  assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


FULL_DISK = """
import pathlib, resource, sys
from bertgpt import files
from bertgpt.data.text import texts
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
  files.write_atomically(pathlib.Path(sys.argv[1]), "new" * 1000)
except OSError as e:
  print(e.errno, e.filename)
"""


def test_a_disk_that_is_full_leaves_the_old_content_and_is_named(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("old")
  out, err = start(FULL_DISK, path).communicate(timeout=1200)
  assert (out, err) == (f"{errno.EFBIG} {path}\n", "")
  assert (path.read_text(), names_in(tmp_path)) == ("old", ["a.txt"])


def test_a_folder_that_is_missing_is_an_error_that_names_the_file(tmp_path):
  with pytest.raises(FileNotFoundError) as e:
    files.write_atomically(tmp_path / "none" / "a.txt", "text")
  assert e.value.filename == str(tmp_path / "none" / "a.txt")


REWRITE = """
import pathlib, sys
from bertgpt import files
from bertgpt.data.text import texts
path = pathlib.Path(sys.argv[1])
print("ready", flush=True)
while True:
  for letter in "ab":
    files.write_atomically(path, letter * 2**22)
"""


def test_kill_9_leaves_the_old_content_or_the_new(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("a" * 2**22)
  for round_ in range(10):
    process = start(REWRITE, path)
    process.stdout.readline()
    time.sleep(0.007 * round_)
    process.kill()
    process.communicate()
    content = path.read_text()
    assert content == content[0] * 2**22 and content[0] in "ab"
  files.remove_leftovers(tmp_path)
  assert names_in(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("code", [
    "files.append(path, 'line')", "contextlib.ExitStack().enter_context(files.lock(path, print))"])
def test_a_full_disk_is_named_by_all_that_writes_to_open_files(tmp_path, code):
  result = subprocess.run([sys.executable, "-c", textwrap.dedent(f"""
      import contextlib, pathlib, resource, sys
      from bertgpt import files
      path = pathlib.Path(sys.argv[1])
      resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
      try:
        {code}
      except OSError as e:
        sys.exit(f"{{e.filename}}: {{e.strerror}}")
      """), str(tmp_path / "file")], capture_output=True, text=True, timeout=1200)
  assert result.stderr == f"{tmp_path / 'file'}: File too large\n"


def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_return(
    tmp_path, monkeypatch):
  synced, sync = [], os.fsync

  def record(descriptor):
    sync(descriptor)
    name = pathlib.Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    synced.append((name.name.partition(".unfinished-")[0], (tmp_path / "new").exists()))

  monkeypatch.setattr(os, "fsync", record)
  with files.publish_when_done(tmp_path / "new") as scratch:
    (scratch / "inside").mkdir(parents=True)
    (scratch / "inside" / "a.txt").write_text("a")
  assert sorted(synced[:-1]) == [("a.txt", False), ("inside", False), ("new", False)]
  assert synced[-1] == (tmp_path.name, True)


def test_a_folder_appears_with_all_that_is_in_it(tmp_path):
  with files.publish_when_done(tmp_path / "new") as scratch:
    scratch.mkdir()
    (scratch / "a.txt").write_text("a")
    assert scratch.parent == tmp_path and not (tmp_path / "new").exists()
  assert names_in(tmp_path) == ["new"] and names_in(tmp_path / "new") == ["a.txt"]


WRITE_FOLDER = """
import pathlib, sys
from bertgpt import files
from bertgpt.data.text import texts
with files.new_folder(pathlib.Path(sys.argv[1]), "--out") as folder:
  (folder / "a.txt").write_text("half")
  print("ready", flush=True)
  sys.stdin.readline()
"""


def test_what_a_killed_process_leaves_of_a_folder_is_removed_by_the_next(tmp_path):
  living, killed = start(WRITE_FOLDER, tmp_path / "living"), start(WRITE_FOLDER, tmp_path / "new")
  for process in (living, killed):
    process.stdout.readline()
  killed.kill()
  killed.communicate()
  for name in ("new", "living"):
    assert len(list(tmp_path.glob(f"{name}.unfinished-*"))) == 1
    with pytest.raises(ValueError), files.new_folder(tmp_path / name, "--out"):
      raise ValueError
  assert [name.partition("-")[0] for name in names_in(tmp_path)] == ["living.unfinished"]
  living.communicate("\n")
  assert living.returncode == 0 and names_in(tmp_path) == ["living"]


def test_of_two_programs_that_make_one_folder_one_succeeds(tmp_path, monkeypatch):
  """The second one starts while the first one, which has written all files, synchronizes them."""
  sync = writing.sync

  def sync_next_to_another(path):
    monkeypatch.setattr(writing, "sync", sync)
    with files.new_folder(tmp_path / "new", "--out") as folder:
      (folder / "b.txt").write_text("second")
    sync(path)

  monkeypatch.setattr(writing, "sync", sync_next_to_another)
  with pytest.raises(ConfigError, match="--out .*new: was made by another program meanwhile. Name"
                                        " another folder"):
    with files.new_folder(tmp_path / "new", "--out") as folder:
      (folder / "a.txt").write_text("first")
  assert names_in(tmp_path) == ["new"] and names_in(tmp_path / "new") == ["b.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("is_folder", [True, False])
def test_an_error_leaves_nothing(tmp_path, error, is_folder):
  with pytest.raises(error), files.publish_when_done(tmp_path / "new") as scratch:
    if is_folder:
      scratch.mkdir()
      scratch /= "a.txt"
    scratch.write_text("a")
    raise error
  assert names_in(tmp_path) == []


def test_a_folder_replaces_an_empty_one_only(tmp_path):
  def publish():
    with files.publish_when_done(tmp_path / "new") as scratch:
      scratch.mkdir()
      (scratch / "b.txt").write_text("b")

  (tmp_path / "new").mkdir()
  publish()
  (tmp_path / "new" / "b.txt").rename(tmp_path / "new" / "a.txt")
  with pytest.raises(OSError):
    publish()
  assert names_in(tmp_path) == ["new"] and names_in(tmp_path / "new") == ["a.txt"]


def test_leftovers_are_told_from_other_files(tmp_path):
  others = ["a[1].unfinished-notes", "b", "a[1]", "a[1].unfinished-0123456789"]
  for name in others:
    (tmp_path / name).write_text("")
  (tmp_path / "a[1].unfinished-01ab23cd").write_text("")
  (tmp_path / "b.unfinished-01ab23cd" / "inside").mkdir(parents=True)
  files.remove_leftovers(tmp_path, "a[1]")
  assert names_in(tmp_path) == sorted([*others, "b.unfinished-01ab23cd"])
  files.remove_leftovers(tmp_path)
  assert names_in(tmp_path) == sorted(others)


# ----------------------------------------------------------------- locking


HOLD = """
import os, pathlib, sys
from bertgpt import files
from bertgpt.data.text import texts
with files.lock(pathlib.Path(sys.argv[1]), lambda holder: print(holder, flush=True)):
  print("locked by", os.getpid(), flush=True)
  sys.stdin.read()
"""


def test_a_lock_is_waited_for_until_its_holder_is_killed(tmp_path):
  first = start(HOLD, tmp_path / "lock")
  assert first.stdout.readline() == f"locked by {first.pid}\n"
  second = start(HOLD, tmp_path / "lock")
  assert second.stdout.readline() == f"process {first.pid} on {os.uname().nodename}\n"
  first.send_signal(signal.SIGKILL)
  assert second.stdout.readline() == f"locked by {second.pid}\n"
  first.communicate()
  assert second.communicate()[1] == ""


def test_whoever_does_not_want_to_wait_raises(tmp_path):
  def refuse(holder):
    raise DataError(f"held by {holder}")

  with files.lock(tmp_path / "lock", refuse):
    with pytest.raises(DataError, match=f"^held by process {os.getpid()} on "), \
         files.lock(tmp_path / "lock", refuse):
      raise AssertionError
  with files.lock(tmp_path / "lock", refuse):
    pass


def test_a_lock_whose_file_was_removed_by_its_holder_is_taken_in_the_new_file(tmp_path):
  """A run that is refused removes its lock, and a waiting process has that file open."""
  path = tmp_path / "lock"
  holder = start(HOLD, path)
  holder.stdout.readline()

  def remove(_):
    path.unlink()
    holder.communicate("")

  def refuse(found):
    raise DataError(f"held by {found}")

  with files.lock(path, remove):
    with pytest.raises(DataError, match=f"held by process {os.getpid()} "), \
         files.lock(path, refuse):
      raise AssertionError


def test_a_file_system_whose_numbers_of_files_change_costs_no_endless_loop(tmp_path, monkeypatch):
  monkeypatch.setattr(os.path, "samestat", lambda a, b: False)
  with files.lock(tmp_path / "lock", lambda holder: None):
    assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_file_system_without_locks_costs_a_warning(tmp_path, monkeypatch, capsys):
  def fail(file, operation):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

  monkeypatch.setattr(fcntl, "flock", fail)
  with files.lock(tmp_path / "lock", lambda holder: None):
    pass
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f"WARNING: {tmp_path}/lock: this file system has no locks (")


# -------------------------------------------------------------------- JSON


def test_json_is_read_as_it_was_written(tmp_path):
  content = {"b": [1, 2.5, None, True], "a": {"\u00e9\u2028": "\U0001f600"}}
  files.write_json(tmp_path / "a.json", content)
  assert files.read_json(tmp_path / "a.json", "") == content
  assert list(files.read_json(tmp_path / "a.json", "")) == ["b", "a"]
  files.write_json(tmp_path / "a.json", content, indent=None, sort_keys=True, ensure_ascii=False)
  assert (tmp_path / "a.json").read_text("utf-8").startswith('{"a": {"\u00e9')


def test_numbers_that_json_lacks_are_written_as_null(tmp_path):
  content = {"a": [float("nan"), 1.5], "b": {"c": float("-inf")}, "d": (float("inf"), "NaN")}
  files.write_json(tmp_path / "a.json", content)
  assert files.read_json(tmp_path / "a.json", "") == {
      "a": [None, 1.5], "b": {"c": None}, "d": [None, "NaN"]}


@pytest.mark.parametrize("content, reason", [
    (b"", "is not valid JSON (Expecting value"),
    (b'{"a": 1', "is not valid JSON (Expecting ','"),
    (b'{"a": 1} x', "is not valid JSON (Extra data"),
    (b'{"a": "\xff"}', "is not valid JSON ('utf-8' codec can't decode byte 0xff in position 7"),
    ('{"a": 1}'.encode("utf-16"), "is not valid JSON ('utf-8' codec"),
    (b"\x00" * 100, "is not valid JSON"),
    (b'{"a": ' + b"9" * 5000 + b"}", "is not usable JSON (a number has more than"),
    (b"[" * 100_000, "is not usable JSON (nested too deeply)"),
    (b'{"a": NaN}', "is not valid JSON (NaN is not a finite number)"),
    (b'{"a": [-Infinity]}', "is not valid JSON (-Infinity is not a finite number)"),
    (b'{"b": {"a": 1, "c": 2, "a": 3}}', "is not valid JSON (the key 'a' occurs twice)"),
    (b"[1]", "holds JSON of type list instead of dict"),
    (b"null", "holds JSON of type NoneType instead of dict"),
])
def test_invalid_json_is_one_line_that_names_the_file(tmp_path, content, reason):
  path = tmp_path / "a.json"
  path.write_bytes(content)
  with pytest.raises(DataError) as e:
    files.read_json(path, "Fetch it again")
  line = str(e.value)
  assert line.startswith(f"{path}: {reason}")
  assert line.endswith(". Fetch it again") and "\n" not in line


def test_a_file_that_cannot_be_read_is_one_line_that_names_it(tmp_path):
  for path, reason in ((tmp_path / "none", "No such file or directory"),
                       (tmp_path, "Is a directory")):
    with pytest.raises(DataError) as e:
      files.read_json(path, "Fetch it again")
    assert str(e.value) == f"{path}: cannot be read ({reason}). Fetch it again"


def test_another_type_may_be_asked_for(tmp_path):
  (tmp_path / "a.json").write_text("[1]")


def test_foreign_json_may_hold_what_python_writes():
  assert str(files.parse_json('{"a": NaN, "b": 1, "b": -Infinity}')) == "{'a': nan, 'b': -inf}"
  assert files.parse_json(b'\xef\xbb\xbf{"a": "\xc3\xa9"}') == {"a": "\u00e9"}
  assert files.parse_json(json.dumps([1, "a"])) == [1, "a"]


@pytest.mark.parametrize("text", ["", "{", b"\xff", "[" * 100_000, "9" * 5000])
def test_every_failure_to_parse_is_one_kind_of_error(text):
  with pytest.raises(ValueError, match=r"^is not (valid|usable) JSON \(") as e:
    files.parse_json(text)
  assert type(e.value) is ValueError and "\n" not in str(e.value)


def test_a_new_file_replaces_none_that_appears_while_it_is_written(tmp_path):
  path = tmp_path / "a.txt"
  with pytest.raises(ConfigError, match="--output .*a.txt: was made by another program meanwhile"):
    with files.publish_when_done(path, "--output") as scratch:
      scratch.write_text("ours")
      path.write_text("precious")
  assert path.read_text() == "precious" and names_in(tmp_path) == ["a.txt"]
  path.unlink()
  with files.publish_when_done(path, "--output") as scratch:
    scratch.write_text("ours")
  assert path.read_text() == "ours" and names_in(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("name", ["file/new", "file/new/newer"])
def test_a_folder_is_not_made_inside_a_file(tmp_path, name):
  (tmp_path / "file").write_text("x")
  with (pytest.raises(ConfigError, match=f"--out .*{name}: a part of this path is a file"),
        files.new_folder(tmp_path / name, "--out")):
    pass
  assert (tmp_path / "file").read_text() == "x"


def test_an_input_that_is_not_a_file_is_called_what_it_is(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  for name, message in (("none", "no such file"), ("", "is a folder. Give a file"),
                        ("pipe", "is not a regular file. Write its content to one first"),
                        ("-", "standard input cannot be read. Write it to a file first")):
    for read in (files.require_file, texts.read_texts):
      with pytest.raises(ConfigError) as e:
        read(tmp_path / name, "--input")
      assert str(e.value) == f"--input {tmp_path / name}: {message}"


def take_over(path):
  """Takes a lock as another process, after the server of a network disk has released it."""
  path.write_text("process 8 on other\n0-1-2-3\nits key\n")


def test_the_holder_of_a_lock_on_a_disk_learns_that_it_was_taken_over(tmp_path, monkeypatch):
  path = tmp_path / "lock"
  files.check_lock(path)  # It is not held here.
  (tmp_path / "folder").mkdir()
  monkeypatch.chdir(tmp_path)
  with files.lock(pathlib.Path("lock"), lambda holder: None):
    files.check_lock(path)
    files.check_lock(path.parent / "folder" / ".." / "lock")
    take_over(path)
    with pytest.raises(StorageError, match=f"^{path}: process 8 on other has taken the lock over"):
      files.check_lock(path)
  files.check_lock(path)


def test_a_process_that_takes_over_a_lock_under_the_same_name_is_another_one(tmp_path):
  """A pod may have the name, the process ID and even the machine of the one before."""
  path = tmp_path / "lock"
  with files.lock(path, lambda holder: None):
    name, machine, _ = path.read_text().splitlines()
    path.write_text(f"{name}\n{machine}\nits key\n")
    with pytest.raises(StorageError, match=f"{name} has taken the lock over"):
      files.check_lock(path)


def test_the_holder_of_a_lock_learns_that_its_file_was_deleted(tmp_path):
  with files.lock(tmp_path / "lock", lambda holder: None):
    (tmp_path / "lock").unlink()
    with pytest.raises(StorageError, match="was deleted"):
      files.check_lock(tmp_path / "lock")


@pytest.mark.parametrize("folder, wanted", [(0o755, 0o644), (0o775, 0o664), (0o1777, 0o666),
                                            (0o700, 0o644)])
def test_who_may_write_to_a_folder_may_take_a_lock_in_it(tmp_path, folder, wanted):
  """Otherwise the second user of a shared cache could not take turns with the first."""
  tmp_path.chmod(folder)
  with files.lock(tmp_path / "lock", lambda holder: None):
    assert (tmp_path / "lock").stat().st_mode & 0o7777 == wanted


AS_ANOTHER = """
import os, pathlib, sys
from bertgpt import files
if not os.geteuid():
  os.setgroups([])
  os.setgid(65534)
  os.setuid(65534)
""" + HOLD.partition("texts\n")[2]


def test_a_lock_that_may_only_be_read_is_taken_all_the_same():
  """Such as one that another user made with an earlier version."""
  with tempfile.TemporaryDirectory() as name:  # The folders of pytest are private.
    folder = pathlib.Path(name)
    folder.chmod(0o777)
    path = folder / "lock"
    path.write_text("process 7 on earlier\n")
    path.chmod(0o444)
    other = start(AS_ANOTHER, path)
    assert other.stdout.readline() == f"locked by {other.pid}\n", other.communicate()[1]
    held = []
    threading.Timer(0.2, other.stdin.close).start()
    with files.lock(path, held.append):
      assert [str(holder) for holder in held] == ["process 7 on earlier"]
      files.check_lock(path)
    assert other.wait() == 0


def test_a_lock_in_a_folder_that_cannot_be_written_is_one_error(tmp_path):
  with pytest.raises(OSError, match="/proc/lock"), \
       files.lock(pathlib.Path("/proc/lock"), lambda holder: None):
    raise AssertionError
