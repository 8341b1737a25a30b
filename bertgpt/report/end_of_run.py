"""The report at the end of a run: held-out scores beside baselines, samples, curves."""

import functools
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from bertgpt.config import ConfigDict
from bertgpt.data.batches import loader
from bertgpt.data.corpus import corpus as corpus_lib
from bertgpt.data.corpus import frequencies
from bertgpt.data.corpus.corpus import Corpus, open_corpus
from bertgpt.data.tokens.vocabulary import make_vocabulary
from bertgpt.inference import fill, generate
from bertgpt.runs import corpora
from bertgpt.runs import trained as trained_lib
from bertgpt.training import metrics, objectives

PROMPT = "The function returns"


def write(path: pathlib.Path, corpus_path: pathlib.Path) -> None:
  """Writes and prints report.md and loss.png of the finished run in `path`.

  With several processes all take part, because they read the checkpoint together; process 0
  writes.

  Args:
    corpus_path: of the corpus that the run was trained on.
  """
  trained = trained_lib.load_trained(path)
  train_set, held_out = open_corpus(corpus_path, "train"), open_corpus(corpus_path, "validation")
  curves = metrics.read_curves(path)
  scores = {tag.split("/")[-1]: points[-1][1] for tag, points in curves.items()
            if tag.startswith("eval/validation/")}
  describe = describe_gpt if trained.config.model.family == "gpt" else describe_bert
  lines = [f"Held-out results after {trained.step} steps ({held_out.path.name}, "
           f"{len(held_out)} documents):", ""]
  lines += describe(trained, train_set, held_out, scores)
  if jax.process_index() > 0:
    return
  plot_curves(curves, path / "loss.png")
  lines += ["", f"Loss curves: {path / 'loss.png'}"]
  text = "\n".join(lines) + "\n"
  (path / "report.md").write_text(text)
  print("\n" + text, end="")


def describe_bert(trained, train_set: Corpus, held_out: Corpus, scores) -> list[str]:
  baseline = masked_unigram_baseline(trained, train_set, held_out)
  lines = [
      f"  {'':22}{'model':>10}{'unigram':>10}",
      f"  {'MLM accuracy':22}{scores['mlm_accuracy']:>10.1%}{baseline.accuracy:>10.1%}",
      f"  {'MLM perplexity':22}{scores['mlm_perplexity']:>10.1f}{baseline.perplexity:>10.1f}"]
  if "nsp_accuracy" in scores:
    share = larger_class_share(trained.config, held_out)
    lines.append(f"  {'NSP accuracy':22}{scores['nsp_accuracy']:>10.1%}{share:>10.1%}"
                 "  (share of the larger class)")
  guesses = guess_words(trained, held_out)
  if guesses:
    lines += ["", "Masked words of held-out sentences and the model's guesses:", "", *guesses]
  return lines


def describe_gpt(trained, train_set: Corpus, held_out: Corpus, scores) -> list[str]:
  unigram, bigram = causal_baselines(trained.config, train_set, held_out)
  return [
      f"  {'':22}{'model':>10}{'bigram':>10}{'unigram':>10}",
      f"  {'perplexity':22}{scores['lm_perplexity']:>10.1f}{bigram:>10.1f}{unigram:>10.1f}",
      f"  {'bits per byte':22}{scores['bits_per_byte']:>10.3f}",
      "", "A sampled continuation (temperature 0.8, top 40):", "",
      "  " + continuation(trained).replace("\n", "\n  ")]


# --------------------------------------------------------------- baselines


class Baseline(NamedTuple):
  accuracy: float
  perplexity: float


def masked_unigram_baseline(trained, train_set: Corpus, held_out: Corpus) -> Baseline:
  """The best a model can do on the evaluation's masked positions without looking at the context.

  It knows the training text's token frequencies and what is shown at the position itself:
  of BERT's targets a tenth is shown as it is, and just copying those is worth 10% accuracy.
  """
  vocabulary = make_vocabulary(trained.tokenizer)
  unigram = frequencies.unigram_probabilities(train_set, vocabulary.size, is_causal=False)
  corrupt = jax.jit(objectives.make_objective(trained.config, vocabulary).corrupt)
  total = correct = weight = 0.0
  for batch, row_ids in _eval_batches(trained.config, held_out):
    batch = jax.device_get(corrupt(batch, jax.random.key(loader.EVAL_SEED), row_ids))
    targets, weights = batch["predict_targets"], batch["predict_weights"]
    shown = np.take_along_axis(batch["tokens"], batch["predict_positions"], axis=1)
    copies = probability_shown_as_is(shown, unigram, trained.config.objective, vocabulary.mask_id)
    p = copies * (targets == shown) + (1 - copies) * unigram[targets]
    is_copy = copies + (1 - copies) * unigram[shown] > (1 - copies) * unigram.max()
    guesses = np.where(is_copy, shown, unigram.argmax())
    total -= (np.log(p) * weights).sum()
    correct += ((targets == guesses) * weights).sum()
    weight += weights.sum()
  return Baseline(correct / weight, math.exp(total / weight))


def larger_class_share(config: ConfigDict, held_out: Corpus) -> float:
  """NSP accuracy of the constant answer that is right more often, on the evaluation's pairs."""
  count = np.zeros(2)  # Of next and of random pairs.
  for batch, _ in _eval_batches(config, held_out):
    count += np.bincount(batch["nsp_labels"].ravel(), batch["nsp_weights"].ravel(), minlength=2)
  return float(count.max() / count.sum())


def probability_shown_as_is(shown: np.ndarray, unigram: np.ndarray, objective: ConfigDict,
                            mask_id: int) -> np.ndarray:
  """Of a predicted position, that the token shown is the target and not one drawn at random.

  Args:
    shown: ids at predicted positions, integers [any].
    unigram: probability of every token, [vocabulary].
  Returns:
    float64, the shape of `shown`; 0 where it is [MASK].
  """
  kept = 1 - objective.replace_with_mask - objective.replace_with_random
  if kept < 1e-9:
    return np.zeros(shown.shape)
  as_is, drawn = kept * unigram[shown], objective.replace_with_random / len(unigram)
  return np.where(shown == mask_id, 0, as_is / (as_is + drawn))


def causal_baselines(config: ConfigDict, train_set: Corpus,
                     held_out: Corpus) -> tuple[float, float]:
  """Perplexities of a unigram and of an interpolated bigram model (Witten & Bell 1991)."""
  size = config.model.vocab_size
  unigram = frequencies.unigram_probabilities(train_set, size, is_causal=True)
  pairs, counts = count_bigrams(train_set, size)
  firsts = pairs // size
  seen = np.bincount(firsts, counts, size)             # tokens that followed each token
  kinds = np.bincount(firsts, minlength=size)          # different ones
  unigram_nats = bigram_nats = weight = 0.0
  for batch, _ in _eval_batches(config, held_out):
    chosen = batch["loss_weights"] > 0
    before, target = batch["tokens"][chosen].astype(np.int64), batch["targets"][chosen]
    index = np.minimum(np.searchsorted(pairs, before * size + target), len(pairs) - 1)
    count = np.where(pairs[index] == before * size + target, counts[index], 0)
    p = (count + kinds[before] * unigram[target]) / np.maximum(seen[before] + kinds[before], 1)
    p = np.where(seen[before] > 0, p, unigram[target])
    unigram_nats -= np.log(unigram[target]).sum()
    bigram_nats -= np.log(p).sum()
    weight += chosen.sum()
  return math.exp(unigram_nats / weight), math.exp(bigram_nats / weight)


def count_bigrams(corpus: Corpus, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
  """Sorted keys first * vocab_size + second, int64, and how often each occurs, int64."""
  end = np.array([corpus.tokenizer.eod_id])
  stream = np.concatenate([part for tokens in frequencies.sample_documents(corpus)
                           for part in (tokens, end)])
  stream = stream.astype(np.int64)
  return np.unique(stream[:-1] * vocab_size + stream[1:], return_counts=True)


def _eval_batches(config: ConfigDict, held_out: Corpus) -> Iterator[tuple[dict, np.ndarray]]:
  size, last_phase = config.eval.batch_size, len(config.phases) - 1
  for i, batch in enumerate(loader.make_eval_batches(held_out, config, last_phase, slice(0, size))):
    yield batch, np.arange(i * size, (i + 1) * size, dtype=np.int32)


# ----------------------------------------------------------------- samples


def guess_words(trained, held_out: Corpus, num_sentences: int = 3) -> list[str]:
  """Held-out sentences with one word masked, and the five likeliest tokens there."""
  tokenizer, rng = trained.tokenizer, np.random.default_rng(0)
  is_whole, continues = whole_words(tokenizer), tokenizer.continues_word()
  longest = min(40, trained.config.model.max_positions - 2)
  lines = []
  for document in rng.permutation(len(held_out)):
    sentence = pick_sentence(held_out, int(document), rng)
    followed = np.append(continues[sentence[1:]], False)
    places = np.flatnonzero(is_whole[sentence] & ~followed)
    if not 8 <= len(sentence) <= longest or not len(places):
      continue
    place = int(rng.choice(places))
    tokens = np.concatenate([[tokenizer.cls_id], sentence, [tokenizer.sep_id]])
    p, = fill.predict_masked(trained, tokens, [place + 1])
    guesses = [f"{tokenizer.decode([i]).strip()} {p[i]:.0%}" for i in np.argsort(-p)[:5]]
    before, after = tokenizer.decode(sentence[:place]), tokenizer.decode(sentence[place + 1:])
    lines += [f"  {before} [{tokenizer.decode([sentence[place]]).strip()}] {after}",
              f"      guesses: {', '.join(guesses)}"]
    if len(lines) == 2 * num_sentences:
      break
  return lines


def pick_sentence(corpus: Corpus, document: int, rng: np.random.Generator) -> np.ndarray:
  """A random sentence of a document, as token ids."""
  first, last = corpus.document_offsets[document:document + 2]
  lengths = corpus.sentence_lengths[first:last]
  i = rng.integers(len(lengths))
  start = int(lengths[:i].sum())
  return corpus.tokens([document])[0][start:start + int(lengths[i])].astype(np.int32)


def whole_words(tokenizer) -> np.ndarray:
  """Tokens that begin a word and are made of letters, four at least: bool [vocab_size]."""
  begins = ~tokenizer.continues_word()
  texts = [tokenizer.decode([i]).strip() for i in range(tokenizer.vocab_size)]
  return begins & np.array([text.isalpha() and len(text) >= 4 for text in texts])


def continuation(trained) -> str:
  half = trained.config.phases[-1].seq_len // 2
  prompt = trained.tokenizer.encode([PROMPT])[0][:half]
  if not len(prompt):
    prompt = np.array([trained.tokenizer.eod_id])
  room = trained.config.phases[-1].seq_len - len(prompt)
  added, = generate.continue_prompts(trained, [prompt], min(60, room),
                                     generate.Sampling(temperature=0.8, top_k=40))
  return trained.tokenizer.decode([*prompt, *added])


def plot_curves(curves: dict[str, list[tuple[int, float]]], path: pathlib.Path) -> None:
  """Every loss of the run over its steps, training and held-out."""
  import matplotlib
  matplotlib.use("Agg")
  from matplotlib import pyplot as plt
  names = sorted({tag.split("/")[-1] for tag in curves if tag.endswith("_loss")})
  figure, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 3.5), squeeze=False)
  for axis, name in zip(axes[0], names, strict=True):
    for tag, label, style in ((f"train/{name}", "training", "-"),
                              (f"eval/validation/{name}", "held out", "o-")):
      if tag in curves:
        axis.plot(*zip(*curves[tag], strict=True), style, label=label, markersize=3, linewidth=1)
    axis.set(title=name, xlabel="step", ylabel="nats")
    axis.grid(alpha=0.3)
    axis.legend()
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  plt.close(figure)


# -------------------------------------------------------------- bertgpt data


def describe_data(config: ConfigDict, steps: Sequence[int]) -> str:
  """What `bertgpt data` prints: the corpus, and the loader's report with masks as in training."""
  corpus = open_corpus(corpora.find_corpus(config), "train")
  config = corpora.resolve(config, corpus.tokenizer)
  corrupt = objectives.make_objective(config, make_vocabulary(corpus.tokenizer)).corrupt
  mask = functools.partial(_mask_rows, jax.jit(corrupt), config.seed)
  return "\n".join([f"corpus     {corpus.path}", corpus_lib.report(corpus.manifest), "",
                    loader.report(corpus, config, steps, mask_fn=mask)])


def _mask_rows(corrupt, seed, batch):
  rows = np.arange(len(batch["tokens"]), dtype=np.int32)
  return jax.device_get(corrupt(batch, jax.random.key(seed), rows))
