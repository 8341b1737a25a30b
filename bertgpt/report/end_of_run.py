"""The report at the end of a run: held-out scores next to baselines, samples, curves."""

import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from bertgpt import console, files
from bertgpt.config import choices, config_of_phase, metric_names, mixtures
from bertgpt.data.batches import formats, mixture
from bertgpt.data.tokens import lost
from bertgpt.devices import barrier, timeline, watchdog
from bertgpt.report import compare, goodput, picture
from bertgpt.report import curves as curves_lib
from bertgpt.report.baselines import (
  bidirectional_unigram,
  causal_baselines,
  larger_class_share,
  masked_unigram_baseline,
)
from bertgpt.report.samples import describe_continuation, describe_guesses
from bertgpt.runs import metrics_file
from bertgpt.training import metrics, objectives
from bertgpt.training.finished import Finished


def write(run: Finished) -> None:
  """Writes and prints report.md of a finished run, and writes loss.png and report.html.

  With several processes, process 0 writes, and the others wait for it: in JAX, a process that ends
  early waits at most five minutes for the others.
  """
  if jax.process_index() == 0:
    _write(run)
  with watchdog.paused():
    barrier.wait_for_all("the end of the report", barrier.FOREVER_S)


def _write(run: Finished) -> None:
  path, trained, held_out = run.path, run.trained, run.held_out
  lines = [f"Held-out results after {trained.step} steps ({held_out.path.name}, "
           f"{len(held_out)} document{'s' * (len(held_out) > 1)}):", ""]
  described = find_description(run)(run, run.scores)
  lines += described.lines
  if shares := mixture.describe_shares(trained.config, trained.step):
    lines += ["", "Rows that were trained on:", *(f"  {line}" for line in shares)]
  all_curves = metrics_file.read_curves(path)
  lines += describe_corpora(metrics_file.last_scores(all_curves),
                            choices.OBJECTIVES[trained.config.objective.name].loss)
  if curves := {tag: points for tag, points in all_curves.items()
                if tag.split("/")[-1] in described.panels}:
    picture.plot_curves(curves, path / "loss.png", described.panels, described.baselines,
                        trained.config.phases)
    lines += ["", f"Loss curves: {path / 'loss.png'}"]
  text = "\n".join(lines) + "\n"
  files.write_atomically(path / "report.md", text)
  console.print_stdout("\n" + text.removesuffix("\n"))
  timeline.flush()
  if time := goodput.line(path):  # Not in the report, which must not change when a run is reopened.
    console.print_stdout(time)
  for line in write_page(path):
    console.print_stdout(line)


def describe_corpora(scores: Mapping[str, float], loss: str) -> list[str]:
  """Returns lines with the held-out loss of every corpus; none if there is only one.

  Args:
    scores: tag of a held-out metric, such as 'eval/books/mlm_loss' -> its value at the end.
    loss: name of the loss.
  """
  found = [(tag.split("/")[1], value) for tag, value in scores.items() if tag.endswith(f"/{loss}")]
  if len(found) < 2:
    return []
  return ["", f"Held-out {loss} of every corpus:",
          *(f"  {mixtures.MAIN if name == 'validation' else name} {value:.4g}"
            for name, value in found)]


def write_page(path: pathlib.Path) -> list[str]:
  """Writes report.html: the report and all curves, next to the reference of the recipe, if any.

  Args:
    path: workdir of a finished run.
  Returns:
    A line that says whether the run is on course; none if there is no reference.
  """
  run = curves_lib.read_run(path)
  reference = curves_lib.find_reference(run)
  runs = [run] if reference is None else [run, reference]
  compare.write_page(runs, path / "report.html", f"Report of {path.name}")
  return compare.notes(runs)


class Description(NamedTuple):
  """Content of a report about a model.

  Attributes:
    lines: the table of scores and the samples.
    baselines: name of a metric, such as 'mlm_loss' -> (value without a model, its name).
    panels: name of a metric that gets a panel of the picture -> (title, label of its axis).
  """

  lines: list[str]
  baselines: dict[str, tuple[float, str]]
  panels: dict[str, tuple[str, str]]


def find_description(run: Finished) -> Callable[[Finished, Mapping[str, float]], Description]:
  """Returns the function that describes a model: that of its loss, if the run has what it needs.

  Objectives may share the name of a loss, but have other batches and scores.

  Args:
    run: a finished run.
  """
  config = run.trained.config
  entry = DESCRIPTIONS.get(choices.OBJECTIVES[config.objective.name].loss)
  if (entry is None or not run.trained.can(entry.ability)
      or not run.scores.keys() >= entry.scores):
    return describe_scores
  config = config_of_phase(config, len(config.phases) - 1, in_evaluation=True)
  objective = objectives.make_objective(config, run.held_out.vocabulary)
  blank = formats.make_zeros(objective.specs(config.phases[0]), 1)
  batch = jax.eval_shape(objective.corrupt, blank, jax.random.key(0), np.zeros(1, np.int32))
  return entry.describe if batch.keys() >= entry.arrays else describe_scores


def describe_scores(run: Finished, scores: Mapping[str, float]) -> Description:
  """Returns all scores under their names, without baselines, and samples that the model can make.

  Args:
    run: a finished run without a description of its own, see `find_description`.
    scores: name of a held-out metric -> its value at the end of the run.
  """
  table = [("", "model", "")]
  for name, value in scores.items():
    table.append((name, f"{value:.1%}" if metric_names.is_share(name) else f"{value:.4g}", ""))
  lines = align(table)
  if run.trained.can("generate") or run.trained.can("unmask"):
    lines += _sample(describe_continuation, run)
  if run.trained.can("fill"):
    lines += _sample(describe_guesses, run)
  panels = {name: (name, "nats") for name in scores if metric_names.is_loss(name)}
  panels |= {name: (name, "accuracy") for name in scores if name.endswith("_accuracy")}
  return Description(lines, {}, panels)


def _sample(describe: Callable[..., list[str]], run: Finished, *args: str) -> list[str]:
  """Returns the lines of a sample, or a note if the model is too large for one device."""
  try:
    return describe(run, *args)
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    return ["", "  No samples: the whole model does not fit on one device."]


def describe_masked_lm(run: Finished, scores: Mapping[str, float], title: str = "Masked",
                       hidden: str = "masked") -> Description:
  """Returns the scores of both heads next to their baselines, and masked words with guesses.

  Args:
    run: the finished run of a model with the ability "fill".
    scores: name of a held-out metric, such as 'mlm_accuracy' -> its value at the end of the run.
    title: kind of language model, for the title of its panel.
    hidden: which tokens the loss is computed for.
  """
  unigram = masked_unigram_baseline(run)
  loss = choices.OBJECTIVES[run.trained.config.objective.name].loss
  name = loss.removesuffix("_loss")
  table = [
      ("", "model", "unigram", ""),
      (f"{name.upper()} accuracy", f"{scores[f'{name}_accuracy']:.1%}", f"{unigram.accuracy:.1%}",
       f"{hidden} tokens guessed right"),
      (f"{name.upper()} perplexity", show_perplexity(scores[f"{name}_perplexity"]),
       show_perplexity(unigram.perplexity), "lower is better; 1 would be certainty")]
  baselines = {loss: (math.log(unigram.perplexity), "token frequencies, no context")}
  notes = ["unigram: knows how frequent each token is, and sees no context."]
  panels = {loss: (f"{title} language model", f"loss per {hidden} token, nats")}
  pair = formats.find(run.trained.config).pair
  if pair and (metric := f"{pair.name}_accuracy") not in scores:
    notes.append(f"{pair.name.upper()}: no pair of the held-out text has a label.")
  elif pair:
    share = larger_class_share(run)
    baselines[metric] = share, "always the more frequent answer"
    panels[metric] = pair.title, "accuracy"
    table += [("", "", "", ""), ("", "model", "constant", ""),
              (f"{pair.name.upper()} accuracy", f"{scores[metric]:.1%}", f"{share:.1%}",
               pair.question)]
    notes += ["constant: always gives the more frequent answer (share of the larger class)."]
  if "rtd_recall" in scores:
    table += [("", "", "", ""), *replaced_rows(scores)]
    panels["rtd_loss"] = "Replaced tokens", "loss per token, nats"
  lines = [*align(table), "", *(f"  {note}" for note in notes), *_sample(describe_guesses, run)]
  return Description(lines, baselines, panels)


def replaced_rows(scores: Mapping[str, float]) -> list[tuple[str, str, str, str]]:
  """Returns the rows of the table about replaced tokens; '-': the model calls no token replaced.

  Args:
    scores: name of a held-out metric -> its value.
  """
  values = [(name, scores.get(f"rtd_{name}")) for name in REPLACED_SCORES]
  return [(f"RTD {name}", "-" if value is None else f"{value:.1%}", "", REPLACED_SCORES[name])
          for name, value in values]


def describe_causal_lm(run: Finished, scores: Mapping[str, float]) -> Description:
  """Returns the scores next to their baselines, and a sampled continuation.

  Args:
    run: the finished run of a model with the ability "generate".
    scores: name of a held-out metric, such as 'lm_perplexity' -> its value at the end of the run.
  """
  unigram, bigram = causal_baselines(run)
  table = [
      ("", "model", "bigram", "unigram", ""),
      ("perplexity", *map(show_perplexity, (scores["lm_perplexity"], bigram, unigram)),
       "lower is better; 1 would be certainty")]
  notes = ["bigram: knows which token follows which. unigram: knows how frequent each token is."]
  if "bits_per_byte" in scores:
    table.append(("bits per byte", f"{scores['bits_per_byte']:.3f}", "", "", ""))
    notes.append("bits per byte: "
                 f"{lost.describe_lost(run.trained.tokenizer, is_prepared=True)}.")
  lines = [
      *align(table), "", *(f"  {note}" for note in notes),
      *_sample(describe_continuation, run)]
  return Description(lines, {"lm_loss": (math.log(bigram), "bigram model")},
                     {"lm_loss": ("Next token", "loss per token, nats")})


def describe_bidirectional_lm(run: Finished, scores: Mapping[str, float]) -> Description:
  """Returns the scores of both directions next to a baseline, and hidden words with guesses.

  Args:
    run: the finished run of a model with the ability "fill".
    scores: name of a held-out metric, such as 'bilm_perplexity' -> its value at the end of the run.
  """
  unigram = bidirectional_unigram(run)
  table = [
      ("", "model", "unigram", ""),
      ("perplexity", show_perplexity(scores["bilm_perplexity"]),
       show_perplexity(unigram.perplexity),
       "both directions; lower is better, 1 would be certainty"),
      *((f"  {name}", show_perplexity(metrics.perplexity(scores[f"{name}_loss"])), "", what)
        for name, what in (("forward", "from the words before"),
                           ("backward", "from the words after"))),
      ("accuracy", f"{scores['bilm_accuracy']:.1%}", f"{unigram.accuracy:.1%}",
       "words guessed right")]
  lines = [*align(table), "",
           "  unigram: knows how frequent each word is, and sees no context.",
           *_sample(describe_guesses, run)]
  return Description(lines, {"bilm_loss": (math.log(unigram.perplexity), "word frequencies")},
                     {"bilm_loss": ("Next and previous word", "loss per word, nats")})


def describe_diffusion(run: Finished, scores: Mapping[str, float]) -> Description:
  """Returns the bound next to its baseline, a sampled continuation, and masked words with guesses.

  Args:
    run: the finished run of a model with the ability "unmask".
    scores: name of a held-out metric, such as 'diffusion_loss' -> its value at the end of the run.
  """
  unigram = masked_unigram_baseline(run)
  table = [
      ("", "model", "unigram", ""),
      ("perplexity bound", show_perplexity(scores["diffusion_perplexity"]),
       show_perplexity(unigram.perplexity),
       "lower is better; 1 would be certainty"),
      ("accuracy", f"{scores['diffusion_accuracy']:.1%}", f"{unigram.accuracy:.1%}",
       "masked tokens guessed right, over all rates")]
  lines = [*align(table), "", "  unigram: knows how frequent each token is, and sees no context.",
           *_sample(describe_continuation, run, "A continuation, unmasked token by token"),
           *_sample(describe_guesses, run)]
  return Description(lines, {"diffusion_loss": (math.log(unigram.perplexity),
                                                "token frequencies, no context")},
                     {"diffusion_loss": ("Masked diffusion", "bound per token, nats")})


# Metric of replaced tokens -> its meaning.
REPLACED_SCORES = {"precision": "share of the tokens called replaced that are",
                   "recall": "share of the replaced tokens that are found"}


class Entry(NamedTuple):
  """A description with baselines, and what it needs. Without that, `describe_scores` is used.

  Attributes:
    describe: function that describes the model.
    ability: what the model must be able to do, for the samples.
    scores: held-out metrics that are shown, besides the loss.
    arrays: arrays of a batch after `Objective.corrupt` that the baselines read.
  """

  describe: Callable[[Finished, Mapping[str, float]], Description]
  ability: str
  scores: frozenset[str]
  arrays: frozenset[str]


_PREDICTED = frozenset({"predict_positions", "predict_targets", "predict_weights"})

# Language-model loss of the objective -> its description.
DESCRIPTIONS: Mapping[str, Entry] = {
    "mlm_loss": Entry(describe_masked_lm, "fill", frozenset({"mlm_accuracy", "mlm_perplexity"}),
                      _PREDICTED),
    "plm_loss": Entry(
        functools.partial(describe_masked_lm, title="Permutation", hidden="predicted"),
        "fill", frozenset({"plm_accuracy", "plm_perplexity"}), _PREDICTED),
    "lm_loss": Entry(describe_causal_lm, "generate", frozenset({"lm_perplexity"}),
                     frozenset({"targets", "loss_weights"})),
    "bilm_loss": Entry(
        describe_bidirectional_lm, "fill",
        frozenset({"bilm_accuracy", "bilm_perplexity", "forward_loss", "backward_loss"}),
        frozenset({"targets", "backward_targets"})),
    "diffusion_loss": Entry(
        describe_diffusion, "unmask", frozenset({"diffusion_accuracy", "diffusion_perplexity"}),
        _PREDICTED),
}


def align(table: Sequence[Sequence[str]]) -> list[str]:
  """Returns a table as lines: names aligned to the left, numbers to the right, notes last.

  Args:
    table: rows of (name, number, ..., note), as text.
  """
  lines, width = [], max(16, *(len(name) for name, *_ in table))
  for name, *numbers, note in table:
    cells = "".join(f"{number:>10}" for number in numbers)
    lines.append(f"  {name:{width}}{cells}   {note}".rstrip())
  return lines


def show_perplexity(value: float) -> str:
  """Returns a perplexity as a report writes it: '77.8', or '1.2e+09' if it is that large.

  Args:
    value: at least 1.
  """
  return f"{value:.1f}" if value < 1e6 else f"{value:.2g}"
