"""bertgpt.files.writing: errors of full disks name the file, and text that is not UTF-8 is kept.

Most tests of this module are in test_files.py.
"""

import errno
import os
import pathlib
import subprocess
import sys

import pytest

from bertgpt import files

ROOT = pathlib.Path(__file__).resolve().parents[2]
FULL_DISK = """
import pathlib, resource, sys
from bertgpt import files
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
  with files.publish_when_done(pathlib.Path(sys.argv[1])) as scratch:
    if IS_FOLDER:
      scratch.mkdir()
      scratch /= "a.txt"
    scratch.write_bytes(bytes(2000))
except OSError as e:
  print(e.errno, e.filename)
"""


@pytest.mark.parametrize("is_folder", [True, False])
def test_the_error_of_a_full_disk_names_what_was_to_be_made(tmp_path, is_folder):
  path = tmp_path / "new"
  code = FULL_DISK.replace("IS_FOLDER", str(is_folder))
  result = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, timeout=1200,
                          capture_output=True, text=True)
  assert (result.stdout, result.stderr) == (f"{errno.EFBIG} {path}\n", "")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number, name, is_named", [
    (errno.ENOSPC, None, True), (errno.EDQUOT, None, True), (errno.EIO, None, True),
    (errno.ENOSPC, "other", False), (errno.EPIPE, None, False)])
def test_an_error_of_something_else_stays_as_it_is(tmp_path, number, name, is_named):
  """A block that writes a file may also read others, or a pipe."""
  error = OSError(number, os.strerror(number), name)
  with pytest.raises(OSError) as e, files.publish_when_done(tmp_path / "new"):
    raise error
  assert e.value.errno == number
  assert e.value.filename == str(tmp_path / "new") if is_named else e.value is error


def test_names_that_are_not_utf_8_are_written_with_escapes(tmp_path):
  name = os.fsdecode(b"caf\xe9")
  files.write_atomically(tmp_path / "a.txt", f"{name} \u00e9\n")
  assert (tmp_path / "a.txt").read_text("utf-8") == "caf\\udce9 \u00e9\n"
  files.write_json(tmp_path / "a.json", {"name": name}, ensure_ascii=False)
  assert files.read_json(tmp_path / "a.json", "") == {"name": name}


def test_an_object_is_written_with_escapes_too(bucket):
  files.write_atomically(bucket / "a.txt", os.fsdecode(b"caf\xe9"))
  assert (bucket / "a.txt").read_bytes() == b"caf\\udce9"


def test_a_path_that_is_being_written_is_known(tmp_path):
  with files.publish_when_done(tmp_path / "new") as scratch:
    scratch.mkdir()
    assert files.is_unfinished(scratch) and not files.is_unfinished(tmp_path / "new")
    assert not files.is_unfinished(scratch / "inside")
