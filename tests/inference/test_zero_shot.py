"""bertgpt.inference.zero_shot: suites are read, scored and printed; interrupted work resumes."""

import contextlib
import json
import math

import pytest
import tensorflow_datasets as tfds
from one_by_one import after, encode
from zero_shot_texts import PAIRS, PASSAGES, TEXT

from bertgpt import cli, progress
from bertgpt.errors import ConfigError
from bertgpt.inference import long_documents, resumable, zero_shot
from bertgpt.inference.suites import SUITES
from bertgpt.inference.zero_shot import Settings
from bertgpt.runs import workdir

# ------------------------------------------------------------------ the command


def run(capsys, *argv):
  """Returns (exit code, lines on stdout, lines on stderr) of a command."""
  capsys.readouterr()
  code = cli.main([str(a) for a in argv])
  output = capsys.readouterr()
  return code, output.out.splitlines(), output.err.splitlines()


@pytest.fixture
def files(tmp_path):
  (tmp_path / "a.txt").write_text(TEXT)
  (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": p}) + "\n" for p in PASSAGES))
  rows = [("good", "bad", "id"), (*PAIRS[0], "1"), ("", "", "2"),  # A blank pair does not count.
          *((*pair, "3") for pair in PAIRS[1:3])]
  (tmp_path / "a.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
  (tmp_path / "b.tsv").write_text("good\tworse\na\tb\n")
  (tmp_path / "empty.txt").write_text("\n")
  (tmp_path / "long.tsv").write_text("good\tbad\n" + "cat " * 70 + "\tcat\n")
  (tmp_path / "long.jsonl").write_text(json.dumps({"text": "The " + "a" * 9}))
  (tmp_path / "word.jsonl").write_text('{"text": "alone"}\n')
  (tmp_path / "no_word.jsonl").write_text(json.dumps({"text": "The cat \x01"}))
  (tmp_path / "no_context.jsonl").write_text(json.dumps({"text": "\x01 cat"}))
  (tmp_path / "empty.jsonl").write_text("\n")
  return tmp_path


def test_the_command_runs_suites_one_after_the_other(capsys, finished, files, monkeypatch):
  monkeypatch.chdir(files)
  is_gpt = workdir.read_config(finished).model.family == "gpt"
  wanted = "text=a.txt,pairs=a.tsv" + ",lambada=a.jsonl,text=a.jsonl" * is_gpt
  code, lines, _ = run(capsys, "evaluate", f"--workdir={finished}", f"--suite={wanted}",
                       "--window=32")
  assert code == 0
  scores = dict(line.split(" ") for line in lines if "/" in line.split(" ")[0])
  assert 0 <= float(scores["pairs/accuracy"]) <= 1
  assert ("lambada/accuracy" in scores) == is_gpt
  assert any("32 tokens, 16 scored" in line for line in lines) == is_gpt
  limited = run(capsys, "evaluate", f"--workdir={finished}", "--suite=pairs=a.tsv", "--limit=2")
  assert limited[1][0].startswith("pairs: a.tsv, 2 pairs, ")


@pytest.mark.parametrize("flags, fragment", [
    (["--suite=lambda=a.jsonl"], "--suite lambda: no such suite. Did you mean lambada?"),
    (["--suite=a.txt"], "--suite a.txt: is a file, not the name of a suite. "
     "Write NAME=a.txt, with one of the names text,"),
    (["--suite=lambada"], "Give lambada=FILE with lambada_test.jsonl of openai/gpt-2"),
    (["--suite="], "names no suite. Choose among text, wikitext2"),
    (["--suite=text=none.txt"], "--suite text none.txt: no such file"),
    (["--suite=text=empty.txt"], "--suite text empty.txt: holds no text"),
    (["--suite=pairs=b.tsv"], "--suite pairs b.tsv: has no column bad"),
    (["--suite=pairs=long.tsv"], "has 70 tokens. Give sentences of 1 to 3"),
    (["--suite=lambada=word.jsonl"], "the passage 'alone' has nothing before its last word"),
    (["--suite=lambada=no_word.jsonl"], "'The cat \\x01' has no tokens in its last word"),
    (["--suite=lambada=no_context.jsonl"], "'\\x01 cat' has no tokens before its last word"),
    (["--suite=lambada=empty.jsonl"], "--suite lambada empty.jsonl: holds no text"),
    (["--suite=text=a.txt", "--window=65"], "--window=65: the model has 64 positions"),
    (["--suite=text=a.txt", "--stride=32"], "--stride=32: must be less than the window of 32"),
    (["--suite=text=a.txt", "--limit=x"], "--limit: x: give a whole number"),
    (["--suite=text=a.txt", "--distributed=auto"], "--suite runs in one process"),
    (["--suite=text=a.txt", "--config.seed=1"], "evaluate takes no config fields"),
    (["--stride=3"], "--stride belongs to --suite"),
    (["--out=a.jsonl"], "--out belongs to --suite"),
    (["--suite=text=a.txt", "--out=a.jsonl"], "a.jsonl: exists already"),
    (["--suite=text=a.txt", "--out=a.csv"], "a.csv: name a file that ends in .jsonl"),
    (["--batch_size=3"], "--batch_size belongs to --suite"),
    (["--suite=lambada=long.jsonl", "--window=4"], "a last word has 9 tokens. Give a longer"),
])
def test_bad_input_is_one_line(capsys, finished_gpt, files, monkeypatch, flags, fragment):
  monkeypatch.chdir(files)
  code, out, lines = run(capsys, "evaluate", f"--workdir={finished_gpt}", *flags)
  assert (code, out, len(lines)) == (2, [], 1)
  assert fragment in lines[0]


def test_a_bert_has_no_stride(capsys, finished_bert, files):
  """It scores whole lines, so a stride would say nothing."""
  code, _, lines = run(capsys, "evaluate", f"--workdir={finished_bert}", "--stride=3",
                       f"--suite=text={files}/a.txt")
  assert code == 2 and "--stride=3: the model sees each line as a whole" in lines[-1]


def test_lambada_is_not_for_a_bert(capsys, finished_bert, files):
  code, out, lines = run(capsys, "evaluate", f"--workdir={finished_bert}",
                         f"--suite=text={files}/a.txt,lambada={files}/a.jsonl")
  assert (code, out, len(lines)) == (2, [], 1)
  assert "holds a BERT" in lines[0] and "lambada" in lines[0]


def test_texts_may_be_a_dataset_of_tfds(capsys, finished_gpt, tmp_path, files, monkeypatch):
  monkeypatch.chdir(files)
  (tmp_path / "set").mkdir()
  identity = tfds.core.dataset_info.DatasetIdentity(
      name="toy", version="1.0.0", data_dir=str(tmp_path / "set"), module_name="toy")
  features = tfds.features.FeaturesDict({"passage": tfds.features.Text()})
  writer = tfds.core.SequentialWriter(
      tfds.core.DatasetInfo(builder=identity, features=features), 300, file_format="array_record")
  writer.initialize_splits(["test"])
  writer.add_examples({"test": [{"passage": passage} for passage in PASSAGES]})
  writer.close_all()
  outputs = [run(capsys, "evaluate", f"--workdir={finished_gpt}", f"--suite=lambada={file}")
             for file in (f"tfds:{tmp_path}/set:test#passage", "a.jsonl")]
  assert [code for code, _, _ in outputs] == [0, 0]
  assert outputs[0][1][1:] == outputs[1][1][1:]


def test_a_dataset_that_is_not_there_is_named(capsys, finished_gpt):
  code, out, lines = run(capsys, "evaluate", f"--workdir={finished_gpt}",
                         "--suite=lambada=tfds:lambda_none:test#passage")
  assert (code, out, len(lines)) == (65, [], 1)
  assert "--suite lambada: TFDS does not know the dataset 'lambda_none'" in lines[0]


# ---------------------------------------------------------------- many texts


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setattr(zero_shot, "CHUNK_ENTRIES", 3)
  monkeypatch.setattr(long_documents, "PART_CHARS", 60)
  monkeypatch.setattr(resumable, "CHUNK_CHARS", 300)


LONG = {
    "text": ("text", TEXT * 4),
    "wiki": ("wikitext2", "".join(f" = {line.split()[0]} = \n \n {line.replace('.', ' .')} \n"
                                  for line in TEXT.split("\n") * 4 if line.strip())),
    "code": ("text", "".join(f"{'    ' * (1 + i % 2)}{line}\n"
                             for i, line in enumerate(TEXT.split("\n") * 4) if line.strip())),
}


@pytest.mark.parametrize("name", LONG)
def test_chunks_do_not_change_the_scores(capsys, finished, files, small, request, monkeypatch,
                                         name):
  """The oracle measures all texts at once."""
  monkeypatch.chdir(files)
  suite, text = LONG[name]
  (files / "long.txt").write_text(text)
  code, lines, _ = run(capsys, "evaluate", f"--workdir={finished}", f"--suite={suite}=long.txt",
                       "--window=16")
  found = dict(line.split(" ") for line in lines[1:])
  monkeypatch.undo()
  is_gpt = workdir.read_config(finished).model.family == "gpt"
  trained = request.getfixturevalue("gpt" if is_gpt else "bert")
  whole = zero_shot.measure(trained, SUITES[suite], [text], Settings(16, 8, 0, 8))
  assert whole.pop("protocol") in lines[0] and code == 0
  assert found.keys() == {f"{suite}/{metric}" for metric in whole}
  for metric, value in whole.items():
    assert float(found[f"{suite}/{metric}"]) == pytest.approx(value, rel=1e-4)


def test_scores_of_every_text_are_written(capsys, finished_gpt, gpt, files, small, monkeypatch):
  monkeypatch.chdir(files)
  code, _, _ = run(capsys, "evaluate", f"--workdir={finished_gpt}", "--out=scores.jsonl",
                   "--suite=text=a.jsonl,pairs=a.tsv,lambada=a.jsonl")
  assert code == 0
  records = [json.loads(line) for line in (files / "scores.jsonl").read_text().splitlines()]
  suites_of = [record.pop("suite") for record in records]
  assert suites_of == ["text"] * 5 + ["pairs"] * 3 + ["lambada"] * 5
  assert [record.pop("file") for record in records] == (
      ["a.jsonl"] * 5 + ["a.tsv"] * 3 + ["a.jsonl"] * 5)
  score = lambda tokens: sum(after(gpt, [gpt.tokenizer.eod_id, *tokens[:i]])[token]
                             for i, token in enumerate(tokens))
  for number, (record, passage) in enumerate(zip(records[:4], PASSAGES, strict=False), 1):
    ids = encode(gpt, passage)
    assert (record["text"], record["tokens"]) == (number, len(ids))
    assert record["logp"] == pytest.approx(score(ids), rel=1e-4)
  for record, pair in zip(records[5:8], PAIRS, strict=False):
    for name, sentence in zip(("good", "bad"), pair, strict=True):
      assert record[name] == pytest.approx(score(encode(gpt, sentence)), rel=1e-4)
  assert [set(record) for record in records[8:]] == [{"text", "correct", "logp"}] * 5


def test_records_of_two_files_of_a_suite_name_them(capsys, finished_gpt, files, monkeypatch):
  monkeypatch.chdir(files)
  (files / "é.tsv").write_bytes((files / "a.tsv").read_bytes())
  code, *_ = run(capsys, "evaluate", f"--workdir={finished_gpt}", "--suite=pairs=a.tsv,pairs=é.tsv",
                 "--out=scores.jsonl")
  records = [*map(json.loads, (files / "scores.jsonl").read_text("utf-8").splitlines())]
  assert code == 0 and [record.pop("file") for record in records] == ["a.tsv"] * 3 + ["é.tsv"] * 3
  assert records[:3] == records[3:]


@pytest.mark.parametrize("limit", [0, 100])
def test_records_number_the_texts_that_have_scores(capsys, finished_gpt, files, small, monkeypatch,
                                                   limit):
  monkeypatch.chdir(files)
  texts = ["The cat sees.", "", "A dog."]
  (files / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  code, *_ = run(capsys, "evaluate", f"--workdir={finished_gpt}", "--suite=text=b.jsonl",
                 f"--limit={limit}", "--out=scores.jsonl")
  records = [*map(json.loads, (files / "scores.jsonl").read_text().splitlines())]
  assert code == 0 and [record["text"] for record in records] == [1, 2]
  assert all(record["tokens"] for record in records)


def test_the_last_pair_is_checked_before_the_first_one_is_scored(capsys, finished, files,
                                                                 monkeypatch):
  monkeypatch.chdir(files)
  monkeypatch.setattr(zero_shot, "measure_file", None)
  (files / "a.tsv").write_text((files / "a.tsv").read_text() + "cat " * 70 + "\tcat\n")
  code, _, lines = run(capsys, "evaluate", f"--workdir={finished}", "--suite=pairs=a.tsv",
                       "--out=scores.jsonl")
  assert code == 2 and "has 70 tokens" in lines[-1]


@pytest.mark.parametrize("passages, limit, is_found", [
    (["", " ", "alone"], 1, True), (["", "The cat sees", "alone"], 1, False),
    (["", "The cat sees", " ", "alone"], 2, True)])
def test_blank_texts_do_not_count_toward_the_limit_of_the_check(gpt, tmp_path, passages, limit,
                                                                is_found):
  path = tmp_path / "a.jsonl"
  path.write_text("".join(json.dumps({"text": passage}) + "\n" for passage in passages))
  with pytest.raises(ConfigError) if is_found else contextlib.nullcontext():
    zero_shot.check_entries(gpt, "lambada", str(path), Settings(32, 16, limit, 8))


@pytest.mark.parametrize("window, is_noted", [(0, False), (32, False), (33, True)])
def test_a_window_above_the_rows_of_the_training_is_noted(finished, request, capsys, window,
                                                          is_noted):
  is_gpt = workdir.read_config(finished).model.family == "gpt"
  trained = request.getfixturevalue("gpt" if is_gpt else "bert")
  settings = zero_shot.resolve(Settings(window, 0, 0, 8), trained)
  assert settings.window == (window or 32)
  note = "note: --window=33 is more than the rows of the training (32). The position embeddings"
  assert capsys.readouterr().err.count(note) == is_noted


@pytest.mark.parametrize("init_from, window, is_noted", [
    ("", 0, False), ("runs/a", 0, True), ("runs/a", 32, False), ("runs/a", 64, False)])
def test_a_default_window_that_may_be_shorter_than_the_rows_before_is_noted(
    gpt, capsys, init_from, window, is_noted):
  config = gpt.config.copy_and_resolve_references()
  config.init_from = init_from
  zero_shot.resolve(Settings(window, 0, 0, 8), gpt._replace(config=config))
  note = ("note: the rows of this training have at most 32 tokens, but those of init_from=runs/a "
          "may have been longer. --window=64 uses all positions of the model\n")
  assert capsys.readouterr().err == note * is_noted


def test_with_a_limit_the_progress_is_that_towards_the_limit(capsys, finished_gpt, tmp_path,
                                                             monkeypatch):
  (tmp_path / "pairs.tsv").write_text("good\tbad\n" + "The cat sat.\tThe cat sit.\n" * 9)
  monkeypatch.setattr(progress, "PROGRESS_SECONDS", -1)
  monkeypatch.setattr(zero_shot, "CHUNK_ENTRIES", 2)
  assert cli.main(["evaluate", f"--workdir={finished_gpt}", "--limit=5",
                   f"--suite=pairs={tmp_path / 'pairs.tsv'}"]) == 0
  lines = capsys.readouterr().err.splitlines()
  assert [line.partition(",")[0] for line in lines if "per second" in line] == [
      "2 of 5 scores of pairs", "4 of 5 scores of pairs"]


def test_results_of_texts_that_cannot_be_scored_are_not_in_the_way(
    capsys, finished_gpt, files, small, monkeypatch):
  monkeypatch.chdir(files)
  command = ("evaluate", f"--workdir={finished_gpt}", "--suite=text=b.txt", "--out=scores.jsonl")
  (files / "b.txt").write_text(TEXT)
  finish = zero_shot.MEASURES["perplexity"].finish

  def fail(*args):
    raise ConfigError("--suite: there is no second token to score")

  measure = zero_shot.MEASURES["perplexity"]
  monkeypatch.setitem(zero_shot.MEASURES, "perplexity", measure._replace(finish=fail))
  assert run(capsys, *command)[0] == 2
  monkeypatch.setitem(zero_shot.MEASURES, "perplexity", measure._replace(finish=finish))
  (files / "b.txt").write_text(TEXT * 2)
  assert run(capsys, *command)[0] == 0


@pytest.mark.parametrize("limit", [1, 3, 5, 9])
def test_a_limit_within_a_document_of_several_parts_leaves_its_record(
    capsys, finished_gpt, files, small, monkeypatch, limit):
  """The record agrees with the printed scores, even within a document."""
  monkeypatch.chdir(files)
  (files / "long.txt").write_text(TEXT * 4)
  code, lines, _ = run(capsys, "evaluate", f"--workdir={finished_gpt}", "--suite=text=long.txt",
                       "--window=16", f"--limit={limit}", "--out=scores.jsonl")
  scores = dict(line.split(" ") for line in lines[1:])
  record, = map(json.loads, (files / "scores.jsonl").read_text().splitlines())
  assert code == 0 and record["text"] == 1
  assert record["tokens"] == int(scores["text/tokens"]) == 15 + 8 * (limit - 1)
  assert math.exp(-record["logp"] / record["tokens"]) == pytest.approx(
      float(scores["text/token_perplexity"]), rel=1e-4)


def test_a_file_that_changes_during_the_work_gives_no_scores(capsys, finished_gpt, files, small,
                                                             monkeypatch):
  monkeypatch.chdir(files)
  measure_file = zero_shot.measure_file

  def grow(*args):
    with (files / "a.txt").open("a") as file:
      file.write("One more line.\n")
    return measure_file(*args)

  monkeypatch.setattr(zero_shot, "measure_file", grow)
  code, out, lines = run(capsys, "evaluate", f"--workdir={finished_gpt}", "--suite=text=a.txt",
                         "--out=scores.jsonl")
  assert (code, out) == (65, []) and "--suite text a.txt: changed while it was read" in lines[-1]
  assert not list(files.glob("scores*"))


@pytest.mark.parametrize("text", [TEXT * 2, LONG["code"][1]], ids=["text", "code"])
@pytest.mark.parametrize("interrupted_at", [1, 2, 3, 5])
def test_interrupted_work_resumes_to_the_same_bytes(capsys, finished_gpt, files, small, monkeypatch,
                                                    interrupted_at, text):
  monkeypatch.chdir(files)
  (files / "long.txt").write_text(text)
  argv = ["evaluate", f"--workdir={finished_gpt}", "--suite=text=long.txt,pairs=a.tsv,text=a.jsonl",
          "--window=16"]
  expected = run(capsys, *argv, "--out=whole.jsonl")
  assert expected[0] == 0
  commit, count = resumable.Unfinished.commit, 0

  def fail(self, **state):
    nonlocal count
    count += 1
    if count == interrupted_at:
      raise KeyboardInterrupt
    commit(self, **state)

  monkeypatch.setattr(resumable.Unfinished, "commit", fail)
  assert run(capsys, *argv, "--out=parts.jsonl")[0] == 130
  monkeypatch.setattr(resumable.Unfinished, "commit", commit)
  assert not (files / "parts.jsonl").exists()
  code, lines, errors = run(capsys, *argv, "--out=parts.jsonl")
  assert (code, lines) == expected[:2]
  assert any("resuming after" in line for line in errors) == (interrupted_at > 1)
  assert (files / "parts.jsonl").read_bytes() == (files / "whole.jsonl").read_bytes()
  assert not list(files.glob("*unfinished*"))


def test_work_in_another_format_is_not_resumed(capsys, finished_gpt, files, monkeypatch):
  monkeypatch.chdir(files)
  argv = ["evaluate", f"--workdir={finished_gpt}", "--suite=pairs=a.tsv", "--out=scores.jsonl"]

  def interrupt(self, name):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(resumable.Unfinished, "publish", interrupt)
    patch.setattr(zero_shot, "STATE_FORMAT", 1)
    assert run(capsys, *argv)[0] == 130
  code, _, lines = run(capsys, *argv)
  assert code == 2
  assert "unfinished results of format of unfinished results 1. Go back" in lines[-1]
