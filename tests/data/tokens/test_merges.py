"""bertgpt.data.tokens.merges: merges that are incomplete or damaged are refused."""

import json
import pathlib

import pytest
import tokenizers as library
from tokenizers import models, pre_tokenizers, trainers

from bertgpt.data.tokens import merges
from bertgpt.data.tokens.tokenizers import load_tokenizer
from bertgpt.errors import DataError

TEXT = pathlib.Path(__file__).read_text().splitlines(keepends=True)


@pytest.fixture
def folder(tmp_path):
  """A byte-level BPE as vocab.json and merges.txt."""
  tokenizer = library.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(
      vocab_size=500, special_tokens=["<s>", "</s>", "[X]"], show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
  tokenizer.model.save(str(tmp_path))
  return tmp_path


def change(file, make):
  file.write_bytes(make(file.read_bytes()))


def test_a_whole_file_is_read_whatever_its_marks_and_line_ends(folder):
  expected = load_tokenizer(folder).encode(TEXT)
  change(folder / "merges.txt", lambda data: data.replace(b"\n", b"\r\n") + b"\n\n")
  change(folder / "vocab.json", lambda data: b"\xef\xbb\xbf" + data)
  found = load_tokenizer(folder).encode(TEXT)
  assert [ids.tolist() for ids in found] == [ids.tolist() for ids in expected]


def test_merges_that_were_cut_off_are_refused(folder):
  """Half of the pieces could not occur in any text."""
  lines = (folder / "merges.txt").read_bytes().splitlines(keepends=True)
  (folder / "merges.txt").write_bytes(b"".join(lines[:len(lines) // 2]))
  with pytest.raises(DataError, match="merges.txt: no merge makes .* pieces of vocab.json"):
    load_tokenizer(folder)


@pytest.mark.parametrize("line", [b"a", b"a b c", b" a", b"a  b"])
def test_a_line_that_is_no_merge_is_named(folder, line):
  change(folder / "merges.txt", lambda data: data.rstrip() + b"\n" + line + b"\n")
  number = (folder / "merges.txt").read_bytes().count(b"\n")
  with pytest.raises(DataError, match=f"merges.txt: line {number} is not a merge of two pieces"):
    load_tokenizer(folder)


def test_merges_of_another_vocabulary_are_refused(folder):
  change(folder / "merges.txt", lambda data: data + b"q q\n")
  with pytest.raises(DataError, match="needs the piece 'qq', which the vocabulary lacks"):
    load_tokenizer(folder)


def test_pieces_with_one_id_are_refused(folder):
  content = json.loads((folder / "vocab.json").read_text())
  with pytest.raises(DataError, match="two pieces have the same id"):
    merges.check(content | {"!!": content["!"]}, [], folder / "vocab.json")


def test_a_pointer_of_git_lfs_is_called_so(folder):
  pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
  for name in ("merges.txt", "vocab.json"):
    (folder / name).write_bytes(pointer)
    with pytest.raises(DataError, match=f"{name}: is a Git LFS pointer. Fetch"):
      load_tokenizer(folder)


def test_special_tokens_that_the_folder_names_are_made_by_no_merge(folder):
  names = [f"__lang{i}__" for i in range(40)]
  content = json.loads((folder / "vocab.json").read_text())
  content |= {name: len(content) + i for i, name in enumerate(names)}
  (folder / "vocab.json").write_text(json.dumps(content))
  with pytest.raises(DataError, match="no merge makes 40 pieces"):
    load_tokenizer(folder)
  (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": names}))
  assert load_tokenizer(folder).vocab_size == len(content)
