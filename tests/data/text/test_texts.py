"""bertgpt.data.text.texts: texts come back in order, and errors name the line at fault."""

import gzip
import json

import pytest

from bertgpt.data.text import sources, texts
from bertgpt.errors import ConfigError, DataError


def test_lines_come_in_order_with_empty_ones(tmp_path):
  content = "first\n\n  third \u2028 still\r\nlast"
  (tmp_path / "a.txt").write_bytes(content.encode())
  (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content.encode()))
  for name in ("a.txt", "a.txt.gz"):
    found = texts.read_texts(tmp_path / name, "--input")
    assert found == ["first", "", "  third \u2028 still", "last"]


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_and_marks_are_not_text(tmp_path, end):
  content = "One.  \n\n\tTwo\x0b\x0c \u2028.\nbad\tgood\n"
  (tmp_path / "a.txt").write_bytes(content.encode())
  (tmp_path / "b.txt").write_bytes(content.replace("\n", end).encode("utf-8-sig"))
  for read in (texts.read_text, texts.read_texts):
    assert read(tmp_path / "b.txt", "--input") == read(tmp_path / "a.txt", "--input")
  assert texts.read_text(tmp_path / "b.txt", "--input") == content
  assert texts.clean_text("\ufeff" + content.replace("\n", end), "--prompt") == content


def test_a_table_has_rows_at_every_line_end(tmp_path):
  (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbfgood\tbad\ra\tb\r\n\xe3\x80\x80\t\nc\td")
  assert list(texts.iterate_columns(tmp_path / "a.tsv", "--suite", ("good", "bad"))) == [
      ("a", "b"), ("c", "d")]


def test_a_prompt_that_is_not_utf8_is_an_error():
  with pytest.raises(DataError, match="--prompt: lone surrogate at byte 3. Repair it"):
    texts.clean_text(b"abc\xff".decode(errors="surrogateescape"), "--prompt")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz", "a.ndjson"])
def test_fields_of_json_lines(tmp_path, name):
  lines = [json.dumps({"id": i, "text": f"text\n{i}"}) for i in range(3)]
  content = "\n".join([*lines, "", ""]).encode()
  (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
  assert texts.read_texts(tmp_path / name, "--input") == ["text\n0", "text\n1", "text\n2"]


def test_texts_of_json_are_those_of_the_corpus(tmp_path):
  """Nested fields, several fields and line ends, as in a source of `data.source`."""
  path = tmp_path / "a.jsonl"
  path.write_text('{"meta": {"title": "t"}, "text": "a\\r\\nb\\rc"}\n{"text": "d"}\n')
  found = texts.read_texts(path, "--input", "meta.title,text")
  assert found == ["t\n\na\nb\nc", "d"]
  assert found == [d.text for d in sources.open_source(f"jsonl:{path}#meta.title,text")]


def test_columns_by_name(tmp_path):
  (tmp_path / "a.tsv").write_text('bad\tid\tgood\nx "y\t1\tz\nu\t2\t"v"\n')
  found = list(texts.iterate_columns(tmp_path / "a.tsv", "--suite", ("good", "bad")))
  assert found == [("z", 'x "y'), ('"v"', "u")]


@pytest.mark.parametrize("name, content, error, fragment", [
    ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', ConfigError, "line 2: has no field 'text'"),
    ("a.jsonl", b'{"text": "a"}\n{"text\n', DataError, "line 2: is not valid JSON"),
    ("a.jsonl", b'{"text": 3}\n', ConfigError, "line 1: has no field 'text' with text"),
    ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", DataError, "line 1: is not usable JSON"),
    ("a.jsonl", b'[{"text": "a"}]', ConfigError, "line 1: .*Each line must hold one JSON object"),
    ("a.jsonl", b'{\n "text": "a"}', DataError, "line 1: .*Each line must hold one JSON object"),
    ("a.jsonl", b'{"text": "a\\ud800"}', DataError, "line 1: text has a lone surrogate at "),
    ("a.jsonl", b'{"txt": "a", "id": 1}', ConfigError, "with text. It has 'txt', 'id'. Give"),
    ("a.jsonl", b'{"text": "\\u0000"}', DataError, "text has a NUL character at character 0"),
    ("a.txt", b"good\nb\xffd\n", DataError, "a.txt: invalid UTF-8 at byte 6. Repair it"),
    ("a.txt.gz", gzip.compress(b"text" * 100, mtime=0)[:-9], DataError, "a.txt.gz: cannot be read"),
    ("b.txt", b"", ConfigError, "--input "),
    ("a.jsonl", b"\n", ConfigError, "--input .*a.jsonl: holds no text"),
    ("a.txt", b"\n \r\n", ConfigError, "--input .*a.txt: holds no text"),
])
def test_an_invalid_file_is_an_error_that_names_the_line(tmp_path, name, content, error, fragment):
  if content:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(error, match=fragment):
    texts.read_texts(tmp_path / name, "--input")


def test_a_table_is_cut_only_at_tabs_and_line_feeds(tmp_path):
  odd, long = "a\u2028b\x85c\x0bd", "word " * 30_000
  (tmp_path / "a.tsv").write_bytes(f"good\tbad\r\n{odd}\t{long}\r\n\r\nu\tv\n\n".encode())
  found = list(texts.iterate_columns(tmp_path / "a.tsv", "--suite", ("good", "bad")))
  assert found == [(odd, long), ("u", "v")]


@pytest.mark.parametrize("content, error, fragment", [
    ("good\tworse\na\tb\n", ConfigError, "has no column bad. Its first line must name good, bad"),
    ("", ConfigError, "has no column good, bad"),
    ("good\tbad\na\tb\nc\n", DataError, "line 3 has 1 values, but the first line has 2"),
    ("good\tbad\na\tb\tc\n", DataError, "line 2 has 3 values, but the first line has 2"),
    ("good\tbad\tgood\na\tb\tc\n", DataError, "a.tsv: has the column good twice. Rename one"),
])
def test_an_invalid_table_is_an_error_that_says_where(tmp_path, content, error, fragment):
  (tmp_path / "a.tsv").write_text(content)
  with pytest.raises(error, match=fragment):
    list(texts.iterate_columns(tmp_path / "a.tsv", "--suite", ("good", "bad")))
