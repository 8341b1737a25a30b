"""bertgpt.data.corpus.corpus: the layout against TFDS, random reads, damage."""

import json
import pathlib
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from bertgpt.data.corpus import corpus
from bertgpt.data.corpus import writer as corpus_writer
from bertgpt.data.text import digests
from bertgpt.errors import DataError

# Lengths around which the varints in a record become longer: 2**7 and 2**14 bytes.
EDGES = (1, 61, 62, 63, 64, 127, 128, 4095, 8190, 8191, 8192, 70_000)


def make_documents(rng, vocab_size, lengths):
  """Returns (token ids, lengths of the sentences) of every document."""
  documents = []
  for length in lengths:
    cuts = np.unique(rng.integers(1, length, 4)) if length > 1 else np.array([], int)
    sentence_lengths = np.diff(np.concatenate([[0], cuts, [length]])).astype(np.int32)
    documents.append((rng.integers(0, vocab_size, length), sentence_lengths))
  return documents


def write_corpus(folder, splits, vocab_size):
  """Writes documents {split: [(tokens, sentence_lengths)]} as a corpus with a dummy tokenizer."""
  dtype = corpus.token_dtype(vocab_size)
  (folder / corpus.TOKENIZER).mkdir(parents=True)
  (folder / corpus.TOKENIZER / "tokenizer.json").write_text("{}")
  infos = {}
  for split, documents in splits.items():
    writer = corpus_writer.SplitWriter(folder, split)
    for tokens, lengths in documents:
      record = corpus.encode_record(tokens.astype(dtype), lengths)
      writer.write(corpus_writer.EncodedDocument(
          key=0, record=record, sentence_lengths=lengths, text_bytes=3 * len(tokens),
          num_unknown=0, unknown_bytes=0, max_id=int(tokens.max())))
    infos[split] = writer.finish()
  manifest = {"format_version": corpus.FORMAT_VERSION, "splits": infos, "token_dtype": dtype,
              "tokenizer": {"vocab_size": vocab_size, "kind": "bpe", "fingerprint": "0" * 64}}
  corpus_writer.write_metadata(folder, manifest)


@pytest.fixture
def small(tmp_path):
  """Returns (folder, documents of its train split)."""
  rng = np.random.default_rng(0)
  documents = make_documents(rng, 300, rng.integers(1, 900, 60))
  write_corpus(tmp_path / "corpus", {"train": documents, "validation": documents[:2]}, 300)
  return tmp_path / "corpus", documents


@pytest.mark.parametrize("vocab_size, dtype", [(65_536, np.uint16), (65_537, np.int32)])
def test_tfds_reads_what_the_fast_path_reads(tmp_path, vocab_size, dtype):
  documents = make_documents(np.random.default_rng(1), vocab_size, EDGES)
  write_corpus(tmp_path / "c", {"train": documents, "validation": documents[3:5]}, vocab_size)
  builder = tfds.builder_from_directory(tmp_path / "c")
  for split, written in (("train", documents), ("validation", documents[3:5])):
    source = builder.as_data_source(split)
    opened = corpus.open_corpus(tmp_path / "c", split)
    assert len(source) == len(opened) == len(written)
    found = opened.tokens(np.arange(len(written)))
    for example, tokens, (true_tokens, true_lengths) in zip(source, found, written, strict=True):
      assert tokens.dtype == example["tokens"].dtype == dtype
      np.testing.assert_array_equal(example["tokens"], true_tokens)
      np.testing.assert_array_equal(tokens, true_tokens)
      np.testing.assert_array_equal(example["sentence_lengths"], true_lengths)


def test_records_are_what_tfds_itself_serializes():
  from tensorflow_datasets.proto import tf_example_pb2
  tokens, lengths = np.arange(300, dtype="<u2"), np.array([100, 200], np.int32)
  record = corpus.encode_record(tokens, lengths)
  example = tf_example_pb2.Example.FromString(record)
  assert set(example.features.feature) == {"tokens", "sentence_lengths"}
  assert example.SerializeToString(deterministic=True) == record


def test_a_record_of_another_length_is_refused():
  record = corpus.encode_record(np.arange(300, dtype="<u2"), np.array([300], np.int32))
  for length in (0, 1, 299, 301, 10_000):
    with pytest.raises(ValueError, match="does not end"):
      corpus.tokens_of_record(record, length, "<u2")


def test_random_reads_over_many_shards(tmp_path, monkeypatch):
  monkeypatch.setattr(corpus_writer, "SHARD_BYTES", 4_000)
  rng = np.random.default_rng(2)
  documents = make_documents(rng, 300, rng.integers(1, 900, 80))
  write_corpus(tmp_path / "c", {"train": documents, "validation": documents[:1]}, 300)
  opened = corpus.open_corpus(tmp_path / "c", "train")
  assert len(opened.manifest["splits"]["train"]["shards"]) > 10
  asked = rng.integers(0, 80, 500)
  for document, tokens in zip(asked, opened.tokens(asked), strict=True):
    np.testing.assert_array_equal(tokens, documents[document][0])
  assert len(tfds.builder_from_directory(tmp_path / "c").as_data_source("train")) == 80
  assert opened.tokens([]) == []


@pytest.mark.parametrize("document", [-1, 60])
def test_a_document_out_of_range(small, document):
  with pytest.raises(IndexError):
    corpus.open_corpus(small[0], "train").tokens([0, document])


def test_index_is_mapped_and_adds_up(small):
  folder, documents = small
  opened = corpus.open_corpus(folder, "train")
  for name in corpus.INDEX_DTYPES:
    assert isinstance(getattr(opened, name), np.memmap)
  np.testing.assert_array_equal(opened.sentence_lengths, np.concatenate([n for _, n in documents]))
  np.testing.assert_array_equal(
      np.add.reduceat(opened.sentence_lengths, opened.document_offsets[:-1]),
      opened.document_lengths)
  assert opened.num_tokens == sum(len(tokens) for tokens, _ in documents)
  assert opened.num_bytes == 3 * opened.num_tokens


def test_a_pickled_corpus_is_small_and_reads_the_same(small):
  opened = corpus.open_corpus(small[0], "train")
  opened.tokens([1])
  pickled = pickle.dumps(opened)
  again = pickle.loads(pickled)
  assert len(pickled) < 1_000
  np.testing.assert_array_equal(again.tokens([7])[0], opened.tokens([7])[0])
  assert again.identity == opened.identity


def test_flipped_bits_in_a_shard_are_never_read(small):
  folder, documents = small
  [shard] = folder.glob("*-train.array_record*")
  clean = shard.read_bytes()
  rng, found_damage = np.random.default_rng(3), 0
  for _ in range(40):
    damaged = bytearray(clean)
    damaged[rng.integers(50_000)] ^= 1 << int(rng.integers(8))
    shard.write_bytes(damaged)
    try:
      found = corpus.open_corpus(folder, "train").tokens(np.arange(60))
    except DataError as e:
      assert shard.name in str(e)
      assert "\n" not in str(e)
      found_damage += 1
    else:  # Padding, or a header that is stored twice.
      assert all((a == b).all() for a, (b, _) in zip(found, documents, strict=True))
  assert found_damage > 20


@pytest.mark.parametrize("size", [0, 10, 70_000])
def test_a_shard_cut_after_opening(small, size):
  folder, _ = small
  opened = corpus.open_corpus(folder, "train")
  [shard] = folder.glob("*-train.array_record*")
  shard.write_bytes(shard.read_bytes()[:size])
  with pytest.raises(DataError, match=shard.name):
    opened.tokens([0])
  with pytest.raises(DataError, match=f"{shard.name}: {size} bytes instead of"):
    corpus.open_corpus(folder, "train")


def test_damage_that_opening_finds(small):
  folder, _ = small
  names = [f.relative_to(folder) for f in folder.rglob("*") if f.is_file()]
  for name in names:
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    if name.name != corpus.MANIFEST and "array_record" not in name.name:
      content = bytearray((copy / name).read_bytes())
      content[-1] ^= 1
      (copy / name).write_bytes(content)
      with pytest.raises(DataError, match=name.name):
        corpus.open_corpus(copy, "train")
    (copy / name).unlink()
    with pytest.raises(DataError, match=name.name):
      corpus.open_corpus(copy, "train")
    shutil.rmtree(copy)


def test_a_large_index_is_hashed_once_and_again_when_it_changes(small, monkeypatch):
  folder, _ = small
  monkeypatch.setattr(digests, "MIN_BYTES", 1)
  monkeypatch.setattr(digests, "SETTLED_SECONDS", -1)
  hashed, sha256_file = [], digests.sha256_file
  monkeypatch.setattr(digests, "sha256_file", lambda path: (hashed.append(path),
                                                            sha256_file(path))[1])
  corpus.open_corpus(folder, "train")
  assert any("sentence_lengths" in name for name in hashed)
  assert not any("array_record" in name for name in hashed)
  hashed.clear()
  corpus.open_corpus(folder, "train")
  assert hashed == []
  index = folder / corpus.index_file("train", "sentence_lengths")
  content = bytearray(index.read_bytes())
  content[-1] ^= 1
  index.write_bytes(content)
  with pytest.raises(DataError, match=f"{index.name}: damaged"):
    corpus.open_corpus(folder, "train")


@pytest.mark.slow
def test_an_index_is_read_in_pieces_that_are_given_back(tmp_path):
  values = np.random.default_rng(0).integers(0, 100, 2**22)
  np.save(tmp_path / "a.npy", values)
  array = np.load(tmp_path / "a.npy", mmap_mode="r")

  def resident():  # Bytes of the file that are mapped into this process.
    maps = pathlib.Path("/proc/self/smaps").read_text().split(f"{tmp_path}/a.npy")[1]
    return int(re.search(r"Rss: +(\d+) kB", maps)[1]) * 1024

  pieces = [(piece.copy(), resident()) for piece in corpus.read_pieces(array, 2**16)]
  np.testing.assert_array_equal(np.concatenate([piece for piece, _ in pieces]), values)
  assert 0 < max(size for _, size in pieces) < array.nbytes / 2
  assert corpus.sum_lengths(array) == corpus.sum_lengths(values) == values.sum()


def test_manifests_that_do_not_fit(small):
  folder, _ = small
  file = folder / corpus.MANIFEST
  manifest = json.loads(file.read_text())
  train = manifest["splits"]["train"]
  cases = {
      "format version 99": manifest | {"format_version": 99},
      "beyond the vocabulary of 7": manifest | {"tokenizer": {"vocab_size": 7}},
      "the manifest says 1\\.": manifest | {"splits": {"train": train | {"tokens": 1}}},
      "no split 'train'": manifest | {"splits": {}},
      "holds JSON of type list": [],
  }
  for message, content in cases.items():
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
      corpus.open_corpus(folder, "train")


def test_no_corpus_at_all(tmp_path):
  (tmp_path / "file").touch()
  for path in (tmp_path, tmp_path / "absent", tmp_path / "file"):
    with pytest.raises(DataError, match="bertgpt prepare"):
      corpus.open_corpus(path, "train")


def test_importing_loads_no_jax_and_no_tensorflow():
  code = ("import sys; import bertgpt.data.corpus.corpus; first = set(sys.modules);"
          "import bertgpt.data.corpus.prepare;"
          "heavy = {'jax', 'tensorflow', 'tensorflow_datasets', 'flax', 'grain'};"
          "print(sorted(heavy & set(sys.modules)), {'tokenizers', 'sentencepiece'} & first)")
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert result.stdout.strip() == "[] set()"


def test_names_of_version_0_1_are_found():
  """Scripts of users import them."""
  from bertgpt import data
  from bertgpt.data import corpus as package
  from bertgpt.data.tokens import tokenizers
  assert package.open_corpus is corpus.open_corpus and data.tokenizers is tokenizers
  for module in (data, package):
    with pytest.raises(AttributeError, match="has no attribute 'none'"):
      module.none  # noqa: B018
