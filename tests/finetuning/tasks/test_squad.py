"""SQuAD: windows lose no token, spans become text again, scores follow the official rules."""

import json
import tracemalloc
import types

import numpy as np
import pytest

from bertgpt.config import finetuning as finetune_config
from bertgpt.data.tokens import tokenizers, training
from bertgpt.errors import ConfigError, DataError
from bertgpt.finetuning import inputs
from bertgpt.finetuning.tasks import rows as rows_lib
from bertgpt.finetuning.tasks import spans, squad

CONTEXT = ("The cat saw a dog near the river. Its house stood on a stone, and a bird of 1999 "
           "knew it (so they say).")


def make_text_format(max_length=64, kind="wordpiece", family="bert"):
  config = types.SimpleNamespace(kind=kind, vocab_size=80, lowercase=True, model_type="bpe")
  tokenizer = training.train_tokenizer(config, [CONTEXT.lower(), "who saw what?"] * 20)
  return rows_lib.make_text_format(tokenizer, types.SimpleNamespace(family=family, num_segments=2),
                                   types.SimpleNamespace(max_length=max_length, truncation="head"))


def make_config(**fields):
  config = finetune_config.base().task
  config.update({"name": "squad", "max_length": 64, "max_question": 8, "stride": 10} | fields)
  return config


def question(answer, id_="q0", context=CONTEXT):
  answers = ((context.index(answer), answer),) if answer else ()
  return spans.Question(id_, "Who saw what?", context, answers)


def perfect_outputs(rows):
  """Returns logits that are highest at the labels."""
  outputs = []
  for tokens, label in zip(rows.tokens, rows.labels, strict=True):
    logits = np.zeros((2, len(tokens)), np.float32)
    logits[0, label[0]] = logits[1, label[1]] = 9.0
    outputs.append(logits)
  return outputs


def write_json(path, *questions, **more):
  path.write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": [
      {"context": q.context, "qas": [{"id": q.id, "question": q.question, "answers": [
          {"answer_start": start, "text": text} for start, text in q.answers]} | more]}
      for q in questions]}]}))


# ----------------------------------------------------------------- windows


def test_a_row_reads_as_the_paper_has_it():
  text_format = make_text_format()
  rows, windows = spans.make_rows([question("a dog")], make_config(), text_format)
  text = text_format.tokenizer.decode(rows.tokens[0])
  assert text.startswith("[CLS] who saw what? [SEP] the cat saw a dog") and text.endswith("[SEP]")
  start, end = rows.labels[0]
  assert text_format.tokenizer.decode(rows.tokens[0][start:end + 1]) == "a dog"
  first = windows[0].first
  assert rows.segment_ids[0].tolist() == [0] * first + [1] * (len(rows.tokens[0]) - first)


@pytest.mark.parametrize("family, between", [
    ("bert", "[SEP]"), ("bert", "[SEP] [SEP]"), ("xlnet", "[SEP]")])
def test_labels_are_right_with_other_marks_around_the_texts(family, between):
  """XLNet's [CLS] is the last token of a row, and RoBERTa has two [SEP] between texts."""
  text_format, config = make_text_format(family=family), make_config(name="squad2", max_length=40)
  marks, tokenizer = text_format.marks, text_format.tokenizer
  text_format = text_format._replace(marks=marks._replace(
      between=marks.between * between.count("[SEP]")))
  questions = [question("a dog"), question("", "q1")]
  rows, windows = spans.make_rows(questions, config, text_format)
  for tokens, segments, label, window in zip(rows.tokens, rows.segment_ids, rows.labels, windows,
                                             strict=True):
    assert len(tokens) <= 40 and len(segments) == len(tokens)
    question_part = tokenizer.decode(tokens[:window.first])
    start = "" if family == "xlnet" else "[CLS] "
    assert question_part == f"{start}who saw what? {between}"
    assert tokens[window.null] == tokenizer.cls_id
    answer = tokenizer.decode(tokens[label[0]:label[1] + 1])
    if window.question == 0 and 0 in window.offsets[:, 0]:
      assert answer == "a dog"
    elif window.question == 1:
      assert answer == "[CLS]" and label[0] == window.null
    expected = [0] * window.first + [1] * (len(window.offsets) + 1)
    assert segments.tolist() == expected + [2] * (family == "xlnet")
  outputs = perfect_outputs(rows)
  answers = spans.find_answers(questions, windows, config, outputs)
  assert answers[1].text == ""


def test_the_windows_of_a_very_long_context_need_memory_for_its_tokens_only():
  parts = spans.cut(400_000, 380, 128)
  tracemalloc.start()
  chosen = spans.find_max_context(parts)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert sum(map(np.count_nonzero, chosen)) == 400_000
  assert peak < 50e6  # A matrix of all windows and tokens has 10 GB.


@pytest.mark.parametrize("length, room, stride", [
    (5, 10, 4), (10, 10, 4), (11, 10, 4), (37, 10, 4), (38, 10, 10), (100, 7, 20), (0, 5, 2)])
def test_windows_cover_every_token_and_one_has_its_max_context(length, room, stride):
  parts = spans.cut(length, room, stride)
  assert all(end - start <= room for start, end in parts)
  covered, best = np.zeros(length, int), np.zeros(length, int)
  chosen = spans.find_max_context(parts)
  for (start, end), has_max_context in zip(parts, chosen, strict=True):
    covered[start:end] += 1
    best[start:end] += has_max_context
  assert (covered >= 1).all() and (best == 1).all()
  for token in range(length):  # By definition: the largest min(left, right).
    shown = [min(token - start, end - 1 - token) if start <= token < end else -1
             for start, end in parts]
    (of_best,) = [i for i, (start, end) in enumerate(parts)
                  if start <= token < end and chosen[i][token - start]]
    assert shown[of_best] == max(shown)


def test_an_answer_is_the_label_of_windows_that_hold_all_of_it():
  text_format, config = make_text_format(), make_config(max_length=24)
  q = question("a stone")
  rows, windows = spans.make_rows([q], config, text_format)
  assert len(windows) > 2 and max(rows.lengths) == 24
  for tokens, label, window in zip(rows.tokens, rows.labels, windows, strict=True):
    text = CONTEXT[window.offsets[0, 0]:window.offsets[-1, 1]]
    if "a stone" in text:
      assert text_format.tokenizer.decode(tokens[label[0]:label[1] + 1]) == "a stone"
    else:
      assert label.tolist() == [0, 0]
  assert rows.labels.any() and not rows.labels.all()


@pytest.mark.parametrize("kind", ["wordpiece", "sentencepiece"])
@pytest.mark.parametrize("answer", ["The cat", "1999", "so they say", "Its house", "it"])
def test_answers_are_quoted_from_the_text(answer, kind):
  text_format, config = make_text_format(kind=kind), make_config(max_length=32)
  q = question(answer)
  rows, windows = spans.make_rows([q], config, text_format)
  found, = spans.find_answers([q], windows, config, perfect_outputs(rows))
  assert squad.normalize(found.text) == squad.normalize(answer)
  assert found.guesses[0].text == found.text and len(found.guesses) > 5


def test_questions_are_cut():
  text_format = make_text_format()
  q = question("a dog")._replace(question="who " * 50)
  rows, windows = spans.make_rows([q], make_config(), text_format)
  assert windows[0].first == 8 + 2


def test_spans_end_after_they_start_and_are_not_longer_than_asked():
  text_format, config = make_text_format(), make_config(max_answer=3)
  q = question("a dog")
  rows, (window,) = spans.make_rows([q], config, text_format)
  logits = np.random.default_rng(0).normal(size=(2, len(rows.tokens[0])))
  found = spans.find_spans(window, logits, CONTEXT, config)
  scores = {}
  for i in range(len(window.offsets)):  # All spans, one by one.
    for j in range(i, min(i + 3, len(window.offsets))):
      text = CONTEXT[window.offsets[i, 0]:window.offsets[j, 1]].strip()
      scores[text] = max(scores.get(text, -9), logits[0, window.first + i]
                         + logits[1, window.first + j])
  best = max(scores, key=scores.get)
  assert found[0].text == best and found[0].score == pytest.approx(scores[best])
  assert [g.score for g in found] == sorted((g.score for g in found), reverse=True)


def test_no_answer_is_given_from_the_threshold_on():
  text_format, config = make_text_format(), make_config(name="squad2")
  q = question("a dog")
  rows, windows = spans.make_rows([q], config, text_format)
  logits = np.zeros((2, len(rows.tokens[0])))
  start, end = rows.labels[0]
  logits[0, start], logits[1, end], logits[:, 0] = 3.0, 3.0, 4.0
  for threshold, answer in ((1.9, ""), (2.1, "a dog")):
    config.null_threshold = threshold
    found, = spans.find_answers([q], windows, config, [logits])
    assert found.odds == pytest.approx(8 - 6) and found.text == answer
  assert [g.text for g in found.guesses][:2] == ["", "a dog"]


# ------------------------------------------------------------------- files


def test_a_task_from_files_to_predictions(tmp_path):
  for name, answer in (("train", "a dog"), ("dev", "The cat")):
    write_json(tmp_path / f"{name}-v1.1.json", question(answer))
  task = squad.open_task(make_config(data=str(tmp_path)), make_text_format())
  (dev,) = task.evals
  outputs = perfect_outputs(dev.rows)
  assert dev.score(outputs) == {"em": 1.0, "f1": 1.0}
  assert task.baseline == {"dev": {"em": 0.0, "f1": 0.0}}
  dev.write(outputs, tmp_path)
  assert json.loads((tmp_path / "predictions.json").read_text()) == {"q0": "The cat"}
  assert json.loads((tmp_path / "nbest_predictions.json").read_text())["q0"][0]["text"] == "The cat"
  assert not (tmp_path / "null_odds.json").exists()


def test_all_answers_of_a_scored_set_are_kept_for_its_identity(tmp_path):
  several = question("The cat")._replace(answers=((0, "The cat"), (4, "cat")))
  write_json(tmp_path / "train-v1.1.json", question("a dog"))
  golds = []
  for dev in (question("The cat"), several):
    write_json(tmp_path / "dev-v1.1.json", dev)
    (found,) = squad.open_task(make_config(data=str(tmp_path)), make_text_format()).evals
    golds.append(found.gold)
  assert golds[0] != golds[1]


def test_questions_without_answers(tmp_path):
  for name in ("train", "dev"):
    write_json(tmp_path / f"{name}-v2.0.json", question(""), is_impossible=True,
               plausible_answers=[{"answer_start": 0, "text": "The"}])
  task = squad.open_task(make_config(name="squad2", data=str(tmp_path)), make_text_format())
  assert task.train.labels.tolist() == [[0, 0]]
  (dev,) = task.evals
  assert task.baseline == {"dev": {"em": 1.0, "f1": 1.0}}
  assert dev.score(perfect_outputs(dev.rows)) == {"em": 1.0, "f1": 1.0}
  dev.write(perfect_outputs(dev.rows), tmp_path)
  assert json.loads((tmp_path / "predictions.json").read_text()) == {"q0": ""}
  assert json.loads((tmp_path / "null_odds.json").read_text())["q0"] > 0


@pytest.mark.parametrize("said, found", [(1, True), (0, False), (None, False), ("", False)])
def test_questions_without_answers_are_marked(said, found):
  qa = {"id": "q", "question": "Who?", "answers": [], "is_impossible": said}
  assert squad.make_question(qa, {"context": "The cat"}, True).is_impossible is found
  with pytest.raises(ValueError, match="is_impossible of 'q' is 'false', not true or false"):
    squad.make_question(qa | {"is_impossible": "false"}, {"context": "The cat"}, True)


@pytest.mark.parametrize("content, message", [
    ("{", "dev-v1.1.json: is not valid JSON"),
    ("[]", "dev-v1.1.json: not in SQuAD's JSON (TypeError"),
    ('{"data": [{"paragraphs": [{"qas": []}]}]}', "holds no questions"),
    ('{"data": [{"paragraphs": [{"qas": [{"id": "x"}]}]}]}', "(KeyError: 'question')"),
])
def test_files_in_another_format_are_named(tmp_path, content, message):
  (tmp_path / "dev-v1.1.json").write_text(content)
  with pytest.raises(DataError) as e:
    squad.read_questions(tmp_path / "dev-v1.1.json")
  assert message in str(e.value) and "\n" not in str(e.value)


def test_an_answer_that_is_not_in_its_context_is_named(tmp_path):
  wrong = question("a dog", "q7")._replace(answers=((13, "a dog"),))
  write_json(tmp_path / "train.json", wrong)
  with pytest.raises(DataError, match="question q7: its answer 'a dog' is not at character 13"):
    squad.read_questions(tmp_path / "train.json")


@pytest.mark.parametrize("start, text", [("13", "a dog"), (-4, "say)"), (None, "a"), (0, 5)])
def test_an_answer_without_a_number_and_a_text_is_named(tmp_path, start, text):
  write_json(tmp_path / "train.json", question("", "q7")._replace(answers=((start, text),)))
  with pytest.raises(DataError, match=f"question q7: answer_start={start!r} and text") as e:
    squad.read_questions(tmp_path / "train.json")
  assert "\n" not in str(e.value)


def test_every_question_of_1_1_has_an_answer(tmp_path):
  write_json(tmp_path / "train-v1.1.json", question("a dog"), question("", "q7"))
  with pytest.raises(DataError, match="question q7 has no answer"):
    squad.open_task(make_config(data=str(tmp_path)), make_text_format())


@pytest.mark.parametrize("name, version", [("squad", "v1.1"), ("squad2", "v2.0")])
@pytest.mark.parametrize("key", [{}, {"answers": []}])
def test_a_test_set_without_answers_is_predicted(tmp_path, name, version, key):
  """The predictions equal those for the same questions with answers."""
  for part in ("train", "dev"):
    write_json(tmp_path / f"{part}-{version}.json", question("a dog", "q1"), question("a bird"))
  asked = [{"id": f"q{i}", "question": "Who saw what?"} | key for i in (1, 0)]
  (tmp_path / "t.json").write_text(json.dumps({"data": [{"paragraphs": [
      {"context": CONTEXT, "qas": asked}]}]}))
  task = squad.open_task(make_config(name=name, data=str(tmp_path), test="t.json"),
                         make_text_format())
  dev, test = task.evals
  assert test.score is None and dev.score is not None and list(task.baseline) == ["dev"]
  for s in task.evals:
    s.write(perfect_outputs(dev.rows), tmp_path)
  expected = json.loads((tmp_path / "predictions.json").read_text())
  assert expected == {"q1": "a dog", "q0": "a bird"}
  assert json.loads((tmp_path / "test_predictions.json").read_text()) == expected


@pytest.mark.parametrize("part", ["train", "dev"])
def test_only_test_sets_may_lack_answers(tmp_path, part):
  for name in ("train", "dev"):
    write_json(tmp_path / f"{name}-v2.0.json", question("a dog"))
  path = tmp_path / f"{part}-v2.0.json"
  path.write_text(path.read_text().replace("answers", "replies"))
  with pytest.raises(DataError, match=f"{part}-v2.0.json: not in SQuAD's JSON .*'answers'"):
    squad.open_task(make_config(name="squad2", data=str(tmp_path)), make_text_format())


def test_a_part_of_a_dev_set_is_scored_even_if_it_has_no_answers(tmp_path):
  """Files that were converted mark such questions only by an empty list."""
  write_json(tmp_path / "train-v2.0.json", question("a dog"))
  write_json(tmp_path / "dev-v2.0.json", question(""), question("a dog", "q1"))
  task = squad.open_task(make_config(name="squad2", data=str(tmp_path), max_dev_examples=1),
                         make_text_format())
  (dev,) = task.evals
  assert dev.score(perfect_outputs(dev.rows))["em"] == 1.0 and list(task.baseline) == ["dev"]


@pytest.mark.parametrize("part", ["train", "dev"])
def test_a_set_of_2_0_in_which_nothing_is_labeled_is_refused(tmp_path, part):
  """There would be nothing to learn, or no score by which the best run is found."""
  for name in ("train", "dev"):
    write_json(tmp_path / f"{name}-v2.0.json", question("" if name == part else "a dog"))
  with pytest.raises(DataError, match=f"{part}-v2.0.json: no question has an answer.*task.{part}"):
    squad.open_task(make_config(name="squad2", data=str(tmp_path)), make_text_format())


def test_answers_that_are_not_read_may_be_wrong(tmp_path):
  """As those in the input of `bertgpt predict`."""
  path = tmp_path / "new.json"
  wrong = question("a dog", "q7")._replace(answers=((13, "a dog"), ("x", 5)))
  write_json(path, wrong, question("", "q7"))
  found = inputs.read_examples(path, "spans", "squad")
  assert [(q.id, q.answers) for q in found] == [("q7", ()), ("q7", ())]
  path.write_text(path.read_text().replace('"answers": [', '"answers": 5, "x": ['))
  assert len(list(inputs.read_examples(path, "spans", "squad"))) == 2


def test_a_test_set_in_which_some_answers_are_missing_is_refused(tmp_path):
  for name in ("train", "dev"):
    write_json(tmp_path / f"{name}-v1.1.json", question("a dog"))
  write_json(tmp_path / "test-v1.1.json", question("a dog"), question("", "q7"))
  with pytest.raises(DataError, match="test-v1.1.json: question q7 has no answer"):
    squad.open_task(make_config(data=str(tmp_path)), make_text_format())


@pytest.mark.parametrize("part", ["train", "dev", "test"])
def test_two_questions_with_one_id_are_refused(tmp_path, part):
  """Otherwise, one of the predictions would replace the other."""
  for name in ("train", "dev", "test"):
    again = [question("a bird")] if name == part else []
    write_json(tmp_path / f"{name}-v1.1.json", question("a dog"), *again)
  with pytest.raises(DataError, match=f"{part}-v1.1.json: the id 'q0' occurs twice. Give") as e:
    squad.open_task(make_config(data=str(tmp_path)), make_text_format())
  assert "\n" not in str(e.value)


def test_two_files_with_one_id_are_refused(tmp_path):
  for name in ("train", "dev", "more"):
    write_json(tmp_path / f"{name}-v1.1.json", question("a dog"))
  with pytest.raises(DataError, match="more-v1.1.json: the id 'q0' .* also in .*dev-v1.1.json"):
    squad.open_task(make_config(data=str(tmp_path), dev="dev-v1.1.json,more-v1.1.json"),
                    make_text_format())


@pytest.mark.parametrize("field, value", [("question", 5), ("question", None), ("id", ["q"]),
                                          ("question", "Who \ud800?"), ("question", "Who \0?"),
                                          ("id", True), ("id", None), ("id", 1.5)])
def test_values_of_other_types_are_named(tmp_path, field, value):
  write_json(tmp_path / "a.json", question("a dog"), **{field: value})
  with pytest.raises(DataError, match=f"a.json: the {field} .* Repair the file") as e:
    squad.read_questions(tmp_path / "a.json")
  assert "\n" not in str(e.value)


@pytest.mark.parametrize("dirt, problem", [("\0", "NUL"), ("\udc80", "lone surrogate")])
def test_a_context_that_is_not_clean_is_named(tmp_path, dirt, problem):
  write_json(tmp_path / "a.json", question("a dog", context=f"{CONTEXT}{dirt}"))
  with pytest.raises(DataError, match=f"the context of 'q0' has a {problem}.* {len(CONTEXT)}. Rep"):
    squad.read_questions(tmp_path / "a.json")


@pytest.mark.parametrize("kind", ["wordpiece", "sentencepiece"])
@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
def test_places_count_line_ends_as_they_are(tmp_path, kind, end):
  """`answer_start` and predicted answers refer to the file's text, with its own line ends."""
  context = f"No.{end}{end}{CONTEXT}".replace("a dog", f"a{end}dog")
  answers = ["The cat", f"a{end}dog", "1999"]
  write_json(tmp_path / "a.json", *(question(answer, f"q{i}", context)
                                    for i, answer in enumerate(answers)))
  questions = squad.read_questions(tmp_path / "a.json")
  rows, windows = spans.make_rows(questions, make_config(), make_text_format(kind=kind))
  found = spans.find_answers(questions, windows, make_config(), perfect_outputs(rows))
  assert [a.text for a in found] == answers
  assert [a.guesses[0].start for a in found] == [context.index(a) for a in answers]


@pytest.mark.parametrize("answer", [
    "नई दिल्ली में", "में", "कुतुब", "مُحَمَّدٌ", "cafe\u0301", "Ha\u0301no\u0302\u0323i\u0306"])
def test_answers_keep_their_last_mark(answer):
  """An uncased WordPiece drops accents, vowel signs and viramas."""
  context = f"यह {answer} है, it is {answer}."
  config = types.SimpleNamespace(kind="wordpiece", vocab_size=64, lowercase=True)
  tokenizer = training.train_tokenizer(config, [context, CONTEXT] * 20)
  text_format = make_text_format()._replace(tokenizer=tokenizer)
  q = question(answer, context=context)
  rows, windows = spans.make_rows([q], make_config(), text_format)
  found, = spans.find_answers([q], windows, make_config(), perfect_outputs(rows))
  assert found.text == answer


def test_odds_are_finite_if_there_is_no_text(tmp_path):
  """The score must be finite, because JSON has no infinity."""
  empty = spans.Question("q0", "Who saw what?", " ", ())
  rows, windows = spans.make_rows([empty], make_config(), make_text_format())
  found, = spans.find_answers([empty], windows, make_config(name="squad2"), perfect_outputs(rows))
  assert found.text == "" and 1e8 < found.odds < np.inf


def test_no_room_for_a_text_is_an_error():
  with pytest.raises(ConfigError, match=(
      "task.max_length=64 leaves no room .* or set task.max_question=21")):
    squad.open_task(make_config(max_question=61), make_text_format())


# ------------------------------------------------------------------ scores


@pytest.mark.parametrize("found, expected, em, f1", [
    ("The Cat!", ["cat"], 1, 1),
    ("a cat's  house", ["Cats house"], 1, 1),
    ("black cat", ["the cat", "a dog"], 0, 2 / 3),
    ("cat cat dog", ["cat dog dog"], 0, 2 / 3),
    ("dog", ["cat"], 0, 0),
    ("", [], 1, 1),
    ("the", [], 1, 1),
    ("dog", [], 0, 0),
])
def test_scores_follow_the_official_rules(found, expected, em, f1):
  q = spans.Question("q", "", "", tuple((0, text) for text in expected))
  scores = squad.score([q], [found], has_unanswerable=True)
  assert scores == {"em": em, "f1": pytest.approx(f1)}


@pytest.mark.parametrize("has_unanswerable, em, f1", [(False, 1, 0), (True, 0, 0)])
def test_an_answer_without_words_is_scored_as_in_the_script_of_the_version(
    has_unanswerable, em, f1):
  """Script 1.1 compares it, and shares no words with it; script 2.0 drops it."""
  q = spans.Question("q", "", "", ((0, "A"), (0, "cat")))
  assert squad.score([q], ["the"], has_unanswerable) == {"em": em, "f1": f1}


# --------------------------------------------------------------- real files


@pytest.mark.parametrize("name, count", [("train-v1.1.first12articles.json.gz", 4370),
                                         ("dev-v1.1.rebuilt.json.gz", 10570)])
def test_answers_of_real_files_come_back(data_dir, name, count):
  """Labels of all windows give the answers, except those that end in a word, as "1960" in 1960s."""
  questions = squad.read_questions(data_dir / "squad" / name)
  assert len(questions) == count
  questions = questions[::10]
  tokenizer = tokenizers.load_tokenizer(data_dir / "vocab" / "bert-base-uncased-vocab.txt")
  text_format = rows_lib.make_text_format(
      tokenizer, types.SimpleNamespace(family="bert", num_segments=2), make_config(max_length=384))
  config = make_config(max_length=384, max_question=64, stride=128, max_answer=60)
  rows, windows = spans.make_rows(questions, config, text_format)
  answers = spans.find_answers(questions, windows, config, perfect_outputs(rows))
  exact = np.mean([squad.normalize(found.text) == squad.normalize(q.answers[0][1])
                   for q, found in zip(questions, answers, strict=True)])
  assert exact > 0.985


def test_a_test_set_of_2_0_has_all_answers_or_none(tmp_path):
  """A question without the key would be scored as one that has no answer."""
  for name in ("train", "dev", "test"):
    write_json(tmp_path / f"{name}-v2.0.json", question("a dog"), question("a bird", "q7"))
  path = tmp_path / "test-v2.0.json"
  content = json.loads(path.read_text())
  del content["data"][0]["paragraphs"][0]["qas"][0]["answers"]
  path.write_text(json.dumps(content))
  with pytest.raises(DataError, match="test-v2.0.json: not in SQuAD's JSON .*answers"):
    squad.open_task(make_config(name="squad2", data=str(tmp_path)), make_text_format())
