"""bertgpt.data.corpus.prepare: text becomes a complete corpus, on any number of workers."""

import argparse
import base64
import collections
import contextlib
import gzip
import hashlib
import json
import multiprocessing
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers as fast_tokenizers
from corpus_texts import LETTERS, hashes, make_config, wait_for, write_much_text, write_text
from hypothesis import given, settings
from hypothesis import strategies as st

from bertgpt.commands import prepare as command
from bertgpt.config.stored import to_json
from bertgpt.data.corpus import corpus, encode, file_checks, prepare
from bertgpt.data.text import paths
from bertgpt.data.text.documents import Document
from bertgpt.data.tokens import pipelines, tokenizers
from bertgpt.errors import ConfigError, DataError, StorageError, WorkerError
from bertgpt.runs import corpora

ROOT = pathlib.Path(__file__).parents[3]
DATA = pathlib.Path(os.environ.get("BERTGPT_TEST_DATA", ROOT.parent / "shared" / "data"))


def read_all(path):
  """Returns {split: the token ids of all documents, as tuples}."""
  opened = {split: corpus.open_corpus(path, split) for split in corpus.SPLITS}
  return {split: [tuple(t.tolist()) for t in c.tokens(np.arange(len(c)))]
          for split, c in opened.items()}


# -------------------------------------------------------------- whole runs


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
  monkeypatch.setattr(encode, "CHUNK_CHARS", 20_000)
  write_text(tmp_path / "text.txt", 300)
  found = [hashes(prepare.prepare(make_config(tmp_path, workers=n), tmp_path / f"c{n}"))
           for n in (1, 2, 3)]
  assert len(found[0]) > 8
  assert found[0] == found[1] == found[2]


def test_a_corpus_of_parquet_is_that_of_the_same_text_as_jsonl(tmp_path):
  texts = [text.replace(".", ".\r\n\t", 1) for text in write_text(tmp_path / "text.txt", 200)]
  texts[3:3] = [None, "", " \n", "Über 二。 ́"]
  with open(tmp_path / "a.jsonl", "w", encoding="utf-8") as f:
    for text in texts:
      f.write(json.dumps({"text": text or ""}) + "\n")
  pyarrow.parquet.write_table(pyarrow.table({"id": list(range(len(texts))), "text": texts}),
                              tmp_path / "a.parquet", row_group_size=37)
  found = {}
  for kind in ("jsonl", "parquet"):
    config = make_config(tmp_path, f"{kind}:{tmp_path}/a.{kind}", validation_fraction=0.2)
    config.tokenizer.update({"path": "", "kind": "bpe", "vocab_size": 300})
    path = prepare.prepare(config, tmp_path / kind)
    manifest = corpus.read_manifest(path)
    found[kind] = {**hashes(path), "manifest.json": (manifest["splits"], manifest["skipped"])}
  assert len(found["jsonl"]) > 8
  assert found["parquet"] == found["jsonl"]


def test_every_document_is_in_one_split_with_its_ids(tmp_path, capsys):
  texts = write_text(tmp_path / "text.txt", 200)
  texts += texts[:20]  # Duplicates.
  texts.append("\u200b")  # No token.
  (tmp_path / "text.txt").write_text("\n\n".join(texts))
  config = make_config(tmp_path, validation_fraction=0.2)
  path = prepare.prepare(config, tmp_path / "corpus")
  tokenizer = tokenizers.load_tokenizer(config.tokenizer.path)
  expected = [tuple(np.concatenate(tokenizer.encode(text.split("\n"))).tolist())
              for text in texts[:-1]]
  found = read_all(path)
  assert collections.Counter(found["train"] + found["validation"]) == collections.Counter(expected)
  assert not set(found["train"]) & set(found["validation"])
  assert 20 < len(found["validation"]) < 70
  first = {ids: i for i, ids in reversed(list(enumerate(expected)))}
  order = [first[ids] for ids in found["train"][:len(set(found["train"]))]]
  assert (np.diff(order) < 0).sum() <= 1  # In order, except the document that was held back.

  manifest = corpus.read_manifest(path)
  splits = manifest["splits"].values()
  assert sum(s["sentences"] for s in splits) == sum(t.count("\n") + 1 for t in texts[:-1])
  assert sum(s["text_bytes"] for s in splits) == sum(len(t.encode()) for t in texts[:-1])
  assert manifest["skipped"]["documents without a token: skipped"] == 1
  printed = capsys.readouterr().out
  assert corpus.report(manifest) in printed
  assert "documents without a token: skipped: 1" in printed


@pytest.mark.parametrize("kind", ["", "bpe"])
def test_an_official_validation_file_is_the_validation_split(tmp_path, kind, capsys):
  """Each split is the corpus of its file, with the tokenizer of the file to train on."""
  texts = {name: write_text(tmp_path / f"{name}.txt", n, seed=n)
           for name, n in (("train", 60), ("valid", 9))}
  (tmp_path / "train.txt").write_text("\n\n".join([*texts["train"], texts["valid"][0]]))
  def prepare_as(name, source, fraction):
    config = make_config(tmp_path, source, validation_fraction=fraction)
    if kind:
      trained = tmp_path / "both" / "tokenizer"
      config.tokenizer.update({"path": str(trained) if name == "valid" else "", "kind": kind,
                               "vocab_size": 280})
    path = prepare.prepare(config, tmp_path / name)
    return read_all(path) if name == "both" else sum((
        [tuple(t.tolist()) for t in c.tokens(np.arange(len(c)))] for c in
        (corpus.open_corpus(path, s) for s in corpus.read_manifest(path)["splits"])), [])
  train, valid = f"text:{tmp_path}/train.txt", f"text:{tmp_path}/valid.txt"
  both = prepare_as("both", f"validation*{valid},{train}", 0.0)
  note = "note: data.validation_fraction=0 holds out as few documents as possible: 1. To score all"
  assert note not in capsys.readouterr().err
  alone = prepare_as("train", train, 0.0)
  assert note in capsys.readouterr().err
  assert both["validation"] == prepare_as("valid", valid, 1.0)
  assert len(both["validation"]) == 9 and len(both["train"]) == 61
  assert sorted(both["train"]) == sorted(alone)
  assert hashes(tmp_path / "both" / "tokenizer") == hashes(tmp_path / "train" / "tokenizer")


@pytest.mark.parametrize("name, use", [("train", "train on"), ("valid", "hold out")])
def test_a_split_that_the_source_gives_must_have_a_document(tmp_path, name, use):
  for file in ("train", "valid"):
    (tmp_path / f"{file}.txt").write_text(" \n" if file == name else "one.\n\ntwo.\n")
  spec = f"text:{tmp_path}/train.txt,validation*text:{tmp_path}/valid.txt"
  with pytest.raises(DataError, match=f"no document with text to {use}"):
    prepare.prepare(make_config(tmp_path, spec, validation_fraction=0.0), tmp_path / "c")
  assert not (tmp_path / "c").exists()
  with pytest.raises(ConfigError, match="Set data.validation_fraction=0"):
    prepare.prepare(make_config(tmp_path, spec), tmp_path / "c")


CODE = ["def f(x):\n    if x:\n        return 1\n\n    return 2\n\n\nprint(f(0))  \n",
        "\n Title\n\n  first verse\u2028\n\u3000second\u00a0verse\x0b\n\n\t",
        "It rained.  It did! Why?\n", "class A:\n\tx = 1\n\t\n"]


@pytest.fixture(scope="module")
def byte_bpe(tmp_path_factory):
  """A byte-level BPE with merges of the words and the white space in CODE."""
  tokenizer = fast_tokenizers.Tokenizer(fast_tokenizers.models.BPE())
  tokenizer.pre_tokenizer = fast_tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = fast_tokenizers.decoders.ByteLevel()
  tokenizer.train_from_iterator(CODE * 9, fast_tokenizers.trainers.BpeTrainer(
      vocab_size=320, show_progress=False,
      initial_alphabet=fast_tokenizers.pre_tokenizers.ByteLevel.alphabet()))
  path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
  tokenizer.save(os.fspath(path))
  return path


def prepare_bpe(folder, source, tokenizer):
  """Returns the ids of the documents of a source that was prepared in a folder."""
  config = make_config(folder, source, validation_fraction=0.0)
  config.tokenizer.path = os.fspath(tokenizer)
  found = read_all(prepare.prepare(config, folder / "corpus"))
  return sorted(list(ids) for documents in found.values() for ids in documents)


def decode(tokenizer, documents):
  fast = fast_tokenizers.Tokenizer.from_file(os.fspath(tokenizer))
  return sorted(fast.decode(ids) for ids in documents)


def test_byte_level_bpe_gives_every_document_back(tmp_path, byte_bpe):
  (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in CODE))
  found = prepare_bpe(tmp_path, f"jsonl:{tmp_path}/a.jsonl", byte_bpe)
  fast = fast_tokenizers.Tokenizer.from_file(os.fspath(byte_bpe))
  assert found == sorted(fast.encode(text).ids for text in CODE)
  assert decode(byte_bpe, found) == sorted(CODE)
  manifest = corpus.read_manifest(tmp_path / "corpus")
  assert corpus.report(manifest).endswith("nothing was skipped or replaced")


def test_a_byte_level_bpe_that_is_trained_learns_indentation(tmp_path):
  text = ["\n".join(" " * 12 + f"x{i} = {j}" for i in range(9)) for j in range(9)]
  (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in text))
  config = make_config(tmp_path, f"jsonl:{tmp_path}/a.jsonl")
  config.tokenizer.update({"path": "", "kind": "bpe", "vocab_size": 275})
  path = prepare.ensure_prepared(config)
  found = [corpus.open_corpus(path, split) for split in corpus.SPLITS]
  assert sorted(c.tokenizer.decode(t) for c in found for t in c.tokens(np.arange(len(c)))) == text
  longest = max(piece.count("\u0120") for piece in found[0].tokenizer.pieces)
  assert longest >= 8


@pytest.mark.parametrize("kind", ["text", "text+paragraphs"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_documents_of_a_text_are_what_lies_between_blank_lines(tmp_path, byte_bpe, kind, end):
  text = "\u3000\n" + "\n \n\n".join(CODE) + "\n\n"
  (tmp_path / "a.txt").write_bytes(text.replace("\n", end).encode())
  expected = [[]]
  for line in text.split("\n"):  # As in create_pretraining_data.py of google-research/bert.
    expected += [[]] if not line.strip() else []
    expected[-1] += [line] if line.strip() else []
  found = prepare_bpe(tmp_path, f"{kind}:{tmp_path}/a.txt", byte_bpe)
  assert decode(byte_bpe, found) == sorted("\n".join(lines) for lines in expected if lines)


DOCUMENTS = st.lists(st.text(st.one_of(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"),
    st.sampled_from(" \n\t.!a\u3000\x85\u2028"))).filter(str.strip), min_size=2, max_size=4,
    unique=True)


@settings(max_examples=8, deadline=None)
@given(documents=DOCUMENTS, end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_any_documents_survive(tmp_path_factory, byte_bpe, documents, end):
  folder = tmp_path_factory.mktemp("any")
  lines = [json.dumps({"text": text.replace("\n", end)}) for text in documents]
  (folder / "a.jsonl").write_bytes(end.join(lines).encode())
  found = prepare_bpe(folder, f"jsonl:{folder}/a.jsonl", byte_bpe)
  assert decode(byte_bpe, found) == sorted(documents)


@settings(max_examples=5, deadline=None)
@given(documents=DOCUMENTS)
def test_line_ends_do_not_change_a_corpus(tmp_path_factory, byte_bpe, documents):
  found = []
  for end in ("\n", "\r\n", "\r"):
    folder = tmp_path_factory.mktemp("ends")
    text = "\n\n".join(["One document.", *documents, "Another one."]).replace("\n", end)
    (folder / "a.txt").write_bytes(text.encode())
    found.append(prepare_bpe(folder, f"text:{folder}/a.txt", byte_bpe))
  assert found[0] == found[1] == found[2]


def test_sentences_without_a_token_are_counted(tmp_path, capsys):
  (tmp_path / "text.txt").write_text("a.\n\u200b\nb.\n\nc.\n")
  path = prepare.prepare(make_config(tmp_path), tmp_path / "corpus")
  splits = corpus.read_manifest(path)["splits"].values()
  assert sum(split["sentences"] for split in splits) == 3
  assert "note: sentences without a token: left out: 1" in capsys.readouterr().out


def test_a_run_keeps_a_tokenizer_that_an_earlier_version_read(tmp_path):
  """Earlier versions ignored the defaults of BERT's class, as if the folder had no class."""
  write_text(tmp_path / "text.txt", 20)
  config = make_config(tmp_path)
  pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]
  pipeline = pipelines.bert_pipeline({p: i for i, p in enumerate(pieces)}, lowercase=False)
  pipeline.save(os.fspath(tmp_path / "tokenizer.json"))
  config.tokenizer.path = os.fspath(tmp_path / "tokenizer.json")
  old = prepare.ensure_prepared(config)
  (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
  assert prepare.ensure_prepared(config, resumes=True) == old
  assert prepare.ensure_prepared(config) != old
  config.data.corpus = os.fspath(old)
  corpora.check_tokenizer(config, corpus.open_corpus(old, "train").tokenizer)


def test_a_corpus_of_an_earlier_version_in_the_cache_is_used(tmp_path, capsys):
  write_text(tmp_path / "text.txt", 20)
  config = make_config(tmp_path)
  new = prepare.ensure_prepared(config)
  recipe = prepare.make_recipe(config) | {"format_version": 1}
  key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
  old = new.with_name(f"corpus-{key[:20]}")
  new.rename(old)
  manifest = json.loads((old / "manifest.json").read_text()) | {"format_version": 1}
  (old / "manifest.json").write_text(json.dumps(manifest | {"recipe": recipe}))
  capsys.readouterr()
  assert prepare.ensure_prepared(config) == old
  assert f"note: {old} was made by an earlier version" in capsys.readouterr().err
  assert "format version 1" in corpus.report(corpus.open_corpus(old, "train").manifest)
  with pytest.raises(ConfigError, match="exists and was not made"):
    prepare.prepare(config, old)


def test_a_tokenizer_is_trained_when_none_is_given(tmp_path, monkeypatch, capsys):
  write_text(tmp_path / "text.txt", 60)
  config = make_config(tmp_path)
  config.tokenizer.update({"path": "", "vocab_size": 300})
  monkeypatch.setattr(prepare, "NOTED_BYTES", 1000)
  path = prepare.ensure_prepared(config)
  assert re.search(r"^note: training a tokenizer \(sentencepiece, 300 tokens\) on [\d.]+ MB",
                   capsys.readouterr().err, re.MULTILINE)
  opened = corpus.open_corpus(path, "train")
  assert opened.tokenizer.kind == "sentencepiece" and opened.tokenizer.vocab_size == 300
  texts = {" ".join(text.split()) for text in (tmp_path / "text.txt").read_text().split("\n\n")}
  assert opened.tokenizer.decode(opened.tokens([0])[0]) in texts

  (path / "tokenizer" / "tokenizer.model").unlink()
  with pytest.raises(DataError, match="tokenizer.model: missing"):
    corpus.open_corpus(path, "train")


def test_the_cache_is_used_and_keyed_by_what_matters(tmp_path, capsys):
  write_text(tmp_path / "text.txt", 20)
  config = make_config(tmp_path)
  path = prepare.ensure_prepared(config)
  assert path == prepare.cached_path(config, prepare.make_recipe(config))
  assert "documents" in capsys.readouterr().out
  before = (path / "manifest.json").stat().st_mtime_ns
  assert prepare.ensure_prepared(config) == path
  assert prepare.prepare(config, path) == path
  assert (path / "manifest.json").stat().st_mtime_ns == before and not capsys.readouterr().out

  paths = {path}
  for group, field, value in (("data", "language", "de"), ("data", "validation_fraction", 0.5),
                              ("data", "invalid_text", "skip"), ("tokenizer", "path", ""),
                              ("tokenizer", "vocab_size", 99), ("tokenizer", "kind", "bpe"),
                              ("tokenizer", "train_bytes", 99), ("tokenizer", "lowercase", False)):
    config[group][field] = value
    paths.add(prepare.cached_path(config, prepare.make_recipe(config)))
  write_text(tmp_path / "text.txt", 20, seed=1)
  paths.add(prepare.cached_path(config, prepare.make_recipe(config)))
  assert len(paths) == 10
  config.data.prepare_workers = 7
  assert prepare.cached_path(config, prepare.make_recipe(config)) in paths

  config.data.corpus = os.fspath(tmp_path / "mine")
  assert prepare.ensure_prepared(config) == tmp_path / "mine"


# ------------------------------------------------------------------ sample


def test_the_sample_for_the_tokenizer():
  documents = [Document(f"document {i} " + "x" * (i % 50), True) for i in range(3000)]
  border = prepare.validation_border(0.1)
  sample = prepare.sample_documents(iter(documents), 20_000, border)
  order = [documents.index(d) for d in sample]
  sizes = [len(d.text) for d in sample]
  assert order == sorted(order)
  assert 20_000 <= sum(sizes) < 20_000 + max(sizes)
  keys = {d: encode.text_key(d.text.encode()) for d in documents}
  assert all(keys[d] >= border for d in sample)
  # Spread evenly: a fifth of the sample in each fifth of the corpus, within 6 deviations.
  counts = np.histogram(order, 5, (0, 3000))[0]
  assert abs(counts - len(sample) / 5).max() < 6 * np.sqrt(len(sample) * 0.16)

  whole = prepare.sample_documents(iter(documents), 10**9, border)
  assert whole == [d for d in documents if keys[d] >= border]


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize("text, message", [
    ("\n\n", "no document with text"),
    ("one document.\nof two sentences.\n", "at least two different documents"),
    ("again.\n\nagain.\n\nagain.\n", "at least two different documents"),
])
def test_too_little_text(tmp_path, text, message):
  (tmp_path / "text.txt").write_text(text)
  with pytest.raises(DataError, match=message):
    prepare.prepare(make_config(tmp_path), tmp_path / "out" / "corpus")
  assert [f.name for f in (tmp_path / "out").iterdir()] == [".corpus.lock"]


def test_a_folder_with_other_content_is_not_touched(tmp_path):
  write_text(tmp_path / "text.txt", 4)
  (tmp_path / "home").mkdir()
  (tmp_path / "home" / "letter").write_text("dear")
  with pytest.raises(ConfigError, match="home: exists and is not a corpus. Name a new") as e:
    prepare.prepare(make_config(tmp_path), tmp_path / "home")
  assert (tmp_path / "home" / "letter").read_text() == "dear"
  with pytest.raises(ConfigError, match="letter: exists and is not a corpus") as e_of_file:
    prepare.prepare(make_config(tmp_path), tmp_path / "home" / "letter")
  assert "elete" not in f"{e.value} {e_of_file.value}"

  (tmp_path / "empty").mkdir()
  prepare.prepare(make_config(tmp_path), tmp_path / "empty")
  with pytest.raises(ConfigError, match="empty: exists"):
    prepare.prepare(make_config(tmp_path, language="de"), tmp_path / "empty")


def test_a_place_that_cannot_be_written(tmp_path):
  write_text(tmp_path / "text.txt", 4)
  with pytest.raises(StorageError, match="text.txt"):
    prepare.prepare(make_config(tmp_path), tmp_path / "text.txt" / "corpus")


_SCRIPT = """
import resource, sys
from bertgpt.config.stored import from_json
from bertgpt.data.corpus import prepare
from bertgpt.errors import UserError
config = from_json(open(sys.argv[1]).read())
if len(sys.argv) > 3:
  resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
  prepare.prepare(config, sys.argv[2])
except UserError as e:
  sys.exit(f"{type(e).__name__}: {e}")
"""


def start(tmp_path, config, *arguments):
  """Starts `prepare` in a process of its own, which can be killed."""
  (tmp_path / "config.json").write_text(to_json(config))
  return subprocess.Popen(
      [sys.executable, "-c", _SCRIPT, tmp_path / "config.json", *map(str, arguments)],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_full_disk(tmp_path):
  write_text(tmp_path / "text.txt", 3000)
  process = start(tmp_path, make_config(tmp_path), tmp_path / "out" / "corpus", 300_000)
  _, errors = process.communicate()
  assert process.returncode == 1
  assert errors.strip().splitlines()[-1].startswith("StorageError")
  assert [f.name for f in (tmp_path / "out").iterdir()] == [".corpus.lock"]


def child_pids(pid):
  with contextlib.suppress(OSError):
    return [int(p) for p in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
  return []


def is_running(pid):
  with contextlib.suppress(OSError):
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  return False


def test_kill_9_leaves_nothing_that_looks_finished(tmp_path):
  write_much_text(tmp_path / "text.txt")
  config = make_config(tmp_path, workers=2)
  target = tmp_path / "out" / "corpus"
  process = start(tmp_path, config, target)
  wait_for(lambda: list(target.parent.glob("corpus.unfinished-*/train-*.new")))
  workers = child_pids(process.pid)
  os.kill(process.pid, signal.SIGKILL)
  process.communicate()
  assert len(workers) >= 2
  wait_for(lambda: not any(map(is_running, workers)))
  assert not target.exists()

  write_text(tmp_path / "text.txt", 50)
  prepare.prepare(config, target)
  assert sorted(f.name for f in target.parent.iterdir()) == [".corpus.lock", "corpus"]
  prepare.prepare(config, tmp_path / "clean")
  assert hashes(target) == hashes(tmp_path / "clean")


def test_two_at_once(tmp_path):
  write_text(tmp_path / "text.txt", 500)
  config = make_config(tmp_path)
  runs = [start(tmp_path, config, tmp_path / "out" / "corpus") for _ in range(2)]
  outputs = [run.communicate()[0] for run in runs]
  assert [run.returncode for run in runs] == [0, 0]
  # One process made the corpus, the other found it.
  assert sum("sentences" in output for output in outputs) == 1
  assert corpus.open_corpus(tmp_path / "out" / "corpus", "train").tokens([0])


def test_a_worker_that_dies(tmp_path):
  write_much_text(tmp_path / "text.txt")
  killer = threading.Thread(target=kill_first_child)
  killer.start()
  with pytest.raises(WorkerError, match="data.prepare_workers"):
    prepare.prepare(make_config(tmp_path, workers=2), tmp_path / "out" / "corpus")
  killer.join()
  assert [f.name for f in (tmp_path / "out").iterdir()] == [".corpus.lock"]


def test_a_text_on_which_the_library_of_the_tokenizer_fails(tmp_path):
  texts = write_text(tmp_path / "text.txt", 5)
  (tmp_path / "text.txt").write_text("\n\n".join([*texts, "An \U00020000."]))
  config = make_config(tmp_path)
  content = json.loads(tokenizers.load_tokenizer(config.tokenizer.path).data)
  # The map leads out of itself after the first byte of a character of 4 bytes: the library panics.
  units = [0] * 256
  units[0xF0] = 0x1FFFFF << 10 | 0xF0
  charsmap = base64.b64encode(struct.pack("<257I", 4 * len(units), *units)).decode()
  content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": charsmap}
  (tmp_path / "tokenizer.json").write_text(json.dumps(content))
  config.tokenizer.path = str(tmp_path / "tokenizer.json")
  with pytest.raises(DataError, match="text.txt: the tokenizer cannot encode .*out of bounds"):
    prepare.prepare(config, tmp_path / "corpus")


@pytest.mark.parametrize("language", ["", "DE", "german", "de_AT", "deu", "jp", "xx", "de-de"])
def test_a_language_that_is_not_a_code(tmp_path, language):
  write_text(tmp_path / "text.txt", 5)
  with pytest.raises(ConfigError, match="data.language='.*': is not a code of ISO 639-1"):
    prepare.prepare(make_config(tmp_path, language=language), tmp_path / "corpus")
  assert not (tmp_path / "corpus").exists()


def test_a_folder_whose_name_is_not_utf8_is_refused(tmp_path):
  write_text(tmp_path / "text.txt", 200)
  folder = tmp_path / os.fsdecode(b"caf\xe9")
  with pytest.raises(ConfigError, match="is not valid UTF-8, so nothing"):
    prepare.prepare(make_config(tmp_path), folder)
  prepare.prepare(make_config(tmp_path), tmp_path / "corpus").rename(folder)
  with pytest.raises(ConfigError, match="is not valid UTF-8, so nothing"):
    corpus.open_corpus(folder, "train")


def test_a_run_that_began_with_an_unknown_language_can_be_resumed(tmp_path):
  """Earlier versions accepted it, and the corpus may have to be prepared again."""
  write_text(tmp_path / "text.txt", 200)
  config = make_config(tmp_path, language="deu")
  with pytest.raises(ConfigError, match="data.language='deu'"):
    prepare.ensure_prepared(config)
  assert prepare.ensure_prepared(config, resumes=True) == prepare.ensure_prepared(config)


def test_a_chunk_has_a_bounded_number_of_documents():
  chunks = encode._chunks(Document("a", True) for _ in range(20_000))
  sizes = [len(chunk) for chunk, _ in chunks]
  assert sum(sizes) == 20_000 and max(sizes) <= 4096


def test_a_worker_without_a_tokenizer_says_so(tmp_path):
  worker = encode.Worker(str(tmp_path), "en", "<u2")
  with pytest.raises(DataError, match="no tokenizer there"):
    list(encode.encode([Document("A text.", False)], worker, 1, collections.Counter()))


def test_ctrl_c_does_not_reach_a_worker_while_it_starts(tmp_path):
  """The terminal sends it to all processes. The parent ends its workers, without their traces."""
  with encode._start_workers(encode.Worker(str(tmp_path), "en", "<u2"), 2) as submit:
    for child in multiprocessing.active_children():
      os.kill(child.pid, signal.SIGINT)
    with pytest.raises(DataError, match="no tokenizer there"):
      submit([Document("A text.", False)]).result()
  assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def kill_first_child():
  def workers():
    return [p for p in child_pids(os.getpid())
            if b"spawn_main" in pathlib.Path(f"/proc/{p}/cmdline").read_bytes()]
  wait_for(workers)
  os.kill(workers()[0], signal.SIGKILL)


# ------------------------------------------------------------------ memory


def tree_mebibytes(pid):
  """Returns the memory of a process and its descendants; shared pages count once (PSS)."""
  kibibytes = 0
  with contextlib.suppress(OSError):
    rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().split()
    kibibytes = int(rollup[rollup.index("Pss:") + 1])
  return kibibytes / 1024 + sum(map(tree_mebibytes, child_pids(pid)))


@pytest.mark.slow
def test_memory_with_documents_of_the_largest_size(tmp_path):
  paragraph = "the quick brown fox jumps over the lazy dog " * 20
  with open(tmp_path / "text.txt", "w") as f:
    for i in range(3):
      f.write(f"{i}\n" + f"{paragraph}\n" * 4700 + "\n")  # 4 MiB, the longest that is not cut.
  process = start(tmp_path, make_config(tmp_path, workers=2), tmp_path / "corpus")
  peak = 0
  while process.poll() is None:
    peak = max(peak, tree_mebibytes(process.pid))
    time.sleep(0.1)
  assert process.returncode == 0, process.stderr.read()
  print(f"peak {peak:.0f} MiB")
  assert 50 < peak < 1024 + 2 * 200


# --------------------------------------------------------------- real text


@pytest.mark.skipif(not (DATA / "lm").is_dir(), reason=f"no text under {DATA}")
def test_wikipedia_text(tmp_path):
  config = make_config(tmp_path, f"jsonl:{DATA}/lm/wikipedia_en/heldout.jsonl.xz#text")
  config.tokenizer.path = os.fspath(DATA / "vocab" / "bert-base-uncased-vocab.txt")
  path = prepare.prepare(config, tmp_path / "corpus")
  train, validation = (corpus.open_corpus(path, split) for split in corpus.SPLITS)
  assert train.token_dtype == np.uint16
  assert len(train) > 20 * len(validation) > 0
  assert 4 < train.num_bytes / train.num_tokens < 5.5
  assert 15 < train.num_tokens / len(train.sentence_lengths) < 40
  unknown = sum(split["unknown"] for split in train.manifest["splits"].values())
  assert unknown / train.num_tokens < 0.005


def test_a_text_that_changes_while_it_is_prepared_is_no_corpus(tmp_path, monkeypatch):
  """It would be found under the identity of the old text."""
  texts = write_text(tmp_path / "text.txt", 40)
  config, encode_source = make_config(tmp_path), prepare.encode_source

  def grow_and_encode(*args):
    (tmp_path / "text.txt").write_text("\n\n".join([*texts, *texts[:9]]))
    return encode_source(*args)

  monkeypatch.setattr(prepare, "encode_source", grow_and_encode)
  with pytest.raises(DataError, match="text.txt: changed while it was read"):
    prepare.prepare(config, tmp_path / "corpus")
  assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize("share, warns", [(0.02, False), (0.2, True)])
def test_many_unknown_tokens_are_a_warning(tmp_path, capsys, share, warns):
  """Words with digits are unknown to a vocabulary of letters."""
  rng = np.random.default_rng(0)
  documents = [[" ".join(rng.choice(["7", "a"], 200, p=[share, 1 - share]))] for _ in range(20)]
  (tmp_path / "text.txt").write_text("\n\n".join("\n".join(d) for d in documents) + "\n")
  command.run(argparse.Namespace(out=tmp_path / "out", part=None, merge=False,
                                 train_tokenizer=False, engine=None), make_config(tmp_path))
  printed = capsys.readouterr()
  assert (printed.out + printed.err).count("WARNING: ") == warns
  manifest = corpus.read_manifest(tmp_path / "out")
  unknown, tokens = (sum(split[name] for split in manifest["splits"].values())
                     for name in ("unknown", "tokens"))
  assert abs(unknown / tokens - share) < 0.04
  warning = corpus.describe_unknown(manifest)
  assert bool(warning) == warns and "\n" not in warning
  manifest["tokenizer"]["kind"] = "words"  # It is read by its characters.
  assert not corpus.describe_unknown(manifest)


def test_text_behind_few_unknown_tokens_is_a_warning(tmp_path):
  """A WordPiece has one unknown token for a phrase without spaces, however long it is."""
  config = make_config(tmp_path)
  documents = ["ab cd ef gh " * 40 + "abcdefgh" * 29 + letter * 8 for letter in "abcdefgh"]
  (tmp_path / "text.txt").write_text("\n\n".join(documents) + "\n")
  manifest = corpus.read_manifest(prepare.prepare(config, tmp_path / "out"))
  for split in manifest["splits"].values():
    assert split["unknown"] == split["documents"] and split["unknown"] < 0.01 * split["tokens"]
    assert split["unknown_bytes"] == 240 * split["documents"]
  assert "  bytes of text" in corpus.report(manifest) and "33.3333%" in corpus.report(manifest)
  warning = corpus.describe_unknown(manifest)
  assert "does not know 33.3% of the text in the" in warning
  assert "tokenizer.kind='sentencepiece'" in warning
  # An earlier version did not count these bytes. Its corpora are the same, and have no warning.
  identity = file_checks.identify(manifest)
  for split in manifest["splits"].values():
    del split["unknown_bytes"]
  assert file_checks.identify(manifest) == identity
  assert not corpus.describe_unknown(manifest) and corpus.report(manifest)


def test_a_vocabulary_is_read_as_the_config_says(tmp_path):
  config = make_config(tmp_path)
  with open(config.tokenizer.path, "a") as file:
    file.write("A\nB\nAB\n")
  write_text(tmp_path / "text.txt", 20)
  with pytest.raises(DataError, match=r"Set tokenizer\.lowercase=False"):
    prepare.ensure_prepared(config)
  config.tokenizer.lowercase = False
  path = prepare.ensure_prepared(config)
  ids, = corpus.open_corpus(path, "train").tokenizer.encode(["AB ab"])
  assert len(ids) == 3


def test_the_corpus_of_a_vocabulary_whose_case_was_guessed_is_found_again(tmp_path, monkeypatch):
  """Version 0.1 inferred the case, and its runs still name the vocabulary with lowercase=True."""
  config = make_config(tmp_path)
  with open(config.tokenizer.path, "a") as file:
    file.write("A\nB\nAB\n")
  write_text(tmp_path / "text.txt", 20)
  with monkeypatch.context() as patch:
    patch.setattr(corpus, "FORMAT_VERSION", 1)
    config.tokenizer.lowercase = False  # The value that version 0.1 inferred.
    path = prepare.ensure_prepared(config)
  config.tokenizer.lowercase = True
  assert prepare.ensure_prepared(config) == path


def test_a_kind_that_is_only_loaded_is_not_trained(tmp_path):
  config = make_config(tmp_path)
  config.tokenizer.update(kind="gpt1_bpe", path="")
  with pytest.raises(ConfigError, match="tokenizer.kind='gpt1_bpe' cannot be trained. Set token"):
    prepare.ensure_prepared(config)


def test_pieces_that_no_text_yields_are_a_note(tmp_path, capsys):
  write_text(tmp_path / "text.txt", 20)
  config = make_config(tmp_path)
  with open(config.tokenizer.path, "a") as file:
    file.write("\n".join(f"Word{letter}" for letter in LETTERS[:9]) + "\n")
  (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
  prepare.prepare(config, tmp_path / "corpus")
  assert capsys.readouterr().err.startswith(
      f"note: {config.tokenizer.path}: no text yields 15% of its pieces, because texts are lower-")
  assert not corpus.open_corpus(tmp_path / "corpus", "train").tokenizer.note


def test_a_source_that_includes_the_cache_is_refused(tmp_path):
  """Every preparation would change the text of the next one."""
  write_text(tmp_path / "text.txt", 40)
  config = make_config(tmp_path)
  config.data.source = f"text:{tmp_path}/**"
  config.data.cache_dir = str(tmp_path / "cache")
  for _ in range(2):  # The first one finds out only at its end.
    with pytest.raises(ConfigError, match="includes .*/cache/.*, which this program has written"):
      prepare.ensure_prepared(config, reports=False)


@pytest.mark.parametrize("spec, name, remedy", [
    ("text:*.jsonl", "a.jsonl", "Write jsonl:"),
    ("0.5*text+paragraphs:*", "b.JSON.gz", "Write 0.5*jsonl:"),
    ("text:a.parquet", "a.parquet", "Write parquet:"),
    ("text:*", "a.csv.gz", "CSV and TSV are not read"),
    ("text:*", "a.arrow", "Arrow files are not read. Convert the file to .jsonl or .parquet")])
def test_files_whose_ending_says_that_they_are_not_text_are_refused(
    tmp_path, monkeypatch, spec, name, remedy):
  """Their braces, quotes and headers would become the text."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / name).write_bytes(b"x")
  with pytest.raises(ConfigError, match=f"{name} is not plain text. {re.escape(remedy)}"):
    prepare.check_endings(spec)


@pytest.mark.parametrize("name, head", [
    ("wiki_00", b'{"id": "1", "text": "A b."}\n'),
    ("wiki_00.gz", gzip.compress(b'\n{"text": "A b."}\n{"text": "C d."}\n', mtime=0)),
    ("a.txt", '\ufeff{"text": "A b."}\r\n'.encode())])
def test_json_lines_without_their_ending_are_refused(tmp_path, name, head):
  (tmp_path / name).write_bytes(head)
  remedy = re.escape(f"is not plain text. Write 2*jsonl:{tmp_path}/*")
  with pytest.raises(ConfigError, match=f"{name} {remedy}$"):
    prepare.check_endings(f"2*text+paragraphs:{tmp_path}/*")


@pytest.mark.parametrize("head", [b"", b"{a} is a set.\n", b'{"a": 1\nb', b"[1]\n",
                                  b'{"a": 1}\nThat is JSON.\n', b"{\xff}\n", b'"{}"\n'])
def test_a_text_that_begins_with_a_brace_is_no_json(tmp_path, head):
  for name in ("a", "b.gz"):  # The second one is damaged, which reading it says.
    (tmp_path / name).write_bytes(head)
    prepare.check_endings(f"text:{tmp_path}/{name}")


def test_only_the_first_files_are_opened(tmp_path, monkeypatch):
  opened = []
  monkeypatch.setattr(paths, "holds_json_lines", lambda path: opened.append(path) or False)
  for i in range(9):
    (tmp_path / f"wiki_0{i}").write_bytes(b"a\n")
  prepare.check_endings(f"text:{tmp_path}/*")
  assert opened == [f"{tmp_path}/wiki_0{i}" for i in range(prepare.OPENED_FILES)]


def test_a_corpus_of_such_files_from_an_earlier_version_is_found(tmp_path):
  """A run that was begun with it can be resumed."""
  config = make_config(tmp_path)
  write_text(tmp_path / "text.csv", 40)
  config.data.source = f"text:{tmp_path}/text.csv"
  with pytest.raises(ConfigError, match="is not plain text"):
    prepare.ensure_prepared(config, reports=False)
  path = prepare.ensure_prepared(config, reports=False, resumes=True)
  assert len(corpus.open_corpus(path, "train"))


def test_files_of_the_user_next_to_the_cache_are_read(tmp_path):
  write_text(tmp_path / "corpus-en.txt", 40)
  config = make_config(tmp_path)
  config.data.source, config.data.cache_dir = f"text:{tmp_path}/*.txt", str(tmp_path)
  path = prepare.ensure_prepared(config, reports=False)
  assert path.parent == tmp_path and len(corpus.open_corpus(path, "train"))
