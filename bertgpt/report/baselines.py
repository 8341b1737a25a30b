"""Scores of simple predictors: frequencies of tokens, pairs of tokens and answers."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from bertgpt.config import ConfigDict, choices, config_of_phase
from bertgpt.data.batches import formats, loader
from bertgpt.data.batches.rows import EVAL_SEED, TrainRows
from bertgpt.data.corpus import frequencies
from bertgpt.data.corpus.corpus import Corpus
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.devices import watchdog
from bertgpt.training import objectives
from bertgpt.training.finished import Finished
from bertgpt.training.objectives import masking

# Rows in which special tokens are counted. If one is 3% of the targets in rows of 64 tokens, its
# count is accurate to 1%.
SHARE_ROWS = 2048


class Baseline(NamedTuple):
  """Scores of a simple predictor.

  Attributes:
    accuracy: share of correct guesses.
    perplexity: exp of the mean loss.
  """

  accuracy: float
  perplexity: float


def masked_unigram_baseline(run: Finished) -> Baseline:
  """Returns the best scores without any context, at the masked positions of the evaluation.

  The predictor knows the token frequencies of the training text, how often special tokens are among
  the targets, and the token that is shown at the position itself: a tenth of BERT's targets are
  shown unchanged, so copying the shown token gives an accuracy of 10%. With objectives that hide
  the position itself, nothing is shown.

  Args:
    run: the finished run of a masked LM.
  """
  vocabulary, phases = run.held_out.vocabulary, run.trained.config.phases
  config = config_of_phase(run.trained.config, len(phases) - 1, in_evaluation=True)
  corrupt = jax.jit(objectives.make_objective(config, vocabulary).corrupt)
  is_shown = "objective.replace_with_mask" in choices.OBJECTIVES[config.objective.name].reads
  unigram = target_probabilities(run, corrupt)
  total = correct = weight = 0.0
  for batch, row_ids in _eval_batches(run):
    batch = jax.device_get(corrupt(batch, jax.random.key(EVAL_SEED), row_ids))
    chosen = batch["predict_weights"] > 0
    targets, weights = batch["predict_targets"][chosen], batch["predict_weights"][chosen]
    shown = np.take_along_axis(batch["tokens"], batch["predict_positions"], axis=1)[chosen]
    copies = (probability_shown_as_is(shown, unigram, config.objective, vocabulary)
              if is_shown else np.zeros(shown.shape))
    p = copies * (targets == shown) + (1 - copies) * unigram[targets]
    is_copy = copies + (1 - copies) * unigram[shown] > (1 - copies) * unigram.max()
    guesses = np.where(is_copy, shown, unigram.argmax())
    total -= (np.log(p) * weights).sum()
    # float32 would lose counts beyond 2^24.
    correct += float(((targets == guesses) * weights).sum(dtype=np.float64))
    weight += float(weights.sum(dtype=np.float64))
  return Baseline(correct / weight, math.exp(total / weight))


def target_probabilities(run: Finished, corrupt: Callable) -> np.ndarray:
  """Returns how often each token is a target, float64 [vocab_size].

  Text has its frequencies in the training set. The shares of special tokens depend on the rows and
  on the rule of the masks, so they are counted in SHARE_ROWS rows of the last phase.

  Args:
    run: the finished run of a masked LM.
    corrupt: jitted `Objective.corrupt` of the evaluation.
  """
  config, vocabulary = run.trained.config, run.held_out.vocabulary
  unigram = frequencies.unigram_probabilities(run.train_set, vocabulary.size, is_causal=False)
  size = config.eval.batch_size
  rows = TrainRows(run.train_set, config, len(config.phases) - 1, config.seed)
  counts, special = np.zeros(vocabulary.size), list(vocabulary.special_ids)
  for first in range(0, SHARE_ROWS, size):
    row_ids = np.arange(first, first + size, dtype=np.int32)
    batch = corrupt(rows.read(row_ids % rows.rows_per_epoch), jax.random.key(config.seed), row_ids)
    targets, weights = jax.device_get((batch["predict_targets"], batch["predict_weights"]))
    counts += np.bincount(targets.ravel(), weights.ravel(), minlength=vocabulary.size)
    if not counts[special].any():  # The mask rule excludes special tokens.
      return unigram
  shares = counts[special] / counts.sum()
  unigram[special] = 0
  unigram *= (1 - shares.sum()) / unigram.sum()
  unigram[special] = shares
  return unigram


def larger_class_share(run: Finished) -> float:
  """Returns the accuracy of the better of the two constant answers.

  Args:
    run: a finished run whose objective has pairs; some held-out pairs must have a label.
  """
  name, count = formats.find(run.trained.config).pair_name, np.zeros(2)  # Pairs with either label.
  for batch, _ in _eval_batches(run):
    count += np.bincount(batch[f"{name}_labels"].ravel(), batch[f"{name}_weights"].ravel(),
                         minlength=2)
  return float(count.max() / count.sum())


def probability_shown_as_is(shown: np.ndarray, unigram: np.ndarray, objective: ConfigDict,
                            vocabulary: Vocabulary) -> np.ndarray:
  """Returns the probability that the token shown is the target, not one drawn at random.

  Args:
    shown: ids at predicted positions, integers [any].
    unigram: probability of every token, float64 [vocab_size].
    objective: `config.objective`.
    vocabulary: vocabulary of the tokenizer.
  Returns:
    float64, the shape of `shown`; 0 for [MASK].
  """
  kept = 1 - objective.replace_with_mask - objective.replace_with_random
  if kept < 1e-9:
    return np.zeros(shown.shape)
  is_drawn = np.ones(len(unigram), bool)
  if not masking.MASK_RULES[objective.mask_rule].draws_specials:
    is_drawn[list(vocabulary.special_ids)] = False
  drawn = objective.replace_with_random * is_drawn / is_drawn.sum()
  as_is, either = kept * unigram[shown], kept * unigram[shown] + drawn[shown]
  is_text = (shown != vocabulary.mask_id) & (either > 0)
  return np.divide(as_is, either, out=np.zeros(shown.shape), where=is_text)


def causal_baselines(run: Finished) -> tuple[float, float]:
  """Returns the perplexities of a unigram and of a bigram model.

  The bigram model is interpolated with the unigram model (Witten and Bell 1991, The zero-frequency
  problem, method C).

  Args:
    run: the finished run of a decoder.
  """
  size = run.trained.config.model.vocab_size
  unigram = frequencies.unigram_probabilities(run.train_set, size, is_causal=True)
  pairs, counts = count_bigrams(run.train_set, size)
  firsts = pairs // size
  seen = np.bincount(firsts, counts, size)             # tokens that followed each token
  kinds = np.bincount(firsts, minlength=size)          # different ones
  unigram_nats = bigram_nats = weight = 0.0
  for batch, _ in _eval_batches(run):
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


def bidirectional_unigram(run: Finished) -> Baseline:
  """Returns the scores of a model of the frequencies of words and of sentence ends.

  Args:
    run: the finished run of a bidirectional language model.
  """
  config, corpus = run.trained.config, run.train_set
  size, tokenizer = config.model.vocab_size, corpus.tokenizer
  targets = config.model.target_words or size
  unigram = frequencies.unigram_probabilities(corpus, size, is_causal=False)
  # Every sentence is followed by its end.
  ends = corpus.num_sentences / corpus.num_tokens
  unigram[tokenizer.sep_id] += ends
  unigram[tokenizer.unk_id] += unigram[targets:].sum()
  unigram = unigram[:targets] / (1 + ends)
  total = correct = weight = 0.0
  for batch, _ in _eval_batches(run):
    words = batch["targets"][batch["sequence_ids"] > 0]
    words = np.where(words < targets, words, tokenizer.unk_id)
    total -= np.log(unigram[words]).sum()
    correct += (words == unigram.argmax()).sum()
    weight += words.size
  return Baseline(correct / weight, math.exp(total / weight))


def count_bigrams(corpus: Corpus, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
  """Counts the pairs of consecutive tokens, with the ends of documents as tokens.

  Args:
    corpus: corpus; a sample of its documents is counted.
    vocab_size: number of ids.
  Returns:
    Sorted keys first * vocab_size + second, int64 [pairs], and their counts, int64 [pairs].
  """
  end = np.array([corpus.tokenizer.eod_id])
  stream = np.concatenate([part for tokens in frequencies.sample_documents(corpus)
                           for part in (tokens, end)])
  stream = stream.astype(np.int64)
  return np.unique(stream[:-1] * vocab_size + stream[1:], return_counts=True)


def _eval_batches(run: Finished) -> Iterator[tuple[dict, np.ndarray]]:
  """Yields the batches of the evaluation at the end of a run, and the indices of their rows."""
  config = run.trained.config
  size, last_phase = config.eval.batch_size, len(config.phases) - 1
  batches = loader.make_eval_batches(run.held_out, config, last_phase, slice(0, size))
  for i, batch in enumerate(batches):
    watchdog.renew()
    yield batch, np.arange(i * size, (i + 1) * size, dtype=np.int32)
