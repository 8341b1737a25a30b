"""Any file is read, or refused in one line: sources, plain files of text, JSON, tables."""

import json

import fuzzing
import pyarrow
import pyarrow.parquet
import pytest
from fuzzing import FAILED, attempt
from hypothesis import strategies as st
from source_files import write

from bertgpt.data.text import sources, texts
from bertgpt.data.text.documents import cut_sentences
from bertgpt.errors import ConfigError

MODES = ("error", "replace", "skip")


def read_all(spec, mode):
  return list(sources.open_source(spec, invalid_text=mode))


def is_clean(text):
  return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


@pytest.mark.parametrize("prefix", ["", "text:", "jsonl:", "parquet:", "tfds:", "2*text:"])
def test_any_source_is_parsed_or_refused(prefix):
  parts = st.sampled_from(("text:", "jsonl:", "pydocs", ",", "#", "*", "2*", ".5*", ".", "~", "/",
                           "[", "]", "**", "://", "tfds:", ":", "9" * 400, "\u0663*"))
  specs = st.lists(parts | fuzzing.texts(6), max_size=8).map("".join)

  def check(spec):
    parsed = attempt(sources.parse, prefix + spec.replace("\n", " "))
    if parsed is not FAILED:
      for source in parsed:
        assert source.kind in sources.SOURCE_KINDS
        assert 0 < source.weight < float("inf")
  fuzzing.run(check, 150, spec=specs)


@pytest.mark.parametrize("kind", ["text", "text+paragraphs", "jsonl", "parquet"])
@pytest.mark.parametrize("ending", ["", ".gz", ".xz", ".zst"])
def test_any_bytes_are_read_or_refused(kind, ending):
  pieces = st.sampled_from((b"\r\n", b"\n", b"\n\n", b"\xff\xfe", b"\xef\xbb\xbf", b"\x85",
                            b'{"text": "', b'"}', b"\xed\xa0\x80", b"\x00", b"PAR1"))
  lines = st.lists(pieces | st.binary(max_size=8) | fuzzing.texts(9).map(
      lambda text: text.encode(errors="surrogatepass")), max_size=12).map(b"".join)

  def check(content, mode):
    with fuzzing.folder() as folder:
      path = write(folder / f"a{ending}", content)
      documents = attempt(read_all, f"{kind}:{path}", mode)
      for document in [] if documents is FAILED else documents:
        assert document.text.strip() and is_clean(document.text)
        sentences = cut_sentences(document, "en")
        assert all(map(str.strip, sentences)) and "".join(sentences) == document.text
  fuzzing.run(check, 25, content=lines, mode=st.sampled_from(MODES))


def as_text(content):
  """Returns the text of a UTF-8 file without byte-order mark, with unified line ends, or None."""
  try:
    text = content.decode("utf-8-sig")
  except UnicodeDecodeError:
    return None
  return None if "\0" in text else text.replace("\r\n", "\n").replace("\r", "\n")


def test_a_text_is_what_the_file_says():
  def check(content):
    with fuzzing.folder() as folder:
      path = write(folder / "a", content)
      text = attempt(texts.read_text, path, "--input")
      assert (None if text is FAILED else text) == as_text(content)
      lines = attempt(texts.read_texts, path, "--input")
      assert lines is FAILED or "\n".join(lines) == text.removesuffix("\n")
  text = fuzzing.texts().map(lambda text: text.encode(errors="surrogatepass"))
  fuzzing.run(check, 150, content=text | st.tuples(st.just(b"\xef\xbb\xbf"), text).map(b"".join))


@pytest.mark.parametrize("kind", ["text", "text+paragraphs"])
def test_documents_are_what_google_bert_reads(kind):
  """create_pretraining_data.py: a line that strip() leaves empty ends a document."""
  def check(text):
    with fuzzing.folder() as folder:
      path = write(folder / "a", text.encode(errors="surrogatepass"))
      found = attempt(read_all, f"{kind}:{path}", "error")
      if found is FAILED:
        assert as_text(path.read_bytes()) is None
        return
      expected = [[]]
      for line in as_text(path.read_bytes()).split("\n"):
        expected[-1].append(line) if line.strip() else expected.append([])
      assert [document.text for document in found] == ["\n".join(e) for e in expected if e]
  fuzzing.run(check, 150, text=fuzzing.texts())


def records():
  text = fuzzing.texts()
  return st.fixed_dictionaries({}, optional={
      "text": text | fuzzing.values(), "a": st.dictionaries(st.sampled_from("bc"), text),
      "a.b": text}) | fuzzing.values()


@pytest.mark.parametrize("field", ["text", "a.b", "a.b,text", ""])
def test_any_json_lines_are_read_or_refused(field):
  def check(lines, mode, tail):
    with fuzzing.folder() as folder:
      content = "\n".join(map(json.dumps, lines)).encode()
      path = write(folder / "a.jsonl", content[:len(content) - tail])
      documents = attempt(read_all, f"jsonl:{path}#{field}", mode)
      if documents is not FAILED:
        assert len(documents) <= len(lines)
      attempt(texts.read_texts, path, "--input", field)
  fuzzing.run(check, 100, lines=st.lists(records(), max_size=5), mode=st.sampled_from(MODES),
              tail=st.sampled_from((0, 0, 0, 1, 5)))


def test_the_text_of_json_is_kept():
  def check(rows):
    with fuzzing.folder() as folder:
      lines = b"\n".join(json.dumps({"text": row}).encode() for row in rows)
      path = write(folder / "a.jsonl", lines)
      found = attempt(read_all, f"jsonl:{path}", "error")
      if found is FAILED:
        assert not all(map(is_clean, rows))
        return
      expected = [row.replace("\r\n", "\n").replace("\r", "\n") for row in rows if row.strip()]
      assert [document.text for document in found] == expected
  fuzzing.run(check, 100, rows=st.lists(fuzzing.texts(), max_size=5))


def test_broken_json_is_refused():
  start = st.sampled_from(('{"text": "a"', "[" * 5000, '{"a":' * 5000, '{"text": "a", "text": "b"}',
                           '{"text": 1' + "0" * 5000, '{"text": "\\ud800"}', "NaN", '"\\'))

  def check(line, mode):
    with fuzzing.folder() as folder:
      path = write(folder / "a.jsonl", line.encode(errors="surrogatepass"))
      attempt(read_all, f"jsonl:{path}", mode)
      attempt(texts.read_texts, path, "--input")
  fuzzing.run(check, 60, mode=st.sampled_from(MODES),
              line=st.tuples(start, fuzzing.texts(9)).map("".join) | fuzzing.texts())


def test_parquet_holds_what_was_written():
  def check(rows, size, kind):
    with fuzzing.folder() as folder:
      column = pyarrow.array(rows, kind)
      path = folder / "a.parquet"
      pyarrow.parquet.write_table(pyarrow.table({"text": column}), path, row_group_size=size)
      lines = b"\n".join(json.dumps({"text": row or ""}).encode() for row in rows)
      other = write(folder / "a.jsonl", lines)
      found, expected = (read_all(f"{kind}:{path}", "replace")
                         for kind, path in (("parquet", path), ("jsonl", other)))
      assert [d.text for d in found] == [d.text for d in expected]
  clean = fuzzing.texts().filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text))
  kinds = [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(),
           pyarrow.dictionary(pyarrow.int32(), pyarrow.string())]
  fuzzing.run(check, 60, rows=st.lists(st.none() | clean, max_size=9), size=st.integers(1, 9),
              kind=st.sampled_from(kinds))


@pytest.mark.parametrize("compression", ["none", "zstd", "snappy"])
def test_damaged_parquet_is_read_or_refused(compression):
  with fuzzing.folder() as folder:
    path = folder / "a.parquet"
    table = pyarrow.table({"text": ["It is.", None, "Is it?"] * 9,
                           "n": [{"x": i} for i in range(27)]})
    pyarrow.parquet.write_table(table, path, row_group_size=10, compression=compression)
    content = path.read_bytes()

  def check(content, column, mode):
    with fuzzing.folder() as folder:
      attempt(read_all, f"parquet:{write(folder / 'a.parquet', content)}#{column}", mode)
  fuzzing.run(check, 60, content=fuzzing.damaged(content), mode=st.sampled_from(MODES),
              column=st.sampled_from(("text", "n", "n.x", "")) | fuzzing.texts(9))


def test_any_table_of_columns_is_read_or_refused():
  rows = st.lists(st.lists(fuzzing.names() | fuzzing.texts(9), max_size=4), max_size=6)

  def check(rows, columns):
    with fuzzing.folder() as folder:
      content = "\n".join(map("\t".join, rows)).encode(errors="surrogatepass")
      path = write(folder / "a.tsv", content)
      found = attempt(lambda: list(texts.iterate_columns(path, "--input", columns)))
      assert found is FAILED or all(len(row) == len(columns) for row in found)
  fuzzing.run(check, 60, rows=rows, columns=st.lists(fuzzing.names(), min_size=1, max_size=2))


def test_a_file_that_is_missing_is_refused():
  def check(name):
    with fuzzing.folder() as folder:
      with pytest.raises(ConfigError):
        texts.read_text(folder / "x" / name, "--input")
  fuzzing.run(check, 5, name=st.text("ab", min_size=1))
