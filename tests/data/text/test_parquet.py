"""Parquet files give the texts that were written, in little memory, or an error that says where."""

import json
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
from source_files import paragraphs, read, write

from bertgpt.data.text import documents, intake, parquet, sources
from bertgpt.errors import DataError

TEXTS = ["It is so.\nIs it?", None, "", "Über 二。", "The end."]
STRINGS = [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(),
           pyarrow.dictionary(pyarrow.int32(), pyarrow.string())]
BYTES = [pyarrow.binary(), pyarrow.large_binary(), pyarrow.binary_view()]


def write_table(path, row_group_size=2, **columns):
  pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size)
  return path


def values(path, columns):
  """Returns the values of every row."""
  return [row for _, row in parquet.open_files([str(path)], columns)]


# ------------------------------------------------------------------ columns


@pytest.mark.parametrize("kind", [*STRINGS, *BYTES], ids=str)
def test_every_kind_of_text_column_holds_the_same_text(tmp_path, kind):
  texts = [t and t.encode() for t in TEXTS] if kind in BYTES else TEXTS
  path = write_table(tmp_path / "a.parquet", text=pyarrow.array(texts, kind))
  assert pyarrow.parquet.read_schema(path).field("text").type == kind
  counts = sources.Counts()
  assert paragraphs(f"parquet:{path}", counts=counts) == [
      ("It is so.", "Is it?"), ("Über 二。",), ("The end.",)]
  assert counts["documents without text: skipped"] == 2


def test_a_column_of_nothing_has_documents_without_text(tmp_path):
  path = write_table(tmp_path / "a.parquet", text=pyarrow.nulls(3))
  counts = sources.Counts()
  assert read(f"parquet:{path}", counts=counts) == []
  assert counts == {"documents without text: skipped": 3}


def test_nested_columns_and_those_whose_own_name_has_the_dot(tmp_path):
  meta = [{"title": "A", "deep": {"x": "1"}}, None, {"title": None, "deep": None}]
  path = write_table(tmp_path / "a.parquet", meta=meta, other=[{"x": "no"}] * 3,
                     **{"other.x": ["p", "q", "r"], "b,c": ["s", "t", "u"]})
  assert values(path, "meta.title") == [[b"A"], [], []]
  assert values(path, "meta.deep.x") == [[b"1"], [], []]
  assert values(path, "other.x") == [[b"p"], [b"q"], [b"r"]]
  assert values(path, "b,c") == [[b"s"], [b"t"], [b"u"]]


def test_several_columns_are_joined_by_a_blank_line(tmp_path):
  path = write_table(tmp_path / "a.parquet", title=["A", None, "C", ""], body=["a", "b", None, ""])
  written = "\n".join(json.dumps({"text": text}) for text in ("A\n\na", "b", "C", "")).encode()
  joined = write(tmp_path / "a.jsonl", written)
  assert values(path, "title,body") == values(path, "title, body") == [
      [b"A", b"a"], [b"b"], [b"C"], []]
  assert paragraphs(f"parquet:{path}#title,body") == paragraphs(f"jsonl:{joined}")
  both = f"parquet:{path}#title,body,parquet:{path}#body,text:{write(tmp_path / 'b.txt', b'x')}"
  assert len(read(both)) == 3 + 2 + 1


@pytest.mark.parametrize("name, message", [
    ("txt", "no column 'txt' with text. Choose one of text, meta.title, blob$"),
    ("text,txt", "no column 'txt'"), ("", "no column ''"), ("meta.no", "no column 'meta.no'"),
    ("n", "column 'n' holds int64 instead of text. Choose one of text, "),
    ("meta", r"column 'meta' holds struct<title: string> instead"),
    ("words", "column 'words' holds list<element: string> instead")])
def test_a_wrong_column_is_an_error_before_reading_that_names_the_columns(tmp_path, name, message):
  write_table(tmp_path / "a.parquet", **{c: ["x"] for c in ("text", "txt", "n", "meta", "words")})
  path = write_table(tmp_path / "b.parquet", text=["x"], n=[1], meta=[{"title": "t"}],
                     blob=[b"x"], words=[["x"]])
  with pytest.raises(DataError, match=message) as e:
    parquet.open_files([str(path)], name)
  assert str(path) in str(e.value) and "\n" not in str(e.value)
  if name in ("txt", "n"):  # The first of the files has this column.
    with pytest.raises(DataError, match=message):
      sources.open_source(f"parquet:{tmp_path}/*.parquet#{name}")


def test_a_column_that_occurs_twice_is_refused(tmp_path):
  table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["text", "text"])
  pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
  with pytest.raises(DataError, match="'text' occurs twice"):
    read(f"parquet:{tmp_path}/a.parquet")


# -------------------------------------------------------------------- files


def test_rows_come_in_the_order_of_files_groups_and_batches(tmp_path, monkeypatch):
  monkeypatch.setattr(parquet, "BATCH_ROWS", 3)
  for name, first in (("b", 100), ("a", 0)):
    write_table(tmp_path / f"{name}.parquet", 10, text=[f"Text {i + first}." for i in range(25)])
  write_table(tmp_path / "aa.parquet", text=pyarrow.array([], pyarrow.string()))
  documents = read(f"parquet:{tmp_path}/*.parquet")
  expected = [f"Text {i}." for i in (*range(25), *range(100, 125))]
  assert [d.text for d in documents] == expected
  assert documents[24].path == f"{tmp_path}/a.parquet row 24"


def test_weights_count_rows(tmp_path):
  path = write_table(tmp_path / "a.parquet", text=[f"t{i}" for i in range(6)])
  assert paragraphs(f"0.5*parquet:{path}") == [("t1",), ("t3",), ("t5",)]


def test_identity_is_that_of_the_content(tmp_path):
  first, second = (write_table(tmp_path / name, text=TEXTS, title=TEXTS)
                   for name in ("a.parquet", "b.parquet"))
  specs = [f"parquet:{first}", f"parquet:{second}", f"parquet:{first}#title",
           f"parquet+sentences:{first}"]
  found = [sources.identity(spec, tmp_path) for spec in specs]
  assert found[0] == found[1] and len(set(found)) == 3
  write_table(second, text=TEXTS[:-1], title=TEXTS[:-1])
  assert sources.identity(specs[1], tmp_path) != found[0]


@pytest.mark.parametrize("mode, expected", [("replace", ["a\ufffdb", "\ufffd"]), ("skip", [])])
def test_text_that_is_not_clean_is_treated_as_the_config_says(tmp_path, mode, expected):
  path = write_table(tmp_path / "a.parquet", text=[b"ok", b"a\xffb", b"\0", b"fine"])
  with pytest.raises(DataError, match=r"a.parquet row 1: invalid UTF-8 at byte 1"):
    read(f"parquet:{path}")
  counts = sources.Counts()
  found = paragraphs(f"parquet:{path}", invalid_text=mode, counts=counts)
  assert found == [("ok",), *((text,) for text in expected), ("fine",)]
  assert sum(n for what, n in counts.items() if "UTF-8" in what or "NUL" in what) == 2


# ------------------------------------------------------------------- damage


@pytest.mark.parametrize("content, reason", [
    (b"", "it is empty"), (b'{"text": "no"}\n' * 9, "Parquet magic bytes"),
    (b"PAR1", "Parquet"), (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull")])
def test_other_files_are_refused_by_name_before_reading(tmp_path, content, reason):
  write_table(tmp_path / "a.parquet", text=["x"])
  path = write(tmp_path / "b.parquet", content)
  with pytest.raises(DataError, match=reason) as e:
    sources.open_source(f"parquet:{tmp_path}/*.parquet")
  assert str(e.value).startswith(f"{path}: is not a Parquet file")


def test_a_truncated_file_is_refused_before_reading(tmp_path):
  path = write_table(tmp_path / "a.parquet", text=["x" * 99] * 9)
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(DataError, match="is not a Parquet file"):
    sources.open_source(f"parquet:{path}")


def test_damage_is_an_error_that_names_the_row_group(tmp_path):
  texts = [f"{i} " * 300 for i in range(6)]
  path = tmp_path / "a.parquet"
  pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=2,
                              use_dictionary=False, compression="none", write_statistics=False,
                              write_page_checksum=True)
  assert path.read_bytes().count(texts[3].encode()) == 1
  path.write_bytes(path.read_bytes().replace(texts[3].encode(), b"4 " * 300))
  documents = sources.open_source(f"parquet:{path}")
  assert [next(documents).text for _ in range(2)] == texts[:2]
  with pytest.raises(DataError, match=rf"{path}: row group 1 cannot be read \(.*\)\. Check"):
    next(documents)


# ---------------------------------------------------------------- sentences


def test_rows_of_sentences_are_the_lines_of_a_text(tmp_path):
  lines = ["One.", "Two, too.", "", "Three.", None, None, "Four.", "Five."]
  path = write_table(tmp_path / "a.parquet", 3, text=lines)
  text = write(tmp_path / "a.txt", "\n".join(line or "" for line in lines).encode())
  documents = read(f"parquet+sentences:{path}")
  assert [d.text for d in documents] == [d.text for d in read(f"text:{text}")]
  assert all(d.sentences_given for d in documents)
  assert [d.path.rpartition(" row ")[2] for d in documents] == ["0", "3", "6"]


def test_sentences_without_empty_rows_become_documents_of_bounded_size(tmp_path, monkeypatch):
  monkeypatch.setattr(parquet, "MAX_DOCUMENT_BYTES", 100)
  lines = [f"Sentence {i:02}." for i in range(40)]
  counts = sources.Counts()
  path = write_table(tmp_path / "a.parquet", text=lines)
  found = [d.text for d in read(f"parquet+sentences:{path}", counts=counts)]
  assert "".join(found) == "\n".join(lines)
  assert [text.count("Sentence") for text in found] == [7, 7, 7, 7, 7, 5]
  assert counts["long documents cut"] == 1


def test_every_long_document_is_counted_once(tmp_path, monkeypatch):
  """The second one also has a line that is cut; the last one is such a line."""
  for module in (documents, intake, parquet):
    monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 100)
  lines = [*["Sentence."] * 30, "", "A.", "word " * 90, "B.", "", "Short.", "", "word " * 90]
  path = write_table(tmp_path / "a.parquet", text=lines)
  text = write(tmp_path / "a.txt", "\n".join(lines).encode())
  (tmp_path / "a.jsonl").write_text("".join(
      json.dumps({"text": document}) + "\n" for document in "\n".join(lines).split("\n\n")))
  for spec in (f"parquet+sentences:{path}", f"text:{text}", f"jsonl:{tmp_path}/a.jsonl"):
    counts = sources.Counts()
    assert len(read(spec, counts=counts)) > 8
    assert counts["long documents cut"] == 3


# ------------------------------------------------------------------- memory


_PEAK = """
import pathlib, sys
from bertgpt.data.text import parquet
rows = sum(1 for _ in parquet.open_files(sys.argv[1:], "text"))
status = pathlib.Path("/proc/self/status").read_text().split()
print(rows, int(status[status.index("VmHWM:") + 1]) // 1024)
"""


def test_a_row_group_of_any_size_is_read_in_little_memory(tmp_path):
  """One row group has 400 MB, and its last rows are the longest."""
  block = pyarrow.array([f"{i:04} " * 500 for i in range(4000)] + ["x" * 2**20] * 10)
  schema = pyarrow.schema({"text": pyarrow.string()})
  path = tmp_path / "a.parquet"
  table = pyarrow.table([pyarrow.chunked_array([block] * 20)], schema)
  pyarrow.parquet.write_table(table, path, row_group_size=10**9, compression="none",
                              use_dictionary=False)
  del table
  assert pyarrow.parquet.ParquetFile(path).num_row_groups == 1 and path.stat().st_size > 4e8
  done = subprocess.run([sys.executable, "-c", _PEAK, str(path)], capture_output=True, text=True,
                        check=True)
  rows, mebibytes = map(int, done.stdout.split())
  assert rows == 4010 * 20
  assert mebibytes < 250
