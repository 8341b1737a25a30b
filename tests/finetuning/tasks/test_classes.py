"""The task `classes`: files with the user's own labels, from their lines to a classifier."""

import gzip
import json
import re
import shutil
import types

import numpy as np
import pytest
import small_runs

from bertgpt import cli
from bertgpt.config import finetuning as finetune_config
from bertgpt.data.tokens import training
from bertgpt.errors import DataError
from bertgpt.finetuning import predict
from bertgpt.finetuning.tasks import classes
from bertgpt.finetuning.tasks import rows as rows_lib

TEXTS = ("the cat sees a dog", "who likes it", "a dog is seen", "the river")
SEEN = ("a bird", "it likes who", "the river sees", "a cat")
LABELS = ("neutral", "good", "bad", "good")


@pytest.fixture(scope="module")
def text_format():
  config = types.SimpleNamespace(kind="wordpiece", vocab_size=60, lowercase=True)
  tokenizer = training.train_tokenizer(config, [*TEXTS, *SEEN] * 9)
  return rows_lib.make_text_format(tokenizer, types.SimpleNamespace(family="bert", num_segments=2),
                                   finetune_config.base().task)


def examples(labels=LABELS, *, is_pair=False, **others):
  """Returns one dict per line of a file."""
  return [{"text": text} | ({"text2": second} if is_pair else {})
          | ({} if label is None else {"label": label}) | others
          for text, second, label in zip(TEXTS, SEEN, labels, strict=True)]


def write(path, lines):
  """Writes examples as a TSV file or as JSON lines, by the ending of the name."""
  if ".tsv" in path.name:
    rows = [list(lines[0]), *(map(str, line.values()) for line in lines)]
    content = "".join("\t".join(row) + "\n" for row in rows)
  else:
    content = "".join(json.dumps(line) + "\n" for line in lines)
  path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())


def open_task(data, text_format, **fields):
  config = finetune_config.base().task
  config.update(name="classes", data=str(data), **fields)
  return classes.open_task(config, text_format)


def texts_of(rows, text_format):
  return [text_format.tokenizer.decode(tokens) for tokens in rows.tokens]


@pytest.mark.parametrize("ending", ["tsv", "jsonl", "tsv.gz", "jsonl.gz"])
@pytest.mark.parametrize("is_pair", [False, True])
def test_all_forms_of_a_file_are_the_same_task(tmp_path, text_format, ending, is_pair):
  for name in ("train", "dev", "test"):
    write(tmp_path / f"{name}.{ending}", examples(is_pair=is_pair))
  task = open_task(tmp_path, text_format)
  expected = [f"[CLS] {a} [SEP] {b} [SEP]" if is_pair else f"[CLS] {a} [SEP]"
              for a, b in zip(TEXTS, SEEN, strict=True)]
  assert (task.kind, task.labels) == ("classes", ("bad", "good", "neutral"))
  assert task.texts == (("text", "text2") if is_pair else ("text",))
  assert [s.name for s in task.evals] == ["dev", "test"]
  for rows in (task.train, *(s.rows for s in task.evals)):
    assert texts_of(rows, text_format) == expected
    assert rows.labels.tolist() == [2, 1, 0, 1] and rows.labels.dtype == np.int32
  for s in task.evals:
    assert s.score(np.array([2, 1, 0, 1])) == {"accuracy": 1.0, "macro_f1": 1.0}
    # The F1 of bad is 0, that of good is 2/3 and that of neutral is 2/3.
    assert s.score(np.array([2, 1, 2, 0])) == pytest.approx({"accuracy": 1 / 2, "macro_f1": 4 / 9})
  # Always "good", of which there are 2 in 4: its F1 is 2/3.
  assert task.baseline["dev"] == pytest.approx({"accuracy": 1 / 2, "macro_f1": 2 / 9})
  assert task.notes == ("3 classes: bad, good, neutral",)


@pytest.mark.parametrize("labels, expected", [
    (("10", "2", "9", "2"), ("2", "9", "10")), (("-1", "1", "0", "1"), ("-1", "0", "1")),
    (("b", "B", "a", "é"), ("B", "a", "b", "é")),
    (("ab", "10 stars", "1 star", "ab"), ("1 star", "10 stars", "ab"))])
@pytest.mark.parametrize("ending", ["tsv", "jsonl"])
def test_numbers_are_sorted_by_value_and_names_by_characters(tmp_path, text_format, ending, labels,
                                                             expected):
  for name in ("train", "dev"):
    write(tmp_path / f"{name}.{ending}", examples(labels))
  assert open_task(tmp_path, text_format).labels == expected


def test_numbers_in_json_are_the_numbers_in_tables(tmp_path, text_format):
  write(tmp_path / "train.jsonl", examples((1, 0, 2.0, 1)))
  write(tmp_path / "dev.tsv", examples(("2", "1.0", " 0 ", "1")))
  task = open_task(tmp_path, text_format)
  assert task.labels == ("0", "1", "2") and task.evals[0].rows.labels.tolist() == [2, 1, 0, 1]


def test_the_config_says_order_and_missing_classes(tmp_path, text_format):
  for name in ("train", "dev"):
    write(tmp_path / f"{name}.tsv", examples())
  task = open_task(tmp_path, text_format, labels=("neutral", "mixed", "good", "bad"))
  assert task.labels == ("neutral", "mixed", "good", "bad")
  assert task.train.labels.tolist() == [0, 2, 3, 2]
  assert task.notes == ("4 classes: neutral, mixed, good, bad",
                        "no training row has the label mixed")


def test_a_smaller_training_set_has_the_same_classes(tmp_path, text_format):
  for name in ("train", "dev"):
    write(tmp_path / f"{name}.tsv", examples())
  task = open_task(tmp_path, text_format, max_train_examples=1, max_dev_examples=3)
  assert len(task.train) == 1 and len(task.labels) == 3 and len(task.evals[0].rows) == 3
  assert task.notes[1].startswith("no training row has the label ")


def test_files_may_have_other_names(tmp_path, text_format):
  write(tmp_path / "a.tsv", examples())
  write(tmp_path / "b.json", examples())
  write(tmp_path / "c.ndjson", examples())
  task = open_task(tmp_path, text_format, train="a.tsv,b.json", dev="c.ndjson")
  assert len(task.train) == 8 and len(task.evals[0].rows) == 4


@pytest.mark.parametrize("ending", ["tsv", "jsonl"])
@pytest.mark.parametrize("labels", [(None,) * 4, ("",) * 4])
def test_a_test_set_without_labels_is_predicted(tmp_path, text_format, ending, labels):
  for name in ("train", "dev"):
    write(tmp_path / f"{name}.tsv", examples())
  write(tmp_path / f"test.{ending}", [{"id": f"x{i}"} | line
                                      for i, line in enumerate(examples(labels))])
  task = open_task(tmp_path, text_format)
  assert task.evals[1].score is None and "test" not in task.baseline
  task.evals[1].write(np.array([0, 2, 1, 0]), tmp_path)
  assert (tmp_path / "test.tsv").read_text().splitlines() == [
      "index\tprediction", "x0\tbad", "x1\tneutral", "x2\tgood", "x3\tbad"]


def test_an_id_that_occurs_twice_names_no_row(tmp_path, text_format):
  write(tmp_path / "train.tsv", examples())
  write(tmp_path / "dev.jsonl", examples(id="same"))
  task = open_task(tmp_path, text_format)
  assert "the dev set has an id twice" in task.notes[1]
  task.evals[0].write(np.zeros(4, int), tmp_path)
  assert (tmp_path / "dev.tsv").read_text().splitlines()[1:] == [f"{i}\tbad" for i in range(4)]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("lines, message", [
    (examples(("good", "bad", "god", "bad")),
     r"dev\.tsv, line 4: the label 'god' is not a class \(bad, good, neutral\)\. .* Repair"),
    (examples(("0", "1", "2", "1")), r"dev\.tsv, line 2: the label '0' is not a class"),
    (examples(("good", "", "bad", "bad")), r"dev\.tsv, line 3: has no label\. Give every example"),
    (examples((None,) * 4), r"dev\.tsv, line 2: has no label"),
    (examples(is_pair=True), r"dev\.tsv, line 2: has text2, but earlier examples do not"),
    ([{"sentence": "a", "label": "good"}],
     r"dev\.tsv: lacks the column text; it has sentence, label\. Name the columns in the first"),
    ([{"text2": "a", "label": "good"}], r"dev\.tsv: lacks the column text; it has text2, label"),
])
def test_a_wrong_dev_set_is_named(tmp_path, text_format, lines, message):
  write(tmp_path / "train.tsv", examples())
  write(tmp_path / "dev.tsv", lines)
  with pytest.raises(DataError, match=message):
    open_task(tmp_path, text_format)


@pytest.mark.parametrize("content, message", [
    ("", "holds no examples"), ("text\tlabel\n", "holds no examples"),
    ("\n\n", "holds no examples"),
    ("text\tlabel\na\tx\nb\tx\n", "all examples of the training set have the label 'x'"),
    ("text\tlabel\ttext\na\tx\tb\n", "has the column text twice"),
    ("text\tlabel\tlabel\na\tx\ty\n", "has the column label twice"),
    ("a\tx\nb\ty\n", "lacks the column text; it has a, x"),
    ("text\tlabel\na\tx\nb\n", "line 3: has 1 columns, not 2"),
    ("text\tlabel\na\tx\tb\n", "line 2: has more than 2 columns"),
    ("text\tlabel\na\t0\nb\tgood\nc\t1\n", r"has numbers \(0, 1\) and names \(such as 'good'\)"),
    ("text,label\na,x\n", "lacks the column text; it has text,label"),
])
def test_a_wrong_table_is_named(tmp_path, text_format, content, message):
  (tmp_path / "train.tsv").write_text(content)
  write(tmp_path / "dev.tsv", examples())
  with pytest.raises(DataError, match=message):
    open_task(tmp_path, text_format)


@pytest.mark.parametrize("line, message", [
    ('{"label": "good"}', "lacks text; it has label"), ("{}", "lacks text; it has nothing"),
    ('["a"]', "is not a JSON object"), ('{"text": "a"', "is not valid JSON"),
    ('{"text": null, "label": "good"}', "text is not a text"),
    ('{"text": "a", "label": 0.5}', "the label '0.5' is neither a text nor a whole number"),
    ('{"text": "a", "label": true}', "the label 'True' is neither"),
    ('{"text": "a", "label": ["good"]}', "neither a text nor"),
    ('{"text": "a", "label": "a\\tb"}', "holds a tab or a line end"),
    ('{"text": "a", "label": null}', "has no label"), ('{"text": "a"}', "has no label"),
    ('{"text": "a", "text2": "b", "label": "good"}', "has text2, but earlier examples do not"),
])
def test_a_wrong_record_is_named(tmp_path, text_format, line, message):
  write(tmp_path / "train.jsonl", examples())
  with (tmp_path / "train.jsonl").open("a") as f:
    f.write(line + "\n")
  write(tmp_path / "dev.tsv", examples())
  with pytest.raises(DataError, match=rf"train\.jsonl, line 5: .*{re.escape(message)}"):
    open_task(tmp_path, text_format)


def test_two_files_of_a_set_are_not_chosen_silently(tmp_path, text_format):
  for name in ("train.tsv", "train.jsonl", "dev.tsv"):
    write(tmp_path / name, examples())
  with pytest.raises(DataError, match=r"holds train\.tsv and train\.jsonl\. Remove one of them, or "
                                      r"set task\.train"):
    open_task(tmp_path, text_format)
  assert open_task(tmp_path, text_format, train="train.jsonl").train.labels.tolist() == [2, 1, 0, 1]


@pytest.mark.parametrize("name", ["train.csv", "train.csv.gz"])
def test_a_table_with_commas_is_refused(tmp_path, text_format, name):
  (tmp_path / name).write_bytes(gzip.compress(b"text\n") if ".gz" in name else b"text\n")
  with pytest.raises(DataError, match=r"holds no train\.tsv or train\.jsonl"):
    open_task(tmp_path, text_format)
  with pytest.raises(DataError, match=r"is a table with commas\. Give a \.tsv or \.jsonl file"):
    open_task(tmp_path, text_format, train=name)


def test_a_test_set_has_all_its_labels_or_none(tmp_path, text_format):
  for name in ("train", "dev"):
    write(tmp_path / f"{name}.tsv", examples())
  write(tmp_path / "test.tsv", examples(("good", "", "bad", "good")))
  with pytest.raises(DataError, match=r"line 3: has no label\. .* of test a label, or none"):
    open_task(tmp_path, text_format)


def test_a_training_label_that_the_config_lacks_is_refused(tmp_path, text_format):
  for name in ("train", "dev"):
    write(tmp_path / f"{name}.tsv", examples())
  with pytest.raises(DataError, match=r"train\.tsv, line 2: the label 'neutral' is not a class "
                                      r"\(good, bad\)"):
    open_task(tmp_path, text_format, labels=("good", "bad"))


# ------------------------------------------------------ the command, as a user types it


@pytest.fixture(scope="module")
def tuned(finished_bert, tmp_path_factory):
  """A fine-tuning that learns 16 pairs of four classes, whose order the config gives, by heart."""
  folder = tmp_path_factory.mktemp("classes")
  sentences = [line for line in small_runs.make_text(20).splitlines() if line][:16]
  labels = np.random.default_rng(0).permutation(["north", "east", "south", "west"] * 4)
  for name in ("train.tsv", "dev.jsonl"):
    write(folder / name, [{"text": a, "text2": b, "label": str(label)} for a, b, label in
                          zip(sentences, sentences[1:] + sentences[:1], labels, strict=True)])
  recipe = folder / "recipe.py"
  recipe.write_text(small_runs.TUNING.format(data=folder).replace("sst2", "classes"))
  out = folder / "out"
  assert cli.main(["finetune", f"--config={recipe}", f"--init={finished_bert}",
                   f"--workdir={out}", "--config.task.labels=west,north,east,south"]) == 0
  return out


def records_of(tuned):
  return [json.loads(line) for line in (tuned.parent / "dev.jsonl").read_text().splitlines()]


def test_predict_names_the_labels(tuned, capsys):
  run, = json.loads((tuned / "results.json").read_text())["runs"]
  assert run["dev"]["accuracy"] > 0.8 and set(run["dev"]) == {"accuracy", "macro_f1"}
  written = (tuned / run["folder"] / "predictions" / "dev.tsv").read_text().splitlines()[1:]
  capsys.readouterr()
  assert cli.main(["predict", f"--workdir={tuned}", f"--input={tuned.parent / 'dev.jsonl'}"]) == 0
  header, *lines = capsys.readouterr().out.splitlines()
  assert header == "id\tprediction\twest\tnorth\teast\tsouth"
  assert ["\t".join(line.split("\t")[:2]) for line in lines] == written
  found = list(predict.predict_records(predict.open_predictor(tuned), records_of(tuned)))
  assert [f"{i}\t{one['label']}" for i, one in enumerate(found)] == written
  right = [one["label"] == record["label"]
           for one, record in zip(found, records_of(tuned), strict=True)]
  assert np.mean(right) == pytest.approx(run["dev"]["accuracy"])


def test_a_model_of_pairs_refuses_single_texts(tuned, tmp_path, capsys):
  (tmp_path / "a.txt").write_text("The cat.\n")
  (tmp_path / "a.jsonl").write_text('{"id": "b", "text": "The cat."}\n')
  for name, id_ in (("a.txt", "0"), ("a.jsonl", "b")):
    assert cli.main(["predict", f"--workdir={tuned}", f"--input={tmp_path / name}"]) == 65
    assert (f"the example '{id_}' lacks text2, but the model was trained on pairs. Give examples "
            "with text2") in capsys.readouterr().err


def test_a_model_of_single_texts_refuses_pairs(tuned):
  predictor = predict.open_predictor(tuned)
  single = predictor._replace(setting=predictor.setting._replace(texts=("text",)))
  assert len(list(predict.predict_records(single, [{"text": "The cat."}]))) == 1
  with pytest.raises(DataError, match="the example '0' has text2, but the model was trained on "
                                      "single texts. Give examples without text2"):
    list(predict.predict_records(single, [{"text": "The cat.", "text2": "A dog."}]))


@pytest.mark.parametrize("change, message", [
    (["--config.task.labels="], "task.labels: ('west', 'north', 'east', 'south')"),
    (["--config.task.labels=west,"], "task.labels=('west',): give two different names or more"),
    (["--task=sst2"], "task.labels"),
])
def test_other_labels_are_another_fine_tuning(tuned, finished_bert, tmp_path, capsys, change,
                                              message):
  workdir = tmp_path / "out"
  shutil.copytree(tuned, workdir)
  arguments = ["finetune", f"--config={tuned.parent / 'recipe.py'}", f"--init={finished_bert}",
               "--config.task.labels=west,north,east,south", *change]
  if change == ["--task=sst2"]:
    shutil.rmtree(workdir)
  assert cli.main([*arguments, f"--workdir={workdir}"]) == 2
  assert message in capsys.readouterr().err


def test_renamed_classes_are_not_mixed_with_earlier_runs(tmp_path, text_format):
  """The numbers of the classes are the same, but their names are not."""
  for name in ("train", "dev"):
    write(tmp_path / f"{name}.tsv", examples())
  before = open_task(tmp_path, text_format).evals[0]
  for name in ("train", "dev"):
    write(tmp_path / f"{name}.tsv", examples(["zero" if x == "neutral" else x for x in LABELS]))
  after = open_task(tmp_path, text_format).evals[0]
  assert after.rows.fingerprint() == before.rows.fingerprint() and after.gold != before.gold


@pytest.fixture(scope="module")
def exported(tuned, tmp_path_factory):
  out = tmp_path_factory.mktemp("exported") / "model"
  assert cli.main(["export", f"--workdir={tuned}", f"--out={out}"]) == 0
  return out


def test_an_exported_model_has_the_labels(exported):
  settings = json.loads((exported / "config.json").read_text())
  assert settings["architectures"] == ["BertForSequenceClassification"]
  assert settings["id2label"] == {"0": "west", "1": "north", "2": "east", "3": "south"}
  assert settings["label2id"] == {"west": 0, "north": 1, "east": 2, "south": 3}


@pytest.mark.hf
def test_transformers_has_the_probabilities_that_predict_has(exported, tuned):
  pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
  transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hf")
  classify = transformers.pipeline("text-classification", model=str(exported), top_k=None)
  records = records_of(tuned)
  found = classify([{"text": r["text"], "text_pair": r["text2"]} for r in records], batch_size=5)
  expected = predict.predict_records(predict.open_predictor(tuned), records)
  for one, other in zip(found, expected, strict=True):
    assert {x["label"]: x["score"] for x in one} == pytest.approx(other["probabilities"], abs=1e-4)


