"""Documents of shards in a bucket are those that array_record reads; the index is copied once."""

import os
import random
import shutil
import urllib.parse

import numpy as np
import pytest
from array_record.python import array_record_module

from bertgpt import config as config_lib
from bertgpt.data.batches import loader
from bertgpt.data.corpus import corpus as corpus_lib
from bertgpt.data.corpus import machines, prepare, remote, writer
from bertgpt.data.text import digests
from bertgpt.data.text.pieces import Part
from bertgpt.errors import ConfigError, DataError, StorageError

SIZES = (0, 1, 10, 200, 5_000, 65_400, 65_536, 200_000)


@pytest.fixture
def records():
  rng = random.Random(3)
  return [rng.randbytes(rng.choice(SIZES)) for _ in range(120)]


def write_shard(path, records):
  shard = array_record_module.ArrayRecordWriter(os.fspath(path), writer.WRITER_OPTIONS)
  for record in records:
    shard.write(record)
  shard.close()


def test_records_are_those_that_were_written(bucket, tmp_path, records):
  write_shard(tmp_path / "a", records)
  (bucket / "a").upload(tmp_path / "a")
  places = remote.find_places(bucket / "a", len(records))
  order = np.random.default_rng(0).permutation(len(records))
  assert [remote.read_record(bucket / "a", *places[i:i + 2].tolist()) for i in order] == [
      records[i] for i in order]


def test_a_shard_of_another_kind_is_refused(bucket, tmp_path, records):
  write_shard(tmp_path / "a", records)
  (bucket / "a").upload(tmp_path / "a")
  for number, content in enumerate([b"", b"x" * 100, (tmp_path / "a").read_bytes()[:-1]]):
    (bucket / str(number)).write_bytes(content)
    with pytest.raises(DataError, match="damaged|holds"):
      remote.find_places(bucket / str(number), len(records))
  with pytest.raises(DataError, match="holds 120 documents instead of 121"):
    remote.find_places(bucket / "a", 121)
  with pytest.raises(DataError, match="missing"):
    remote.find_places(bucket / "none", 1)


# ------------------------------------------------------------- whole corpora


@pytest.fixture
def make_config(story, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(writer, "SHARD_BYTES", 4000)

  def make(**data):
    config = config_lib.base()
    config.data.update(source=f"text:{story}", prepare_workers=0, validation_fraction=0.2, **data)
    config.tokenizer.update(kind="wordpiece", vocab_size=90)
    return config

  return make


@pytest.fixture
def two(bucket, tmp_path, make_config):
  """The same corpus on a disk and in a bucket."""
  return [prepare.prepare(make_config(cache_dir=str(tmp_path)), path)
          for path in (tmp_path / "corpus", bucket / "corpus")]


def test_a_corpus_in_a_bucket_is_that_of_a_disk(two, storage):
  on_disk, in_bucket = two
  assert {n: (in_bucket / n).read_bytes() for n in in_bucket.list_tree()} == {
      str(p.relative_to(on_disk)): p.read_bytes() for p in on_disk.rglob("*") if p.is_file()}
  for split in corpus_lib.SPLITS:
    expected, found = (corpus_lib.open_corpus(path, split) for path in two)
    assert found.identity == expected.identity and len(found) == len(expected) > 8
    assert found.tokenizer.fingerprint() == expected.tokenizer.fingerprint()
    documents = np.random.default_rng(0).integers(0, len(expected), 50)
    for a, b in zip(found.tokens(documents), expected.tokens(documents), strict=True):
      np.testing.assert_array_equal(a, b)


def test_the_index_is_copied_once_per_host(two, storage):
  names = lambda: [path for _, path in storage.requests if ".npy" in path or "alt=media" in path
                   and "manifest.json" not in path]
  corpus_lib.open_corpus(two[1], "train")
  assert names()
  storage.requests.clear()
  again = corpus_lib.open_corpus(two[1], "validation")
  assert not names()
  storage.requests.clear()
  again.tokens([0, 1, 2])
  assert len(storage.requests) == 3  # One per document.


@pytest.mark.parametrize("objective, family, needed", [("causal", "gpt", []), ("mlm", "bert", [
    "train-document_offsets.npy", "train-sentence_lengths.npy"])])
def test_the_lengths_of_sentences_are_copied_only_for_rows_made_of_them(two, storage, objective,
                                                                        family, needed):
  """They are most of an index. The rows are those of the corpus on a disk."""
  config = config_lib.base()
  config.model.family, config.objective.name = family, objective
  config.phases = (config_lib.phase(seq_len=16, batch_size=4, steps=3),)
  expected, found = (corpus_lib.open_corpus(path, "train") for path in two)
  storage.requests.clear()
  for a, b in zip(*(read_all(corpus, config) for corpus in (expected, found)), strict=True):
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])
  urls = [url for _, url in storage.requests]
  assert sorted(name for name in two[1].list_tree() if name.endswith(".npy")
                and any(urllib.parse.quote(name, "") in url for url in urls)) == needed


def read_all(corpus, config):
  with loader.make_train_batches(corpus, config, 0, 0, slice(None)) as batches:
    return list(batches)


def test_a_full_disk_is_refused_before_the_copy(two, monkeypatch, tmp_path):
  usage = shutil.disk_usage(tmp_path)
  needed = sum(file.stat().st_size for file in two[0].rglob("*")
               if "array_record" not in file.name and "sentence" not in file.name
               and "offsets" not in file.name and file.is_file() and file.name != "manifest.json")
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
  with pytest.raises(StorageError, match="needs 0.00 GB, and 0.00 GB are free. Free more"):
    corpus_lib.open_corpus(two[1], "train")
  assert not list((tmp_path / "cache").rglob("*.npy"))
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * needed))
  corpus_lib.open_corpus(two[1], "train")


@pytest.mark.parametrize("name", ["train-document_lengths.npy", "validation-places.npy"])
def test_a_copy_of_the_index_that_lacks_a_file_is_copied_again(two, name):
  """Some systems delete old files of a cache one by one."""
  path, manifest = two[1], corpus_lib.read_manifest(two[1])
  copy = remote.copy_index(path, manifest)
  (copy / name).unlink()
  corpus_lib.open_corpus(path, "train")
  assert (copy / name).is_file()


def test_damage_in_a_bucket_is_named(two, bucket, tmp_path):
  path = two[1]
  shard = next(name for name in path.list_tree() if "array_record" in name)
  content = (path / shard).read_bytes()
  (path / shard).write_bytes(content[:-1])
  with pytest.raises(DataError, match="bytes instead of"):
    corpus_lib.open_corpus(path, "train")
  (path / shard).unlink()
  with pytest.raises(DataError, match=f"{shard}: missing"):
    corpus_lib.open_corpus(path, "train")
  (path / shard).write_bytes(content)
  index = (path / "train-document_lengths.npy").read_bytes()
  (path / "train-document_lengths.npy").write_bytes(index[:-1] + b"\7")
  with pytest.raises(DataError, match="train-document_lengths.npy: damaged"):
    corpus_lib.open_corpus(path, "train")
  (path / "train-document_lengths.npy").write_bytes(index)
  corpus_lib.open_corpus(path, "train")  # The damaged copy was not kept.


def test_an_upload_that_was_interrupted_is_made_again(two, make_config, tmp_path):
  path = two[1]
  (path / "manifest.json").unlink()
  with pytest.raises(DataError, match="not a prepared corpus"):
    corpus_lib.open_corpus(path, "train")
  assert prepare.prepare(make_config(cache_dir=str(tmp_path)), path) == path
  corpus_lib.open_corpus(path, "train")


@pytest.mark.parametrize("names", [["tokenizer/vocab.txt", "tokenizer/tokenizer_config.json"],
                                   ["train-images.npy"]])
def test_files_of_other_programs_are_no_remains_of_an_upload(bucket, make_config, tmp_path, names):
  for name in names:
    (bucket / "mine" / name).write_bytes(b"mine")
  with pytest.raises(ConfigError, match="mine: exists and is not a corpus"):
    prepare.prepare(make_config(cache_dir=str(tmp_path)), bucket / "mine")
  assert sorted((bucket / "mine").list_tree()) == sorted(names)


def test_what_is_not_a_corpus_is_not_deleted(two, make_config, tmp_path):
  path = two[1]
  (path / "manifest.json").rename(path / "notes.txt")
  with pytest.raises(Exception, match="exists and is not a corpus"):
    prepare.prepare(make_config(cache_dir=str(tmp_path)), path)
  assert (path / "notes.txt").is_file()


def test_a_cache_in_a_bucket_is_used(bucket, make_config, storage):
  config = make_config(cache_dir=str(bucket / "cache"))
  path = prepare.ensure_prepared(config)
  assert path.parent == bucket / "cache" and corpus_lib.is_corpus(path)
  storage.requests.clear()
  assert prepare.ensure_prepared(config) == path
  assert not [request for request in storage.requests if request[0] == "POST"]


def test_a_storage_that_stays_away_is_no_damage(two, storage, monkeypatch):
  train_set = corpus_lib.open_corpus(two[1], "train")
  train_set.tokens([0])
  monkeypatch.setenv("BERTGPT_BUCKET_SECONDS", "1")
  storage.faults.is_down = True
  with pytest.raises(StorageError, match="does not answer"):
    train_set.tokens([0, 1])


# -------------------------------------------------------------------- parts


def list_bytes(path):
  return {name: (path / name).read_bytes() for name in path.list_tree()}


def make_parts(config, out):
  for number in (1, 0):
    machines.sample_part(config, out, Part(number, 2))
  machines.train_tokenizer(config, out, merges=True)
  for number in (1, 0):
    machines.prepare_part(config, out, Part(number, 2))


def test_parts_in_a_bucket_make_the_corpus_of_one_machine(two, bucket, make_config, tmp_path):
  config = make_config(cache_dir=str(tmp_path))
  make_parts(config, bucket / "merged")
  assert list_bytes(machines.merge(config, bucket / "merged")) == list_bytes(two[1])


def test_a_part_keeps_its_digests_in_a_cache_in_a_bucket(bucket, make_config, tmp_path,
                                                         monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(digests, "MIN_BYTES", 1)
  monkeypatch.setattr(digests, "SETTLED_SECONDS", -1)
  machines.sample_part(config := make_config(cache_dir=str(bucket)), tmp_path / "c", Part(0, 1))
  machines.train_tokenizer(config, tmp_path / "c", merges=True)
  machines.prepare_part(config, tmp_path / "c", Part(0, 1))
  assert (bucket / digests.CACHE).is_file() and not (tmp_path / "gs:").exists()


def test_a_part_whose_upload_was_interrupted_is_made_again(bucket, make_config, tmp_path):
  config = make_config(cache_dir=str(tmp_path))
  make_parts(config, bucket / "corpus")
  path = machines.part_path(bucket / "corpus", Part(0, 2))
  whole = list_bytes(path)
  (path / machines.INFO).unlink()  # It is uploaded last.
  (path / "records").unlink()
  with pytest.raises(DataError, match="part-00000-of-00002: missing"):
    machines.merge(config, bucket / "corpus")
  assert list_bytes(machines.prepare_part(config, bucket / "corpus", Part(0, 2))) == whole
  config.data.language = "de"
  with pytest.raises(ConfigError, match="was not made from this source"):
    machines.train_tokenizer(config, bucket / "corpus", merges=False)
