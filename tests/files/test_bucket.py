"""Paths in a bucket behave like paths on a disk, and a storage that does not answer is an error."""

import contextlib
import errno
import gzip
import io
import json
import os
import pathlib
import threading
import time
import urllib.request

import bucket_server
import pytest

from bertgpt import files
from bertgpt.errors import ConfigError, DataError, StorageError, exit_code
from bertgpt.files import bucket as bucket_lib
from bertgpt.files import gcs, paths

NAMES = ("a.txt", "b/c.txt", "b/d/e.jsonl", "b/d/[f]", "g h/\u00e9%2F.bin", "b/.e.jsonl", ".h/i")


@pytest.fixture
def both(bucket, tmp_path):
  """The same files in a folder on a disk and in a bucket."""
  for name in NAMES:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    for root in (tmp_path, bucket):
      (root / name).write_bytes(name.encode() * 3)
  return tmp_path, bucket


def test_names_are_those_of_pathlib():
  ours, theirs = files.make_path("gs://b/x/y/z.tar.gz"), pathlib.PurePosixPath("/b/x/y/z.tar.gz")
  for name in ("name", "stem", "suffix"):
    assert getattr(ours, name) == getattr(theirs, name)
  assert str(ours.parent / "n") == "gs://b/x/y/n" == str(ours.with_name("n"))
  assert list(map(str, ours.parents)) == ["gs://b/x/y", "gs://b/x", "gs://b"]
  assert ours.relative_to(ours.parents[1]) == "y/z.tar.gz"
  assert os.fspath(files.make_path("gs://b//x/../y/")) == "gs://b/y"
  assert sorted([ours, ours.parent]) == [ours.parent, ours]


@pytest.mark.parametrize("text, message", [
    ("gs://", "names no bucket"), ("gs:///x", "names no bucket"),
    ("s3://b/x", "Mount the bucket"), ("hdfs://b/x", "only local paths and gs://")])
def test_other_storages_are_refused_with_what_to_do(text, message):
  with pytest.raises(ConfigError, match=message):
    files.make_path(text)


def test_the_home_of_an_unknown_user_is_refused():
  with pytest.raises(ConfigError, match="~nobody-here/x: there is no user of this name"):
    files.make_path("~nobody-here/x")


@pytest.mark.parametrize("name", ["~", "~/runs"])
def test_a_user_without_a_home_is_told_what_to_set(monkeypatch, name):
  """As in a container whose user has a number, but no line in /etc/passwd."""
  monkeypatch.delenv("HOME", raising=False)
  monkeypatch.setattr("os.getuid", lambda: 54321)
  with pytest.raises(ConfigError, match=f"^{name}: this user has no home folder. Set HOME"):
    files.make_path(name)


def test_queries_give_what_a_disk_gives(both):
  def describe(root):
    place = lambda path: os.fspath(path).removeprefix(f"{root}/")
    return [
        sorted(place(p) for p in root.iterdir()), sorted(place(p) for p in root.glob("*/*.txt")),
        sorted(place(p) for p in root.glob("b/*")), sorted(place(p) for p in root.glob("none/*")),
        [((root / n).is_file(), (root / n).is_dir(), (root / n).exists(),
          (root / n).read_bytes() if (root / n).is_file() else None)
         for n in (*NAMES, "b", "b/d", "none", "a", "b/c")],
        [(root / n).stat().st_size for n in NAMES]]

  on_disk, in_bucket = both
  assert describe(in_bucket) == describe(on_disk)
  assert sorted(in_bucket.list_tree()) == sorted(NAMES)


def test_a_missing_object_is_a_missing_file(both):
  for root in both:
    with pytest.raises(FileNotFoundError) as e:
      (root / "none").read_bytes()
    assert e.value.filename == os.fspath(root / "none") and e.value.errno == errno.ENOENT
    with pytest.raises(FileNotFoundError):
      (root / "none").unlink()
    (root / "none").unlink(missing_ok=True)


def test_a_listing_of_several_pages_is_complete(bucket, storage):
  names = [f"{i:04d}" for i in range(1100)]
  bucket_lib.in_parallel(lambda name: (bucket / name).write_bytes(b""), names)
  assert [p.name for p in bucket.iterdir()] == names


def test_an_object_that_the_storage_unpacks_is_refused(bucket, storage, tmp_path):
  """Its size is that of the packed bytes, where a reader would stop."""
  name = str(bucket / "x.txt").split("/", 3)[3]
  body = (b'--B\r\nContent-Type: application/json\r\n\r\n'
          + json.dumps({"name": name, "contentEncoding": "gzip"}).encode()
          + b"\r\n--B\r\nContent-Type: text/plain\r\n\r\n"
          + gzip.compress(b"text\n" * 1000) + b"\r\n--B--")
  urllib.request.urlopen(urllib.request.Request(
      f"{storage.url}/upload/storage/v1/b/{bucket_server.BUCKET}/o?uploadType=multipart", body,
      {"Content-Type": "multipart/related; boundary=B"})).close()
  for read in (files.open_read, lambda path: path.download(tmp_path / "x")):
    with pytest.raises(DataError, match="stored with Content-Encoding: gzip"):
      read(bucket / "x.txt")


def test_a_range_that_is_not_whole_is_an_error(bucket):
  (bucket / "x").write_bytes(b"abc")
  with pytest.raises(OSError, match="3 bytes instead of 5 were read"):
    (bucket / "x").read_range(0, 5)


def test_reading_in_blocks_gives_the_content(bucket, tmp_path, monkeypatch):
  monkeypatch.setattr(bucket_lib, "BLOCK_BYTES", 1000)
  content = os.urandom(12_345)
  (tmp_path / "local").write_bytes(content)
  (bucket / "x").upload(tmp_path / "local")
  with files.open_read(bucket / "x") as ours, io.BytesIO(content) as theirs:
    for seek, size in ((0, 10), (11_999, 400), (500, 2500), (12_340, 100), (3, -1)):
      assert ours.seek(seek) == theirs.seek(seek)
      assert ours.read(size) == theirs.read(size)
      assert ours.tell() == theirs.tell()
  (bucket / "x").download(tmp_path / "copy")
  assert (tmp_path / "copy").read_bytes() == content


def test_an_object_that_is_replaced_while_it_is_read_is_an_error(bucket, monkeypatch):
  monkeypatch.setattr(bucket_lib, "BLOCK_BYTES", 1000)
  (bucket / "x").write_bytes(b"a" * 5000)
  with files.open_read(bucket / "x") as file:
    assert file.read(10) == b"a" * 10
    (bucket / "x").write_bytes(b"b" * 5000)
    with pytest.raises(OSError, match="replaced or deleted while it was read"):
      file.read()


def test_a_folder_with_a_marker_is_a_folder(bucket):
  """Cloud Console and gcsfuse write an empty object at the name of a folder."""
  for name in ("f/", "f/g/"):
    bucket_lib.BucketPath.write_bytes(marker(bucket, name), b"")
  assert not (bucket / "f").exists()
  (bucket / "f" / "g" / "x").write_bytes(b"")
  assert (bucket / "f").is_dir() and [path.name for path in (bucket / "f").iterdir()] == ["g"]


def marker(bucket, name):
  path = bucket / name.rstrip("/")
  path._key += "/"
  return path


@pytest.mark.parametrize("pattern", ["*.txt", "b/*", "**/*.txt", "b/**", "**/e.jsonl", "b/d/[f]",
                                     "b/[abc].txt", "*/?.txt", "none/*", "none", "**", "b?c.txt",
                                     "b[!x]c.txt", "b/*.jsonl", "b/.*", "**/*", "**/b/**/e*",
                                     ".h/*", "*/**", "[ab]/[!d]*"])
def test_globs_match_what_glob_matches(both, pattern):
  import glob
  on_disk, in_bucket = both
  expected = sorted(os.path.relpath(p, on_disk) for p in glob.glob(
      os.path.join(on_disk, pattern), recursive=True) if os.path.isfile(p))
  if pattern == "b/d/[f]":  # The object with exactly this name takes precedence, as for files.
    expected = ["b/d/[f]"]
  found = files.match_objects(f"{in_bucket}/{pattern}")
  assert [path.removeprefix(f"{in_bucket}/") for path in found] == expected


# ------------------------------------------------------------------ writing


def test_a_folder_is_uploaded_with_its_manifest_last_and_deleted_with_it_first(bucket, storage):
  with files.new_folder(bucket / "new", "--out") as folder:
    for name in ("z.txt", "manifest.json", "a/b.txt"):
      (folder / name).parent.mkdir(exist_ok=True)
      (folder / name).write_text(name)
    assert not (bucket / "new").exists()
  assert "manifest.json" in storage.requests[-1][1]
  with pytest.raises(ConfigError, match="exists already"), files.new_folder(bucket / "new", "--o"):
    pass
  storage.requests.clear()
  (bucket / "new").remove_tree()
  deleted = [path for method, path in storage.requests if method == "DELETE"]
  assert deleted[0].endswith("manifest.json") and len(deleted) > 2
  assert not bucket.exists()


def test_a_folder_that_appears_while_another_is_written_is_kept(bucket):
  with pytest.raises(ConfigError, match="--out .*new: exists already. Name a new one"):
    with files.new_folder(bucket / "new", "--out") as folder:
      (folder / "a.txt").write_text("late")
      (bucket / "new" / "b.txt").write_bytes(b"first")
  assert [path.name for path in (bucket / "new").iterdir()] == ["b.txt"]


def test_nothing_is_uploaded_if_the_writing_fails(bucket):
  with pytest.raises(ZeroDivisionError), files.publish_when_done(bucket / "x") as scratch:
    scratch.write_text("half")
    raise ZeroDivisionError
  assert not (bucket / "x").exists()


def test_a_renamed_folder_is_complete_in_one_place_at_any_time(bucket, storage):
  for name in ("params/0", "params/1", "manifest.json"):
    (bucket / "1" / name).write_bytes(b"x")
  storage.requests.clear()
  (bucket / "1").rename(bucket / "damaged-1-0")
  writes = [path for method, path in storage.requests if method in ("POST", "DELETE")]
  copies = [i for i, path in enumerate(writes) if "/rewriteTo/" in path]
  manifests = [i for i, path in enumerate(writes) if "manifest.json" in path]
  assert manifests[:2] == [copies[-1], copies[-1] + 1]  # Copied last, deleted first.
  assert sorted(bucket.list_tree()) == [f"damaged-1-0/{n}" for n in (
      "manifest.json", "params/0", "params/1")]


def test_a_growing_file_is_uploaded_whole(bucket):
  path = bucket / "metrics.jsonl"
  path.write_bytes(b"1\n")
  with files.open_growing(path) as file:
    file.write(b"2\n3")
    assert path.read_bytes() == b"1\n"
    files.upload_all()
    assert path.read_bytes() == b"1\n2\n"  # Without the line that is being written.
    file.write(b"3\n")
  assert path.read_bytes() == b"1\n2\n33\n"
  files.append(path, "4")
  assert path.read_bytes() == b"1\n2\n33\n4\n"


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("way", [files.upload, lambda file: files.upload_all(),
                                 lambda file: file.close()], ids=["upload", "upload_all", "close"])
def test_what_another_process_has_written_is_not_replaced(bucket, is_there, way):
  """For example the process that has taken over the lock of a run."""
  path = bucket / "metrics.jsonl"
  if is_there:
    path.write_bytes(b"1\n")
  file = files.open_growing(path)
  file.write(b"2\n")
  path.write_bytes(b"of another process\n")
  with pytest.raises(OSError) as e:
    way(file)
  assert (e.value.errno, e.value.filename) == (errno.ESTALE, str(path))
  with contextlib.suppress(OSError):
    file.close()
  assert path.read_bytes() == b"of another process\n"


def test_a_growing_file_whose_upload_was_stored_but_not_answered_grows_on(bucket, storage):
  path, lost = bucket / "metrics.jsonl", []

  def lose_answer(method, name, when):
    if method == "POST" and when == "after" and not lost:
      lost.append(name)
      raise ConnectionError

  with files.open_growing(path) as file:
    file.write(b"1\n")
    storage.faults.on_request = lose_answer
    files.upload(file)
    assert lost and path.read_bytes() == b"1\n"
    file.write(b"2\n")
    files.upload_all()
    file.write(b"3\n")
  assert path.read_bytes() == b"1\n2\n3\n"


def test_a_local_copy_of_a_folder(both):
  on_disk, in_bucket = both
  copy = files.copy_locally(in_bucket)
  assert {name: (copy / name).read_bytes() for name in NAMES} == {
      name: (on_disk / name).read_bytes() for name in NAMES}
  assert files.copy_locally(on_disk) == on_disk
  files.remove_copies()
  assert not copy.parents[1].exists()
  assert (files.copy_locally(in_bucket) / NAMES[0]).is_file()


ODD_NAMES = ["a/../../../x", "/x", "a//x", "a/./x"]  # The server of the tests cannot hold these.


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_that_no_file_can_have_is_not_read(bucket, tmp_path, name, monkeypatch):
  with pytest.raises(DataError, match=f"object '{name}', whose name has a part that no file"):
    paths.download_tree(bucket, tmp_path / "copy", ["good", name])
  assert not (tmp_path / "copy").exists() and not (tmp_path / "x").exists()
  monkeypatch.setattr(files.BucketPath, "list_tree", lambda self: {"a/good": 1, name: 2})
  if "/." not in name:  # A pattern does not match hidden names.
    with pytest.raises(DataError, match=f"object '{name}'"):
      files.match_objects(f"{bucket}/**")
  assert list(files.match_objects(f"{bucket}/*/g*")) == [f"{bucket}/a/good"]


def test_objects_with_such_names_are_deleted_and_no_others(bucket, monkeypatch):
  deleted = []
  monkeypatch.setattr(files.BucketPath, "list_tree", lambda self: dict.fromkeys(ODD_NAMES))
  monkeypatch.setattr(files.BucketPath, "_call", lambda self, *args, **_: deleted.append(args))
  bucket.remove_tree()
  prefix = str(bucket).removeprefix(f"{bucket.parts[0]}/")
  assert sorted(args[3] for args in deleted) == sorted(f"{prefix}/{name}" for name in ODD_NAMES)


# ------------------------------------------------------------------- faults


def test_a_storage_that_refuses_for_a_while_is_asked_again(bucket, storage):
  storage.faults.refuse = 3
  (bucket / "x").write_bytes(b"content")
  storage.faults.refuse = 3
  assert (bucket / "x").read_bytes() == b"content"


def test_a_storage_that_goes_away_and_comes_back_is_asked_again(bucket, storage):
  (bucket / "x").write_bytes(b"content")
  storage.faults.is_down = True
  timer = threading.Timer(1.5, storage.clear)
  timer.start()
  assert (bucket / "x").read_bytes() == b"content"
  timer.join()


def test_a_storage_that_stays_away_is_an_error_with_code_74(bucket, storage, monkeypatch):
  monkeypatch.setenv("BERTGPT_BUCKET_SECONDS", "4")
  storage.faults.is_down = True
  start = time.monotonic()
  with pytest.raises(OSError, match="does not answer") as e:
    (bucket / "x").read_bytes()
  assert exit_code(e.value) == 74 and e.value.filename == f"{bucket}/x"
  assert time.monotonic() - start > 1  # The request was repeated.
  with pytest.raises(StorageError, match="does not answer"):  # It is not reported as damage.
    files.read_json(bucket / "x", "Make it again")


def test_a_silent_storage_is_an_error(bucket, storage, monkeypatch):
  import aiohttp
  monkeypatch.setattr(gcs.open_storage(), "requests_timeout",
                      aiohttp.ClientTimeout(total=None, sock_read=0.3))
  monkeypatch.setenv("BERTGPT_BUCKET_SECONDS", "1")
  storage.faults.delay = 2
  with pytest.raises(OSError, match="does not answer .timeout"):
    (bucket / "x").read_bytes()


def test_a_bucket_that_is_not_there(bucket):
  path = files.make_path("gs://no-such-bucket/run")
  assert not path.exists()
  with pytest.raises(OSError, match="there is no bucket no-such-bucket") as e:
    path.write_bytes(b"")
  assert exit_code(e.value) == 74


@pytest.mark.parametrize("text", ["", "much", "-1", "inf"])
def test_the_variable_must_hold_a_time(monkeypatch, text):
  monkeypatch.setenv("BERTGPT_BUCKET_SECONDS", text)
  with pytest.raises(ConfigError, match="give a number of seconds"):
    gcs.give_up_seconds()


def test_tensorstore_gives_up_after_about_the_same_time(monkeypatch):
  monkeypatch.setenv("BERTGPT_BUCKET_SECONDS", "120")
  retries = gcs.tensorstore_retries()
  first, longest = (float(retries[k][:-1]) for k in ("initial_delay", "max_delay"))
  waits = [min(first * 2**i, longest) for i in range(retries["max_retries"])]
  assert 120 <= sum(waits) < 120 + longest


def test_any_time_of_tries_has_its_waits(monkeypatch):
  monkeypatch.setenv("BERTGPT_BUCKET_SECONDS", "1e6")
  assert gcs.tensorstore_retries()["max_retries"] > 50_000
