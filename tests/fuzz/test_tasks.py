"""Any file of a task is read, or refused in one line."""

import functools
import json

import fuzzing
import pytest
from fuzzing import FAILED, attempt
from hypothesis import strategies as st
from source_files import write

from bertgpt import config as config_lib
from bertgpt.config import finetuning as finetune_config
from bertgpt.data.tokens import training
from bertgpt.finetuning import inputs
from bertgpt.finetuning.inputs.form import Setting
from bertgpt.finetuning.tasks import classes, glue, ner, rows, spans, squad

CONTEXT = "Ada wrote the first program in 1843. हिन्दी में लिखा।"
SQUAD = {"version": "v2.0", "data": [{"title": "Ada", "paragraphs": [{"context": CONTEXT, "qas": [
    {"id": "1", "question": "Who?", "is_impossible": False,
     "answers": [{"answer_start": 0, "text": "Ada"}, {"answer_start": 31, "text": "1843"}]},
    {"id": "2", "question": "Why?", "is_impossible": True, "answers": []}]}]}]}


@functools.cache
def text_format(kind):
  settings = config_lib.base().tokenizer
  settings.update({"kind": kind, "vocab_size": {"bpe": 300, "wordpiece": 80}[kind]})
  tokenizer = training.train_tokenizer(settings, [CONTEXT] * 5)
  task = finetune_config.base().task
  task.max_length = 64
  return rows.make_text_format(tokenizer, config_lib.base().model, task)


def lines_of(cells):
  """Draws texts of several lines, whose cells are separated by any white space or by nothing."""
  gaps = st.sampled_from(("\t", " ", "  ", "\t\t", "\xa0", ""))
  line = st.lists(cells | gaps, max_size=6).map("".join)
  columns = st.lists(cells, min_size=2, max_size=3).map(" ".join)
  return st.lists(line | columns | st.sampled_from(("", "-DOCSTART- O", "# id 1", "\x0c")),
                  max_size=10)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_any_conll_file_is_read_or_refused(kind):
  cells = fuzzing.names() | fuzzing.texts(6) | st.sampled_from(("Berlin", "O", "B-LOC", "I-LOC"))

  def check(lines, end, needs_tags):
    with fuzzing.folder() as folder:
      path = write(folder / "a.conll", end.join(lines).encode(errors="surrogatepass"))
      sentences = attempt(ner.read_conll, path, needs_tags=needs_tags)
      if sentences is FAILED:
        return
      for sentence in sentences:
        assert sentence.words
        assert all(word and "\n" not in word and "\t" not in word for word in sentence.words)
        assert sentence.tags is None or len(sentence.tags) == len(sentence.words)
        assert sentence.tags is not None or not needs_tags
      tags = ["O", *sorted({t for s in sentences for t in s.tags or ()} - {"O"})]
      labeled = ner.make_rows(sentences, tags, text_format(kind))
      assert [len(p) for p in labeled.places] == [len(s.words) for s in sentences]
      assert max(labeled.rows.lengths) <= 64
      if all(s.tags is not None for s in sentences):
        found = ner.collect(labeled.rows.labels, labeled.places, tags)
        assert found == [s.tags for s in sentences]
  fuzzing.run(check, 100, lines=lines_of(cells), end=st.sampled_from(("\n", "\r\n", "\r")),
              needs_tags=st.booleans())


@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli"])
def test_any_table_is_read_or_refused(name):
  task = glue.TASKS[name]
  columns = [*task.texts, task.label, "index", "id"]
  cells = (st.sampled_from((*task.labels, "3.5", "nan", "inf", "1e400", "", " "))
           | fuzzing.texts(6))
  table = st.lists(st.lists(cells, min_size=1, max_size=5), max_size=6)

  def check(header, table, end, is_test):
    with fuzzing.folder() as folder:
      content = end.join(map("\t".join, [header, *table]))
      path = write(folder / "a.tsv", content.encode(errors="surrogatepass"))
      found = attempt(glue.read_table, path, task, is_test=is_test)
      if found is not FAILED:
        assert {len(column) for column in found.texts} == {len(found.ids)}
        assert len(set(found.ids)) == len(found.ids)
        made = glue.make_rows(found, task, text_format("wordpiece"))
        assert len(made) == len(found.ids) and max(made.lengths) <= 64
  fuzzing.run(check, 60, table=table, end=st.sampled_from(("\n", "\r\n", "\r")),
              header=st.permutations(columns) | st.lists(cells, max_size=4), is_test=st.booleans())


@pytest.mark.parametrize("ending", ["tsv", "jsonl"])
def test_any_labeled_texts_are_read_or_refused(ending):
  cells = st.sampled_from(("good", "bad", "1", "3.5", "", " ")) | fuzzing.texts(6)
  if ending == "tsv":
    header = st.permutations([*classes.TEXTS, classes.LABEL, "id"]) | st.lists(cells, max_size=4)
    lines = st.tuples(header, st.lists(st.lists(cells, min_size=1, max_size=5), max_size=6)).map(
        lambda drawn: ["\t".join(row) for row in (drawn[0], *drawn[1])])
  else:
    record = {"id": 1, "text": "A cat.", "text2": "A dog.", "label": "good"}
    drawn = fuzzing.changed(record, fuzzing.texts() | fuzzing.values()) | fuzzing.values()
    lines = st.lists(drawn.map(json.dumps) | fuzzing.texts(), max_size=4)

  def check(lines, end):
    with fuzzing.folder() as folder:
      path = write(folder / f"a.{ending}", end.join(lines).encode(errors="surrogatepass"))
      found = attempt(classes.read_examples, path)
      if found is FAILED:
        return
      assert len({len(example.texts) for example in found}) == 1
      assert all(set("\t\n").isdisjoint(e.label + e.id) for e in found)
      labels = attempt(classes.find_labels, found, "a")
      assert labels is FAILED or set(labels) == {example.label for example in found}
  fuzzing.run(check, 60, lines=lines, end=st.sampled_from(("\n", "\r\n", "\r")))


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_any_questions_are_read_or_refused(kind):
  config = finetune_config.base().task
  config.update({"max_length": 64, "max_question": 16, "stride": 16})

  def check(content, needs_answers):
    with fuzzing.folder() as folder:
      path = write(folder / "a.json", json.dumps(content).encode(errors="surrogatepass"))
      questions = attempt(squad.read_questions, path, needs_answers=needs_answers)
      if questions is FAILED:
        return
      for question in questions:
        for start, answer in question.answers:
          assert question.context[start:start + len(answer)] == answer
      attempt(squad.check_ids, [(path, question) for question in questions])
      made, windows = spans.make_rows(questions, config, text_format(kind))
      assert len(made) == len(windows) >= len(questions)
      assert max(made.lengths) <= 64
  value = fuzzing.texts() | fuzzing.values() | st.integers(0, len(CONTEXT))
  fuzzing.run(check, 200, content=fuzzing.changed(SQUAD, value) | fuzzing.values(),
              needs_answers=st.booleans())


RECORDS = {"sst2": {"id": "1", "sentence": "A fine film."},
           "stsb": {"index": 1, "sentence1": "A cat.", "sentence2": "A dog."},
           "classes": {"id": "1", "text": "A cat.", "text2": "A dog."},
           "ner": {"id": 1, "words": ["Ada", "of", "London"]},
           "squad2": {"id": "1", "question": "Who?", "context": CONTEXT}}
KINDS = {"sst2": "classes", "stsb": "values", "classes": "classes", "ner": "tokens",
         "squad2": "spans"}
TEXTS = {"classes": classes.TEXTS}


@pytest.mark.parametrize("ending", ["jsonl", "json", "tsv", "txt", "conll"])
@pytest.mark.parametrize("name", KINDS)
def test_any_input_of_predict_is_read_or_refused(name, ending):
  form, config = inputs.FORMS[KINDS[name]], finetune_config.base().task
  config.update({"name": name, "max_length": 64, "max_question": 16, "stride": 16})
  setting = Setting(config, text_format("wordpiece"), ("O", "B-X"), TEXTS.get(name, ()))
  record = fuzzing.changed(RECORDS[name], fuzzing.texts() | fuzzing.values()) | fuzzing.values()
  lines = st.lists(record.map(json.dumps) | fuzzing.texts(), max_size=4)
  if ending != "jsonl":
    header = st.just("\t".join(RECORDS[name]))
    lines = st.lists(lines.map("\n".join) | header | lines_of(fuzzing.texts(6)).map("\n".join),
                     max_size=3)

  def check(lines):
    with fuzzing.folder() as folder:
      content = "\n".join(lines).encode(errors="surrogatepass")
      path = write(folder / f"a.{ending}", content)
      found = attempt(lambda: list(inputs.read_examples(path, KINDS[name], name)))
      if found is not FAILED:
        if name in TEXTS and not all(len(example.texts) == 2 for example in found):
          assert attempt(form.make_rows, found, setting) is FAILED
          return
        made, _ = form.make_rows(found, setting)
        assert len(made) >= len(found) > 0 and max(made.lengths) <= 64
  fuzzing.run(check, 40, lines=lines)


def test_damaged_questions_are_read_or_refused():
  def check(data):
    with fuzzing.folder() as folder:
      attempt(squad.read_questions, write(folder / "a.json", data))
  fuzzing.run(check, 60, data=fuzzing.damaged(json.dumps(SQUAD).encode()))
