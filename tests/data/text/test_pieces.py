"""bertgpt.data.text.pieces: all parts of a source together are the source, wherever it is cut."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertgpt.data.text import intake, pieces, sources
from bertgpt.data.text.pieces import Part

KINDS = ("text", "text+paragraphs", "jsonl")
LINES = st.lists(st.tuples(
    st.sampled_from(["", " \t", "a", "two words.", "\u3000", "Ü" * 9, "x" * 40, '{"text": "b c"}',
                     '{"text": "\\n"}']),
    st.sampled_from(["\n", "\r\n", "\r"])), max_size=30)


def read_parts(spec, total, mode="skip"):
  """Returns the documents and the tally of every part."""
  found = []
  for number in range(total):
    counts = intake.Counts()
    found.append((list(sources.open_source(spec, invalid_text=mode, counts=counts,
                                           part=Part(number, total))), counts))
  return found


def assert_parts_are_the_source(spec, total, mode="skip"):
  counts = intake.Counts()
  whole = list(sources.open_source(spec, invalid_text=mode, counts=counts))
  found = read_parts(spec, total, mode)
  assert [document for part, _ in found for document in part] == whole
  assert +sum((tally for _, tally in found), intake.Counts()) == +counts
  return found


@settings(max_examples=60, deadline=None)
@given(lines=LINES, size=st.integers(1, 60), total=st.integers(1, 9), kind=st.sampled_from(KINDS),
       mode=st.sampled_from(["skip", "replace"]), mark=st.booleans())
def test_all_parts_of_a_file_are_its_documents(tmp_path_factory, lines, size, total, kind, mode,
                                               mark):
  path = tmp_path_factory.mktemp("cut") / "a"
  path.write_bytes(b"\xef\xbb\xbf" * mark + "".join(a + b for a, b in lines).encode())
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pieces, "PIECE_BYTES", size)
    patch.setattr(intake, "MAX_LINE_BYTES", 32)
    patch.setattr(intake, "MAX_DOCUMENT_BYTES", 48)
    assert_parts_are_the_source(f"{kind}:{path}", total, mode)


def test_large_plain_files_are_cut_and_small_ones_are_grouped(tmp_path, monkeypatch):
  monkeypatch.setattr(pieces, "PIECE_BYTES", 1000)
  record = json.dumps({"text": "x" * 90}) + "\n"
  (tmp_path / "a.jsonl").write_text(record * 200)
  (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((record * 100).encode()))
  for i in range(50):
    (tmp_path / f"c{i:02d}.jsonl").write_text(record * 2)
  found = assert_parts_are_the_source(f"jsonl:{tmp_path}/*", 6)
  sizes = [len(documents) for documents, _ in found]
  assert sum(sizes) == 400 and min(sizes) >= 30  # b is small, but has many documents.
  files = [{document.path for document in documents} for documents, _ in found]
  assert files[0] == files[1] == {str(tmp_path / "a.jsonl")}
  assert len(files[5]) > 10


@pytest.mark.parametrize("weight", ["0.3", "2", "1.7"])
def test_weights_count_the_documents_of_earlier_parts(tmp_path, monkeypatch, weight):
  monkeypatch.setattr(pieces, "PIECE_BYTES", 500)
  (tmp_path / "a.txt").write_text("\n\n".join(f"document {i}\n\n" for i in range(200)))
  (tmp_path / "b.txt").write_text("\n\n".join(f"other {i}" for i in range(20)))
  found = assert_parts_are_the_source(f"{weight}*text:{tmp_path}/*.txt,text:{tmp_path}/b.txt", 5)
  assert all(len(documents) > 5 for documents, _ in found)


def test_documents_of_rows_go_on_from_file_to_file(tmp_path):
  rows = ["One.", "Two.", None, "Three.", "Four."]
  for i in range(4):
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / f"{i}.parquet")
  found = assert_parts_are_the_source(f"parquet+sentences:{tmp_path}/*.parquet", 3)
  assert [len(documents) for documents, _ in found] == [0, 5, 0]
  found = assert_parts_are_the_source(f"parquet:{tmp_path}/*.parquet", 2)
  assert [len(documents) for documents, _ in found] == [8, 8]


def test_the_digests_tell_whether_all_parts_read_one_file(tmp_path, monkeypatch):
  monkeypatch.setattr(pieces, "PIECE_BYTES", 100)
  path = tmp_path / "a.txt"
  path.write_text("\n\n".join(f"document {i}" for i in range(60)))
  (tmp_path / "b.txt").write_text("small")

  def digest(number):
    listed = sources.list_pieces(sources.parse(f"text:{tmp_path}/*.txt"))
    return pieces.digest_spans(listed, Part(number, 3))

  first, *others = map(digest, range(3))
  assert list(first) == ["0 0"] and list(first["0 0"]) == ["0", "1", "2"]
  for number, other in enumerate(others, 1):
    assert other == {"0 0": {str(number): first["0 0"][str(number)]}}
  path.write_text(path.read_text().replace("document 59", "document xx"))
  assert digest(1) == others[0] and digest(2) != others[1]


def test_the_rest_of_a_file_without_a_bound_is_searched_once(tmp_path, monkeypatch):
  monkeypatch.setattr(pieces, "PIECE_BYTES", 100)
  (tmp_path / "a.txt").write_text("one\n\n" + "a line of one long document\n" * 100)
  listed = sources.list_pieces(sources.parse(f"text:{tmp_path}/a.txt"))
  found, find_start = [], intake.find_start
  monkeypatch.setattr(intake, "find_start",
                      lambda *args, **options: found.append(args) or find_start(*args, **options))
  digests = pieces.digest_spans(listed, Part(0, 8))["0 0"]
  assert len(found) == 1 and len(digests) == 8
  for number in range(1, 8):
    assert pieces.digest_spans(listed, Part(number, 8))["0 0"] == {
        str(number): digests[str(number)]}
