"""bertgpt.data.corpus.shards: many shards under a limit of open files, storages that fail."""

import concurrent.futures
import os
import resource
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from array_record.python import array_record_module

from bertgpt import files
from bertgpt.data.corpus import remote, shards, writer
from bertgpt.errors import DataError, StorageError

DOCUMENTS = 3  # Of every shard.


def write_shards(folder, number):
  """Writes shards whose records are their numbers, and returns their entries in the manifest."""
  folder.mkdir(exist_ok=True)
  for shard in range(number):
    file = array_record_module.ArrayRecordWriter(os.fspath(folder / f"s-{shard}"),
                                                 writer.WRITER_OPTIONS)
    for document in range(DOCUMENTS):
      file.write(str(shard * DOCUMENTS + document).encode())
    file.close()
  return [{"file": f"s-{shard}", "documents": DOCUMENTS} for shard in range(number)]


def decode(record, document):
  if int(record) != document:
    raise ValueError("another document")
  return int(record)


READ_ALL = """
import os, pathlib, resource, sys
import numpy as np
from bertgpt.data.corpus import shards
number, highest = int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (40, highest))
infos = [{"file": f"s-{i}", "documents": 3} for i in range(number)]
opened = shards.Shards(pathlib.Path(sys.argv[1]), infos, None)
for seed in (0, 1):
  order = np.random.default_rng(seed).permutation(3 * number)
  assert opened.read(order, lambda record, document: int(record)) == order.tolist()
print(len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(("highest", "is_enough"), [(4096, True), (60, False)])
def test_more_shards_than_files_may_be_open(tmp_path, highest, is_enough):
  """The limit is raised; if the system does not let it, some shards are closed and opened again."""
  if (own := resource.getrlimit(resource.RLIMIT_NOFILE)[1]) != -1 and own < highest:
    pytest.skip(f"this process may open {own} files only")
  write_shards(tmp_path, 100)
  result = subprocess.run([sys.executable, "-c", READ_ALL, os.fspath(tmp_path), "100",
                           str(highest)], capture_output=True, text=True, check=True)
  num_open, limit = map(int, result.stdout.split())
  assert (num_open > 100) == is_enough
  assert limit == (712 if is_enough else 60) and num_open < limit


@pytest.mark.parametrize(("limit", "number", "num_open"), [
    (1024, 100, 100), (3112, 1300, 1300), (2048, 1300, 768), (16, 100, 8),
    (sys.maxsize, 9999, 9999)])
def test_two_splits_share_the_limit_of_open_files(monkeypatch, limit, number, num_open):
  asked = []
  monkeypatch.setattr(files, "raise_open_limit", lambda wanted: asked.append(wanted) or limit)
  assert shards.allow_files(number) == num_open
  assert asked == [2 * number + 512]


def test_threads_share_shards(tmp_path, monkeypatch):
  monkeypatch.setattr(shards, "allow_files", lambda number: 8)
  opened = shards.Shards(tmp_path, write_shards(tmp_path, 20), None)

  def read(seed):
    batches = np.random.default_rng(seed).integers(0, 60, (40, 5))
    return [opened.read(batch, decode) for batch in batches] == batches.tolist()

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert all(pool.map(read, range(4)))


def test_a_storage_that_fails_is_not_called_damage(tmp_path):
  opened = shards.Shards(tmp_path / "a", write_shards(tmp_path / "a", 2), None)
  opened.read(np.array([0]), decode)
  (tmp_path / "a").rename(tmp_path / "b")  # As when a network disk is gone.
  with pytest.raises(StorageError, match=r"s-1: cannot be read \(No such file or directory\)"):
    opened.read(np.array([5]), decode)
  (tmp_path / "b").rename(tmp_path / "a")
  assert opened.read(np.array([5]), decode) == [5]
  (tmp_path / "a/s-0").write_bytes(b"no shard")
  with pytest.raises(DataError, match="s-0: damaged"):
    shards.Shards(tmp_path / "a", [{"file": "s-0", "documents": 3}], None).read(
        np.array([0]), decode)


def test_an_error_of_the_disk_is_not_called_damage(tmp_path):
  opened = shards.Shards(tmp_path, write_shards(tmp_path, 1), None)

  def fail(record, document):
    raise RuntimeError("pread() failed: Input/output error; reading s-0")

  with pytest.raises(StorageError, match=r"s-0: cannot be read \(Input/output error\)"):
    opened.read(np.array([0]), fail)


def test_documents_of_many_shards_in_a_bucket_are_read_at_the_same_time(
    bucket, tmp_path, monkeypatch):
  infos = write_shards(tmp_path / "a", 12)
  for info in infos:
    (bucket / info["file"]).upload(tmp_path / "a" / info["file"])
  places = np.concatenate([remote.find_places(bucket / info["file"], DOCUMENTS) for info in infos])
  opened = shards.Shards(bucket, infos, lambda: places)
  active, most, mutex = [0], [0], threading.Lock()
  read_range = files.BucketPath.read_range

  def slow(self, *args):
    with mutex:
      active[0] += 1
      most[0] = max(most[0], active[0])
    time.sleep(0.2)
    try:
      return read_range(self, *args)
    finally:
      with mutex:
        active[0] -= 1

  monkeypatch.setattr(files.BucketPath, "read_range", slow)
  order = np.random.default_rng(0).permutation(36)
  assert opened.read(order, decode) == order.tolist()
  assert most[0] > 3  # More than one shard holds.
  with pytest.raises(DataError, match=f"{infos[1]['file']}: damaged"):
    opened.read(order, lambda record, document: decode(record, -document if document == 4 else
                                                       document))
