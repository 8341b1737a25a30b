"""Text in a bucket gives the documents of the same files on a disk, and errors of the storage."""

import gzip
import json
import lzma

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from bertgpt.data.text import pieces, sources
from bertgpt.data.text.pieces import Part
from bertgpt.errors import DataError, StorageError

LINES = [json.dumps({"text": f"Document {i}.\n\nIt has two parts.", "meta": {"title": f"T{i}"}})
         for i in range(300)]
JSON = "\n".join(LINES).encode()


@pytest.fixture
def both(bucket, tmp_path):
  """The same files on a disk and in a bucket."""
  contents = {"a.jsonl": JSON, "b.jsonl.gz": gzip.compress(JSON), "c.jsonl.xz": lzma.compress(JSON),
              "sub/d.jsonl.zst": zstandard.compress(JSON), "e.txt": b"One.\nTwo.\n\nThree.\n"}
  for name, content in contents.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
  parquet.write_table(pyarrow.table({"text": [f"Row {i}." for i in range(500)]}),
                      tmp_path / "f.parquet", row_group_size=100)
  for name in [*contents, "f.parquet"]:
    (bucket / name).upload(tmp_path / name)
  return tmp_path, bucket


@pytest.mark.parametrize("source", [
    "jsonl:{}/a.jsonl", "jsonl:{}/*.jsonl*#meta.title", "jsonl:{}/**/*.zst", "text:{}/e.txt",
    "parquet:{}/*.parquet#text", "2*text:{0}/e.txt,0.5*jsonl:{0}/b.jsonl.gz#meta.title,text"])
def test_documents_are_those_of_a_disk(both, source):
  expected, found = ([(d.text, d.sentences_given, d.path.removeprefix(str(root)), d.offset)
                      for d in sources.open_source(source.format(root))] for root in both)
  assert found == expected and found


@pytest.mark.parametrize("source", ["jsonl:{}/a.jsonl", "text:{}/e.txt"])
def test_parts_of_a_large_file_are_its_documents(both, monkeypatch, source):
  monkeypatch.setattr(pieces, "PIECE_BYTES", 10)
  for root in both:
    parts = [[d.text for d in sources.open_source(source.format(root), part=Part(i, 3))]
             for i in range(3)]
    assert sum(parts, []) == [d.text for d in sources.open_source(source.format(both[0]))]
    assert sum(map(bool, parts)) > 1


def test_the_identity_is_known_without_reading(both, storage, tmp_path):
  source = f"jsonl:{both[1]}/*.jsonl*"
  storage.requests.clear()
  before = sources.identity(source, str(tmp_path))
  assert not [path for _, path in storage.requests if "alt=media" in path]
  assert sources.identity(source, str(tmp_path)) == before
  (both[1] / "a.jsonl").write_bytes(JSON[:-1] + b" ")
  assert sources.identity(source, str(tmp_path)) != before


def test_sizes_and_digests_are_those_of_the_listing(both, storage, tmp_path):
  """With a request per object, a start from many thousands of files would take minutes."""
  source = f"jsonl:{both[1]}/*.jsonl*"
  for i in range(20):
    (both[1] / f"many-{i}.jsonl").write_bytes(JSON)
  storage.requests.clear()
  sources.identity(source, str(tmp_path))
  assert len(sources.list_pieces(sources.parse(source))[0].pieces) == 23
  assert len(storage.requests) == 4  # For both, whether the glob is a name, and a listing.


def test_what_is_missing_is_named(both):
  with pytest.raises(DataError, match="no object matches 'gs://test-bucket/.*none"):
    sources.open_source(f"text:{both[1]}/none*")


@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl.gz", "c.jsonl.xz", "sub/d.jsonl.zst",
                                  "f.parquet"])
def test_a_storage_that_stays_away_is_not_taken_for_damage(both, storage, monkeypatch, name):
  monkeypatch.setenv("BERTGPT_BUCKET_SECONDS", "0")
  kind = "parquet" if name.endswith("parquet") else "jsonl"
  storage.faults.on_request = lambda method, path, when: "alt=media" in path
  with pytest.raises(StorageError, match=f"gs://.*{name}: the storage does not answer"):
    list(sources.open_source(f"{kind}:{both[1]}/{name}"))
