"""Zero-shot evaluation: scores of a model on texts that it was not trained for.

There are three measures, each for the protocols of `suites.SUITES` that name it. They get the
log-probabilities of tokens from `scorers`, so they do not depend on the family of the model.
"""

import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bertgpt.errors import ConfigError
from bertgpt.inference import scorers, suites
from bertgpt.inference.score import choose_window, score_tokens
from bertgpt.inference.scorers import left_to_right
from bertgpt.inference.suites import SUITES, Suite
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.trained import Trained

Scores = dict[str, float | int | str]


class Settings(NamedTuple):
  """Flags of `bertgpt evaluate --suite`.

  Attributes:
    window: tokens that the model sees at a time; 0: as in training.
    stride: tokens scored with each window; 0: half a window.
    limit: windows, passages, lines or pairs scored; 0: all.
    batch_size: rows per batch.
  """

  window: int = 0
  stride: int = 0
  limit: int = 0
  batch_size: int = 8


def run(path: pathlib.Path, spec: str, settings: Settings,
        dtype: str = trained_lib.SCORING_DTYPE) -> Iterator[str]:
  """Yields the lines that `bertgpt evaluate --suite` prints.

  Args:
    path: workdir of the run.
    spec: 'NAME=FILE,NAME=FILE'.
    settings: values of the flags.
    dtype: see `runs.trained.make_trained`.
  Raises:
    ConfigError: no run in `path`, a suite that does not exist or does not fit the model, or a wrong
      setting.
    DataError: a file is damaged.
  """
  wanted = suites.parse(spec)
  trained = trained_lib.load_trained(path, dtype=dtype)
  settings = resolve(settings, trained)
  for name, _ in wanted:
    if ability := MEASURES[SUITES[name].measure].needs:
      trained_lib.require(trained, ability, f"be scored by {name}", "Use pairs or text")
  contents = [suites.read(name, file) for name, file in wanted]
  for (name, file), content in zip(wanted, contents, strict=True):
    suite = SUITES[name]
    scores = MEASURES[suite.measure].compute(trained, suite, content, settings)
    yield f"{name}: {pathlib.PurePath(file).name}, {scores.pop('protocol')}, {dtype}"
    for metric, value in scores.items():
      yield f"{name}/{metric} {value if isinstance(value, int) else format(value, '.6g')}"


def resolve(settings: Settings, trained: Trained) -> Settings:
  """Returns the settings with the defaults of a model.

  Args:
    settings: values of the flags.
    trained: the model.
  Raises:
    ConfigError: see `choose_window`.
  """
  window, stride = choose_window(trained, settings.window, settings.stride)
  return settings._replace(window=window, stride=stride)


def perplexity(nats: float) -> float:
  """Returns exp of a mean loss.

  The result is infinite beyond the range of floats. This can happen for scripts without spaces,
  whose "words" are few and long.

  Args:
    nats: mean loss.
  """
  return math.exp(nats) if nats < 700 else math.inf


# ------------------------------------------------------------------- perplexity


def measure_perplexity(trained: Trained, suite: Suite, documents: Sequence[str],
                       settings: Settings) -> Scores:
  """Returns perplexities and bits per byte; each document is scored separately.

  Words and bytes are counted in the text as it is in the file, before it is detokenized.

  Args:
    trained: the model.
    suite: the protocol.
    documents: content of the suite's file.
    settings: result of `resolve`.
  Raises:
    ConfigError: no token can be scored.
  """
  scorer = scorers.find(trained)
  if scorer.by_line:
    documents = [line for text in documents for line in text.split("\n") if line.strip()]
  encoded = trained.tokenizer.encode(
      [suites.detokenize(text, suite.detokenizer) for text in documents])
  rows = [row for ids in encoded
          for row in scorer.cut(trained.tokenizer, ids, settings.window, settings.stride)]
  rows = rows[:settings.limit or None]
  scores = scorer.score(trained, rows, settings.batch_size)
  num_tokens = sum(map(len, scores))
  if not num_tokens:
    raise ConfigError("--suite: there is no second token to score. Give a longer text")
  nats = -sum(float(logp.sum(dtype=np.float64)) for logp in scores)
  protocol = scorer.describe(len(rows), settings.window, settings.stride)
  if suite.detokenizer:
    protocol += f", {suite.detokenizer} detokenizer"
  result: Scores = {
      "protocol": protocol, f"{scorer.name}_perplexity": perplexity(nats / num_tokens),
      "tokens": num_tokens}
  if settings.limit or not scorer.is_likelihood:
    return result
  num_words = sum(suites.count_words(text, suite.counts_lines) for text in documents)
  num_bytes = sum(len(text.encode()) for text in documents)
  return result | {"word_perplexity": perplexity(nats / num_words), "words": num_words,
                   "bits_per_byte": nats / num_bytes / math.log(2), "bytes": num_bytes}


# --------------------------------------------------------------------- LAMBADA


def measure_last_word(trained: Trained, suite: Suite, passages: Sequence[str],
                      settings: Settings) -> Scores:
  """Returns how often the last word of a passage is guessed, and the perplexity of the target.

  Args:
    trained: the model, with the ability "score".
    suite: the protocol.
    passages: content of the suite's file.
    settings: result of `resolve`.
  Raises:
    ConfigError: a passage has nothing before its last word, or the window is too short for it.
  """
  passages = [text.strip() for text in passages if text.strip()][:settings.limit or None]
  contexts, words = _encode_passages(trained, suite, passages)
  if max(map(len, words)) >= settings.window:
    raise ConfigError(f"--suite: a last word has {max(map(len, words))} tokens. Give a longer "
                      "--window")
  rows = [np.concatenate(pair)[-settings.window:] for pair in zip(contexts, words, strict=True)]
  banned_V = (suites.find_stop_tokens(trained.tokenizer) if suite.rule == "stop_words" else None)
  ranked = left_to_right.rank(trained, rows, settings.batch_size, banned_V)
  correct, nats = 0, 0.0
  for word, scored in zip(words, ranked, strict=True):
    size = 1 if suite.rule == "token" else len(word)
    is_right = scored.is_top[-size:].copy()
    if suite.rule == "stop_words":
      is_right[0] = scored.is_top_allowed[-size]
    correct += bool(is_right.all())
    nats -= float(scored.logp[-size:].sum(dtype=np.float64))
  return {"protocol": f"{len(passages)} passages, rule: {suite.rule}",
          "accuracy": correct / len(passages), "perplexity": perplexity(nats / len(passages))}


def _encode_passages(trained, suite, passages):
  """Returns (ids before the last word, ids of the last word) of every passage."""
  parts = [text.rsplit(maxsplit=1) for text in passages]  # At any white space.
  if single := [part[0] for part in parts if len(part) == 1]:
    raise ConfigError(f"--suite: the passage {single[0]!r} has nothing before its last word. Give "
                      f"{suite.file}")
  contexts = trained.tokenizer.encode([context for context, _ in parts])
  words = trained.tokenizer.encode([f" {word}" for _, word in parts])
  for text, context, word in zip(passages, contexts, words, strict=True):
    if not (len(context) and len(word)):
      raise ConfigError(f"--suite: the passage {text[-40:]!r} has no tokens "
                        f"{'in' if len(context) else 'before'} its last word. Remove it")
  return contexts, words


# ------------------------------------------------------------------------ pairs


def measure_pairs(trained: Trained, suite: Suite, pairs: Sequence[tuple[str, str]],
                  settings: Settings) -> Scores:
  """Returns how often the good sentence of a pair is likelier than the bad one, as a whole.

  Args:
    trained: the model.
    suite: the protocol; not read.
    pairs: (good, bad) sentences.
    settings: result of `resolve`.
  Raises:
    ConfigError: a sentence has no tokens, or does not fit into the window.
  """
  del suite
  pairs = pairs[:settings.limit or None]
  sentences = [sentence for pair in pairs for sentence in pair]
  encoded = trained.tokenizer.encode(sentences)
  for sentence, ids in zip(sentences, encoded, strict=True):
    if not 0 < len(ids) <= settings.window - 2:
      raise ConfigError(f"--suite pairs: {sentence[:40]!r} has {len(ids)} tokens. Give sentences "
                        f"of 1 to {settings.window - 2}, or another --window")
  scores = score_tokens(trained, encoded, settings.window, settings.stride, settings.batch_size)
  good, bad = np.array([logp.sum(dtype=np.float64) for logp in scores]).reshape(-1, 2).T
  return {"protocol": f"{len(pairs)} pairs, {scorers.find(trained).how}",
          "accuracy": float((good > bad).mean())}


# -------------------------------------------------------------------- the table


class Measure(NamedTuple):
  """One measure of zero-shot evaluation.

  Attributes:
    compute: (trained, suite, content of its file, settings) -> the scores by name, and how they
      were obtained as 'protocol'.
    needs: ability that the model must have; '': any that has a scorer.
  """

  compute: Callable[[Trained, Suite, Any, Settings], Scores]
  needs: str = ""


MEASURES = {
    "perplexity": Measure(measure_perplexity),
    "last_word": Measure(measure_last_word, needs="score"),
    "pairs": Measure(measure_pairs),
}
