"""bertgpt.data.corpus.publishing: folders appear completely or not at all, and replace nothing."""

import contextlib
import math
import os
import threading

import pytest
from corpus_texts import make_config, wait_for, write_text

from bertgpt import files
from bertgpt.data.corpus import prepare, publishing
from bertgpt.data.text import sources
from bertgpt.devices import watchdog
from bertgpt.errors import ConfigError, StorageError


def test_only_the_work_of_this_process_has_a_time_limit(tmp_path, capsys):
  has_limit = []

  def note():
    has_limit.append(watchdog.deadline() < math.inf)

  def build(folder):
    note()
    (folder / "file").write_text("content")

  def wait():
    publishing.publish(tmp_path / "c", note, build)

  watchdog.arm(60)
  try:
    with files.lock(tmp_path / ".c.lock", pytest.fail):
      thread = threading.Thread(target=wait)
      thread.start()
      wait_for(lambda: "waiting for process" in capsys.readouterr().out)
      note()
    thread.join()
    note()
  finally:
    watchdog.disarm()
  assert has_limit == [False, True, True, True]
  assert (tmp_path / "c" / "file").read_text() == "content"


@pytest.mark.parametrize("kind", ["link to an empty folder", "link to nothing", "mount point"])
def test_what_no_folder_can_replace_is_refused_before_anything_is_read(tmp_path, monkeypatch, kind):
  """The rename at the end would fail, after hours."""
  out, config = tmp_path / "corpus", make_config(tmp_path)
  write_text(tmp_path / "text.txt", 20)
  if kind == "mount point":
    out.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(out))
  else:
    out.symlink_to(tmp_path / "far")
  if kind == "link to an empty folder":
    (tmp_path / "far").mkdir()
  monkeypatch.setattr(sources, "identity", lambda *_: pytest.fail("text was read"))
  with pytest.raises(ConfigError, match="corpus: is a link or a mount point.* such as .*/corpus/c"):
    prepare.prepare(config, out)


def test_a_link_to_the_finished_corpus_is_one(tmp_path):
  write_text(tmp_path / "text.txt", 20)
  config = make_config(tmp_path)
  path = prepare.prepare(config, tmp_path / "far")
  (tmp_path / "corpus").symlink_to(path)
  assert prepare.prepare(config, tmp_path / "corpus") == tmp_path / "corpus"


def build_while_taken_over(path, *, is_finished):
  """Returns a `build` during which another process takes the lock over, and may finish."""
  def build(folder):
    path.with_name(f".{path.name}.lock").write_bytes(b'{"holder": "process 8 on far", "key": "1"}')
    (folder / "part").write_text("mine")
    (folder / files.MANIFEST).write_text("mine")
    (path / "part").write_text("theirs")
    if is_finished:
      (path / files.MANIFEST).write_text("theirs")
  return build


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_process_that_lost_its_lock_replaces_nothing(bucket, is_finished):
  path = bucket / "corpus"
  ends = contextlib.nullcontext() if is_finished else pytest.raises(
      StorageError, match="process 8 on far has taken the lock over")
  with ends:
    publishing.publish(path, (path / files.MANIFEST).is_file,
                       build_while_taken_over(path, is_finished=is_finished))
  assert {file.read_text() for file in path.iterdir()} == {"theirs"}


def test_the_lock_is_checked_again_before_a_folder_in_a_bucket_becomes_complete(bucket):
  path, seen = bucket / "corpus", []
  (path / "old").write_text("")
  with files.publish_when_done(path, before=lambda: seen.append([*path.list_tree()])) as folder:
    folder.mkdir()
    (folder / "part").write_text("")
    (folder / files.MANIFEST).write_text("")
  assert seen == [["old"], ["part"]]
