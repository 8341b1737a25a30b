"""bertgpt.finetuning.inputs: the ending of a file is its format, as in the sources of a corpus."""

import gzip
import json

import pytest

from bertgpt.errors import ConfigError, DataError
from bertgpt.finetuning import inputs, tasks
from bertgpt.finetuning.tasks import glue, squad

QUESTION = {"id": "q", "question": "Who?", "context": "Anna left."}
SQUAD = {"data": [{"paragraphs": [{"context": "Anna left.", "qas": [
    {"id": "q", "question": "Who?", "is_impossible": "false", "answers": "none"}]}]}]}


def read(path, kind, task):
  return list(inputs.read_examples(path, kind, task))


@pytest.mark.parametrize("kind, task, record", [
    ("classes", "sst2", {"id": "7", "sentence": "fine"}),
    ("values", "stsb", {"id": "7", "sentence1": "fine", "sentence2": "good"}),
    ("tokens", "ner", {"id": "7", "words": ["Anna", "left"]}), ("spans", "squad", QUESTION)])
@pytest.mark.parametrize("ending", [".json", ".ndjson", ".json.gz", ".ndjson.gz"])
def test_json_lines_may_have_any_of_their_endings(tmp_path, kind, task, record, ending):
  """Only for questions, .json is SQuAD's format."""
  compress = gzip.compress if ending.endswith(".gz") else bytes
  (tmp_path / "a.jsonl").write_text(2 * (json.dumps(record) + "\n"))
  path = tmp_path / f"a{ending}"
  path.write_bytes(compress((tmp_path / "a.jsonl").read_bytes()))
  expected = read(tmp_path / "a.jsonl", kind, task)
  assert len(expected) == 2 and expected[0].id == record["id"]
  if kind == "spans" and ".json" in ending:
    path.write_bytes(compress(json.dumps(SQUAD).encode()))
    expected = expected[:1]
  assert read(path, kind, task) == expected


def test_the_texts_of_another_task_are_those_of_its_table_line(tmp_path, monkeypatch):
  columns = glue.Glue("SWAG", ("context", "ending"), "label", (), ("accuracy",), ("ctx", "end"))
  entry = tasks.Entry(None, "values", frozenset(), columns)
  monkeypatch.setitem(tasks.TASKS, "swag", entry)
  (tmp_path / "a.tsv").write_text("id\tcontext\tending\n7\tShe sat\tdown\n")
  (tmp_path / "a.jsonl").write_text('{"id": 7, "ctx": "She sat", "end": "down"}\n')
  for name in ("a.tsv", "a.jsonl"):
    example, = read(tmp_path / name, "values", "swag")
    assert (example.id, example.texts) == ("7", ("She sat", "down"))
  monkeypatch.setitem(tasks.TASKS, "swag", entry._replace(columns=None))
  with pytest.raises(ConfigError, match="swag does not say which columns its texts are in"):
    read(tmp_path / "a.tsv", "values", "swag")


def test_answers_that_are_not_read_may_be_marked_in_any_way(tmp_path):
  path = tmp_path / "a.json"
  path.write_text(json.dumps(SQUAD))
  question, = squad.read_questions(path, needs_answers=False, reads_answers=False)
  assert (question.id, question.answers, question.is_impossible) == ("q", (), False)
  with pytest.raises(DataError):
    squad.read_questions(path, needs_answers=False)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
@pytest.mark.parametrize("kind, task", [("classes", "sst2"), ("classes", "cola"),
                                        ("values", "stsb")])
def test_a_table_with_commas_is_refused(tmp_path, kind, task, name):
  """A table of one column would be read as one without commas."""
  content = b"sentence\nfine\n"
  (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
  with pytest.raises(DataError, match=rf"{name}: is a table with commas\. Give a \.tsv file"):
    read(tmp_path / name, kind, task)


@pytest.mark.parametrize("cell, expected", [
    ("1.0", "1"), (" 12.0 ", "12"), ("1", "1"), ("1.5", "1.5"), ("v1.0", "v1.0"), ("-1.0", "-1.0"),
    ("1.00", "1.00"), ("", "0"), (" ", "0")])
def test_ids_in_a_table_as_pandas_writes_them(tmp_path, cell, expected):
  (tmp_path / "a.tsv").write_text(f"id\tsentence\n{cell}\tfine\n")
  example, = read(tmp_path / "a.tsv", "classes", "sst2")
  assert example.id == expected
