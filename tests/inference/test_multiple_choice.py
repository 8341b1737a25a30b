"""bertgpt.inference.multiple_choice: endings against logits of one token per pass, and refusals."""

import json
import math
import types

import jax
import numpy as np
import pytest
from one_by_one import after, encode, instead

from bertgpt import cli
from bertgpt.data.tokens import training
from bertgpt.errors import ConfigError
from bertgpt.inference import measures, multiple_choice, resumable, suites, zero_shot
from bertgpt.inference.suites import SUITES, make_choice
from bertgpt.inference.zero_shot import Settings

SUITE = SUITES["choices"]
CHOICES = [
    {"context": "The cat sees the dog near", "endings": ["a tree.", "the the", "a"], "label": 0},
    {"context": "The bird likes", "endings": ["a cloud near the river.", "house"], "label": 1},
    {"context": "A road leaves the", "endings": ["field", "light", "dog the", "near near near a"],
     "label": 2},
    {"context": "The stone " * 30, "endings": ["takes the light", "river river"], "label": 0},
    {"context": "", "endings": ["The cat sees.", "tree"], "label": 0},
    {"context": "The cat", "endings": ["sees", "sees"], "label": 0},
]
METRICS = {"acc": lambda ending: 1, "acc_norm": len, "acc_bytes": lambda e: len(e.encode())}


def entries(choices):
  return [make_choice(x["context"], x["endings"], x["label"]) for x in choices]


def expect(choices, score):
  """Returns the share of right answers by metric, in plain loops."""
  found = {}
  for metric, length in METRICS.items():
    right = 0
    for x in choices:
      scores = [score(x["context"], e) / length(e) for e in x["endings"]]
      right += all(scores[x["label"]] > s for i, s in enumerate(scores) if i != x["label"])
    found[metric] = right / len(choices)
  return found


def by_gpt(gpt, window):
  def score(context, ending):
    seen = encode(gpt, context.rstrip()) or [gpt.tokenizer.eod_id]
    target = encode(gpt, ending)
    seen, logp = seen[-(window - len(target)):], 0.0
    for token in target:
      logp += after(gpt, seen)[token]
      seen = [*seen, token]
    return logp
  return score


def by_bert(bert, window):
  def score(context, ending):
    target = encode(bert, ending)
    tokens = (encode(bert, context) + target)[-(window - 2):]
    return sum(instead(bert, tokens, i)[tokens[i]]
               for i in range(len(tokens) - len(target), len(tokens)))
  return score


@pytest.mark.parametrize("window", [64, 60, 16])
@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_scores_are_those_of_one_token_per_pass(request, kind, window):
  trained = request.getfixturevalue(kind)
  score = {"gpt": by_gpt, "bert": by_bert}[kind](trained, window)
  # The long context has 60 tokens: in 64, it is cut only by a BERT, before its longer ending.
  num_cut = {64: int(kind == "bert"), 60: 2, 16: 2}[window]
  totals, settings = {}, Settings(window, 8, 0, 3)
  parts = [measures.make_part(SUITE, entry) for entry in entries(CHOICES)]
  records = multiple_choice.add_choices(trained, SUITE, parts, settings, totals)
  for record, x in zip(records, CHOICES, strict=True):
    expected = [score(x["context"], ending) for ending in x["endings"]]
    np.testing.assert_allclose(record["logp"], expected, rtol=1e-4)
  found = multiple_choice.finish_choices(trained, SUITE, totals, settings)
  protocol = found.pop("protocol")
  assert found == expect(CHOICES, score) and 0 < found["acc"] < 1
  cut = f", {num_cut} of them with a context cut at its left to fit {window} tokens, "
  assert (cut in protocol) == (num_cut > 0)
  assert protocol.startswith("6 contexts with 15 endings, ") and ", chance 0.431, " in protocol
  assert "1 tie of acc and 1 tie of acc_norm and 1 tie of acc_bytes counted as wrong" in protocol
  assert ("each token masked once" in protocol) == (kind == "bert")


def test_the_metrics_differ_on_these_choices(gpt):
  """Otherwise the test above could not tell them apart."""
  choices = [{"context": "The cat", "endings": ["sees the dog near a tree", "sees"], "label": 0},
             {"context": "The cat", "endings": ["sees", "sees the dog near a tree"], "label": 0}]
  found = zero_shot.measure(gpt, SUITE, entries(choices), Settings(64, 8, 0, 4))
  assert found["acc"] == 0.5 and found["acc_norm"] == 0.5  # One ending is longer and less likely.
  first = zero_shot.measure(gpt, SUITE, entries(choices[:1]), Settings(64, 8, 0, 4))
  assert (first["acc"], first["acc_norm"]) == (0, 1)


@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_endings_of_a_uniform_model_differ_by_their_tokens_and_letters(request, kind):
  """Closed form: every token has the log-probability -log V."""
  trained = request.getfixturevalue(kind)
  trained = trained._replace(params=jax.tree.map(np.zeros_like, trained.params))
  choices = [{"context": "The cat", "endings": ["a", "a a", "dog"], "label": 2},
             {"context": "The cat", "endings": ["tree", "a a", "a a a a"], "label": 0},
             {"context": "The cat", "endings": ["tree", "a a", "a a a a"], "label": 1}]
  totals = {}
  parts = [measures.make_part(SUITE, entry) for entry in entries(choices)]
  settings = Settings(64, 8, 0, 4)
  records = multiple_choice.add_choices(trained, SUITE, parts, settings, totals)
  for record, x in zip(records, choices, strict=True):
    counts = [len(encode(trained, ending)) for ending in x["endings"]]
    np.testing.assert_allclose(
        record["logp"], np.array(counts) * -math.log(trained.config.model.vocab_size), rtol=1e-5)
  assert [record["acc"] for record in records] == [False, True, False]
  assert [record["acc_norm"] for record in records] == [True, True, False]
  found = multiple_choice.finish_choices(trained, SUITE, totals, settings)
  assert "1 tie of acc counted as wrong" in found["protocol"]  # 'a' and 'dog': one token each.


def test_white_space_between_context_and_ending_may_be_in_either(gpt):
  """A byte-level tokenizer joins it to the word after it; it is not part of the ending's length."""
  tokenizer = training.train_tokenizer(
      types.SimpleNamespace(kind="bpe", vocab_size=275), ["the king saw some power"] * 9)
  trained = gpt._replace(tokenizer=tokenizer)
  forms = [("the king saw", ["power", "some"]), ("the king saw ", ["power", "some"]),
           ("the king saw", [" power", " some"])]
  found = [[list(x.tokens) for x in multiple_choice.encode_choices(
      trained, SUITE, [measures.make_part(SUITE, make_choice(*form, 0))], Settings(64, 8, 0, 4))]
           for form in forms]
  assert found[0] == found[1] == found[2]
  part = measures.make_part(SUITE, make_choice(*forms[0], 0))
  for ending, text in zip(multiple_choice.encode_choices(
      trained, SUITE, [part], Settings(64, 8, 0, 4)), forms[0][1], strict=True):
    scored = ending.row.tokens[ending.row.first:]
    assert tokenizer.decode(ending.tokens) == f"the king saw {text}"
    assert scored.tolist() == tokenizer.encode([f" {text}"])[0].tolist()
  assert make_choice("a\n", ["b", "c"], 1) == ("1", "a", "\nb", "\nc")
  assert make_choice("ab", ["c", " d"], 0, delimiter="") == ("0", "ab", "c", " d")
  assert make_choice("  ", [" b", "c"], 0) == ("0", "", "b", "c")


def test_characters_and_bytes_are_counted_without_the_space_before_an_ending(gpt, monkeypatch):
  scorer = zero_shot.scorers.find(gpt)._replace(
      score=lambda trained, rows, size: [np.array([-x]) for x in (8.0, 5.0)])
  monkeypatch.setattr(zero_shot.scorers, "find", lambda trained: scorer)
  found = zero_shot.measure(gpt, SUITE, [make_choice("a", [" éééé", "aaa"], 0)],
                            Settings(64, 8, 0, 4))
  # -8 / 4 < -5 / 3, but -8 / 8 > -5 / 3.
  assert (found["acc"], found["acc_norm"], found["acc_bytes"]) == (0, 0, 1)


def test_a_decoder_without_a_start_needs_a_context(gpt, monkeypatch):
  """As in GPT-1."""
  monkeypatch.setattr(type(gpt), "start_id", -1)
  settings = Settings(64, 8, 0, 4)
  assert zero_shot.measure(gpt, SUITE, entries(CHOICES[:3]), settings)["acc"] >= 0
  with pytest.raises(ConfigError, match="'The cat sees.' has no token before it that predicts"):
    zero_shot.measure(gpt, SUITE, entries(CHOICES[4:5]), settings)


def test_an_imported_token_that_begins_a_text_is_before_the_context(gpt):
  begun = gpt._replace(bos_id=7)
  part = measures.make_part(SUITE, make_choice("The cat", ["sees", "dog"], 0))
  for ending in multiple_choice.encode_choices(begun, SUITE, [part], Settings(64, 8, 0, 4)):
    assert ending.row.tokens.tolist() == [7, *ending.tokens] and ending.row.first == 3


@pytest.mark.parametrize("choice, window, fragment", [
    (("The cat", ["sees " * 9, "a"], 0), 8, "has 9 tokens, and the window holds "),
    (("The cat", ["\x01", "a"], 0), 64, "has no tokens of its own. Remove its object")])
@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_endings_that_cannot_be_scored(request, kind, choice, window, fragment):
  with pytest.raises(ConfigError, match=fragment):
    zero_shot.measure(request.getfixturevalue(kind), SUITE, [make_choice(*choice)],
                      Settings(window, 4, 0, 4))


# ------------------------------------------------------------------ the command


def run(capsys, *argv):
  """Returns (exit code, lines on stdout, lines on stderr) of a command."""
  capsys.readouterr()
  code = cli.main([str(a) for a in argv])
  output = capsys.readouterr()
  return code, output.out.splitlines(), output.err.splitlines()


def write(path, objects):
  path.write_text("".join(x if isinstance(x, str) else json.dumps(x) + "\n" for x in objects))


def test_the_command_scores_a_file_and_writes_every_choice(capsys, finished, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write(tmp_path / "a.jsonl", [*CHOICES[:3], "\n", *CHOICES[3:]])
  argv = ["evaluate", f"--workdir={finished}", "--suite=choices=a.jsonl"]
  code, lines, _ = run(capsys, *argv, "--out=scores.jsonl")
  assert code == 0 and lines[0].startswith("choices: a.jsonl, 6 contexts with 15 endings, ")
  scores = dict(line.split(" ") for line in lines[1:])
  records = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
  assert [(r["text"], r["label"], len(r["logp"])) for r in records] == [
      (i, x["label"], len(x["endings"])) for i, x in enumerate(CHOICES, 1)]
  for metric in METRICS:
    assert float(scores.pop(f"choices/{metric}")) == pytest.approx(
        np.mean([record[metric] for record in records]), rel=1e-5)
  assert not scores
  limited = run(capsys, *argv, "--limit=2")
  assert limited[1][0].startswith("choices: a.jsonl, 2 contexts with 5 endings, ")


@pytest.mark.parametrize("interrupted_at", [1, 2])
def test_interrupted_work_resumes_to_the_same_bytes(capsys, finished_gpt, tmp_path, monkeypatch,
                                                    interrupted_at):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(zero_shot, "CHUNK_ENTRIES", 2)
  write(tmp_path / "a.jsonl", CHOICES)
  argv = ["evaluate", f"--workdir={finished_gpt}", "--suite=choices=a.jsonl"]
  expected = run(capsys, *argv, "--out=whole.jsonl")
  commit, count = resumable.Unfinished.commit, 0

  def fail(self, **state):
    nonlocal count
    count += 1
    if count == interrupted_at:
      raise KeyboardInterrupt
    commit(self, **state)

  with monkeypatch.context() as patch:
    patch.setattr(resumable.Unfinished, "commit", fail)
    assert run(capsys, *argv, "--out=parts.jsonl")[0] == 130
  assert run(capsys, *argv, "--out=parts.jsonl")[:2] == expected[:2]
  assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


GOOD = CHOICES[0]


@pytest.mark.parametrize("bad, code, fragment", [
    ({"ctx": "a", "endings": ["b", "c"], "label": 0}, 2,
     "has no field 'context'. It has 'ctx', 'endings', 'label'. Give every object the fields "
     "context, endings, label"),
    ({"context": "a", "endings": ["b", "c"]}, 2, "has no field 'label'"),
    (GOOD | {"label": 3}, 65, "label is 3, but the 3 endings have the indices 0 to 2"),
    (GOOD | {"label": -1}, 65, "label is -1, but the 3 endings"),
    (GOOD | {"label": "1"}, 65, 'label is "1", not a whole number. Give the index'),
    (GOOD | {"label": True}, 65, "label is true, not a whole number"),
    (GOOD | {"label": 1.0}, 65, "label is 1.0, not a whole number"),
    (GOOD | {"endings": ["b"]}, 65, "endings has 1. Give a list of two or more texts"),
    (GOOD | {"endings": "bc"}, 65, "endings is not a list"),
    (GOOD | {"endings": ["b", " \n", "c"]}, 65, "ending 1 is blank. Give a text"),
    (GOOD | {"endings": ["b", 2, "c"]}, 65, "ending 1 is not a text. Repair it"),
    (GOOD | {"context": None}, 65, "context is not a text. Repair it"),
    (GOOD | {"context": "a\0"}, 65, "context has a NUL character at character 1. Repair it"),
    (GOOD | {"delimiter": "Answer:"}, 65, "delimiter is not white space"),
    ([GOOD], 65, "is not a JSON object. Each line must hold one JSON object"),
    ("{'context'}\n", 65, "Each line must hold one JSON object"),
], ids=str)
def test_a_bad_object_is_one_line_that_names_it(capsys, finished_gpt, tmp_path, monkeypatch, bad,
                                                code, fragment):
  monkeypatch.chdir(tmp_path)
  write(tmp_path / "a.jsonl", [GOOD, "\n", bad])
  found, out, (line,) = run(capsys, "evaluate", f"--workdir={finished_gpt}",
                            "--suite=choices=a.jsonl")
  assert (found, out) == (code, [])
  assert "--suite choices a.jsonl: line 3: " in line and fragment in line


def test_other_sources_are_refused(capsys, finished_gpt, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "empty.jsonl").write_text("\n")
  for file, fragment in (("tfds:x:test#a", "choices are read from a file only"),
                         ("empty.jsonl", "--suite choices empty.jsonl: holds no text"),
                         ("none.jsonl", "--suite choices none.jsonl: no such file")):
    code, out, (line,) = run(capsys, "evaluate", f"--workdir={finished_gpt}",
                             f"--suite=choices={file}")
    assert code == 2 and not out and fragment in line
  with pytest.raises(ValueError, match="label is 2"):
    suites.make_choice("a", ["b", "c"], 2)
