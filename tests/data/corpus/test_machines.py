"""bertgpt.data.corpus.machines: merged parts have the bytes of a corpus made by one machine."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
from corpus_texts import hashes, make_config, wait_for, write_much_text, write_text
from source_files import write_dataset

from bertgpt import cli
from bertgpt.config.stored import to_json
from bertgpt.data.corpus import corpus, encode, machines, prepare
from bertgpt.data.corpus import writer as corpus_writer
from bertgpt.data.text import pieces
from bertgpt.data.text.pieces import Part
from bertgpt.errors import ConfigError, DataError

SCRIPT = """
import pathlib, sys
from bertgpt import cli
from bertgpt.config.stored import from_json
from bertgpt.data.corpus import machines
from bertgpt.data.text.pieces import Part
config = from_json(open(sys.argv[1]).read())
machines.prepare_part(config, pathlib.Path(sys.argv[2]), Part(0, 1))
"""


@pytest.fixture(autouse=True)
def small(monkeypatch):
  """Files are cut, and shards are full, after a few documents."""
  monkeypatch.setattr(pieces, "PIECE_BYTES", 3000)
  monkeypatch.setattr(encode, "CHUNK_CHARS", 5000)
  monkeypatch.setattr(corpus_writer, "SHARD_BYTES", 20_000)


def write_sources(folder):
  """Writes texts of three kinds, some of which have no token, and returns the source."""
  texts = write_text(folder / "text.txt", 60)
  (folder / "text.txt").write_text("\n\n".join([*texts, "\u200b", *texts[:9]]))
  for i in range(3):
    lines = [json.dumps({"text": t}) for t in write_text(folder / "x", 20, seed=i + 1)]
    (folder / f"{i}.jsonl").write_text("\n".join(lines) + "\n")
  table = pyarrow.table({"text": write_text(folder / "x", 30, seed=9)})
  pyarrow.parquet.write_table(table, folder / "a.parquet")
  return (f"0.7*text:{folder}/text.txt,jsonl:{folder}/*.jsonl,2*parquet:{folder}/a.parquet,"
          f"text:{folder}/text.txt")


def make_parts(config, out, total, order=None):
  for number in order or range(total):
    machines.prepare_part(config, out, Part(number, total))


@pytest.mark.parametrize("act", [
    lambda config, out: machines.train_tokenizer(config, out, merges=False),
    lambda config, out: machines.sample_part(config, out, Part(0, 2))])
def test_an_unknown_language_is_refused_before_a_tokenizer_is_trained(tmp_path, act):
  config = make_config(tmp_path)
  write_text(tmp_path / "text.txt", 20)
  config.tokenizer.path, config.data.language = "", "german"
  with pytest.raises(ConfigError, match="data.language"):
    act(config, tmp_path / "c")
  assert not (tmp_path / "c.parts").exists()


def test_any_number_of_parts_gives_the_bytes_of_one_machine(tmp_path):
  config = make_config(tmp_path, write_sources(tmp_path), workers=2, validation_fraction=0.1)
  expected = hashes(prepare.prepare(config, tmp_path / "one"))
  assert sum("array_record" in name for name in expected) > 4
  for total in (1, 3, 7):
    make_parts(config, tmp_path / f"c{total}", total, order=reversed(range(total)))
    assert hashes(machines.merge(config, tmp_path / f"c{total}")) == expected


@pytest.mark.parametrize("trains", [False, True])
def test_parts_of_a_source_with_a_held_out_file(tmp_path, trains):
  write_text(tmp_path / "valid.txt", 12, seed=5)
  spec = f"validation*text:{tmp_path}/valid.txt,{write_sources(tmp_path)}"
  config = make_config(tmp_path, spec, validation_fraction=0.0)
  if trains:
    config.tokenizer.update({"path": "", "kind": "bpe", "vocab_size": 300, "train_bytes": 20_000})
  expected = hashes(prepare.prepare(config, tmp_path / "one"))
  assert corpus.read_manifest(tmp_path / "one")["splits"]["validation"]["documents"] == 12
  if trains:
    for number in range(4):
      machines.sample_part(config, tmp_path / "c", Part(number, 4))
    machines.train_tokenizer(config, tmp_path / "c", merges=True)
  make_parts(config, tmp_path / "c", 4)
  assert hashes(machines.merge(config, tmp_path / "c")) == expected


def test_parts_of_a_dataset_give_the_bytes_of_one_machine(tmp_path):
  texts = write_text(tmp_path / "text.txt", 40)
  folder = write_dataset(tmp_path / "set", train=texts)
  config = make_config(tmp_path, f"text:{tmp_path}/text.txt,tfds:{folder}:train")
  expected = hashes(prepare.prepare(config, tmp_path / "one"))
  make_parts(config, tmp_path / "c", 3)
  assert hashes(machines.merge(config, tmp_path / "c")) == expected


@pytest.mark.parametrize("fraction", [0.0, 1e-9, 1.0])
def test_a_split_that_is_nearly_empty(tmp_path, fraction):
  write_text(tmp_path / "text.txt", 40)
  config = make_config(tmp_path, validation_fraction=fraction)
  expected = hashes(prepare.prepare(config, tmp_path / "one"))
  make_parts(config, tmp_path / "c", 3)
  assert hashes(machines.merge(config, tmp_path / "c")) == expected


def test_parts_without_documents(tmp_path):
  (tmp_path / "text.txt").write_text("a.\n\nb.\n\nc.")
  config = make_config(tmp_path)
  expected = hashes(prepare.prepare(config, tmp_path / "one"))
  make_parts(config, tmp_path / "c", 7)
  assert hashes(machines.merge(config, tmp_path / "c")) == expected


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece"])
def test_a_tokenizer_trained_on_the_samples_of_parts_is_that_of_one_machine(tmp_path, kind):
  config = make_config(tmp_path, write_sources(tmp_path), validation_fraction=0.1)
  config.tokenizer.update({"path": "", "kind": kind, "vocab_size": 300, "train_bytes": 20_000})
  expected = hashes(prepare.prepare(config, tmp_path / "one"))
  with pytest.raises(ConfigError, match="train it first with --train_tokenizer"):
    machines.prepare_part(config, tmp_path / "c", Part(0, 3))
  for number in range(4):
    machines.sample_part(config, tmp_path / "c", Part(number, 4))
  machines.train_tokenizer(config, tmp_path / "c", merges=True)
  make_parts(config, tmp_path / "c", 3)
  assert hashes(machines.merge(config, tmp_path / "c")) == expected
  machines.train_tokenizer(config, tmp_path / "d", merges=False)
  made = [hashes(machines.parts_folder(tmp_path / name) / "tokenizer") for name in "cd"]
  assert made[0] == made[1]


def test_a_part_that_was_killed_is_made_again_and_a_part_that_is_done_is_not(tmp_path):
  write_much_text(tmp_path / "text.txt")
  config, out = make_config(tmp_path, workers=2), tmp_path / "c"
  (tmp_path / "config.json").write_text(to_json(config))
  process = subprocess.Popen([sys.executable, "-c", SCRIPT, tmp_path / "config.json", out],
                             cwd=pathlib.Path(__file__).parents[3])

  def has_begun():
    with contextlib.suppress(FileNotFoundError):  # It may be renamed between two looks.
      return any(f.stat().st_size for f in
                 machines.parts_folder(out).glob("part-*.unfinished-*/records"))

  wait_for(has_begun)
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  with pytest.raises(DataError, match="holds no part"):
    machines.merge(config, out)
  write_text(tmp_path / "text.txt", 50)
  path = machines.prepare_part(config, out, Part(0, 1))
  assert [f.name for f in path.parent.iterdir() if not f.name.startswith(".")] == [path.name]
  before = path.stat().st_mtime_ns
  assert machines.prepare_part(config, out, Part(0, 1)) == path
  assert path.stat().st_mtime_ns == before
  assert hashes(machines.merge(config, out)) == hashes(prepare.prepare(config, tmp_path / "one"))


def test_a_missing_part_and_a_foreign_part_are_named(tmp_path):
  write_text(tmp_path / "text.txt", 60)
  config, out = make_config(tmp_path), tmp_path / "c"
  make_parts(config, out, 4, order=[0, 3])
  with pytest.raises(DataError, match=r"part-00001-of-00004: missing .*so far: 2 of 4.*"
                                      r"--part 1/4"):
    machines.merge(config, out)
  make_parts(config, out, 4)
  other = make_config(tmp_path, validation_fraction=0.5)
  with pytest.raises(DataError, match="part-00000-of-00004: was not made from this source"):
    machines.merge(other, out)
  with pytest.raises(ConfigError, match="part-00002-of-00004: was not made from this source"):
    machines.prepare_part(other, out, Part(2, 4))
  machines.prepare_part(config, out, Part(0, 2))
  with pytest.raises(DataError, match="holds parts of several divisions, into 2 and 4"):
    machines.merge(config, out)
  assert not out.exists()


def test_a_part_under_the_name_of_another_is_refused(tmp_path):
  write_text(tmp_path / "text.txt", 60)
  config, out = make_config(tmp_path), tmp_path / "c"
  make_parts(config, out, 2)
  first, second, third = (machines.part_path(out, Part(i, 2)) for i in range(3))
  shutil.copytree(second, third)
  with pytest.raises(DataError, match="part-00002-of-00002: a division into 2 has no such part"):
    machines.merge(config, out)
  shutil.rmtree(first)
  third.rename(first)
  with pytest.raises(DataError, match=r"part-00000-of-00002: is a copy of another.*--part 0/2"):
    machines.merge(config, out)
  (first / machines.INFO).write_text("{}")
  with pytest.raises(DataError, match="part-00000-of-00002: was not made from this source"):
    machines.merge(config, out)


def test_a_text_that_changed_between_two_parts_is_noticed(tmp_path):
  write_text(tmp_path / "text.txt", 60)
  config, out = make_config(tmp_path), tmp_path / "c"
  make_parts(config, out, 3, order=[0, 1])
  text = (tmp_path / "text.txt").read_text()
  (tmp_path / "text.txt").write_text(text[:-3] + "xx\n")
  machines.prepare_part(config, out, Part(2, 3))
  with pytest.raises(DataError, match="part-00002-of-00003: the text changed"):
    machines.merge(config, out)


@pytest.mark.parametrize("part, is_noticed", [(Part(1, 2), True), (Part(0, 2), False)])
def test_a_file_that_changes_while_a_part_reads_it_is_noticed(tmp_path, monkeypatch, part,
                                                              is_noticed):
  """Its digest is that of the new text. Files that only other parts read do not matter."""
  for name in "ab":
    write_text(tmp_path / f"{name}.txt", 20)
  config, encode_source = make_config(tmp_path, f"text:{tmp_path}/?.txt"), prepare.encode_source

  def change_and_encode(*args):
    text = (tmp_path / "b.txt").read_text()
    (tmp_path / "b.txt").write_text(text[:-3] + "x.\n")
    return encode_source(*args)

  monkeypatch.setattr(pieces, "PIECE_BYTES", 2**20)
  monkeypatch.setattr(prepare, "encode_source", change_and_encode)
  with (pytest.raises(DataError, match=r"\?.txt: changed while it was read") if is_noticed
        else contextlib.nullcontext()):
    machines.prepare_part(config, tmp_path / "c", part)
  assert machines.part_path(tmp_path / "c", part).exists() != is_noticed


@pytest.mark.parametrize("act", [lambda path: path.chmod(0o600),
                                 lambda path: os.link(path, path.with_suffix(".bak"))])
def test_a_file_whose_text_stays_may_be_touched_while_a_part_reads_it(tmp_path, monkeypatch, act):
  write_text(tmp_path / "a.txt", 20)
  config, encode_source = make_config(tmp_path, f"text:{tmp_path}/a.txt"), prepare.encode_source

  def act_and_encode(*args):
    act(tmp_path / "a.txt")
    return encode_source(*args)

  monkeypatch.setattr(prepare, "encode_source", act_and_encode)
  assert machines.prepare_part(config, tmp_path / "c", Part(0, 1)).is_dir()


@pytest.mark.parametrize("act", [
    lambda config, out: machines.prepare_part(config, out, Part(0, 2)),
    lambda config, out: machines.merge(config, out)])
def test_a_pattern_that_matches_the_parts_is_refused(tmp_path, act):
  write_text(tmp_path / "text.txt", 20)
  config, out = make_config(tmp_path), tmp_path / "c"
  machines.prepare_part(config, out, Part(1, 2))
  config.data.source = f"text:{tmp_path}/**/[tr]*"
  with pytest.raises(ConfigError, match="includes .*c.parts/part-00001.*give an --out elsewhere"):
    act(config, out)


@pytest.mark.parametrize("act", [
    lambda config, out: machines.sample_part(config, out, Part(1, 2)),
    lambda config, out: machines.train_tokenizer(config, out, merges=False)])
def test_a_pattern_that_matches_the_samples_is_refused(tmp_path, act):
  write_text(tmp_path / "text.txt", 20)
  config = make_config(tmp_path, f"text:{tmp_path}/*.txt,jsonl:{tmp_path}/**/*.jsonl")
  config.tokenizer.path = ""
  (tmp_path / "a.jsonl").write_text('{"text": "A b."}\n')
  machines.sample_part(config, tmp_path / "c", Part(0, 2))
  with pytest.raises(ConfigError, match="includes .*c.parts/sample-00000.*give an --out elsewhere"):
    act(config, tmp_path / "c")


def test_a_damaged_part_is_named_and_leaves_nothing(tmp_path):
  write_text(tmp_path / "text.txt", 60)
  config, out = make_config(tmp_path), tmp_path / "c"
  make_parts(config, out, 2)
  path = machines.part_path(out, Part(1, 2)) / "records"
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  with pytest.raises(DataError, match="part-00001-of-00002/records: damaged"):
    machines.merge(config, out)
  assert not list(tmp_path.glob("c*unfinished*")) and not out.exists()


def test_a_damaged_sample_is_named(tmp_path):
  write_text(tmp_path / "text.txt", 20)
  config, out = make_config(tmp_path), tmp_path / "c"
  config.tokenizer.path = ""
  path = machines.sample_part(config, out, Part(0, 1)) / machines.SAMPLE_FILE
  path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
  with pytest.raises(DataError, match="sample-00000-of-00001/documents.jsonl: damaged"):
    machines.train_tokenizer(config, out, merges=True)


def test_a_part_is_read_in_little_memory(tmp_path):
  write_text(tmp_path / "text.txt", 3000)
  path = machines.prepare_part(make_config(tmp_path), tmp_path / "c", Part(0, 1))
  tracemalloc.start()
  size = sum(len(document.record) for document in machines._read_documents(path))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert size > 1_000_000 and peak < size / 2


@pytest.mark.parametrize("flags, message", [
    (["--part=0/2"], "--part: give --out"),
    (["--merge"], "--merge: give --out"),
    (["--engine=beam"], "--engine: give --out"),
    (["--part=0/2", "--out=/"], "--out /: is not a new folder. Name a folder in it"),
    (["--part=2/2", "--out=c"], "2/2: give I/N with 0 <= I < N"),
    (["--part=0/2", "--merge", "--out=c"], "not allowed with argument"),
    (["--engine=beam", "--train_tokenizer", "--out=c"], "--train_tokenizer: the engine trains"),
    (["--beam_args=--x", "--out=c"], "--beam_args: give --engine beam too"),
    (["--merge", "--out=c"], "c.parts: holds no part. Make each one with --part I/N")])
def test_the_command_says_what_is_wrong_in_one_line(tmp_path, monkeypatch, capsys, flags, message):
  monkeypatch.chdir(tmp_path)
  write_text(tmp_path / "text.txt", 3)
  config = make_config(tmp_path)
  before = sorted(os.listdir())
  assert cli.main(["prepare", "--config=bert_base", f"--config.data.source={config.data.source}",
                   f"--config.data.cache_dir={tmp_path}",
                   f"--config.tokenizer.path={config.tokenizer.path}", *flags]) in (2, 65)
  line, = capsys.readouterr().err.splitlines()
  assert message in line
  assert sorted(os.listdir()) == before
