"""A path that exists is read, whatever characters are in it; otherwise, it is a glob."""

import glob
import gzip
import os

import pytest
from source_files import paragraphs, write

from bertgpt.data.text import intake, paths, sources
from bertgpt.errors import DataError

NAMES = ["[a].txt", "a*.txt", "a?.txt", "a, b.txt", "a,text:b.txt", "a,pydocs,b.txt", "2*text:a",
         "a#b.txt", "a b .txt", " a.txt", "ü 日本 e\u0301.txt", "a'\"\\.txt", "a\nb.txt", "-a",
         "~a"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """The current folder, with a file that each glob of `NAMES` would match as well."""
  for name in ("a", "ab.txt", "aa.txt"):
    write(tmp_path / name, b"another file")
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_read_by_its_very_name(folder, name):
  write(folder / name, name.encode())
  line = tuple(name.split("\n"))
  assert paragraphs(f"text:./{name}") == [line]
  assert paragraphs(f"text:{folder}/{name},0.5*text:aa.txt,2*text:aa.txt") == [
      line, ("another file",), ("another file",)]


@pytest.mark.parametrize("name", [f"{name}.jsonl" for name in NAMES])
def test_so_is_one_with_a_field(folder, name):
  write(folder / name, b'{"text": "this one", "b": "that one"}')
  for prefix in ("./", f"{folder}/"):
    assert paragraphs(f"jsonl:{prefix}{name}") == [("this one",)]
    assert paragraphs(f"jsonl:{prefix}{name}#b,text:aa.txt") == [("that one",), ("another file",)]


@pytest.mark.parametrize("name", ["[a]", "a#1", "a*", "a,text:b"])
def test_a_glob_may_be_in_a_folder_of_any_name(folder, name):
  (folder / name / "sub").mkdir(parents=True)
  for file in ("x.jsonl", "sub/[y].jsonl", "sub/z.jsonl"):
    write(folder / name / file, b'{"text": "%s"}' % file[-7:].encode())
  if "," not in name:
    assert paragraphs(f"jsonl:{name}/*.jsonl") == [("x.jsonl",)]
    assert paragraphs(f"jsonl:{name}/**/[yz].jsonl") == [("z.jsonl",)]
    assert paragraphs(f"jsonl:{name}/**/*.jsonl#text") == [("[y].jsonl"[-7:],), ("z.jsonl"[-7:],),
                                                           ("x.jsonl",)]
  assert paragraphs(f"jsonl:{name}/sub/[y].jsonl") == [("[y].jsonl"[-7:],)]


@pytest.mark.parametrize("pattern", [
    "**", "**/*", "**/*.txt", "**/**/a.txt", "x/**", "x/**/a.txt", "x//**//a.txt", "*/**/y/*",
    "x/**/y/**/*.txt", "[xz]/**/a*", "**/.h/*", "**/.*", ".h/**", "x/**/.h/**/*", "a.txt/**",
    "nothing/**", "/**", "y**/a.txt", "x/**/", "**/*.txt/", "**/./a.txt", "x/**/../a.txt",
    "x//**"])
def test_a_glob_finds_what_the_globs_of_python_find(tmp_path, monkeypatch, pattern):
  monkeypatch.chdir(tmp_path)
  for name in ("a.txt", ".b.txt", "x/a.txt", "x/y/a.txt", "x/y/z/a.txt", "x/y/z/ab.c", ".h/a.txt",
               "x/.h/a.txt", "x/.h/y/a.txt", "z/a.txt", "elsewhere/y/a.txt"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    write(tmp_path / name, b"x")
  (tmp_path / "z" / "link").symlink_to("../elsewhere")
  (tmp_path / "z" / "a2.txt").symlink_to("a.txt")
  if pattern.startswith("/"):
    pattern = f"{tmp_path}{pattern}"
  expected = {path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)}
  assert paths.exists(pattern) == bool(expected)
  if expected:
    assert {*paths.find_files(pattern)} == expected


def test_links_to_folders_above_do_not_repeat_a_text(folder):
  (folder / "x" / "y").mkdir(parents=True)
  write(folder / "x" / "y" / "b.txt", b"x")
  write(folder / "b.txt", b"x")
  for name in ("x/back", "x/y/back"):
    (folder / name).symlink_to(folder)
  (folder / "x" / "y" / "self").symlink_to(".")
  assert list(paths.find_files("x/**/b.txt")) == ["x/y/b.txt"]
  assert list(paths.find_files(f"{folder}/**/b.txt")) == [f"{folder}/b.txt", f"{folder}/x/y/b.txt"]


def test_a_mark_in_the_name_of_a_file_comes_before_a_field(folder):
  write(folder / "a#b", b'{"text": "x"}')
  assert paragraphs("jsonl:a#b") == paragraphs("jsonl:a#b#text") == [("x",)]


def test_a_field_may_have_the_mark_too(folder):
  for name in ("a.jsonl", "a#c.jsonl"):
    write(folder / name, b'{"x#y": "1", "y": "2"}')
  for name in ("a.jsonl", "a#c.jsonl", "a*.jsonl"):
    assert paragraphs(f"jsonl:{name}#x#y")[0] == ("1",)
    assert paragraphs(f"jsonl:{name}#y")[0] == ("2",)
  with pytest.raises(DataError, match="no file matches 'none#x'"):
    sources.open_source("jsonl:none#x#y")


def test_a_folder_is_refused_with_the_glob_of_its_files(folder):
  (folder / "sub").mkdir()
  with pytest.raises(DataError, match=r"sub is a folder\. Name its files, as in sub/\*"):
    sources.open_source("text:sub")


def test_a_pipe_is_no_file(folder):
  os.mkfifo(folder / "pipe")
  with pytest.raises(DataError, match=r"pipe is not a regular file\. Write its content to one"):
    sources.open_source("text:pipe")


def test_a_link_to_nothing_is_an_error_and_not_left_out(folder):
  (folder / "sub").mkdir()
  write(folder / "sub" / "a.txt", b"here")
  (folder / "sub" / "b.txt").symlink_to(folder / "gone")
  with pytest.raises(DataError, match="sub/b.txt is a link to .*gone, which does not exist"):
    sources.open_source("text:sub/*.txt")
  write(folder / "gone", b"found")
  assert paragraphs("text:sub/*.txt") == [("here",), ("found",)]


def test_a_file_that_is_not_there_is_named(folder):
  with pytest.raises(DataError, match=r"no file matches 'a\[1\]#b.txt'"):
    sources.open_source("text:a[1]#b.txt")


@pytest.mark.parametrize("name, ending, is_json", [
    ("a.JSONL", ".jsonl", True), ("a.Json.GZ", ".json", True), ("a.TXT", ".txt", False)])
def test_endings_are_the_same_in_capitals(name, ending, is_json):
  assert paths.find_ending(name) == ending and paths.is_json_lines(name) is is_json


def test_a_compression_is_known_by_its_ending_in_capitals(tmp_path):
  (tmp_path / "a.txt.GZ").write_bytes(gzip.compress(b"text"))
  with intake.open_file(str(tmp_path / "a.txt.GZ")) as f:
    assert f.read() == b"text"
