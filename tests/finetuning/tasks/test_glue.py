"""The nine GLUE tasks: files and TFDS hold the same examples; predictions are submissions."""

import types

import numpy as np
import pytest
import tensorflow_datasets as tfds

from bertgpt.config import finetuning as finetune_config
from bertgpt.data.tokens import training
from bertgpt.errors import ConfigError, DataError
from bertgpt.finetuning.inputs import texts as inputs_of_texts
from bertgpt.finetuning.tasks import glue
from bertgpt.finetuning.tasks import rows as rows_lib

TEXTS = (("the cat sees a dog", "a dog is seen"), ("who likes it", "it likes who"),
         ("the river", "a bird"))

# (header of train and dev, header of test, labels of three rows) in the GLUE archives.
OFFICIAL = {
    "cola": (None, "index\tsentence", ("1", "0", "1")),
    "sst2": ("sentence\tlabel", "index\tsentence", ("1", "0", "1")),
    "mrpc": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
             "index\t#1 ID\t#2 ID\t#1 String\t#2 String", ("1", "0", "1")),
    "stsb": ("index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\t"
             "score", "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\t"
             "sentence2", ("5.000", "0.25", "3.8")),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "id\tquestion1\tquestion2",
            ("1", "0", "1")),
    "mnli": ("index\tpromptID\tpairID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label",
             "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2",
             ("contradiction", "entailment", "neutral")),
    "qnli": ("index\tquestion\tsentence\tlabel", "index\tquestion\tsentence",
             ("not_entailment", "entailment", "entailment")),
    "rte": ("index\tsentence1\tsentence2\tlabel", "index\tsentence1\tsentence2",
            ("not_entailment", "entailment", "entailment")),
    "wnli": ("index\tsentence1\tsentence2\tlabel", "index\tsentence1\tsentence2",
             ("1", "0", "1")),
}
NUMBERS = {"stsb": [5.0, 0.25, 3.8], "mnli": [2, 0, 1], "qnli": [1, 0, 0], "rte": [1, 0, 0]}


def make_line(header, number, texts, label):
  cells = {"sentence": texts[0], "question": texts[0], "sentence1": texts[0],
           "question1": texts[0], "#1 String": texts[0], "sentence2": texts[1],
           "question2": texts[1], "#2 String": texts[1], "label": label, "Quality": label,
           "score": label, "is_duplicate": label, "gold_label": label, "index": str(number)}
  names = header.split("\t")
  if "question" in names and "sentence" in names:
    cells["sentence"] = texts[1]
  return "\t".join(cells.get(name, "x") for name in names)


def write_official(folder, name, rows=1):
  """Writes train, dev and test files of a task. Returns the folder for `task.data`."""
  header, test_header, labels = OFFICIAL[name]
  lines = [make_line(header or "label\tsentence", i, texts, label)
           for i, (texts, label) in enumerate(zip(TEXTS, labels, strict=True))]
  if header is None:
    lines = ["src\t" + line.replace("\t", "\t*\t") for line in lines]
  place = folder / glue.TASKS[name].folder
  place.mkdir(parents=True)
  suffixes = ("_matched", "_mismatched") if name == "mnli" else ("",)
  for file_name in ["train", *(f"dev{s}" for s in suffixes)]:
    content = [header] * bool(header) + lines * rows
    (place / f"{file_name}.tsv").write_text("\n".join(content) + "\n")
  for suffix in suffixes:
    (place / f"test{suffix}.tsv").write_text("\n".join(
        [test_header, *(make_line(test_header, i, t, "") for i, t in enumerate(TEXTS))]) + "\n")
  return folder


@pytest.fixture(scope="module")
def text_format():
  config = types.SimpleNamespace(kind="wordpiece", vocab_size=60, lowercase=True)
  tokenizer = training.train_tokenizer(config, [t for pair in TEXTS for t in pair] * 9)
  return rows_lib.make_text_format(tokenizer, types.SimpleNamespace(family="bert", num_segments=2),
                                   finetune_config.base().task)


def open_task(name, data, text_format, **fields):
  config = finetune_config.base().task
  config.update(name=name, data=str(data), **fields)
  return glue.open_task(config, text_format)


def texts_of(rows, text_format):
  return [text_format.tokenizer.decode(tokens) for tokens in rows.tokens]


def expected_texts(name):
  is_pair = len(glue.TASKS[name].texts) == 2
  return [f"[CLS] {a} [SEP] {b} [SEP]" if is_pair else f"[CLS] {a} [SEP]" for a, b in TEXTS]


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_files_are_read(tmp_path, text_format, name):
  task = open_task(name, write_official(tmp_path, name), text_format)
  sets = ["dev", "dev_mismatched", "test", "test_mismatched"] if name == "mnli" else ["dev", "test"]
  assert [s.name for s in task.evals] == sets
  assert all(texts_of(rows, text_format) == expected_texts(name)
             for rows in (task.train, *(s.rows for s in task.evals)))
  numbers = NUMBERS.get(name, [1, 0, 1])
  assert task.train.labels.tolist() == pytest.approx(numbers)
  for s in task.evals:
    if s.name.startswith("dev"):
      assert list(s.score(np.array(numbers)).values()) == pytest.approx([1.0] * len(
          glue.TASKS[name].metrics))
    else:
      assert s.score is None


@pytest.mark.parametrize("name", OFFICIAL)
def test_predictions_are_those_of_the_official_form(tmp_path, text_format, name):
  task = open_task(name, write_official(tmp_path / "data", name), text_format)
  outputs = np.array(NUMBERS.get(name, [1, 0, 1]))
  for s in task.evals:
    s.write(outputs, tmp_path)
  folder = glue.TASKS[name].folder
  names = {"mnli": ["MNLI-m", "MNLI-mm"]}.get(name, [folder])
  for file_name in names:
    header, *lines = (tmp_path / f"{file_name}.tsv").read_text().splitlines()
    assert header == "index\tprediction"
    written = [line.split("\t") for line in lines]
    assert [index for index, _ in written] == ["0", "1", "2"]
    if name == "stsb":
      assert [float(value) for _, value in written] == pytest.approx([5.0, 0.25, 3.8])
    else:
      assert [value for _, value in written] == list(OFFICIAL[name][2])


def written_ids(folder, name):
  return [line.split("\t")[0] for line in (folder / name).read_text().splitlines()[1:]]


@pytest.mark.parametrize("column", ["index", "id", "idx"])
def test_predictions_name_the_rows_of_the_file(tmp_path, text_format, column):
  """The file may be a part of the official file, in another order."""
  write_official(tmp_path, "sst2")
  (tmp_path / "SST-2" / "test.tsv").write_text(f"sentence\t{column}\nb\t812\na\t7\n")
  (tmp_path / "SST-2" / "dev.tsv").write_text(f"sentence\tlabel\t{column}\nb\t1\t812\na\t0\t7\n")
  task = open_task("sst2", tmp_path, text_format)
  for s in task.evals:
    s.write(np.array([1, 0]), tmp_path)
  assert (tmp_path / "SST-2.tsv").read_text() == "index\tprediction\n812\t1\n7\t0\n"
  assert written_ids(tmp_path, "SST-2.dev.tsv") == ["812", "7"]


def test_predictions_name_rows_by_the_column_that_predict_takes(tmp_path, text_format):
  write_official(tmp_path, "sst2")
  path = tmp_path / "SST-2" / "test.tsv"
  path.write_text("idx\tindex\tsentence\tid\n1\t2\ta\t3\n")
  open_task("sst2", tmp_path, text_format).evals[1].write(np.array([1]), tmp_path)
  assert written_ids(tmp_path, "SST-2.tsv") == ["3"]
  assert [example.id for example in inputs_of_texts.read(path, "sst2")] == ["3"]


@pytest.mark.parametrize("header, lines, ids", [
    ("id\tquestion1\tquestion2", ["5\ta\tb", "9\ttorn", "6\tc\td"], ["5", "6"]),
    ("question1\tquestion2", ["a\tb", "torn", "c\td"], ["0", "2"]),
    ("question1\tquestion2\tid", ["a\tb\t5", "torn", "c\td"], ["5", "2"]),
    ("id\tquestion1\tquestion2", ["x\ta\tb", "9\ttorn", "x\tc\td"], ["0", "2"]),
])
def test_lines_that_are_left_out_do_not_shift_the_others(tmp_path, text_format, header, lines, ids):
  write_official(tmp_path, "qqp")
  (tmp_path / "QQP" / "test.tsv").write_text("\n".join([header, *lines]) + "\n")
  task = open_task("qqp", tmp_path, text_format)
  task.evals[1].write(np.array([1, 0]), tmp_path)
  assert written_ids(tmp_path, "QQP.tsv") == ids
  noted = [note for note in task.notes if "the test set has an id twice" in note]
  assert len(noted) == ("x" in lines[0])


def test_blank_lines_are_not_rows(tmp_path, text_format):
  write_official(tmp_path, "sst2")
  (tmp_path / "SST-2" / "test.tsv").write_text("sentence\n\na\n  \nb\n")
  (tmp_path / "SST-2" / "dev.tsv").write_text("sentence\tlabel\n\na\t0\n\nb\t1\n")
  task = open_task("sst2", tmp_path, text_format)
  for s in task.evals:
    s.write(np.array([1, 0]), tmp_path)
  assert written_ids(tmp_path, "SST-2.tsv") == written_ids(tmp_path, "SST-2.dev.tsv") == ["0", "1"]


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_every_line_end_gives_the_same_rows(tmp_path, text_format, end):
  expected = open_task("rte", write_official(tmp_path / "a", "rte"), text_format)
  write_official(tmp_path / "b", "rte")
  for path in (tmp_path / "b" / "RTE").iterdir():
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", end.encode()))
  found = open_task("rte", tmp_path / "b", text_format)
  for one, other in zip([expected.train, *(s.rows for s in expected.evals)],
                        [found.train, *(s.rows for s in found.evals)], strict=True):
    assert one.fingerprint() == other.fingerprint()


def test_only_tabs_separate_columns(tmp_path, text_format):
  """Line ends and spaces of Unicode are text."""
  write_official(tmp_path, "sst2")
  (tmp_path / "SST-2" / "train.tsv").write_text(
      "sentence\tlabel\nthe\u2028 cat\u0085 \x0b\x0c a\u00a0dog  \t1\n", newline="")
  task = open_task("sst2", tmp_path, text_format)
  assert texts_of(task.train, text_format) == ["[CLS] the cat a dog [SEP]"]


def test_scores_beyond_the_scale_are_written_within_it(tmp_path):
  glue.write(glue.TASKS["stsb"], "S.tsv", np.array([-0.3, 5.2, 2.0]), tmp_path)
  assert (tmp_path / "S.tsv").read_text().split()[3::2] == ["0.000", "5.000", "2.000"]


def test_quotes_are_text(tmp_path, text_format):
  """Quotes have no meaning in GLUE files."""
  write_official(tmp_path, "sst2")
  (tmp_path / "SST-2" / "train.tsv").write_text('sentence\tlabel\n"the cat\t1\na "dog" sees\t0\n')
  task = open_task("sst2", tmp_path / "SST-2", text_format)  # The task's own folder works too.
  assert task.train.labels.tolist() == [1, 0]


def test_the_baseline_answers_what_training_has_most(tmp_path, text_format):
  task = open_task("sst2", write_official(tmp_path, "sst2"), text_format)
  assert task.baseline == {"dev": {"accuracy": pytest.approx(2 / 3)}}


def test_fewer_examples(tmp_path, text_format):
  task = open_task("rte", write_official(tmp_path, "rte", rows=20), text_format,
                   max_train_examples=7, max_dev_examples=4)
  assert len(task.train) == 7 and len(task.evals[0].rows) == 4 and len(task.evals[1].rows) == 3
  assert texts_of(task.evals[0].rows, text_format) == (expected_texts("rte") * 2)[:4]


def test_labels_of_a_test_set_are_noted_and_not_read(tmp_path, text_format):
  folder = write_official(tmp_path, "sst2")
  assert open_task("sst2", folder, text_format).notes == ()
  (tmp_path / "SST-2" / "test.tsv").write_text("sentence\tlabel\nthe cat\t1\nit\t-1\n")
  task = open_task("sst2", folder, text_format)
  assert task.evals[1].score is None and len(task.evals[1].rows) == 2
  (note,) = task.notes
  assert note.startswith("the test set has labels, but is only predicted")


def test_a_column_that_is_not_read_may_be_there_twice(tmp_path, text_format):
  write_official(tmp_path, "sst2")
  (tmp_path / "SST-2" / "train.tsv").write_text("sentence\tnote\tlabel\tnote\na\tb\t1\tc\n")
  assert open_task("sst2", tmp_path, text_format).train.labels.tolist() == [1]


# ----------------------------------------------------------------- bad data


@pytest.mark.parametrize("name, content, message", [
    ("sst2", "sentence\tlbael\na\t1\n", "lacks the column label; it has sentence, lbael"),
    ("sst2", "sentence\tlabel\na\t1\nb\n", "train.tsv, line 3: has 1 columns, not 2"),
    ("cola", "src\t1\t\tthe\tcat\n", "train.tsv, line 1: has more than 4 columns. Replace"),
    ("sst2", "sentence\tlabel\na\t2\n", "line 2: label '2' is not one of 0, 1"),
    ("rte", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n",
     "label 'maybe' is not one of entailment, not_entailment"),
    ("stsb", OFFICIAL["stsb"][0] + "\n" + "x\t" * 9 + "5.1\n", "label '5.1' is not a number"),
    ("stsb", OFFICIAL["stsb"][0] + "\n" + "x\t" * 9 + "nan\n", "label 'nan' is not a number"),
    ("cola", "s\t2\t*\ttext\n", "line 1: label '2' is not one of 0, 1"),
    ("sst2", "sentence\tlabel\n", "train.tsv: holds no examples"),
    ("sst2", "", "lacks the column sentence, label; it has none. Give"),
    ("sst2", "sentence\tlabel\tsentence\na\t1\tb\n", "has the column sentence twice. Rename one"),
    ("sst2", "id\tsentence\tlabel\tid\n1\ta\t1\t2\n", "has the column id twice. Rename one"),
])
def test_wrong_files_are_named(tmp_path, text_format, name, content, message):
  write_official(tmp_path, name)
  (tmp_path / glue.TASKS[name].folder / "train.tsv").write_text(content)
  with pytest.raises(DataError) as e:
    open_task(name, tmp_path, text_format)
  assert message in str(e.value) and "\n" not in str(e.value)


def test_bytes_that_are_no_text_are_named_with_a_remedy_that_is_there(tmp_path, text_format):
  """The message must not name data.invalid_text, a field of pretraining."""
  write_official(tmp_path, "sst2")
  (tmp_path / "SST-2" / "train.tsv").write_bytes(b"sentence\tlabel\na\xff\t1\n")
  with pytest.raises(DataError, match="invalid UTF-8 at byte 16. Repair the file$"):
    open_task("sst2", tmp_path, text_format)


@pytest.mark.parametrize("field", ["train", "dev", "test"])
def test_other_names_of_files_are_refused(tmp_path, text_format, field):
  write_official(tmp_path, "sst2")
  with pytest.raises(ConfigError, match=f"task.{field}=my.tsv: the files of sst2 have their off"):
    open_task("sst2", tmp_path, text_format, **{field: "my.tsv"})


def test_missing_files_are_named(tmp_path, text_format):
  write_official(tmp_path, "sst2")
  with pytest.raises(DataError, match="holds no RTE/train.tsv or train.tsv"):
    open_task("rte", tmp_path, text_format)
  (tmp_path / "SST-2" / "dev.tsv").unlink()
  with pytest.raises(DataError, match="holds no SST-2/dev.tsv"):
    open_task("sst2", tmp_path, text_format)


def test_questions_with_line_breaks_are_left_out_and_counted(tmp_path, text_format):
  """Some lines of the official QQP files are broken."""
  write_official(tmp_path, "qqp")
  path = tmp_path / "QQP" / "train.tsv"
  path.write_text(path.read_text() + "9\tx\ttorn\n")
  task = open_task("qqp", tmp_path, text_format)
  assert len(task.train) == 3 and task.notes[-1] == "1 lines lack columns and were skipped"


# --------------------------------------------------------------------- TFDS


def write_tfds(folder, name, labels, all_texts=TEXTS, text=None):
  """Prepares the task with TFDS, as ArrayRecord."""
  spec = glue.TASKS[name]
  folder.mkdir()
  text = text or tfds.features.Text()
  label = tfds.features.Scalar(np.float32) if not spec.labels else (
      tfds.features.ClassLabel(names=spec.labels))
  features = tfds.features.FeaturesDict(
      {**{feature: text for feature in spec.features}, "label": label, "idx": np.int32})
  identity = tfds.core.dataset_info.DatasetIdentity(
      name="toy", version="1.0.0", data_dir=str(folder), module_name="toy")
  writer = tfds.core.SequentialWriter(
      tfds.core.DatasetInfo(builder=identity, features=features), 300, file_format="array_record")
  splits = ["train", "validation", "test"]
  writer.initialize_splits(splits)
  for split in splits:
    writer.add_examples({split: [
        {**dict(zip(spec.features, texts, strict=False)), "idx": i,
         "label": -1 if split == "test" else label}
        for i, (texts, label) in enumerate(zip(all_texts, labels, strict=True))]})
  writer.close_all()
  return f"tfds:{folder}"


@pytest.mark.parametrize("name", ["rte", "stsb", "sst2"])
def test_tfds_gives_what_the_files_give(tmp_path, text_format, name):
  data = write_tfds(tmp_path / "tfds", name, NUMBERS.get(name, [1, 0, 1]))
  found = open_task(name, data, text_format)
  expected = open_task(name, write_official(tmp_path / "files", name), text_format)
  for one, other in zip([found.train, *(s.rows for s in found.evals)],
                        [expected.train, *(s.rows for s in expected.evals)], strict=True):
    assert texts_of(one, text_format) == texts_of(other, text_format)
    np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize("text, message", [
    (b"a\xffb", "invalid UTF-8 at byte 1"), ("a\0", "NUL character at byte 1")])
def test_tfds_texts_that_are_not_clean_are_named(tmp_path, text_format, text, message):
  data = write_tfds(tmp_path / "tfds", "sst2", [1, 0, 1], [("x",), (text,), ("y",)])
  with pytest.raises(DataError, match=f"{data}:train record 1: sentence: {message}. Repair"):
    open_task("sst2", data, text_format)


def test_tfds_texts_have_the_line_ends_of_files(tmp_path, text_format):
  ends = [write_tfds(tmp_path / str(i), "sst2", [1, 0, 1], [(f"a{end}b",), ("x",), ("y",)])
          for i, end in enumerate(("\n", "\r\n", "\r"))]
  tables = [glue._read_tfds(data, glue.TASKS["sst2"], "train", "", True) for data in ends]
  assert [table.texts for table in tables] == [(["a\nb", "x", "y"],)] * 3


def test_tfds_features_of_another_type_are_named(tmp_path, text_format):
  data = write_tfds(tmp_path / "tfds", "sst2", [1, 0, 1], [(1,), (2,), (3,)], np.int32)
  with pytest.raises(DataError, match="record 0: sentence: feature 'sentence' is not text"):
    open_task("sst2", data, text_format)


@pytest.mark.parametrize("name, value, is_label", [
    ("sst2", np.int64(1), True), ("sst2", np.int64(2), False), ("sst2", b"1", False),
    ("sst2", 0.5, False), ("stsb", np.float32(2.5), True), ("stsb", float("nan"), False),
    ("stsb", b"2", False), ("stsb", None, False)])
def test_labels_of_tfds_are_numbers_in_range(name, value, is_label):
  assert glue._is_label(value, glue.TASKS[name]) == is_label


def test_a_dataset_of_another_task_is_named(tmp_path, text_format):
  data = write_tfds(tmp_path / "tfds", "sst2", [1, 0, 1])
  with pytest.raises(DataError, match="lacks the feature 'sentence1'; .* Give the dataset of RTE"):
    open_task("rte", data, text_format)
  with pytest.raises(DataError, match="task.data: TFDS does not know the dataset"):
    open_task("rte", f"tfds:{tmp_path}/none", text_format)


# --------------------------------------------------------------- real files


@pytest.mark.parametrize("name, train, dev, share", [
    ("cola", 8551, 1043, 0.704), ("sst2", 67349, 872, 0.558), ("rte", 2490, 277, 0.498)])
def test_the_published_counts(data_dir, text_format, name, train, dev, share):
  """Counts are those of Wang et al. 2018, table 1, with the share of label 1 in training."""
  task = open_task(name, data_dir / "glue", text_format)
  assert (len(task.train), len(task.evals[0].rows)) == (train, dev)
  assert task.train.labels.mean() == pytest.approx(share, abs=5e-4)
