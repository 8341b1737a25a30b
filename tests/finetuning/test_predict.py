"""bertgpt predict: the predictions of fine-tuning, with probabilities, for any number of texts."""

import csv
import io
import json
import re
import shutil
import sys

import numpy as np
import pytest
import tiny

from bertgpt import cli
from bertgpt.config import finetuning as finetune_config
from bertgpt.config.stored import from_json
from bertgpt.data.tokens import pipelines, tokenizers
from bertgpt.errors import ConfigError, DataError
from bertgpt.finetuning import finetune, inputs, predict
from bertgpt.finetuning.inputs import questions, texts, words


def run(workdir, source, *arguments):
  return cli.main(["predict", f"--workdir={workdir}", f"--input={source}", *map(str, arguments)])


def read_lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def sentences(glue):
  lines = (glue / "SST-2" / "dev.tsv").read_text().splitlines()[1:]
  return [line.split("\t")[0] for line in lines]


def test_predictions_are_those_of_fine_tuning(tuned, glue, tmp_path, capsys):
  """The fine-tuning workdir stands for its best run."""
  written = (tuned / "lr0.01-seed0" / "predictions" / "SST-2.tsv").read_text().splitlines()[1:]
  for workdir in (tuned, tuned / "lr0.01-seed0"):
    out = tmp_path / f"{workdir.name}.jsonl"
    assert run(workdir, glue / "SST-2" / "test.tsv", f"--out={out}") == 0
    found = read_lines(out)
    assert [f"{p['id']}\t{['negative', 'positive'].index(p['label'])}" for p in found] == written
    for p in found:
      assert sum(p["probabilities"].values()) == pytest.approx(1, abs=1e-6)
      assert p["label"] == max(p["probabilities"], key=p["probabilities"].get)
    assert "16 predictions of sst2 by" in capsys.readouterr().err


def test_examples_are_counted_when_they_are_computed(tuned, sentences):
  """A rate that counts them one by one would begin with 1 after a whole chunk."""
  predictor, counts = predict.open_predictor(tuned), []
  examples = [predictor.form.parse({"sentence": text}, "0", "sst2") for text in sentences * 5]
  found = predict.predict(predictor, examples, 2, lambda count, rows: counts.append(count))
  next(found)
  assert counts == [64]
  assert len(list(found)) == 79 and counts == [64, 16]


def test_the_last_ending_of_a_name_is_the_format(tmp_path):
  for name, text in (("a.txt.tsv", "sentence\nfine\n"), ("a.tsv.txt", "fine\n"),
                     ("a.txt.jsonl", '{"sentence": "fine"}\n'), ("a.jsonl.txt", "fine\n")):
    (tmp_path / name).write_text(text)
    (example,) = inputs.read_examples(tmp_path / name, "classes", "sst2")
    assert example.texts == ("fine",), name
  (tmp_path / "a.csv.conll").write_text("fine O\n")
  assert [e.words for e in words.read(tmp_path / "a.csv.conll", "ner")] == [["fine"]]


def test_unknown_words_are_unknown_unless_the_family_reads_words(tuned):
  predictor = predict.open_predictor(tuned)
  old = predictor.trained.tokenizer
  tokenizer = tokenizers.Words(pipelines.serialize(pipelines.words_pipeline(
      {piece: i for i, piece in enumerate(old.pieces)}, True)))
  trained = predictor.trained._replace(tokenizer=tokenizer)
  predictor = predictor._replace(trained=trained, setting=predictor.setting._replace(
      text_format=predictor.setting.text_format._replace(tokenizer=tokenizer)))
  found = list(predict.predict_records(predictor, [{"sentence": s} for s in ("dragon", "unicorn")]))
  assert found[0]["probabilities"] == found[1]["probabilities"]
  config = from_json(trained.task["config"], finetune_config.base)
  same, task = finetune.open_task(config, trained)
  assert same is trained and task.train


def test_probabilities_are_the_softmax_of_the_head(tuned, sentences):
  """The oracle computes in float64 from the model's features, one text at a time."""
  from bertgpt.models import Inputs
  predictor = predict.open_predictor(tuned)
  body, head = (predictor.trained.params[name] for name in ("body", "head"))
  model, tokenizer = predictor.trained.model, predictor.trained.tokenizer
  pool = lambda m, x: m.pool(m.features(x)[:, 0])
  found = list(predict.predict_records(predictor, [{"sentence": s} for s in sentences]))
  for prediction, ids in zip(found, tokenizer.encode(sentences), strict=True):
    row = np.array([[tokenizer.cls_id, *ids, tokenizer.sep_id]], np.int32)
    inputs = Inputs.of_texts(row, np.array([row.shape[1]], np.int32))
    pooled = tiny.apply(model, body, inputs, method=pool)
    logits = np.asarray(pooled, np.float64)[0] @ head["kernel"] + head["bias"]
    chances = np.exp(logits) / np.exp(logits).sum()
    assert list(prediction["probabilities"].values()) == pytest.approx(chances.tolist(), abs=1e-5)


def test_the_batches_do_not_matter(tuned, sentences):
  predictor = predict.open_predictor(tuned)
  records = [{"sentence": s, "id": i} for i, s in enumerate(sentences * 5 + ["", "the " * 90])]
  results = [list(predict.predict_records(predictor, records, size)) for size in (1, 4)]
  assert [p["id"] for p in results[0]] == [str(i) for i in range(82)]
  for one, other in zip(*results, strict=True):
    assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_examples_are_read_as_they_are_needed(tuned, sentences):
  """Predictions of an endless input arrive while it is read."""
  read = 0

  def endless():
    nonlocal read
    while True:
      read += 1
      yield {"sentence": sentences[read % 16]}

  predictions = predict.predict_records(predict.open_predictor(tuned), endless(), batch_size=2)
  for _ in range(100):
    next(predictions)
  assert 100 <= read <= 100 + 2 * predict.CHUNK_BATCHES


@pytest.mark.parametrize("name, content", [
    ("a.tsv", "sentence\tid\n{0}\t5\n{1}\tx\n"),
    ("a.tsv", "label\tsentence\tindex\r\n?\t{0}\t5\r\n\t{1}\tx\r\n"),
    ("a.tsv", "\nsentence\tidx\n{0}\t5\n\n{1}\tx\n".removeprefix("\n")),
    ("a.jsonl", '{{"id": 5, "sentence": "{0}"}}\n\n{{"id": "x", "sentence": "{1}", "more": []}}\n'),
    ("a.jsonl", '\ufeff{{"idx": 5, "text": "{0}"}}\n{{"index": "x", "text": "{1}"}}'),
])
def test_every_format_gives_the_same(tuned, sentences, tmp_path, capsys, name, content):
  (tmp_path / name).write_text(content.format(*sentences), newline="")
  expected = list(predict.predict_records(predict.open_predictor(tuned), [
      {"id": "5", "sentence": sentences[0]}, {"id": "x", "sentence": sentences[1]}]))
  assert run(tuned, tmp_path / name, "--format=jsonl") == 0
  assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == expected
  assert run(tuned, tmp_path / name) == 0
  table = list(csv.DictReader(capsys.readouterr().out.splitlines(), delimiter="\t"))
  assert [(row["id"], row["prediction"]) for row in table] == [
      (p["id"], p["label"]) for p in expected]
  assert [float(row["positive"]) for row in table] == pytest.approx(
      [p["probabilities"]["positive"] for p in expected], abs=1e-6)


def test_examples_without_a_name_are_counted(tuned, sentences, tmp_path, capsys):
  (tmp_path / "a.tsv").write_text("sentence\n\n{}\n\n{}\n".format(*sentences))
  assert run(tuned, tmp_path / "a.tsv", "--format=jsonl") == 0
  assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == ["0", "1"]


def test_a_tab_in_a_text_is_an_error(tuned, tmp_path, capsys):
  (tmp_path / "a.tsv").write_text("sentence\tid\na\tb\t5\n")
  assert run(tuned, tmp_path / "a.tsv") == 65
  assert "line 2: has more than 2 columns" in capsys.readouterr().err


def test_the_columns_of_cola_need_no_header_if_labels_stand_there(tmp_path):
  path = tmp_path / "a.tsv"
  path.write_text("gj04\t1\t\tA fine film.\nbc01\t0\t*\tFilm a fine.\n")
  assert [e.texts for e in texts.read(path, "cola")] == [("A fine film.",), ("Film a fine.",)]
  path.write_text("id\tSentence\tauthor\tyear\n7\tA fine film.\tAnna\t1999\n")
  with pytest.raises(DataError, match="a.tsv: lacks the column sentence"):
    list(texts.read(path, "cola"))


def test_lines_of_a_text_file_are_texts(tuned, sentences, tmp_path, capsys):
  (tmp_path / "a.txt").write_text("\n".join([sentences[0], " ", sentences[1]]))
  assert run(tuned, tmp_path / "a.txt", "--format=jsonl") == 0
  found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  expected = predict.predict_records(predict.open_predictor(tuned),
                                     [{"sentence": s} for s in sentences[:2]])
  assert found == list(expected)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_valid_in_every_encoding_of_stdout(tuned, tmp_path, monkeypatch, encoding):
  """As the program does, characters that the encoding lacks are escaped, which JSON is not."""
  name, stdout = "naïve \u6f22 \U0001f600", io.BytesIO()
  (tmp_path / "a.jsonl").write_text(json.dumps({"id": name, "sentence": "fine"}))
  monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stdout, encoding, "backslashreplace"))
  assert run(tuned, tmp_path / "a.jsonl", "--format=jsonl") == 0
  printed = stdout.getvalue()
  assert json.loads(printed.decode(encoding))["id"] == name
  assert (name.encode() in printed) == (encoding == "utf-8")


# ------------------------------------------------------------- other tasks


def tune(tuning, init, out, *arguments):
  assert cli.main(["finetune", f"--config={tuning}", f"--init={init}", f"--workdir={out}",
                   *arguments]) == 0
  return out


def test_words_are_tagged(tuning, finished_bert, sentences, tmp_path):
  """The file of predictions of the dev set has the same tags."""
  lines = []
  for sentence in sentences:
    words = sentence.rstrip(".").split()
    lines += [f"{word}\t{'B-who' if i == 1 else 'O'}" for i, word in enumerate(words)] + [""]
  for name in ("train", "dev"):
    (tmp_path / f"{name}.txt").write_text("\n".join(lines))
  out = tune(tuning, finished_bert, tmp_path / "out", "--task=ner",
             f"--config.task.data={tmp_path}", "--config.epochs=40")
  written = (out / "lr0.01-seed0/predictions/dev.conll").read_text().splitlines()
  # The tags of the input are not read.
  (tmp_path / "new.conll").write_text("\n".join(line.split("\t")[0] for line in lines))
  assert run(out, tmp_path / "new.conll", f"--out={tmp_path / 'found.conll'}") == 0
  found = [line.split("\t") for line in (tmp_path / "found.conll").read_text().splitlines()]
  assert [cells[:2] for cells in found] == [
      [line.split()[0], line.split()[2]] if line else [""] for line in written]

  (tmp_path / "new.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [
      {"words": sentences[0].rstrip(".").split()}, {"tokens": []}, {"text": sentences[1]}]))
  assert run(out, tmp_path / "new.jsonl", f"--out={tmp_path / 'found.jsonl'}") == 0
  first, empty, third = read_lines(tmp_path / "found.jsonl")
  assert first["tags"] == [cells[1] for cells in found[:len(first["words"])]]
  assert first["probabilities"] == pytest.approx([float(cells[2]) for cells in found[
      :len(first["words"])]], abs=1e-6)
  assert first["entities"] == [{"type": "who", "start": 1, "end": 2}]
  assert (empty["words"], empty["tags"]) == ([], []) and third["words"] == sentences[1].split()


@pytest.mark.parametrize("name, version", [
    pytest.param("squad", "v1.1", marks=pytest.mark.slow), ("squad2", "v2.0")])
def test_questions_are_answered(tuning, finished_bert, sentences, tmp_path, name, version):
  """The file of predictions of the dev set has the same answers."""
  paragraphs = []
  for i, sentence in enumerate(sentences):
    answer = sentence.split()[1]
    is_impossible = version == "v2.0" and i % 4 == 0
    answers = [] if is_impossible else [
        {"answer_start": sentence.index(answer), "text": answer}]
    paragraphs.append({"context": sentence, "qas": [{
        "id": f"q{i}", "question": f"who {sentence.split()[2]} it", "answers": answers,
        "is_impossible": is_impossible}]})
  content = json.dumps({"data": [{"paragraphs": paragraphs}]})
  for part in ("train", "dev"):
    (tmp_path / f"{part}-{version}.json").write_text(content)
  out = tune(tuning, finished_bert, tmp_path / "out", f"--task={name}",
             f"--config.task.data={tmp_path}", "--config.task.max_question=8",
             "--config.task.max_length=16", "--config.task.stride=3", "--config.epochs=40")
  written = json.loads((out / "lr0.01-seed0/predictions/predictions.json").read_text())
  assert run(out, tmp_path / f"dev-{version}.json", f"--out={tmp_path / 'a.jsonl'}") == 0
  found = read_lines(tmp_path / "a.jsonl")
  assert {p["id"]: p["answer"] for p in found} == written
  assert len(set(written.values())) > 2
  for p, sentence in zip(found, sentences, strict=True):
    assert sum(guess["probability"] for guess in p["n_best"]) == pytest.approx(1, abs=1e-6)
    for guess in [{"text": p["answer"], "start": p["start"], "end": p["end"]}, *p["n_best"]]:
      assert guess["text"] == (sentence[guess["start"]:guess["end"]] if guess["text"] else "")

  # The same questions with one id, as JSON lines and as a table.
  (tmp_path / "b.jsonl").write_text("".join(json.dumps({
      "id": "same", "context": p["context"], "question": p["qas"][0]["question"]}) + "\n"
      for p in paragraphs))
  assert run(out, tmp_path / "b.jsonl", f"--out={tmp_path / 'b.tsv'}") == 0
  table = [line.split("\t") for line in (tmp_path / "b.tsv").read_text().splitlines()]
  assert table[0] == ["id", "prediction", "probability"]
  assert [cells[:2] for cells in table[1:]] == [["same", answer] for answer in written.values()]


@pytest.mark.slow
def test_a_gpt_predicts_too(tuning, finished_gpt, glue, tmp_path, capsys):
  out = tune(tuning, finished_gpt, tmp_path / "out")
  written = (out / "lr0.01-seed0/predictions/SST-2.tsv").read_text().splitlines()[1:]
  capsys.readouterr()
  assert run(out, glue / "SST-2" / "test.tsv", "--format=jsonl") == 0
  found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [f"{p['id']}\t{['negative', 'positive'].index(p['label'])}" for p in found] == written


@pytest.mark.slow
def test_values_are_predicted(tuning, finished_bert, sentences, tmp_path, capsys):
  (tmp_path / "STS-B").mkdir()
  for name in ("train", "dev"):
    (tmp_path / "STS-B" / f"{name}.tsv").write_text("".join([
        "index\tsentence1\tsentence2\tscore\n",
        *(f"{i}\t{s}\t{sentences[0]}\t{i % 6}\n" for i, s in enumerate(sentences))]))
  out = tune(tuning, finished_bert, tmp_path / "out", "--task=stsb",
             f"--config.task.data={tmp_path}", "--config.epochs=10")
  written = (out / "lr0.01-seed0/predictions/STS-B.dev.tsv").read_text().splitlines()[1:]
  capsys.readouterr()
  assert run(out, tmp_path / "STS-B" / "dev.tsv") == 0
  header, *found = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
  assert header == ["id", "prediction"]
  for (id_, value), line in zip(found, written, strict=True):
    assert id_ == line.split("\t")[0]
    assert min(max(float(value), 0), 5) == pytest.approx(float(line.split("\t")[1]), abs=1e-3)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("name, content, code, fragment", [
    ("a.tsv", "text1\tlabel\nx\t1\n", 65, "lacks the column sentence; it has text1, label"),
    ("a.tsv", "id\tsentence\n5\n", 65, "a.tsv, line 2: has 1 columns, not 2"),
    ("a.tsv", "sentence\n", 2, "a.tsv: holds no examples. Give a .tsv file"),
    ("a.tsv", "", 65, "lacks the column sentence"),
    ("a.jsonl", "\n", 2, "a.jsonl: holds no examples"),
    ("a.jsonl", '{"sentence": "x"}\n{"sentense": "x"}', 65,
     "a.jsonl, line 2: lacks sentence; it has sentense. Repair the line"),
    ("a.jsonl", '{"sentence": 5}', 65, "a.jsonl, line 1: sentence is not a text"),
    ("a.jsonl", '{"sentence": "\\ud800"}', 65, "line 1: sentence has a lone surrogate at"),
    ("a.jsonl", '{"sentence": "ab\\u0000"}', 65, "sentence has a NUL character at character 2"),
    ("a.jsonl", '{"sentence": "x", "id": [1]}', 65, "the id '[1]' is neither a text nor a whole"),
    ("a.jsonl", '{"sentence": "x", "id": true}', 65, "line 1: the id 'True' is neither a text nor"),
    ("a.jsonl", '{"sentence": "x", "id": 1.5}', 65, "line 1: the id '1.5' is neither a text nor"),
    ("a.jsonl", '{"sentence": "x", "id": NaN}', 65, "line 1: the id 'nan' is neither a text nor"),
    ("a.jsonl", '["x"]', 65, "a.jsonl, line 1: is not a JSON object"),
    ("a.jsonl", '{"sentence": ' + "9" * 5000 + "}", 65, "a.jsonl, line 1: is not usable JSON"),
    ("a.jsonl", "{", 65, "a.jsonl, line 1: is not valid JSON"),
])
def test_wrong_files_are_named_and_nothing_is_written(tuned, tmp_path, capsys, name, content, code,
                                                      fragment):
  (tmp_path / name).write_text(content)
  assert run(tuned, tmp_path / name, f"--out={tmp_path / 'out'}") == code
  (line,) = capsys.readouterr().err.splitlines()
  assert fragment in line and {p.name for p in tmp_path.iterdir()} == {name}


@pytest.mark.parametrize("arguments, fragment", [
    (["--input=/none"], "--input /none: no such file"),
    (["--input=/"], "--input /: is a folder. Give a file"),
    (["--input=/dev/null"], "--input /dev/null: is not a regular file. Write its content to one"),
    (["--out=/none/a"], "--out /none/a: there is no folder /none"),
    (["--dtype=int8"], "argument --dtype: invalid choice"),
])
def test_wrong_flags_are_named(tuned, glue, capsys, arguments, fragment):
  assert run(tuned, glue / "SST-2" / "test.tsv", *arguments) == 2
  assert fragment in capsys.readouterr().err


def test_no_header_precedes_an_error(tuned, tmp_path, capsys):
  (tmp_path / "a.tsv").write_text("id\tsentence\n5\n")
  assert run(tuned, tmp_path / "a.tsv") == 65
  assert capsys.readouterr().out == ""


def test_one_prediction_is_singular(tuned, tmp_path, capsys):
  (tmp_path / "a.tsv").write_text("sentence\nfine\n")
  assert run(tuned, tmp_path / "a.tsv") == 0
  assert "note: 1 prediction of sst2 " in capsys.readouterr().err


@pytest.mark.parametrize("name, content, fragment", [
    ("a.csv", "word,tag\nAnna,O\n", "a.csv: is a table with commas"),
    ("a.tsv", "id\tsentence\n1\tAnna left\n", "begins with the names of columns (id sentence)"),
    ("a.conll", "Token NER_Tags\nAnna O\n", "begins with the names of columns (Token NER_Tags)"),
    ("a.tsv", "0\tAnna Ek left for Rome\n", "'Anna Ek left for Rome' in a column is more"),
])
def test_tables_are_not_sentences_of_words(tmp_path, name, content, fragment):
  (tmp_path / name).write_text(content)
  with pytest.raises(DataError, match=re.escape(fragment)):
    list(words.read(tmp_path / name, "ner"))


def test_running_text_as_conll_is_noted(tmp_path, capsys):
  (tmp_path / "b.txt").write_text("#\tnews of 26 May 2005\ntext O\n10 O\n\nToken O\n")
  assert [e.words for e in words.read(tmp_path / "b.txt", "ner")] == [["text", "10"], ["Token"]]
  assert capsys.readouterr().err == ""
  for text in ("Anna left\nBob went to Rome\nYes\n", "Anna went to Rome .\n",
               "Anna went to Rome .\nBob saw her right there .\n"):
    (tmp_path / "a.txt").write_text(text)
    list(words.read(tmp_path / "a.txt", "ner"))
    assert "its lines have several columns, and no tag in the last" in capsys.readouterr().err
  (tmp_path / "a.txt").write_text("Anna NNP B-person\nleft VBD\nx\n")
  list(words.read(tmp_path / "a.txt", "ner"))
  assert "its lines have 1 to 3 columns" in capsys.readouterr().err


def test_a_folder_of_transformers_is_named(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "bert"}')
  with pytest.raises(ConfigError, match="holds a model of transformers, whose task .* finetune"):
    predict.open_predictor(tmp_path)


def test_a_file_that_exists_is_not_replaced(tuned, glue, tmp_path, capsys):
  (tmp_path / "out").write_text("mine")
  assert run(tuned, glue / "SST-2" / "test.tsv", f"--out={tmp_path / 'out'}") == 2
  assert "exists already" in capsys.readouterr().err
  assert (tmp_path / "out").read_text() == "mine"


def test_other_folders_are_refused(tuned, finished_bert, tmp_path):
  with pytest.raises(ConfigError, match="holds a model that was not fine-tuned. Give"):
    predict.open_predictor(finished_bert)
  with pytest.raises(ConfigError, match="holds no run .*Give the .* `bertgpt finetune`"):
    predict.open_predictor(tmp_path)
  out = shutil.copytree(tuned, tmp_path / "copy")
  (out / "lr0.01-seed0" / "config.json").rename(out / "config.old")
  with pytest.raises(ConfigError, match="best run were not saved. No run has any. Fine-tune again"):
    predict.open_predictor(out)
  (out / "config.old").rename(out / "lr0.01-seed1" / "config.json")
  with pytest.raises(ConfigError, match="were not saved. Give one of .*lr0.01-seed1"):
    predict.open_predictor(out)
  (out / "results.json").unlink()
  with pytest.raises(ConfigError, match="none of its fine-tuning runs is done"):
    predict.open_predictor(out)


@pytest.mark.parametrize("command", [["predict", "--input=x"], ["export", "--out=out"],
                                     ["fill", "a"]])
def test_a_run_whose_weights_were_not_kept_is_called_so(tuned, tmp_path, capsys, monkeypatch,
                                                        command):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "x").write_text("")

  def complain(path):
    capsys.readouterr()
    assert cli.main([command[0], f"--workdir={path}", *command[1:]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line

  tuning = shutil.copytree(tuned, tmp_path / "copy")
  best, other = tuning / "lr0.01-seed0", tuning / "lr0.01-seed1"
  line = complain(other)
  assert f"--workdir {other}: the weights of this run were not saved. Give {best}, the best" in line
  assert "--config.save=all" in line
  (best / "config.json").unlink()
  for path in (best, other):
    line = complain(path)
    assert "weights of this run were not saved. No run has any." in line
    assert "--config.save=best" in line
  (tuning / "lr0.02-seed0").mkdir()
  assert "this fine-tuning run is not done. Finish" in complain(tuning / "lr0.02-seed0")
  assert "no such folder. Give the" in complain(tuning / "lr0.03-seed0")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("names, expected", [
    ({"id": 1.0}, "1"), ({"id": None}, "0"), ({"id": None, "idx": 7}, "7"), ({"id": 0}, "0"),
    ({"id": "", "idx": 7}, ""), ({"id": 2.0 ** 60}, "1152921504606846976"), ({"id": "1.0"}, "1.0")])
def test_ids_as_pandas_writes_them(tuned, names, expected):
  records = [json.loads(json.dumps({"sentence": "x", **names}))]
  (found,) = predict.predict_records(predict.open_predictor(tuned), records)
  assert found["id"] == expected


def test_line_ends_in_json_are_those_of_a_file():
  parsed = [texts.parse({"sentence": f"a{end}b"}, "0", "sst2") for end in ("\n", "\r\n", "\r")]
  assert parsed == [texts.Example("0", ("a\nb",))] * 3


def test_a_word_is_one_cell_of_a_table():
  prediction = {"words": ["a\tb", "c\nd", "e f", "\u00a0"], "tags": ["O"] * 4,
                "probabilities": [1.0] * 4}
  lines = words.to_text(prediction)
  assert [line.split("\t") for line in "\n".join(lines).split("\n")] == [
      [word, "O", "1.000000"] for word in ("a b", "c d", "e f", "\u00a0")] + [[""]]


def test_places_of_answers_count_the_characters_of_the_context():
  question = questions.parse({"question": "a\r\nb", "context": "c\r\nd"}, "0", "squad")
  assert (question.question, question.context) == ("a\nb", "c\r\nd")


def test_a_wrong_record_is_numbered(tuned):
  predictions = predict.predict_records(predict.open_predictor(tuned), [{"text": "x"}, {}])
  with pytest.raises(DataError, match="record 1: lacks sentence; it has nothing"):
    list(predictions)
