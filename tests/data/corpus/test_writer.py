"""bertgpt.data.corpus.writer: totals, shards, growing files, full disks."""

import resource

import numpy as np
import pytest

from bertgpt.data.corpus import corpus
from bertgpt.data.corpus import writer as corpus_writer


def make_document(sentence_lengths):
  lengths = np.asarray(sentence_lengths, np.int32)
  tokens = np.arange(lengths.sum()).astype("<u2")
  return corpus_writer.EncodedDocument(
      key=0, record=corpus.encode_record(tokens, lengths), sentence_lengths=lengths,
      text_bytes=1, num_unknown=0, unknown_bytes=0, max_id=int(tokens.max()))


def test_totals_and_percentiles_against_numpy(tmp_path):
  rng = np.random.default_rng(0)
  sentence_lengths = [rng.integers(1, 300, rng.integers(1, 40)) for _ in range(500)]
  writer = corpus_writer.SplitWriter(tmp_path, "train")
  for lengths in sentence_lengths:
    writer.write(make_document(lengths))
  info = writer.finish()
  flat, document_lengths = np.concatenate(sentence_lengths), [n.sum() for n in sentence_lengths]
  assert (info["documents"], info["sentences"], info["tokens"]) == (500, len(flat), flat.sum())
  for name, lengths in (("document", document_lengths), ("sentence", flat)):
    expected = np.percentile(lengths, corpus_writer.PERCENTILES, method="inverted_cdf")
    assert list(info[f"{name}_length_percentiles"].values()) == expected.tolist()
    np.testing.assert_array_equal(np.load(tmp_path / f"train-{name}_lengths.npy"), lengths)


def test_percentiles_beyond_what_is_counted(tmp_path, monkeypatch):
  monkeypatch.setattr(corpus_writer, "MAX_COUNTED_LENGTH", 100)
  writer = corpus_writer.SplitWriter(tmp_path, "train")
  for length in (10, 20, 5000):
    writer.write(make_document([length]))
  assert writer.finish()["document_length_percentiles"] == {
      "5": 10, "50": 20, "95": 100, "99": 100, "100": 100}


def test_shards_end_at_their_size_and_are_named_for_tfds(tmp_path, monkeypatch):
  monkeypatch.setattr(corpus_writer, "SHARD_BYTES", 5_000)
  writer = corpus_writer.SplitWriter(tmp_path, "train")
  for _ in range(10):
    writer.write(make_document([1000]))  # A little more than 2,000 bytes each.
  shards = writer.finish()["shards"]
  assert [shard["documents"] for shard in shards] == [3, 3, 3, 1]
  assert [shard["file"] for shard in shards] == [
      f"bertgpt_corpus-train.array_record-{i:05d}-of-00004" for i in range(4)]
  assert sorted(f.name for f in tmp_path.glob("*array_record*")) == [s["file"] for s in shards]


def test_header_of_a_growing_array_has_room_for_any_length(tmp_path):
  writer = corpus_writer._ArrayWriter(tmp_path / "a.npy", "<i4")
  start = writer._file.tell()
  writer._length = 10**18
  writer.close()
  assert (tmp_path / "a.npy").stat().st_size == start


def test_a_shard_that_lost_documents_is_noticed_when_it_is_closed(tmp_path):
  writer = corpus_writer.SplitWriter(tmp_path, "train")
  writer.write(make_document([3]))
  writer._shards[-1]["documents"] += 1
  with pytest.raises(OSError, match="holds 1 of 2 documents"):
    writer.finish()


def test_a_full_disk_is_an_os_error_that_names_the_file(tmp_path):
  writer, document = corpus_writer.SplitWriter(tmp_path, "train"), make_document([5000])
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
  try:
    with pytest.raises(OSError, match="File too large.*train-0.new"):
      for _ in range(5000):
        writer.write(document)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
