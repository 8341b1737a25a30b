"""The report at the end of a run: held-out scores next to baselines, samples, curves."""

import functools
import io
import math
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from bertgpt import files
from bertgpt.config import ConfigDict, at_phase, choices, families, unread
from bertgpt.data.batches import description, formats
from bertgpt.data.corpus import corpus as corpus_lib
from bertgpt.data.corpus.corpus import Corpus, open_corpus
from bertgpt.data.tokens import marks
from bertgpt.data.tokens.tokenizers import Tokenizer
from bertgpt.devices import events
from bertgpt.inference import fill, generate
from bertgpt.report import compare, goodput
from bertgpt.report import curves as curves_lib
from bertgpt.report.baselines import (
    bidirectional_unigram,
    causal_baselines,
    larger_class_share,
    masked_unigram_baseline,
)
from bertgpt.runs import corpora, metrics_file
from bertgpt.runs.trained import Trained
from bertgpt.training import objectives
from bertgpt.training.loop import Finished

PROMPT = "The function returns"


def write(run: Finished) -> None:
  """Writes and prints report.md of a finished run, and writes loss.png and report.html.

  With several processes, process 0 writes. The others compute the same, so that all end together:
  in JAX, a process that ends early waits at most five minutes for the others.
  """
  path, trained, _, held_out, scores = run
  describe = DESCRIPTIONS[choices.OBJECTIVES[trained.config.objective.name].loss]
  lines = [f"Held-out results after {trained.step} steps ({held_out.path.name}, "
           f"{len(held_out)} documents):", ""]
  described = describe(run, scores)
  lines += described.lines
  if jax.process_index() > 0:
    return
  if curves := {tag: points for tag, points in metrics_file.read_curves(path).items()
                if tag.split("/")[-1] in described.panels}:
    plot_curves(curves, path / "loss.png", described, trained.config.phases)
    lines += ["", f"Loss curves: {path / 'loss.png'}"]
  text = "\n".join(lines) + "\n"
  files.write_atomically(path / "report.md", text)
  print("\n" + text, end="")
  events.flush()
  if time := goodput.line(path):  # Not in the report, which must not change when a run is reopened.
    print(time)
  for line in write_page(path):
    print(line)


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


def describe_masked_lm(run: Finished, scores: Mapping[str, float]) -> Description:
  """Returns the scores of both heads next to their baselines, and masked words with guesses.

  Args:
    run: the finished run of a model with the ability "fill".
    scores: name of a held-out metric, such as 'mlm_accuracy' -> its value at the end of the run.
  """
  unigram = masked_unigram_baseline(run)
  loss = choices.OBJECTIVES[run.trained.config.objective.name].loss
  name, (title, hidden) = loss.removesuffix("_loss"), HIDDEN_TOKENS[loss]
  table = [
      ("", "model", "unigram", ""),
      (f"{name.upper()} accuracy", f"{scores[f'{name}_accuracy']:.1%}", f"{unigram.accuracy:.1%}",
       f"{hidden} tokens guessed right"),
      (f"{name.upper()} perplexity", f"{scores[f'{name}_perplexity']:.1f}",
       f"{unigram.perplexity:.1f}", "lower is better; 1 would be certainty")]
  baselines = {loss: (math.log(unigram.perplexity), "token frequencies, no context")}
  notes = ["unigram: knows how frequent each token is, and sees no context."]
  panels = {loss: (title, f"loss per {hidden} token, nats")}
  row_format = formats.find(run.trained.config)
  metric = f"{row_format.PAIR_NAME}_accuracy"
  if row_format.PAIR_NAME and metric not in scores:
    notes.append(f"{row_format.PAIR_NAME.upper()}: no pair of the held-out text has a label.")
  elif row_format.PAIR_NAME:
    share = larger_class_share(run)
    baselines[metric] = share, "always the more frequent answer"
    panels[metric] = row_format.PAIR_TITLE, "accuracy"
    table += [("", "", "", ""), ("", "model", "constant", ""),
              (f"{row_format.PAIR_NAME.upper()} accuracy", f"{scores[metric]:.1%}", f"{share:.1%}",
               row_format.PAIR_QUESTION)]
    notes += ["constant: always gives the more frequent answer (share of the larger class)."]
  if "rtd_recall" in scores:
    table += [("", "", "", ""), *replaced_rows(scores)]
    panels["rtd_loss"] = "Replaced tokens", "loss per token, nats"
  lines = [*align(table), "", *(f"  {note}" for note in notes)]
  if guesses := guess_words(run.trained, run.held_out):
    lines += ["", "Held-out sentences with one [word] hidden from the model, and its guesses:",
              "", *guesses]
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
      ("perplexity", f"{scores['lm_perplexity']:.1f}", f"{bigram:.1f}", f"{unigram:.1f}",
       "lower is better; 1 would be certainty"),
      ("bits per byte", f"{scores['bits_per_byte']:.3f}", "", "", "comparable between tokenizers")]
  lines = [
      *align(table), "",
      "  bigram: knows which token follows which. unigram: knows how frequent each token is.",
      "", "A sampled continuation (temperature 0.8, top 40):", "",
      *(line for text in continuation(run.trained).splitlines() for line in wrap(text))]
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
      ("perplexity", f"{scores['bilm_perplexity']:.1f}", f"{unigram.perplexity:.1f}",
       "both directions; lower is better, 1 would be certainty"),
      *((f"  {name}", f"{math.exp(scores[f'{name}_loss']):.1f}", "", what) for name, what in (
          ("forward", "from the words before"), ("backward", "from the words after"))),
      ("accuracy", f"{scores['bilm_accuracy']:.1%}", f"{unigram.accuracy:.1%}",
       "words guessed right")]
  lines = [*align(table), "",
           "  unigram: knows how frequent each word is, and sees no context."]
  if guesses := guess_words(run.trained, run.held_out):
    lines += ["", "Held-out sentences with one [word] hidden from the model, and its guesses:",
              "", *guesses]
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
      ("perplexity bound", f"{scores['diffusion_perplexity']:.1f}", f"{unigram.perplexity:.1f}",
       "lower is better; 1 would be certainty"),
      ("accuracy", f"{scores['diffusion_accuracy']:.1%}", f"{unigram.accuracy:.1%}",
       "masked tokens guessed right, over all rates")]
  lines = [
      *align(table), "", "  unigram: knows how frequent each token is, and sees no context.",
      "", "A continuation, unmasked token by token (temperature 0.8, top 40):", "",
      *(line for text in continuation(run.trained).splitlines() for line in wrap(text))]
  if guesses := guess_words(run.trained, run.held_out):
    lines += ["", "Held-out sentences with one [word] hidden from the model, and its guesses:",
              "", *guesses]
  return Description(lines, {"diffusion_loss": (math.log(unigram.perplexity),
                                                "token frequencies, no context")},
                     {"diffusion_loss": ("Masked diffusion", "bound per token, nats")})


# Metric of replaced tokens -> its meaning.
REPLACED_SCORES = {"precision": "share of the tokens called replaced that are",
                   "recall": "share of the replaced tokens that are found"}

# Loss of a model that fills in tokens -> (its name, which tokens it is computed for).
HIDDEN_TOKENS = {"mlm_loss": ("Masked language model", "masked"),
                 "plm_loss": ("Permutation language model", "predicted")}
# Language-model loss of the objective -> function that describes the model in the report.
DESCRIPTIONS = {"mlm_loss": describe_masked_lm, "plm_loss": describe_masked_lm,
                "lm_loss": describe_causal_lm, "bilm_loss": describe_bidirectional_lm,
                "diffusion_loss": describe_diffusion}


def wrap(text: str) -> list[str]:
  """Returns a text as indented lines of at most 96 characters.

  Args:
    text: one paragraph.
  """
  return textwrap.wrap(text, 96, initial_indent="  ", subsequent_indent="  ")


def align(table: Sequence[Sequence[str]]) -> list[str]:
  """Returns a table as lines: names aligned to the left, numbers to the right, notes last.

  Args:
    table: rows of (name, number, ..., note), as text.
  """
  lines = []
  for name, *numbers, note in table:
    cells = "".join(f"{number:>10}" for number in numbers)
    lines.append(f"  {name:16}{cells}   {note}".rstrip())
  return lines


# ----------------------------------------------------------------- samples


MOST_DOCUMENTS = 1_000  # Documents among which a suitable sentence is looked for.


def guess_words(trained: Trained, held_out: Corpus, num_sentences: int = 5) -> list[str]:
  """Returns held-out sentences with one word masked, and the five likeliest tokens in its place.

  The rank of the word is added if the word is not among the five.

  Args:
    trained: a masked LM.
    held_out: documents to draw sentences from; the draws are always the same for a corpus.
    num_sentences: number of sentences.
  Returns:
    Lines of the report.
  """
  tokenizer, rng = trained.tokenizer, np.random.default_rng(0)
  around = marks.of_encoder(tokenizer, families.find(trained.config).cls_last)
  is_whole = whole_words(tokenizer)
  continues, ends = tokenizer.continues_word(), tokenizer.ends_word()
  longest = min(40, trained.config.model.max_positions - around.count())
  lines = []
  for document in rng.permutation(len(held_out))[:MOST_DOCUMENTS]:
    sentence = pick_sentence(held_out, int(document), rng)
    followed = np.append(continues[sentence[1:]] & ~ends[sentence[:-1]], False)
    places = np.flatnonzero(is_whole[sentence] & ~followed)
    if not 8 <= len(sentence) <= longest or not len(places):
      continue
    place = int(rng.choice(places))
    hidden = sentence[place]
    row = around.enclose(sentence)
    p, = fill.predict_masked(trained, row, [place + around.num_before])
    order = fill.likeliest(tokenizer, p, len(p)).tolist()
    guesses = ", ".join(f"{fill.name_token(tokenizer, i, continues[i])} {p[i]:.0%}"
                        for i in order[:5])
    # Spaces are correct only if the text is decoded from its beginning.
    before, through, whole = (tokenizer.decode(sentence[:n]) for n in (place, place + 1, None))
    word = through[len(before):].strip()
    rank = "" if hidden in order[:5] else f" ({word}: rank {order.index(hidden) + 1})"
    lines += [*wrap(f"{before} [{word}]{whole[len(through):]}".strip()),
              f"      guesses: {guesses}{rank}"]
    num_sentences -= 1
    if not num_sentences:
      break
  return lines


def pick_sentence(corpus: Corpus, document: int, rng: np.random.Generator) -> np.ndarray:
  """Returns a random sentence of a document.

  Args:
    corpus: corpus of the document.
    document: index of the document.
    rng: draws the sentence.
  Returns:
    Token ids, int32 [N].
  """
  first, last = corpus.document_offsets[document:document + 2]
  lengths = corpus.sentence_lengths[first:last]
  i = rng.integers(len(lengths))
  start = int(lengths[:i].sum())
  return corpus.tokens([document])[0][start:start + int(lengths[i])].astype(np.int32)


def whole_words(tokenizer: Tokenizer) -> np.ndarray:
  """Finds the tokens that begin a word and consist of at least four letters.

  Args:
    tokenizer: tokenizer of the model.
  Returns:
    bool [vocab_size].
  """
  begins = ~tokenizer.continues_word()
  texts = [tokenizer.decode([i]).strip() for i in range(tokenizer.vocab_size)]
  return begins & np.array([text.isalpha() and len(text) >= 4 for text in texts])


def continuation(trained: Trained) -> str:
  """Returns PROMPT with a sampled continuation, within the rows of the last phase.

  Args:
    trained: the model, with the ability "generate" or "unmask".
  """
  generator = generate.find_generator(trained)
  half = trained.config.phases[-1].seq_len // 2
  prompt = trained.tokenizer.encode([PROMPT])[0][:half]
  if not len(prompt) and not generator.num_marks:
    prompt = np.array([trained.tokenizer.eod_id])
  room = trained.config.phases[-1].seq_len - len(prompt) - generator.num_marks
  added, = generator.add(trained, [prompt], min(60, room),
                         generate.Sampling(temperature=0.8, top_k=40))
  return trained.tokenizer.decode([*prompt, *added])


SMOOTHED_SHARE = 0.05  # The training's accuracy is averaged over this share of its points.


def plot_curves(curves: Mapping[str, Sequence[tuple[int, float]]], path: pathlib.Path,
                described: Description, phases: Sequence[ConfigDict]) -> None:
  """Draws the curves of losses and accuracies, in training and held out.

  Args:
    curves: tag of a metric -> [(step, value)]; result of `metrics_file.read_curves`.
    path: path of the picture, a PNG file.
    described: which metrics get a panel, and which of these a dashed line at a baseline.
    phases: phases of the run. Rows of another length are another task, so a dotted line separates
      phases, and accuracy is shown only for the last phase, to which its baseline applies.
  """
  import matplotlib
  matplotlib.use("Agg")
  from matplotlib import pyplot as plt
  from matplotlib.ticker import PercentFormatter
  found = dict.fromkeys(tag.split("/")[-1] for tag in curves)
  names = [name for name in found if name in described.panels]
  figure, axes = plt.subplots(1, len(names), figsize=(5.5 * len(names), 4), squeeze=False)
  starts = np.cumsum([0, *(p.steps for p in phases)])[:-1]
  for axis, name in zip(axes[0], names, strict=True):
    title, label = described.panels[name]
    is_share = name.endswith("accuracy")
    first_step = starts[-1] if is_share else 0
    for tag, legend, style in (
        (f"train/{name}", "training", {"color": "tab:blue", "alpha": 0.6, "linewidth": 1}),
        (f"eval/validation/{name}", "held out", {"color": "tab:orange", "marker": "o",
                                                 "markersize": 4})):
      points = np.array([point for point in curves.get(tag, ()) if point[0] > first_step])
      if len(points):
        if is_share and legend == "training":
          points = smooth(points, max(1, round(SMOOTHED_SHARE * len(points))))
        axis.plot(*points.T, label=legend, **style)
    if name in described.baselines:
      value, legend = described.baselines[name]
      axis.axhline(value, color="tab:gray", linestyle="--", linewidth=1, label=legend)
    if not is_share:
      for start, phase in zip(starts[1:], phases[1:], strict=True):
        axis.axvline(start, color="tab:gray", linestyle=":", linewidth=1)
        axis.annotate(f" rows of {phase.seq_len} tokens", (start, 0.02), fontsize="small",
                      xycoords=("data", "axes fraction"), color="tab:gray")
    if is_share:
      axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
      low, high = axis.get_ylim()
      axis.set_ylim(min(low, 0.45), max(high, 0.75))
    axis.set(title=title, xlabel="step", ylabel=label)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(framealpha=1, edgecolor="none")  # Opaque: a curve or baseline may pass behind it.
  figure.tight_layout()
  picture = io.BytesIO()
  figure.savefig(picture, format="png", dpi=120)
  files.write_atomically(path, picture.getvalue())
  plt.close(figure)


def smooth(points: np.ndarray, width: int) -> np.ndarray:
  """Returns the means of every `width` consecutive points: float64 [N - width + 1, 2].

  Args:
    points: float64 [N, 2], N >= width.
    width: points per mean.
  """
  kernel = np.full(width, 1 / width)
  return np.stack([np.convolve(column, kernel, "valid") for column in points.T], axis=1)


# -------------------------------------------------------------- bertgpt data


def describe_data(config: ConfigDict, steps: Sequence[int]) -> str:
  """Returns the output of `bertgpt data`: the corpus, and batches with masks as in training.

  Args:
    config: a whole config.
    steps: steps whose batches are shown.
  Raises:
    ConfigError: the config sets a field that nothing would read.
  """
  unread.check(config)
  corpus = open_corpus(corpora.find_corpus(config, reports=False), "train")
  config = corpora.resolve(config, corpus.tokenizer)
  corrupt = objectives.make_objective(at_phase(config, 0), corpus.vocabulary).corrupt
  mask = functools.partial(_mask_rows, jax.jit(corrupt), config.seed)
  warnings = filter(None, [corpus_lib.warn_of_unknown(corpus.manifest)])
  return "\n".join([f"corpus     {corpus.path}", corpus_lib.report(corpus.manifest), *warnings, "",
                    description.describe(corpus, config, steps, mask_fn=mask)])


def _mask_rows(corrupt, seed, batch):
  rows = np.arange(len(batch["tokens"]), dtype=np.int32)
  return jax.device_get(corrupt(batch, jax.random.key(seed), rows))
