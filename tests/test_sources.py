"""Documents come out whole, in order and clean, or the error says where they are not."""

import ast
import gzip
import inspect
import json
import lzma
import pathlib
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import tensorflow_datasets as tfds
import zstandard

from bertgpt.data import intake, pydocs, sources
from bertgpt.errors import ConfigError, DataError

COMPRESS = {".txt": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


def read(spec, **kwargs):
  return list(sources.open_source(spec, **kwargs))


def paragraphs(spec, **kwargs):
  return [document.paragraphs for document in read(spec, **kwargs)]


def write(path: pathlib.Path, content: bytes) -> pathlib.Path:
  path.write_bytes(content)
  return path


# ------------------------------------------------------------------ formats


@pytest.mark.parametrize("ending", COMPRESS)
def test_text_has_a_sentence_a_line_and_blank_lines_between_documents(tmp_path, ending):
  text = "One.\nTwo, too.\n\n \t\nÜber.\n二。\n".encode()
  path = write(tmp_path / f"a{ending}", COMPRESS[ending](text))
  documents = read(f"text:{path}")
  assert [d.paragraphs for d in documents] == [("One.", "Two, too."), ("Über.", "二。")]
  assert [text[d.offset:].decode()[0] for d in documents] == ["O", "Ü"]
  assert sources.split_sentences(documents[0], "en") == ["One.", "Two, too."]


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_members_of_a_compressed_file_are_read_one_after_the_other(tmp_path, ending):
  parts = [COMPRESS[ending](b"First.\n\n"), COMPRESS[ending](b"Second.\n")]
  path = write(tmp_path / f"a{ending}", b"".join(parts))
  assert paragraphs(f"text:{path}") == [("First.",), ("Second.",)]


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_a_cut_compressed_file_is_an_error_that_names_it(tmp_path, ending):
  text = "\n".join(str(i * i) for i in range(100_000)).encode()
  whole = COMPRESS[ending](text)
  path = write(tmp_path / f"a{ending}", whole[:len(whole) // 2])
  with pytest.raises(DataError, match=f"a{ending}: cannot be read"):
    read(f"text:{path}")


def test_jsonl_reads_the_named_field_as_running_text(tmp_path):
  lines = [{"text": "no", "body": "It is so. Is it?\nNext paragraph."}, {"body": "Ein \ud83d\ude00."}]
  path = write(tmp_path / "a.jsonl", "\n\n".join(map(json.dumps, lines)).encode())
  documents = read(f"jsonl:{path}#body")
  assert [d.paragraphs for d in documents] == [("It is so. Is it?", "Next paragraph."), ("Ein 😀.",)]
  assert sources.split_sentences(documents[0], "en") == ["It is so.", "Is it?", "Next paragraph."]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  """600 records in two shards of ArrayRecord."""
  folder = tmp_path_factory.mktemp("dataset")
  identity = tfds.core.dataset_info.DatasetIdentity(
      name="toy", version="1.0.0", data_dir=str(folder), module_name="toy")
  text = tfds.features.Text()
  features = tfds.features.FeaturesDict({"text": text, "meta": {"title": text}, "n": np.int64})
  writer = tfds.core.SequentialWriter(
      tfds.core.DatasetInfo(builder=identity, features=features), 300, file_format="array_record")
  writer.initialize_splits(["train"])
  writer.add_examples({"train": [
      {"text": f"Document {i}.\nIt ends.", "meta": {"title": f"Title {i}"}, "n": i}
      for i in range(600)]})
  writer.close_all()
  return folder


def test_tfds_folder_is_read_in_order(dataset):
  assert paragraphs(f"tfds:{dataset}:train#text") == [
      (f"Document {i}.", "It ends.") for i in range(600)]


def test_tfds_split_may_be_a_part_and_the_feature_nested(dataset):
  assert paragraphs(f"tfds:{dataset}:train[10:12]#meta/title") == [("Title 10",), ("Title 11",)]


@pytest.mark.parametrize("end,message", [
    (":test#text", "test"), (":train#no", "choose one of meta, n, text"),
    (":train#n", "is no text"), ("/none:train#text", "TFDS knows no dataset")])
def test_tfds_errors_name_what_is_missing(dataset, end, message):
  with pytest.raises(DataError, match=message):
    read(f"tfds:{dataset}{end}")


def test_tfds_source_imports_no_tensorflow(dataset):
  code = ("import sys; from bertgpt.data import sources;"
          f"print(len(list(sources.open_source('tfds:{dataset}:train'))),"
          "[m for m in ('tensorflow', 'jax') if m in sys.modules])")
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.split() == ["600", "[]"]


# -------------------------------------------------------------------- specs


def test_sources_are_joined_and_weighted_in_documents(tmp_path):
  a = write(tmp_path / "a, b.txt", b"a0\n\na1\n")
  b = write(tmp_path / "b.txt", b"\n\n".join(b"b%d" % i for i in range(4)))
  assert paragraphs(f"2*text:{a},0.5*text:{b}") == [
      ("a0",), ("a0",), ("a1",), ("a1",), ("b1",), ("b3",)]


def test_globs_are_read_by_name_and_know_folders(tmp_path):
  (tmp_path / "sub").mkdir()
  for name in ("b.txt", "a.txt", "sub/c.txt"):
    write(tmp_path / name, name.encode())
  assert paragraphs(f"text:{tmp_path}/**/*.txt") == [("a.txt",), ("b.txt",), ("sub/c.txt",)]


@pytest.mark.parametrize("spec", ["", "txt:a", "text", "text:", "pydocs:x", "0*text:a", "jsonl",
                                  "tfds:name", "text:a,jsnol:b"])
def test_what_is_no_source_is_a_config_error_before_reading(spec):
  with pytest.raises(ConfigError, match="data.source"):
    sources.open_source(spec)


def test_glob_without_files_is_an_error_before_reading(tmp_path):
  with pytest.raises(DataError, match=r"no file matches .*none\*"):
    sources.open_source(f"text:{tmp_path}/none*")


def test_identity_follows_the_content_and_not_the_place(tmp_path):
  (tmp_path / "x").mkdir()
  a = write(tmp_path / "a.txt", b"same")
  moved = write(tmp_path / "x" / "b.txt", b"same")
  before = sources.identity(f"text:{a}")
  assert sources.identity(f"text:{moved}") == before
  write(a, b"Same")
  others = {sources.identity(f"{kind}:{a}") for kind in ("text", "text+paragraphs", "2*text")}
  assert len(others | {before}) == 4


# --------------------------------------------------------- text that is none


BAD = {
    "invalid UTF-8": (b"Good one.\n\nSome \xff here.\n\nLast one.\n", 16),
    "NUL character": ("Good one.\n\nÄ \0 here.\n\nLast one.\n".encode(), 14),
}


@pytest.mark.parametrize("problem", BAD)
def test_error_names_file_and_byte(tmp_path, problem):
  content, offset = BAD[problem]
  path = write(tmp_path / "a.txt", content)
  with pytest.raises(DataError, match=f"a.txt: {problem} at byte {offset};"):
    read(f"text:{path}")


@pytest.mark.parametrize("problem", BAD)
def test_replace_marks_the_place_and_skip_drops_the_document(tmp_path, problem):
  path = write(tmp_path / "a.txt", BAD[problem][0])
  counts = sources.Counts()
  first, bad, last = paragraphs(f"text:{path}", invalid_text="replace", counts=counts)
  assert "\ufffd" in bad[0]
  assert paragraphs(f"text:{path}", invalid_text="skip", counts=counts) == [first, last]
  assert counts == {f"{problem}: replaced": 1, f"{problem}: document skipped": 1}


@pytest.mark.parametrize("line,problem,mendable", [
    (b'{"text": "lone \\ud800 half"}', "lone surrogate", True),
    (b'{"text": "a \\u0000 b"}', "NUL character", True),
    (b'{"text": "no end', "malformed JSON", False),
    (b'{"txt": "no field"}', "no text in field 'text'", False),
    (b'{"text": 5}', "no text in field 'text'", False),
    (b'[1]', "no text in field 'text'", False),
    (b'"text"', "no text in field 'text'", False)])
def test_a_bad_record_of_jsonl(tmp_path, line, problem, mendable):
  good = b'{"text": "Good."}\n'
  path = write(tmp_path / "a.jsonl", good + line + b"\n" + good)
  with pytest.raises(DataError, match=rf"a.jsonl: {problem}.* at byte \d+"):
    read(f"jsonl:{path}")
  assert paragraphs(f"jsonl:{path}", invalid_text="skip") == [("Good.",)] * 2
  replaced = read(f"jsonl:{path}", invalid_text="replace")
  assert len(replaced) == 2 + mendable
  for document in replaced:
    "".join(document.paragraphs).encode()


def test_marks_carriage_returns_and_empty_documents_are_tallied(tmp_path):
  path = write(tmp_path / "a.txt", b"\xef\xbb\xbfOne line.\r\nTwo.\r\n\r\nWord\r\n")
  empty = write(tmp_path / "b.jsonl", b'{"text": " \\n "}')
  counts = sources.Counts()
  documents = read(f"text:{path},jsonl:{empty}", counts=counts)
  assert [(d.paragraphs, d.offset) for d in documents] == [
      (("One line.", "Two."), 3), (("Word",), 22)]
  assert counts == {"byte-order marks removed": 1, "carriage returns removed": 3,
                    "documents of one word": 1, "documents without text: skipped": 1}


def test_utf16_is_named(tmp_path):
  path = write(tmp_path / "a.txt", "Text".encode("utf-16"))
  with pytest.raises(DataError, match="UTF-16; convert it"):
    read(f"text:{path}", invalid_text="replace")


@pytest.fixture(scope="module")
def long_line(tmp_path_factory):
  """A good document, one with a line of 50 MB, a good one; half a megabyte as .zst."""
  path = tmp_path_factory.mktemp("long") / "a.zst"
  line = ("wörd " * 8_400_000).encode()
  return write(path, zstandard.compress(b"Good.\n\nBefore.\n" + line + b"\nAfter.\n\nLast.\n"))


def test_a_line_of_50_mb_is_an_error_that_names_its_byte(long_line):
  with pytest.raises(DataError, match="line of more than 16777216 bytes at byte 15;"):
    read(f"text:{long_line}")


def test_a_line_of_50_mb_is_cut_at_spaces_or_skipped(long_line):
  spec = f"text+paragraphs:{long_line}"
  assert paragraphs(spec, invalid_text="skip") == [("Good.",), ("Last.",)]
  documents = read(spec, invalid_text="replace")
  words = [word for d in documents[1:-1] for p in d.paragraphs for word in p.split(" ")]
  assert words == ["Before.", *["wörd"] * 8_400_000, "After."]
  sizes = [sum(len(p.encode()) for p in d.paragraphs) for d in documents]
  assert max(sizes) <= intake.MAX_DOCUMENT_BYTES


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
    documents = paragraphs(spec, counts=counts)
    assert len(documents) == 3 and counts["long documents cut"] > 0
    assert [p for document in documents for p in document] == lines


# ---------------------------------------------------------------- sentences


def sentences(text, language):
  return sources.split_sentences(sources.Document((text,), False), language)


def test_english_abbreviations_and_names_with_dots_do_not_end_a_sentence():
  assert sentences('Dr. Smith wrote os.path in 3.5 days. "Why?" asked he. The end', "en") == [
      "Dr. Smith wrote os.path in 3.5 days.", '"Why?" asked he.', "The end"]


@pytest.mark.parametrize("language", ["zh", "en"])
def test_chinese_sentences_end_at_their_marks(language):
  assert sentences("今天天气很好。我们去哪里？去公园！好", language) == [
      "今天天气很好。", "我们去哪里？", "去公园！", "好"]


def test_sentences_hold_all_characters_of_real_text(data_dir):
  documents = read(f"jsonl:{data_dir}/lm/wikipedia_en/heldout.jsonl.xz")
  assert len(documents) > 50
  for document in documents:
    pieces = sources.split_sentences(document, "en")
    assert all(piece == piece.strip() != "" for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join("".join(document.paragraphs).split())


def test_cuts_at_spaces_lose_only_the_space():
  text = "ab cde f" * 50
  pieces = sources.cut_at_spaces(text, 9)
  assert max(map(len, pieces)) <= 9 and " ".join(pieces) == text
  assert sources.cut_at_spaces("x" * 20, 9) == ["x" * 9, "x" * 9, "xx"]


# ------------------------------------------------------------------- pydocs


DOCSTRING = '''Adds two numbers that the caller gives.

    The ``sum`` is exact, see :func:`~math.fsum`, unless *both* are
    infinite. There are two ways to call it::

        this = code(that, is="left out")

    Parameters
    ----------
    first : float, optional
        The number to begin with, which may be negative.
    second
        A number.

    Args:
      third (int): The number that nobody expected here. It has
        a second line.

    >>> add(1, 2)
    3

    What follows an example is prose again, of course.

    .. math:: this is
        not shown at all to anyone

    ====  ====
    a     b
    ====  ====
    '''


def test_prose_of_a_docstring_is_kept_without_code_tables_and_markup():
  assert list(pydocs.prose_paragraphs(inspect.cleandoc(DOCSTRING))) == [
      "Adds two numbers that the caller gives.",
      "The sum is exact, see math.fsum, unless both are infinite.",
      "The number to begin with, which may be negative.",
      "The number that nobody expected here. It has a second line.",
      "What follows an example is prose again, of course."]


def test_pydocs_are_the_same_twice_and_hold_documents_of_several_sentences():
  code = ("import hashlib; from bertgpt.data import pydocs;"
          "print(hashlib.sha256(repr(list(pydocs.read_documents(400_000))).encode()).hexdigest())")
  hashes = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={"PYTHONHASHSEED": seed}).stdout for seed in "12"}
  assert len(hashes) == 1
  documents = list(pydocs.read_documents(400_000))
  text = [p for _, document in documents for p in document]
  assert 300_000 < sum(len(p.encode()) for p in text) <= 400_000
  assert len(set(text)) == len(text)
  assert not [p for p in text if ">>>" in p or "  " in p or "``" in p]
  lengths = sorted(len(sources.split_sentences(sources.Document(d, False), "en"))
                   for _, d in documents)
  assert lengths[len(lengths) // 4] >= 4


def test_pydocs_come_from_the_docstrings_of_the_files():
  name, document = next((n, d) for n, d in pydocs.read_documents() if n == "textwrap.py")
  import textwrap
  tree = ast.parse(pathlib.Path(textwrap.__file__).read_text())
  whole = " ".join(ast.get_docstring(node) or "" for node in ast.walk(tree)
                   if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)))
  whole = " ".join(re.sub("[`*]", "", whole).split())
  assert len(document) > 10
  assert all(p in whole for p in document)
