"""bertgpt.report.end_of_run: baselines against a plain count, and the report of a finished run."""

import collections
import math
import os
import re
import shutil
import sys
import types

import jax
import numpy as np
import pytest
import small_runs
import tiny
from matplotlib import image

from bertgpt import cli
from bertgpt import config as config_lib
from bertgpt.config import choices, families
from bertgpt.config.overrides import set_field
from bertgpt.config.stored import from_json, to_json
from bertgpt.data.batches import loader
from bertgpt.data.batches.rows import EVAL_SEED, TrainRows
from bertgpt.data.corpus import prepare
from bertgpt.data.corpus.corpus import open_corpus
from bertgpt.data.tokens import lost
from bertgpt.data.tokens.vocabulary import Vocabulary, make_vocabulary
from bertgpt.inference import fill
from bertgpt.report import end_of_run as report
from bertgpt.report import picture, samples
from bertgpt.report.baselines import (
    causal_baselines,
    larger_class_share,
    masked_unigram_baseline,
    probability_shown_as_is,
)
from bertgpt.runs import corpora
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.metrics_file import read_curves
from bertgpt.training import finished, objectives, steps


class Run:
  """A finished run, its corpus, and the corpus' documents as lists of ids."""

  def __init__(self, path):
    self.trained = trained_lib.load_trained(path)
    corpus = prepare.ensure_prepared(self.trained.config)
    self.train_set, self.held_out = (open_corpus(corpus, s) for s in ("train", "validation"))
    scores = {tag.split("/")[-1]: points[-1][1] for tag, points in read_curves(path).items()
              if tag.startswith("eval/")}
    self.finished = finished.Finished(path, self.trained, self.train_set, self.held_out,
                                      scores)
    documents = self.train_set.tokens(np.arange(len(self.train_set)))
    is_causal = self.trained.config.objective.name == "causal"
    end = [self.trained.tokenizer.eod_id] * is_causal
    self.documents = [[*map(int, tokens), *end] for tokens in documents]
    size = self.trained.config.model.vocab_size
    counts = collections.Counter(token for tokens in self.documents for token in tokens)
    total = sum(counts.values()) + size
    self.unigram = [(counts[token] + 1) / total for token in range(size)]


@pytest.fixture(scope="module")
def bert(finished_bert):
  return Run(finished_bert)


@pytest.fixture(scope="module")
def gpt(finished_gpt):
  return Run(finished_gpt)


# --------------------------------------------------------------- baselines


@pytest.mark.parametrize("with_mask, with_random", [(0.8, 0.1), (1.0, 0.0), (0.5, 0.0)])
def test_masked_baseline_is_bayes_rule_without_context(bert, with_mask, with_random):
  """The oracle works row by row, from the joint table of (target, shown token)."""
  with bert.trained.config.unlocked():
    config = bert.trained.config.copy_and_resolve_references()
  config.objective.update(replace_with_mask=with_mask, replace_with_random=with_random)
  trained = bert.trained._replace(config=config)
  vocabulary = make_vocabulary(trained.tokenizer)
  corrupt = jax.jit(objectives.make_objective(config, vocabulary).corrupt)
  size = vocabulary.size
  joint = np.array(bert.unigram)[:, None] * (  # [target, shown]
      (1 - with_mask - with_random) * np.eye(size) + with_random / size)
  joint[:, vocabulary.mask_id] = np.array(bert.unigram) * with_mask
  nats, correct, count = 0.0, 0, 0
  single = config.copy_and_resolve_references()
  single.eval.batch_size = 1
  for i, row in enumerate(loader.make_eval_batches(bert.held_out, single, 0, slice(0, 1))):
    row = corrupt(row, jax.random.key(EVAL_SEED), np.array([i], np.int32))
    row = jax.device_get(row)
    for target, place, weight in zip(row["predict_targets"][0], row["predict_positions"][0],
                                     row["predict_weights"][0], strict=True):
      if weight:
        posterior = joint[:, row["tokens"][0, place]]
        nats -= math.log(posterior[target] / posterior.sum())
        correct += target == posterior.argmax()
        count += 1
  found = masked_unigram_baseline(bert.finished._replace(trained=trained))
  assert count > 30
  assert found.accuracy == pytest.approx(correct / count)
  assert found.perplexity == pytest.approx(math.exp(nats / count), rel=1e-6)


def with_fields(config, **fields):
  config = from_json(to_json(config))  # A copy of the phases, too.
  for field, value in fields.items():
    set_field(config, field, value)
  return config


def test_masked_baseline_has_the_masks_of_the_evaluation(bert):
  """The masking rate comes from the phase, or from a field for evaluations only."""
  def baseline(**fields):
    config = with_fields(bert.trained.config, **fields)
    return masked_unigram_baseline(bert.finished._replace(
        trained=bert.trained._replace(config=config)))

  expected = baseline(**{"objective.mask_prob": 0.4})
  assert baseline(**{"phases[0].mask_prob": 0.4}) == expected
  assert baseline(**{"phases[0].mask_prob": 0.3, "eval.mask_prob": 0.4}) == expected
  assert baseline() != expected


def test_masked_baseline_knows_how_often_special_tokens_are_targets(bert):
  """By Fairseq's rule, any position may be a target, so all tokens of the rows count."""
  with bert.trained.config.unlocked():
    config = bert.trained.config.copy_and_resolve_references()
  config.objective.update(mask_rule="fairseq", replace_with_mask=1.0, replace_with_random=0.0)
  run = bert.finished._replace(trained=bert.trained._replace(config=config))
  rows = TrainRows(bert.train_set, config, 0, 0)
  batch = rows.read(np.arange(rows.rows_per_epoch))
  tokens = batch["tokens"][batch["sequence_ids"] > 0]
  special = list(make_vocabulary(bert.trained.tokenizer).special_ids)
  size = config.model.vocab_size
  p = np.bincount(tokens, minlength=size) / len(tokens)
  assert p[special].sum() > 0.1
  text = np.array(bert.unigram)
  text[special] = 0
  p = np.where(np.isin(np.arange(size), special), p, text / text.sum() * (1 - p[special].sum()))
  expected = 0.0  # The cross-entropy of held-out rows, over all their positions.
  held_out = [token for batch in loader.make_eval_batches(bert.held_out, config, 0, slice(0, 8))
              for token in batch["tokens"][batch["sequence_ids"] > 0]]
  expected = math.exp(-np.mean(np.log(p[held_out])))
  found = masked_unigram_baseline(run)
  assert found.perplexity == pytest.approx(expected, rel=0.1)
  assert found.accuracy == pytest.approx(np.mean(held_out == p.argmax()), abs=0.05)


@pytest.mark.parametrize("rule, special", [("bert", 0.5 / 20), ("fairseq", 0.0)])
def test_a_token_shown_is_the_target_or_drawn_at_random(rule, special):
  """Of 20 ids, 4 are special; half of the targets are shown unchanged, half as a random id."""
  config = config_lib.base()
  config.objective.update(mask_rule=rule, replace_with_mask=0.0, replace_with_random=0.5)
  vocabulary = Vocabulary(20, 4, (0, 2, 3, 4), np.zeros(20, bool), np.zeros(20, bool))
  unigram = np.arange(1, 21) / 210
  drawn = np.full(20, 0.5 / 20 if special else 0.5 / 16)
  drawn[[0, 2, 3, 4]] = special
  expected = 0.5 * unigram / (0.5 * unigram + drawn)
  expected[4] = 0
  np.testing.assert_allclose(probability_shown_as_is(np.arange(20), unigram, config.objective,
                                                     vocabulary), expected, rtol=1e-12)


def test_nsp_baseline_is_the_share_of_the_larger_class(bert):
  """The test counts pair by pair. A lone sentence gets a random partner, so classes differ."""
  labels = []
  for batch in loader.make_eval_batches(bert.held_out, bert.trained.config, 0, slice(0, 8)):
    for row, slot in zip(*np.nonzero(batch["nsp_weights"]), strict=True):
      labels.append(int(batch["nsp_labels"][row, slot]))
  share = max(labels.count(0), labels.count(1)) / len(labels)
  found = larger_class_share(bert.finished)
  assert found == pytest.approx(share) and len(labels) > 10


def test_bigram_baseline_is_witten_and_bells(gpt):
  """The oracle reads the documents in the order in which they are counted."""
  order = np.random.default_rng(0).permutation(len(gpt.documents))
  stream = [token for i in order for token in gpt.documents[i]]
  after = collections.defaultdict(collections.Counter)
  for first, second in zip(stream[:-1], stream[1:], strict=True):
    after[first][second] += 1

  def probability(first, second):
    seen, kinds = sum(after[first].values()), len(after[first])
    if not seen:
      return gpt.unigram[second]
    return (after[first][second] + kinds * gpt.unigram[second]) / (seen + kinds)

  assert sum(probability(stream[0], t) for t in range(len(gpt.unigram))) == pytest.approx(1)
  unigram_nats = bigram_nats = count = 0
  for batch in loader.make_eval_batches(gpt.held_out, gpt.trained.config, 0, slice(0, 8)):
    for first, second, weight in zip(*(batch[name].ravel().tolist() for name in
                                       ("tokens", "targets", "loss_weights")), strict=True):
      if weight:
        unigram_nats -= math.log(gpt.unigram[second])
        bigram_nats -= math.log(probability(first, second))
        count += 1
  found = causal_baselines(gpt.finished)
  np.testing.assert_allclose(
      found, (math.exp(unigram_nats / count), math.exp(bigram_nats / count)), rtol=1e-9)
  assert found[1] < found[0]


# ------------------------------------------------------------ output


def test_a_finished_run_has_its_report(finished):
  text = (finished / "report.md").read_text()
  assert text.startswith("Held-out results after 20 steps")
  scores = {tag: points[-1][1] for tag, points in read_curves(finished).items()}
  name = "mlm" if "MLM" in text else "lm"
  row = next(line for line in text.splitlines() if "perplexity" in line)
  assert float(row.split("perplexity")[1].split()[0]) == pytest.approx(
      scores[f"eval/validation/{name}_perplexity"], abs=0.06)
  assert str(finished / "loss.png") in text
  assert ("guesses: " if name == "mlm" else "A sampled continuation") in text


@pytest.mark.slow
def test_the_report_of_a_diffusion_has_its_bound_and_a_text(finished_diffusion):
  text = (finished_diffusion / "report.md").read_text()
  scores = {tag: points[-1][1] for tag, points in read_curves(finished_diffusion).items()}
  row = next(line for line in text.splitlines() if "perplexity bound" in line).split()
  assert float(row[2]) == pytest.approx(scores["eval/validation/diffusion_perplexity"], abs=0.06)
  assert 5 < float(row[3]) < 90  # The unigram model of a vocabulary of 90.
  assert "A continuation, unmasked token by token" in text and "guesses: " in text
  assert (finished_diffusion / "loss.png").is_file()
  assert_aligned(text.splitlines())


@pytest.mark.slow
def test_a_report_without_a_single_held_out_pair_has_no_score_of_pairs(tmp_path, recipe):
  """Documents of one sentence have no order of sentences."""
  text = tmp_path / "text.txt"
  text.write_text("\n\n".join(line for line in small_runs.make_text(60).splitlines() if line))
  assert cli.main(["train", f"--config={recipe}:mlm_sop", f"--workdir={tmp_path / 'run'}",
                   f"--config.data.source=text:{text}", f"--config.data.cache_dir={tmp_path}",
                   "--config.model.family=albert", "--config.phases[0].steps=2"]) == 0
  report = (tmp_path / "run" / "report.md").read_text()
  assert "SOP: no pair of the held-out text has a label." in report
  assert "MLM perplexity" in report and "SOP accuracy" not in report


def test_the_losses_of_all_objectives_have_a_description_and_no_others():
  losses = {objective.loss for objective in choices.OBJECTIVES.values()}
  assert report.DESCRIPTIONS.keys() == losses


@pytest.mark.parametrize("run, sample", [("bert", "guesses: "), ("gpt", "A sampled continuation")])
def test_the_report_about_a_new_loss_has_all_scores_and_samples(
    request, monkeypatch, tmp_path, run, sample):
  """A run with a new objective must not end with an error after its last step."""
  run = request.getfixturevalue(run)
  name = run.trained.config.objective.name
  monkeypatch.setitem(choices.OBJECTIVES, name,
                      choices.OBJECTIVES[name]._replace(loss="word_order_loss"))
  scores = {"word_order_loss": 3.25, "word_order_accuracy": 0.125, "word_order_perplexity": 25.79,
            "far_recall": 0.5}
  (tmp_path / "metrics.jsonl").write_text(
      '{"step": 2, "train/loss": 5.0, "train/word_order_loss": 4.0}\n'
      '{"step": 4, "train/loss": 4.0, "train/word_order_loss": 3.0}\n')
  shutil.copy(run.finished.path / "config.json", tmp_path)
  report.write(run.finished._replace(path=tmp_path, scores=scores))
  text = (tmp_path / "report.md").read_text()
  rows = dict(line.split() for line in text.splitlines()[3:7])
  assert rows == {"word_order_loss": "3.25", "word_order_accuracy": "12.5%",
                  "word_order_perplexity": "25.79", "far_recall": "50.0%"}
  assert sample in text and (tmp_path / "loss.png").is_file()
  assert_aligned(text.splitlines())


@pytest.mark.parametrize("parts, note", [
    ([], "comparable between tokenizers"),
    (["case", "accents"], "comparable only with tokenizers that lose case and accents")])
def test_the_report_says_what_bits_per_byte_can_be_compared_with(gpt, monkeypatch, tmp_path, parts,
                                                                 note):
  monkeypatch.setattr(lost, "find_lost", lambda *arguments: parts)
  text = write_report(gpt, tmp_path, {"lm_loss": 3.25, "lm_perplexity": 25.8, "bits_per_byte": 1.5})
  row, line = (line for line in text.splitlines() if "bits per byte" in line)
  assert line == f"  bits per byte: {note}." and row.endswith("1.500")


@pytest.mark.parametrize("name", choices.OBJECTIVES)
def test_every_objective_has_what_its_description_needs(name):
  """Otherwise its report would silently have no baseline."""
  config = tiny.make_config(name)
  loss = choices.OBJECTIVES[name].loss
  stem = loss.removesuffix("loss")
  scores = {loss: 3.0, f"{stem}accuracy": 0.5, f"{stem}perplexity": 20.0,
            **dict.fromkeys(choices.OBJECTIVES[name].other_metrics, 0.5)}
  able = families.find(config).abilities | choices.OBJECTIVES[name].abilities
  run = types.SimpleNamespace(
      trained=types.SimpleNamespace(config=config, can=able.__contains__), scores=scores,
      held_out=types.SimpleNamespace(vocabulary=tiny.make_vocabulary()))
  assert report.find_description(run) is report.DESCRIPTIONS[loss].describe


def write_report(run, folder, scores):
  """Returns the report of a finished run with other scores."""
  (folder / "metrics.jsonl").write_text('{"step": 2, "train/loss": 5.0}\n')
  shutil.copy(run.finished.path / "config.json", folder)
  report.write(run.finished._replace(path=folder, scores=scores))
  return (folder / "report.md").read_text()


def test_the_report_has_bits_per_byte_only_if_the_objective_counts_bytes(gpt, tmp_path):
  text = write_report(gpt, tmp_path, {"lm_loss": 3.25, "lm_accuracy": 0.125, "lm_perplexity": 25.8})
  assert "bigram" in text and "25.8" in text and "bits per byte" not in text
  assert_aligned(text.splitlines())


@pytest.mark.parametrize("run, loss", [("bert", "lm_loss"), ("bert", "bilm_loss"),
                                       ("gpt", "mlm_loss"), ("gpt", "diffusion_loss")])
def test_the_report_about_a_known_loss_over_other_arrays_has_all_scores(
    request, monkeypatch, tmp_path, run, loss):
  """An objective may reuse the name of a loss, but the baselines of the loss need its batches."""
  run = request.getfixturevalue(run)
  name = run.trained.config.objective.name
  monkeypatch.setitem(choices.OBJECTIVES, name, choices.OBJECTIVES[name]._replace(loss=loss))
  stem = loss.removesuffix("loss")
  scores = {loss: 3.25, f"{stem}accuracy": 0.125, f"{stem}perplexity": 25.79, "forward_loss": 3.0,
            "backward_loss": 3.5}
  rows = dict(line.split() for line in write_report(run, tmp_path, scores).splitlines()[3:8])
  assert rows[loss] == "3.25" and rows[f"{stem}accuracy"] == "12.5%"


def test_the_report_of_a_masked_model_without_an_accuracy_has_its_scores(bert, tmp_path):
  text = write_report(bert, tmp_path, {"mlm_loss": 3.25, "mlm_perplexity": 25.79})
  assert "mlm_perplexity" in text and "unigram" not in text and "guesses: " in text


def test_columns_of_the_report_are_aligned(finished):
  assert_aligned((finished / "report.md").read_text().splitlines())


def assert_aligned(lines):
  """Checks that numbers end below the end of their columns' names, and that no line is too long."""
  header = next(i for i, line in enumerate(lines) if line.split()[:1] == ["model"])
  ends = [lines[header].index(name) + len(name) for name in lines[header].split()]
  for line in lines[header + 1:header + 3]:
    for end in ends:
      assert line[:end].rstrip() == line[:end] and line[end:end + 1] in ("", " ") or (
          not line[end - 10:end].strip())
  assert max(len(line) for line in lines[:-1]) <= 100


def test_the_curves_are_a_picture(finished):
  pixels = image.imread(finished / "loss.png")
  assert min(pixels.shape[:2]) > 200
  assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 10


def draw(monkeypatch, tmp_path, curves, baselines, steps):
  """Returns the panels of the picture as objects of matplotlib."""
  from matplotlib import pyplot as plt
  monkeypatch.setattr(plt, "close", lambda figure: None)
  phases = [config_lib.phase(steps=n, seq_len=16 << i) for i, n in enumerate(steps)]
  panels = {"mlm_loss": ("Masked language model", "nats"),
            "nsp_accuracy": ("Next-sentence prediction", "accuracy")}
  picture.plot_curves(curves, tmp_path / "loss.png", panels, baselines, phases)
  axes = plt.gcf().axes
  monkeypatch.undo()
  plt.close("all")
  return axes


def test_panels_show_curves_next_to_their_baselines(monkeypatch, tmp_path):
  """Losses are shown over all steps, but next-sentence accuracy only for the last phase."""
  steps = np.arange(10, 410, 10)
  curves = {"train/loss": [(s, 7.0) for s in steps],
            "train/mlm_loss": [(s, 6.0 - s / 200) for s in steps],
            "train/nsp_loss": [(s, 0.69) for s in steps],
            "train/nsp_accuracy": [(s, 0.95 if s <= 100 else 0.6) for s in steps],
            "eval/validation/mlm_loss": [(200, 5.0), (400, 4.2)],
            "eval/validation/nsp_accuracy": [(100, 0.95), (200, 0.58), (400, 0.64)]}
  baselines = {"mlm_loss": (6.1, "frequencies"), "nsp_accuracy": (0.55, "the larger class")}
  loss, accuracy = draw(monkeypatch, tmp_path, curves, baselines, (100, 300))
  lines = {line.get_label(): line for line in loss.lines}
  assert lines["training"].get_xydata().tolist() == [[s, 6.0 - s / 200] for s in steps]
  assert lines["held out"].get_xydata().tolist() == [[200, 5.0], [400, 4.2]]
  assert set(lines["frequencies"].get_ydata()) == {6.1}
  lines = {line.get_label(): line for line in accuracy.lines}
  assert lines["held out"].get_xydata().tolist() == [[200, 0.58], [400, 0.64]]
  np.testing.assert_allclose(lines["training"].get_ydata(), 0.6)
  assert min(lines["training"].get_xdata()) > 100
  assert set(lines["the larger class"].get_ydata()) == {0.55}
  for axis in (loss, accuracy):
    assert axis.get_title() and axis.get_xlabel() == "step" and axis.get_ylabel()
    low, high = axis.get_ylim()
    assert all(low <= y <= high for line in axis.lines if line.get_label() in lines
               for y in line.get_ydata())
    assert {text.get_text() for text in axis.get_legend().get_texts()} >= {"training", "held out"}


def test_panels_are_those_that_the_description_names(monkeypatch, tmp_path):
  points = [(10, 3.0), (20, 2.0)]
  curves = {"train/loss": points, "train/mlm_loss": points, "train/nsp_loss": points,
            "train/grad_norm": points}
  axis, = draw(monkeypatch, tmp_path, curves, {}, (20,))
  assert axis.get_title() == "Masked language model"


def test_a_model_that_is_too_large_for_one_device_has_no_samples():
  def fail(message):
    raise jax.errors.JaxRuntimeError(message)

  lines = report._sample(lambda run: fail("RESOURCE_EXHAUSTED: Out of memory"), None)
  assert "No samples: the whole model does not fit" in lines[-1]
  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
    report._sample(lambda run: fail("INTERNAL: another error"), None)


def test_smoothing_is_the_mean_of_neighbors():
  points = np.array([[10, 1.0], [20, 4.0], [30, 1.0], [40, 7.0]])
  np.testing.assert_allclose(picture.smooth(points, 3), [[20, 2.0], [30, 4.0]])
  np.testing.assert_array_equal(picture.smooth(points, 1), points)


def test_curves_of_a_run_too_short_to_be_logged(tmp_path):
  picture.plot_curves({"eval/validation/mlm_loss": [(3, 5.0)], "train/learning_rate": [(3, 0.1)]},
                      tmp_path / "loss.png", {"mlm_loss": ("Masked language model", "nats")}, {},
                      [config_lib.phase(steps=3)])
  assert image.imread(tmp_path / "loss.png").size


def test_guesses_are_words_of_held_out_sentences(bert):
  text = "\n".join(samples.guess_words(bert.trained, bert.held_out))
  found = re.findall(r"^  (\S.*(?:\n  \S.*)*)\n      guesses: (.*)$", text, re.MULTILINE)
  assert len(found) == 5
  for sentence, guesses in found:
    word, = re.findall(r"\[(\w+)\]", sentence)
    likeliest, _, own = guesses.partition(" (")
    names, shares = zip(*(guess.rsplit(" ", 1) for guess in likeliest.split(", ")), strict=True)
    shares = [int(share.rstrip("%")) for share in shares]
    assert len(shares) == 5 and shares == sorted(shares, reverse=True)
    if word in names:
      assert not own
    else:
      assert own.startswith(f"{word}: rank ") and int(own.rstrip(")").rsplit(" ", 1)[1]) > 5


def test_sentences_with_a_hidden_word_are_as_they_were(bert):
  """Sentences differ from the text only by the brackets: no space comes before a period."""
  documents = [bert.trained.tokenizer.decode(tokens)
               for tokens in bert.held_out.tokens(np.arange(len(bert.held_out)))]
  lines = samples.guess_words(bert.trained, bert.held_out)
  sentences = [line.strip() for line in lines if "guesses: " not in line]
  assert len(sentences) == 5
  for sentence in sentences:
    assert any(sentence.replace("[", "").replace("]", "") in text for text in documents)


def test_special_tokens_are_no_guesses(bert):
  """Special tokens are left out even if they are likeliest, like [UNK] early in training."""
  tokenizer = bert.trained.tokenizer
  specials = sorted({*tokenizer.special_ids, tokenizer.unk_id} - {-1})
  params = jax.tree.map(np.array, bert.trained.params)
  params["mlm"]["bias"][specials] = 50.0
  trained = bert.trained._replace(params=params)
  tokens = np.array([tokenizer.cls_id, tokenizer.mask_id, tokenizer.sep_id])
  assert fill.predict_masked(trained, tokens, [1])[0, specials].sum() > 0.99
  lines = [line for line in samples.guess_words(trained, bert.held_out) if "guesses: " in line]
  assert len(lines) == 5
  for name in ("PAD", "UNK", "CLS", "SEP", "MASK", "endoftext"):
    assert not any(name in line for line in lines)


def test_data_report_shows_masks_and_the_batches_that_training_sees(capsys, recipe, bert):
  assert cli.main(["data", f"--config={recipe}", "--steps=0,7"]) == 0
  text = capsys.readouterr().out
  config = bert.trained.config
  with loader.make_train_batches(bert.train_set, config, 0, 7, slice(0, 8)) as batches:
    assert f"step 7: sha256 {loader.batch_sha256(next(batches))}" in text
  with loader.make_train_batches(bert.train_set, config, 0, 0, slice(0, 8)) as batches:
    batch = next(batches)
  corrupt = objectives.make_objective(config, bert.train_set.vocabulary).corrupt
  key = steps.make_key(config, steps.MASK_STREAM, 0)
  masked = jax.device_get(jax.jit(corrupt)(batch, key, np.arange(8, dtype=np.int32)))
  is_target = masked["predict_weights"][0] > 0
  targets = np.asarray(masked["predict_targets"][0][is_target])
  in_order = targets[np.argsort(masked["predict_positions"][0][is_target])]
  decode = bert.trained.tokenizer.decode
  assert f"to predict: {' | '.join(decode([i]).strip() for i in in_order)}\n" in text
  assert "[MASK]" in text
  assert "B follows A" in text or "B is random" in text


def test_data_report_shows_as_many_masks_as_the_phase_has(capsys, recipe):
  def show(*fields):
    assert cli.main(["data", f"--config={recipe}", "--steps=0", *fields]) == 0
    return [line for line in capsys.readouterr().out.splitlines() if "to predict: " in line]

  many = show("--config.phases[0].mask_prob=0.5")
  assert many == show("--config.objective.mask_prob=0.5")
  assert sum(line.count("|") for line in many) > 2 * sum(line.count("|") for line in show())


def test_data_report_of_a_gpt(capsys, recipe):
  assert cli.main(["data", f"--config={recipe}:causal"]) == 0
  text = capsys.readouterr().out
  assert [f"step {i}: sha256" in text for i in range(4)] == [True, True, True, False]
  assert "[MASK]" not in text


def test_evaluating_a_finished_run_gives_the_scores_of_its_end(capsys, finished):
  expected = {tag.split("/")[-1]: points[-1][1]
              for tag, points in read_curves(finished).items() if tag.startswith("eval/")}
  capsys.readouterr()
  assert cli.main(["evaluate", f"--workdir={finished}", "--config.eval.batch_size=16"]) == 0
  found = dict(line.split() for line in capsys.readouterr().out.splitlines())
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert float(found[name]) == pytest.approx(value, rel=1e-4), name


def test_the_report_of_a_run_that_was_opened_again_is_that_of_its_end(
    finished_bert, bert, tmp_path, monkeypatch):
  """The report reads nothing again, because the text may have changed during the run."""
  path = shutil.copytree(finished_bert, tmp_path / "run")
  (path / "report.md").unlink()
  for name in ("checkpoints", "tokenizer"):
    shutil.rmtree(path / name)
  monkeypatch.setattr(corpora, "find_corpus", lambda config: pytest.fail("looked for again"))
  report.write(bert.finished._replace(path=path))
  written, first = ([line for line in (p / "report.md").read_text().splitlines()
                     if not line.startswith("Time:")] for p in (path, finished_bert))
  # The first report was written before the run had ended, so its time is shorter.
  assert [line.replace(str(path), str(finished_bert)) for line in written] == first


def test_a_report_is_complete_though_nobody_reads_what_is_printed(
    finished_bert, bert, tmp_path, monkeypatch):
  """As in `bertgpt train ... | head`, and in the runs of a sweep whose reader has gone."""
  path = shutil.copytree(finished_bert, tmp_path / "run")
  for name in ("report.md", "report.html"):
    (path / name).unlink(missing_ok=True)
  reader, writer = os.pipe()
  os.close(reader)
  with open(writer, "w") as stream:
    monkeypatch.setattr(sys, "stdout", stream)
    report.write(bert.finished._replace(path=path))
  assert (path / "report.md").is_file() and (path / "report.html").is_file()


def test_a_precision_of_no_token_is_no_zero():
  rows = report.replaced_rows({"rtd_recall": 0.0, "rtd_loss": 0.4})
  assert [row[:2] for row in rows] == [("RTD precision", "-"), ("RTD recall", "0.0%")]


def test_a_run_whose_losses_were_lost_has_a_report_without_curves(finished_bert, bert, tmp_path):
  shutil.copy(finished_bert / "config.json", tmp_path)
  (tmp_path / "metrics.jsonl").write_text('{"step": 2, "perf/step_seconds": 1.0}\n')
  report.write(bert.finished._replace(path=tmp_path))
  assert "MLM accuracy" in (tmp_path / "report.md").read_text()
  assert not (tmp_path / "loss.png").exists()


@pytest.mark.parametrize("value, shown", [
    (77.84, "77.8"), (999999.4, "999999.4"), (1.23e304, "1.2e+304")])
def test_a_perplexity_fits_into_its_column(value, shown):
  assert report.show_perplexity(value) == shown
