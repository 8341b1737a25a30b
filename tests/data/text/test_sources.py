"""Documents are read whole, in order and clean, or the error says where one is not."""

import gzip
import importlib.util
import json
import lzma
import math
import pathlib
import re
import subprocess
import sys

import pytest
import zstandard
from source_files import paragraphs, read, write, write_dataset

from bertgpt.data.text import datasets, sources
from bertgpt.data.text.documents import cut_sentences
from bertgpt.devices import watchdog
from bertgpt.errors import ConfigError, DataError

COMPRESS = {".txt": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


# ------------------------------------------------------------------ formats


@pytest.mark.parametrize("ending", COMPRESS)
def test_text_has_one_sentence_per_line_and_blank_lines_between_documents(tmp_path, ending):
  text = "One.\nTwo, too.\n\n \t\nÜber.\n二。\n".encode()
  path = write(tmp_path / f"a{ending}", COMPRESS[ending](text))
  documents = read(f"text:{path}")
  assert [d.text for d in documents] == ["One.\nTwo, too.", "Über.\n二。"]
  assert [text[d.offset:].decode()[0] for d in documents] == ["O", "Ü"]
  assert cut_sentences(documents[0], "en") == ["One.", "\nTwo, too."]


def test_jsonl_reads_the_named_field_as_running_text(tmp_path):
  lines = [{"text": "no", "body": "It is so. Is it?\nNext one."}, {"body": "Ein \ud83d\ude00."}]
  path = write(tmp_path / "a.jsonl", "\n\n".join(map(json.dumps, lines)).encode())
  documents = read(f"jsonl:{path}#body")
  assert [d.text for d in documents] == ["It is so. Is it?\nNext one.", "Ein 😀."]
  assert cut_sentences(documents[0], "en") == ["It is so.", " Is it?", "\nNext one."]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  """600 records in two shards of ArrayRecord."""
  folder = tmp_path_factory.mktemp("dataset")
  return write_dataset(folder, train=[f"Document {i}.\nIt ends." for i in range(600)])


def test_tfds_folder_is_read_in_order(dataset):
  assert paragraphs(f"tfds:{dataset}:train#text") == [
      (f"Document {i}.", "It ends.") for i in range(600)]


def test_a_feature_within_text_is_refused(dataset):
  with pytest.raises(DataError, match="no feature 'text/x'. Leave out what follows"):
    paragraphs(f"tfds:{dataset}:train#text/x")


def test_tfds_split_may_be_a_part_and_the_feature_nested(dataset):
  assert paragraphs(f"tfds:{dataset}:train[10:12]#meta/title") == [("Title 10",), ("Title 11",)]


@pytest.mark.parametrize("end,message", [
    (":test#text", "Choose one of its splits: train$"),
    (":train-a", r"Unknown split 'train-a'.*Choose one of its splits: train$"),
    (":train.a", "'train.a'.*Choose one of its splits: train$"),
    (":train[x]", "Check the range, or prepare the dataset again"),
    (":train#no", "Choose one of meta, n, text"),
    (":train#n", "is not text"), ("/none:train#text", "TFDS does not know the dataset")])
def test_tfds_errors_name_what_is_missing(dataset, end, message):
  with pytest.raises(DataError, match=message):
    read(f"tfds:{dataset}{end}")


def test_a_name_that_is_not_prepared_is_told_how():
  assert datasets._correct("toy/config", "train", []) == (
      "Prepare it with tfds.builder('toy/config', "
      "file_format='array_record').download_and_prepare()")


def test_a_split_may_have_a_hyphen(tmp_path):
  write_dataset(tmp_path, **{"train-clean": ["One.", "Two."], "test": ["No."]})
  assert paragraphs(f"tfds:{tmp_path}:train-clean") == [("One.",), ("Two.",)]
  assert paragraphs(f"tfds:{tmp_path}:train-clean[1:]#text") == [("Two.",)]


def test_a_dataset_with_other_texts_of_the_same_sizes_is_another(tmp_path):
  """A SHA-256 of the cache must not hide it: the shards are written anew."""
  def identify(text, place="set", split="train"):
    folder = write_dataset(tmp_path / place, train=[text], test=["Yes."])
    return sources.identity(f"tfds:{folder}:{split}", tmp_path / "cache")

  before = identify("One.")
  assert identify("One.", "moved") == before
  assert identify("Two.") != before
  assert identify("One.", split="test") == identify("Two.", split="test")


def test_the_outline_of_a_dataset_reads_no_shard(dataset, monkeypatch):
  monkeypatch.setattr(sources, "sha256_files", lambda *args: pytest.fail("a shard was hashed"))
  assert sources.outline(f"tfds:{dataset}:train") != sources.outline(f"tfds:{dataset}:train[:9]")


def test_tfds_source_imports_no_tensorflow(dataset):
  code = ("import sys; from bertgpt.data.text import sources;"
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


def test_a_source_may_be_held_out(tmp_path):
  """Its text is the same, but the order to hold it out is a part of its identity."""
  a, b = (write(tmp_path / f"{name}.txt", f"{name}0\n\n{name}1\n".encode()) for name in "ab")
  spec = f"text:{a}, validation * text:{b}"
  documents = list(sources.open_source(spec))
  assert [(d.text, d.is_held_out) for d in documents] == [
      ("a0", False), ("a1", False), ("b0", True), ("b1", True)]
  identities = {sources.identity(s, str(tmp_path)) for s in (spec, f"text:{a},text:{b}")}
  assert len(identities) == 2
  assert [s.prefix for s in sources.parse(f"{spec},0.5*text:{a}")] == ["", "validation*", "0.5*"]
  (source,) = sources.parse("text:validation*.txt")
  assert (source.target, source.is_held_out) == ("validation*.txt", False)


def test_a_new_kind_is_a_line_of_the_table(tmp_path):
  """Its name may have digits, and it may have no target, like pydocs."""
  module = tmp_path / "more_sources.py"
  lines = ('SOURCE_KINDS |= {"mp3": SOURCE_KINDS["text"], "notes": SOURCE_KINDS["pydocs"]}\n'
           "# Commas before")
  module.write_text(pathlib.Path(sources.__file__).read_text().replace("# Commas before", lines))
  spec = importlib.util.spec_from_file_location("more_sources", module)
  more = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(more)
  found = more.parse("mp3:a,2*notes,text:b,c.txt,mp3:d,notes")
  assert [(source.kind, source.target, source.weight) for source in found] == [
      ("mp3", "a", 1), ("notes", "", 2), ("text", "b,c.txt", 1), ("mp3", "d", 1), ("notes", "", 1)]


def test_spaces_around_commas_and_weights_do_not_count(tmp_path):
  path = write(tmp_path / "a.txt", b"a0\n\na1\n")
  assert sources.parse(f"2 * text:{path}, 0.5* text:{path},\n pydocs") == sources.parse(
      f"2*text:{path},0.5*text:{path},pydocs")


def test_documents_that_a_weight_leaves_out_restart_the_limit_of_a_step(tmp_path):
  path = write(tmp_path / "a.txt", b"a0\n\na1\n")
  watchdog.arm(60)
  try:
    before = watchdog.deadline()
    assert read(f"0.1*text:{path}") == []
    assert before < watchdog.deadline() < math.inf
  finally:
    watchdog.disarm()


def test_globs_are_read_by_name_and_know_folders(tmp_path):
  (tmp_path / "sub").mkdir()
  for name in ("b.txt", "a.txt", "sub/c.txt"):
    write(tmp_path / name, name.encode())
  assert paragraphs(f"text:{tmp_path}/**/*.txt") == [("a.txt",), ("b.txt",), ("sub/c.txt",)]


@pytest.mark.parametrize("spec", ["", "txt:a", "text", "text:", "pydocs:x", "0*text:a", "jsonl",
                                  "tfds:name", "text:a,jsnol:b", "jsonl:s3://b/*.gz#text",
                                  "tfds:s3://b/set:train", "text:~\0"])
def test_an_invalid_source_is_a_config_error_before_reading(spec):
  with pytest.raises(ConfigError, match="data.source"):
    sources.open_source(spec)


@pytest.mark.parametrize("spec, remedy", [
    ("own.txt", "Write text:own.txt"), ("./own.txt", "Write text:./own.txt"),
    ("own.jsonl.gz#body", "Write jsonl:own.jsonl.gz#body"),
    ("own.parquet", "Write parquet:own.parquet"),
    ("2*own.txt", "Write 2*text:own.txt"), ("*.txt", "Write text:*.txt"),
    ("file:own.txt", "Write text:own.txt"), ("csv:own.csv", "CSV and TSV are not read. Convert"),
    ("own.tsv.gz#text", "CSV and TSV are not read. Convert"),
    ("2*csv:*.csv", "CSV and TSV are not read. Convert"),
    ("1e3*text:own.txt", "'1e3' stands before its kind. Write one number such as 2 or 0.5"),
    ("-1 * text:own.txt", "'-1' stands before its kind. Write one number"),
    ("valid*text:own.txt", "'valid' stands before its kind. Write one number"),
    ("2*validation*text:own.txt", "'validation' stands before its kind. Write"),
    ("validation*own.txt", "Write validation*text:own.txt"),
    ("own.csv.txt", "Write text:own.csv.txt"),
    ("none.txt", "Start it with one of pydocs, text:GLOB")])
def test_a_file_without_a_kind_is_told_its_kind(tmp_path, monkeypatch, spec, remedy):
  monkeypatch.chdir(tmp_path)
  for name in ("own.txt", "own.jsonl.gz", "own.parquet", "own.csv", "own.tsv.gz", "own.csv.txt"):
    write(tmp_path / name, b"x")
  with pytest.raises(ConfigError, match=f"is not a valid source. {re.escape(remedy)}"):
    sources.parse(spec)


def test_glob_without_files_is_an_error_before_reading(tmp_path):
  with pytest.raises(DataError, match=r"no file matches .*none\*"):
    sources.open_source(f"text:{tmp_path}/none*")


def test_a_field_in_another_encoding_is_not_found(tmp_path):
  """A terminal that is not in UTF-8 leaves a surrogate in the name of the field."""
  path = write(tmp_path / "a.jsonl", b'{"text": "same"}\n')
  spec = f"jsonl:{path}#titr\udce9"
  assert sources.identity(spec, tmp_path) != sources.identity(f"jsonl:{path}#titre", tmp_path)
  with pytest.raises(DataError, match="a.jsonl"):
    list(sources.open_source(spec))


def test_identity_follows_the_content_and_not_the_place(tmp_path):
  (tmp_path / "x").mkdir()
  a = write(tmp_path / "a.txt", b"same")
  moved = write(tmp_path / "x" / "b.txt", b"same")
  before = sources.identity(f"text:{a}", tmp_path)
  assert sources.identity(f"text:{moved}", tmp_path) == before
  write(a, b"Same")
  others = {sources.identity(f"{kind}:{a}", tmp_path)
            for kind in ("text", "text+paragraphs", "2*text")}
  assert len(others | {before}) == 4
