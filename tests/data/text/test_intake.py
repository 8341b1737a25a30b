"""Files that are damaged, endless or not text: the error names the place, or text is replaced."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import tracemalloc
import zipfile

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard
from source_files import paragraphs, read, write

from bertgpt.data.text import intake, paths, sources, texts
from bertgpt.errors import DataError
from bertgpt.finetuning.tasks import files

COMPRESS = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_members_of_a_compressed_file_are_read_one_after_the_other(tmp_path, ending):
  parts = [COMPRESS[ending](b"First.\n\n"), COMPRESS[ending](b"Second.\n")]
  path = write(tmp_path / f"a{ending}", b"".join(parts))
  assert paragraphs(f"text:{path}") == [("First.",), ("Second.",)]


@pytest.mark.parametrize("name, ending", [
    ("films.txt.tsv", ".tsv"), ("a.jsonl.txt", ".txt"), ("a.b/c.tsv.gz", ".tsv"), ("a.gz", ""),
    ("v1.0/words", "")])
def test_the_ending_of_a_name_is_the_one_before_that_of_a_compression(name, ending):
  assert paths.find_ending(name) == ending


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_a_cut_compressed_file_is_an_error_that_names_it(tmp_path, ending):
  text = "\n".join(str(i * i) for i in range(100_000)).encode()
  whole = COMPRESS[ending](text)
  path = write(tmp_path / f"a{ending}", whole[:len(whole) // 2])
  with pytest.raises(DataError, match=f"a{ending}: cannot be read"):
    read(f"text:{path}")


BINARY = {
    "gzip": (gzip.compress(b"text"), "compressed by gzip, not text. Give its name the ending .gz"),
    "xz": (lzma.compress(b"text"), "compressed by xz, not text. Give its name the ending .xz"),
    "zstd": (zstandard.compress(b"text"), "Zstandard, not text. Give its name the ending .zst"),
    "bzip2": (bz2.compress(b"text"), "compressed by bzip2, not text. Convert it"),
    "empty bzip2": (bz2.compress(b""), "compressed by bzip2, not text. Convert it"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "is a PDF, not text. Convert it to text or .jsonl"),
}


def make_zip():
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as f:
    f.writestr("a.txt", "text")
  return file.getvalue()


def make_tar():
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w") as f:
    f.addfile(tarfile.TarInfo("a.txt"))
  return file.getvalue()


def make_arrow(writer):
  file = io.BytesIO()
  writer(pyarrow.table({"text": ["a"]}), file)
  return file.getvalue()


def make_stream(table, file):
  """Writes what `datasets` does in `save_to_disk` and in its cache."""
  with pyarrow.ipc.new_stream(file, table.schema) as f:
    f.write_table(table)


def make_ipc(table, file):
  with pyarrow.ipc.new_file(file, table.schema) as f:
    f.write_table(table)


BINARY |= {
    "zip": (make_zip(), "is a zip archive .*, not text. Convert it"),
    "Parquet": (make_arrow(pyarrow.parquet.write_table),
                "is a Parquet file, not text. Convert it .* data.source=parquet:.*a.txt#COLUMN"),
    "tar": (make_tar(), "is a tar archive, not text. Unpack it with tar -xf .*a.txt"),
    "Arrow": (make_arrow(make_ipc), "is an Arrow or Feather file, not text. Convert it"),
    "Arrow stream": (make_arrow(make_stream), "is an Arrow or Feather file, not text. Convert it "
                                              "with Dataset.to_parquet"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
                "is a Git LFS pointer, not text. Fetch the file itself with git lfs pull"),
    "Feather": (make_arrow(pyarrow.feather.write_feather), "is an Arrow or Feather file"),
}


@pytest.mark.parametrize("name", BINARY)
def test_files_that_are_not_text_are_named(tmp_path, name):
  content, message = BINARY[name]
  path = write(tmp_path / "a.txt", content)
  for mode in ("error", "skip"):
    with pytest.raises(DataError, match=f"a.txt: is .*{message.removeprefix('is ')}"):
      read(f"text:{path}", invalid_text=mode)
  with pytest.raises(DataError, match=message):
    texts.read_texts(tmp_path / "a.txt", "--input")
  with pytest.raises(DataError, match=message):
    files.read_json(tmp_path / "a.txt")


def test_a_window_of_zstandard_may_have_any_size(tmp_path):
  window = zstandard.ZstdCompressionParameters(window_log=29)
  writer = zstandard.ZstdCompressor(compression_params=window).compressobj()
  path = write(tmp_path / "a.zst", writer.compress(b"One.\n") + writer.flush())
  assert paragraphs(f"text:{path}") == [("One.",)]


def test_what_is_compressed_twice_is_named(tmp_path):
  path = write(tmp_path / "a.gz", gzip.compress(gzip.compress(b"text")))
  with pytest.raises(DataError, match="compressed by gzip, not text. Decompress it once"):
    read(f"text:{path}")


@pytest.mark.parametrize("text", ["PAR1 is a name", "BZh9 too", "PK", "%PDF", "ARROW1", "FEA1"])
def test_text_that_begins_as_other_formats_is_text(tmp_path, text):
  assert paragraphs(f"text:{write(tmp_path / 'a.txt', text.encode())}") == [(text,)]


# ------------------------------------------------------- text that is invalid


BAD = {
    "invalid UTF-8": (b"Good one.\n\nSome \xff here.\n\nLast one.\n", 16),
    "NUL character": ("Good one.\n\nÄ \0 here.\n\nLast one.\n".encode(), 14),
}


@pytest.mark.parametrize("problem", BAD)
def test_error_names_file_and_byte(tmp_path, problem):
  content, offset = BAD[problem]
  path = write(tmp_path / "a.txt", content)
  with pytest.raises(DataError, match=f"a.txt: {problem} at byte {offset}\\."):
    read(f"text:{path}")


@pytest.mark.parametrize("problem", BAD)
def test_replace_marks_the_place_and_skip_drops_the_document(tmp_path, problem):
  path = write(tmp_path / "a.txt", BAD[problem][0])
  counts = sources.Counts()
  first, bad, last = paragraphs(f"text:{path}", invalid_text="replace", counts=counts)
  assert "\ufffd" in bad[0]
  assert paragraphs(f"text:{path}", invalid_text="skip", counts=counts) == [first, last]
  assert counts == {f"{problem}: replaced": 1, f"{problem}: document skipped": 1}


@pytest.mark.parametrize("line,problem,can_replace", [
    (b'{"text": "lone \\ud800 half"}', "lone surrogate", True),
    (b'{"text": "a \\u0000 b"}', "NUL character", True),
    (b'{"text": "no end', "malformed JSON", False),
    (b'{"txt": "no field"}', "no text in field 'text'", False),
    (b'{"text": 5}', "no text in field 'text'", False),
    (b'[1]', "no text in field 'text'", False),
    (b'"text"', "no text in field 'text'", False)])
def test_a_bad_record_of_jsonl(tmp_path, line, problem, can_replace):
  good = b'{"text": "Good."}\n'
  path = write(tmp_path / "a.jsonl", good + line + b"\n" + good)
  with pytest.raises(DataError, match=rf"a.jsonl: {problem}.* at byte {len(good)}\."):
    read(f"jsonl:{path}")
  assert paragraphs(f"jsonl:{path}", invalid_text="skip") == [("Good.",)] * 2
  replaced = read(f"jsonl:{path}", invalid_text="replace")
  assert len(replaced) == 2 + can_replace
  for document in replaced:
    document.text.encode()


def test_marks_carriage_returns_and_empty_documents_are_tallied(tmp_path):
  path = write(tmp_path / "a.txt", b"\xef\xbb\xbfOne line.\r\nTwo.\r\n\r\nWord\r\n")
  empty = write(tmp_path / "b.jsonl", b'{"text": " \\n "}')
  counts = sources.Counts()
  documents = read(f"text:{path},jsonl:{empty}", counts=counts)
  assert [(d.text, d.offset) for d in documents] == [("One line.\nTwo.", 3), ("Word", 22)]
  assert counts == {"byte-order marks removed": 1, "carriage returns removed": 3,
                    "documents of one word": 1, "documents without text: skipped": 1}


@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-32"])
def test_another_encoding_is_named(tmp_path, encoding):
  path = write(tmp_path / "a.txt", "Text".encode(encoding))
  with pytest.raises(DataError, match=f"is {encoding}. Convert it"):
    read(f"text:{path}", invalid_text="replace")


# ------------------------------------------------------------ lines and blanks


LINES = ["One. ", "", "  Two\u2028more\x85\x0b.", "Three\x0c", "\u3000\u00a0", "", "Four"]


@pytest.mark.parametrize("max_bytes", [7, 1 << 24])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", ["", "end"])
def test_lines_end_at_lf_crlf_and_cr_only(tmp_path, monkeypatch, end, last, max_bytes):
  """This also holds if a line end is at the border between two reads."""
  content = end.join([*LINES, last]).encode()
  for shift in range(max_bytes if max_bytes < 10 else 1):
    monkeypatch.setattr(intake, "MAX_LINE_BYTES", 1 << 24)
    path = write(tmp_path / "a.txt", b"x" * shift + content)
    whole = list(intake.read_lines(str(path), intake.TextCleaner("error", intake.Counts()),
                                   can_replace=True))
    with open(path, newline="", encoding="utf-8") as f:  # Python's own rule for line ends.
      expected = [line.encode() for line in f]
    assert [line for _, line in whole] == expected
    monkeypatch.setattr(intake, "MAX_LINE_BYTES", max_bytes)
    pieces = list(intake.read_lines(str(path), intake.TextCleaner("replace", intake.Counts()),
                                    can_replace=True))
    assert b"".join(line for _, line in pieces) == path.read_bytes()
    assert {offset for offset, _ in whole} <= {offset for offset, _ in pieces}


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_line_of_unicode_white_space_separates_documents(tmp_path, end):
  """create_pretraining_data.py of google-research/bert strips the decoded line in the same way."""
  spaces = [chr(i) for i in range(0x110000) if not chr(i).strip() and chr(i) not in "\r\n"]
  assert {"\u3000", "\u00a0", "\x85", "\x1c"} <= set(spaces)
  content = "".join(f"Document {i}\n{space}\n" for i, space in enumerate(spaces))
  path = write(tmp_path / "a.txt", content.encode().replace(b"\n", end))
  assert paragraphs(f"text:{path}") == [(f"Document {i}",) for i in range(len(spaces))]


def test_a_byte_order_mark_before_a_json_record_is_not_text(tmp_path):
  record = b'\xef\xbb\xbf{"text": "\xef\xbb\xbfOne."}\n'
  counts = sources.Counts()
  path = write(tmp_path / "a.jsonl", record * 2)
  assert paragraphs(f"jsonl:{path}", counts=counts) == [("\ufeffOne.",)] * 2
  assert counts["byte-order marks removed"] == 2


@pytest.mark.parametrize("content", [b'[{"text": "a"},\n{"text": "b"}]', b'{\n"text": "a"\n}',
                                     b'[{"text": "a"}]'])
def test_json_that_is_not_one_object_per_line_is_named(tmp_path, content):
  path = write(tmp_path / "a.jsonl", content)
  with pytest.raises(DataError, match=(
      r"a\.jsonl: .* at byte 0\. (It is not valid JSON .*\. )?Each line must hold one JSON "
      r"object\. Repair it")):
    read(f"jsonl:{path}")


def test_a_number_of_5000_digits_is_an_error_with_its_place(tmp_path):
  lines = [b'{"text": "a", "n": 1}', b'{"text": "b", "n": ' + b"9" * 5000 + b"}"]
  path = write(tmp_path / "a.jsonl", b"\n".join(lines))
  with pytest.raises(DataError, match=(
      r"a\.jsonl: malformed JSON at byte 22\. It is not usable JSON \(a number has more than 4,3")):
    read(f"jsonl:{path}")
  assert paragraphs(f"jsonl:{path}", invalid_text="skip") == [("a",)]


@pytest.mark.parametrize("line, columns", [
    ("10\u00a0000 B-NUM", ["10\u00a0000", "B-NUM"]), ("EU NNP\tB-ORG ", ["EU", "NNP", "B-ORG"]),
    (" a \t b", ["a", "b"]), ("\u3000 O", ["\u3000", "O"]), (" \t", [])])
def test_columns_are_separated_by_spaces_and_tabs_only(line, columns):
  assert intake.split_columns(line) == columns


@pytest.fixture(scope="module")
def long_line(tmp_path_factory):
  """A document with a line of 50 MB between two good ones; as .zst, it has half a megabyte."""
  path = tmp_path_factory.mktemp("long") / "a.zst"
  line = ("wörd " * 8_400_000).encode()
  return write(path, zstandard.compress(b"Good.\n\nBefore.\n" + line + b"\nAfter.\n\nLast.\n"))


def test_a_line_of_50_mb_is_an_error_that_names_its_byte(long_line):
  with pytest.raises(DataError, match=(
      "line of more than 16777216 bytes at byte 15\\. Break the text into lines, or into "
      "documents of a .jsonl file, or set data.invalid_text")):
    read(f"text:{long_line}")


def test_a_line_of_50_mb_is_cut_at_spaces_or_skipped(long_line):
  spec = f"text+paragraphs:{long_line}"
  assert paragraphs(spec, invalid_text="skip") == [("Good.",), ("Last.",)]
  texts = [document.text for document in read(spec, invalid_text="replace")]
  assert "".join(texts[1:-1]) == "Before.\n" + "wörd " * 8_400_000 + "\nAfter."
  assert all(text.endswith("wörd ") for text in texts[2:-2])
  assert max(len(text.encode()) for text in texts) <= intake.MAX_DOCUMENT_BYTES


@pytest.mark.parametrize("mode", ["replace", "skip"])
def test_memory_is_bounded_whatever_the_line(long_line, mode):
  tracemalloc.start()
  for _ in sources.open_source(f"text:{long_line}", invalid_text=mode):
    pass
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 9 * intake.MAX_LINE_BYTES


def test_long_documents_are_cut_and_nothing_is_lost(tmp_path):
  lines = [f"{i} " + "x" * 1000 for i in range(9000)]
  path = write(tmp_path / "a.txt", "\n".join(lines).encode())
  record = write(tmp_path / "a.jsonl", json.dumps({"text": "\n".join(lines)}).encode())
  for spec in (f"text:{path}", f"jsonl:{record}"):
    counts = sources.Counts()
    documents = [document.text for document in read(spec, counts=counts)]
    assert len(documents) == 3 and counts["long documents cut"] == 1
    assert "".join(documents) == "\n".join(lines)
    assert all(text.startswith(tuple("0123456789")) for text in documents)
