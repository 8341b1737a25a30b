"""Zero-shot evaluation: scores of a model on texts that it was not trained for.

There are three measures, each for the protocols of `suites.SUITES` that name it. They get the
log-probabilities of tokens from `scorers`, so they do not depend on the family of the model.
"""

import contextlib
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bertgpt.errors import ConfigError
from bertgpt.inference import parts, scorers, streams, suites
from bertgpt.inference.parts import Part
from bertgpt.inference.score import choose_window, score_tokens
from bertgpt.inference.scorers import left_to_right
from bertgpt.inference.suites import SUITES, Suite
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.trained import Trained

WINDOW_ENTRIES = 256  # Texts that are scored before their scores are written.
SCORES = "scores"

Scores = dict[str, float | int | str]
Totals = dict[str, Any]   # Sums over the texts that are scored, as JSON values.
Record = dict[str, Any]   # Scores of one text, as JSON values.


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
        dtype: str = trained_lib.SCORING_DTYPE, out: pathlib.Path | None = None) -> Iterator[str]:
  """Yields the lines that `bertgpt evaluate --suite` prints.

  Args:
    path: workdir of the run.
    spec: 'NAME=FILE,NAME=FILE'.
    settings: values of the flags.
    dtype: see `runs.trained.make_trained`.
    out: new .jsonl file for the scores of every text; if it is given and the work is interrupted,
      the same call resumes it. None: they are not written.
  Raises:
    ConfigError: no run in `path`, a suite that does not exist or does not fit the model, a wrong
      setting, or `out` exists.
    DataError: a file is damaged.
  """
  wanted = suites.parse(spec)
  if out is not None:
    streams.check_out(out, (".jsonl",))
  trained = trained_lib.load_trained(path, dtype=dtype)
  settings = resolve(settings, trained)
  for name, _ in wanted:
    if ability := MEASURES[SUITES[name].measure].needs:
      trained_lib.require(trained, ability, f"be scored by {name}", "Use pairs or text")
  # Every file is read once before anything is scored, so that errors in it are found at once.
  sizes = [streams.measure("\t".join(suites.as_texts(entry)) for entry in suites.iterate(*pair))
           for pair in wanted]
  trained = trained._replace(params=jax.device_put(trained.params))
  with contextlib.ExitStack() as stack:
    work = None
    if out is not None:
      identity = {"suites": [[name, digest] for (name, _), (_, digest) in
                             zip(wanted, sizes, strict=True)],
                  "settings": settings._asdict()} | streams.identify(trained)
      work = stack.enter_context(streams.resumable(out, identity))
    for i, ((name, file), (count, _)) in enumerate(zip(wanted, sizes, strict=True)):
      suite = SUITES[name]
      totals = measure_file(trained, name, file, count, settings, work, i)
      scores = MEASURES[suite.measure].finish(trained, suite, totals, settings)
      yield f"{name}: {pathlib.PurePath(file).name}, {scores.pop('protocol')}, {dtype}"
      for metric, value in scores.items():
        yield f"{name}/{metric} {value if isinstance(value, int) else format(value, '.6g')}"
    if work is not None:
      work.open(SCORES)
      work.publish(SCORES)


def measure_file(trained: Trained, name: str, file: str, count: int, settings: Settings,
                 work: streams.Unfinished | None, number: int) -> Totals:
  """Scores a suite's file, window by window, and returns its totals.

  Args:
    trained: the model.
    name: key of `SUITES`.
    file: see `suites.iterate`.
    count: entries of the file.
    settings: result of `resolve`.
    work: unfinished results, with which the work resumes; None: nothing is written.
    number: number of the suite among those of the command.
  """
  suite = SUITES[name]
  measure = MEASURES[suite.measure]
  done = list(work.state.get("suites", [])) if work else []
  if number < len(done) - 1:
    return done[number]["totals"]
  state: dict[str, Any] = done[number] if number < len(done) else {"entries": 0, "totals": {}}
  done, totals = done[:number], dict(state["totals"])
  entries = itertools.islice(suites.iterate(name, file), state["entries"], None)
  progress = streams.Progress(count, f"entries of {name}", state["entries"])
  for window in windows(trained, name, file, entries):
    if is_enough(settings, totals):
      break
    records = measure.add(trained, suite, window, settings, totals)
    progress.add(sum(entries_of(entry) for entry in window))
    if work:
      work.open(SCORES).writelines(json.dumps({"suite": name} | record).encode() + b"\n"
                                   for record in records)
      work.commit(suites=[*done, {"entries": progress.done, "totals": totals}])
  return totals


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


def measure(trained: Trained, name: str, suite: Suite, content: Sequence[Any],
            settings: Settings) -> Scores:
  """Returns the scores of a measure for texts in memory, and how they were obtained as 'protocol'.

  Args:
    trained: the model.
    name: key of `MEASURES`.
    suite: the protocol.
    content: documents, passages, or (good, bad) sentences.
    settings: result of `resolve`.
  Raises:
    ConfigError: see the functions of the measure.
  """
  totals: Totals = {}
  for window in streams.windows(content, WINDOW_ENTRIES, size_of):
    if is_enough(settings, totals):
      break
    MEASURES[name].add(trained, suite, window, settings, totals)
  return MEASURES[name].finish(trained, suite, totals, settings)


def windows(trained: Trained, name: str, file: str,
            entries: Iterator[suites.Entry]) -> Iterator[list[Any]]:
  """Yields the entries of a file in lists of bounded size; a long document comes in parts.

  Args:
    trained: the model.
    name: key of `SUITES`.
    file: see `suites.iterate`.
    entries: the entries, or those that are left.
  """
  content: Iterator[Any] = entries
  # The lines of one document, which a model that scores lines reads as they are.
  if suites.is_one_document(name, file) and not scorers.find(trained).by_line:
    content = parts.cut_document(content, trained.tokenizer)
  return streams.windows(content, WINDOW_ENTRIES, size_of)


def size_of(entry: Any) -> int:
  """Returns the characters of an entry."""
  if isinstance(entry, Part):
    return len(entry.text)
  return sum(map(len, suites.as_texts(entry)))


def entries_of(entry: Any) -> int:
  """Returns how many entries of a file an entry of a window is made of."""
  return entry.entries if isinstance(entry, Part) else 1


def is_enough(settings: Settings, totals: Totals) -> bool:
  """Returns whether `settings.limit` is reached."""
  return 0 < settings.limit <= totals.get("scored", 0)


def add_to(totals: Totals, **amounts: float) -> None:
  """Adds amounts to the totals of the same names."""
  for name, amount in amounts.items():
    totals[name] = totals.get(name, 0) + amount


def room(settings: Settings, totals: Totals) -> int | None:
  """Returns how much more is scored before `settings.limit` is reached; None: there is no limit."""
  return settings.limit - totals.get("scored", 0) if settings.limit else None


# ------------------------------------------------------------------- perplexity


def add_perplexity(trained: Trained, suite: Suite, documents: Sequence[str | Part],
                   settings: Settings, totals: Totals) -> list[Record]:
  """Scores documents, each separately, and adds to the totals.

  Words and bytes are counted in the text as it is in the file, before it is detokenized.

  Args:
    trained: the model.
    suite: the protocol.
    documents: documents, or consecutive parts of them.
    settings: result of `resolve`.
    totals: totals of the texts before.
  Returns:
    Tokens and log-probability of every text that ends here.
  """
  scorer = scorers.find(trained)
  texts = [text if isinstance(text, Part) else Part(text) for text in documents]
  if scorer.by_line:
    texts = [Part(line) for text in texts for line in text.text.split("\n") if line.strip()]
  encoded = trained.tokenizer.encode(
      [suites.detokenize(part.text, suite.detokenizer) for part in texts])
  rows, counts, rest = [], [], totals.pop("rest", None)
  for part, ids in zip(texts, encoded, strict=True):
    if rest is None and part.is_last:
      cut = scorer.cut(trained.tokenizer, ids, settings.window, settings.stride)
    else:
      before = None if rest is None else left_to_right.Rest(*rest)
      cut, after = left_to_right.cut_part(trained.tokenizer, before, ids, part.is_last,
                                          settings.window, settings.stride)
      rest = None if part.is_last else [np.array(after.tokens).tolist(), after.scored]
    rows += cut
    counts.append(len(cut))
  if rest is not None:
    totals["rest"] = rest
  rows = rows[:room(settings, totals)]
  add_to(totals, scored=len(rows),
         words=sum(suites.count_words(part.text, suite.counts_lines) for part in texts),
         bytes=sum(len(part.text.encode()) for part in texts))
  logp = iter(scorer.score(trained, rows, settings.batch_size))
  records = []
  for part, count in zip(texts, counts, strict=True):
    scores = list(itertools.islice(logp, count))
    nats = -sum(float(x.sum(dtype=np.float64)) for x in scores)
    num_tokens = sum(map(len, scores))
    add_to(totals, tokens=num_tokens, nats=nats, part_tokens=num_tokens, part_nats=nats)
    if part.is_last and (scores or not settings.limit):
      add_to(totals, texts=1)
      records.append({"text": totals["texts"], "tokens": totals.pop("part_tokens"),
                      "logp": -totals.pop("part_nats")})
  return records


def finish_perplexity(trained: Trained, suite: Suite, totals: Totals, settings: Settings) -> Scores:
  """Returns perplexities and bits per byte.

  Args:
    trained: the model.
    suite: the protocol.
    totals: totals of all documents.
    settings: result of `resolve`.
  Raises:
    ConfigError: no token can be scored.
  """
  scorer = scorers.find(trained)
  nats, num_tokens = totals.get("nats", 0), totals.get("tokens", 0)
  if not num_tokens:
    raise ConfigError("--suite: there is no second token to score. Give a longer text")
  protocol = scorer.describe(totals["scored"], settings.window, settings.stride)
  if suite.detokenizer:
    protocol += f", {suite.detokenizer} detokenizer"
  result: Scores = {
      "protocol": protocol, f"{scorer.name}_perplexity": perplexity(nats / num_tokens),
      "tokens": num_tokens}
  if settings.limit or not scorer.is_likelihood:
    return result
  return result | {"word_perplexity": perplexity(nats / totals["words"]), "words": totals["words"],
                   "bits_per_byte": nats / totals["bytes"] / math.log(2), "bytes": totals["bytes"]}


# --------------------------------------------------------------------- LAMBADA


def add_last_words(trained: Trained, suite: Suite, passages: Sequence[str], settings: Settings,
                   totals: Totals) -> list[Record]:
  """Guesses the last words of passages, and adds to the totals.

  Args:
    trained: the model, with the ability "score".
    suite: the protocol.
    passages: the passages; blank ones are skipped.
    settings: result of `resolve`.
    totals: totals of the passages before.
  Returns:
    Whether the guess is right, and the log-probability of the target, for every passage.
  Raises:
    ConfigError: a passage has nothing before its last word, or the window is too short for it.
  """
  passages = [text.strip() for text in passages if text.strip()][:room(settings, totals)]
  contexts, words = _encode_passages(trained, suite, passages)
  if max(map(len, words), default=0) >= settings.window:
    raise ConfigError(f"--suite: a last word has {max(map(len, words))} tokens. Give a longer "
                      "--window")
  rows = [np.concatenate(pair)[-settings.window:] for pair in zip(contexts, words, strict=True)]
  banned_V = (suites.find_stop_tokens(trained.tokenizer) if suite.rule == "stop_words" else None)
  ranked = left_to_right.rank(trained, rows, settings.batch_size, banned_V)
  records = []
  for word, scored in zip(words, ranked, strict=True):
    size = 1 if suite.rule == "token" else len(word)
    is_right = scored.is_top[-size:].copy()
    if suite.rule == "stop_words":
      is_right[0] = scored.is_top_allowed[-size]
    logp = float(scored.logp[-size:].sum(dtype=np.float64))
    add_to(totals, scored=1, correct=bool(is_right.all()), nats=-logp)
    records.append({"text": totals["scored"], "correct": bool(is_right.all()), "logp": logp})
  return records


def finish_last_words(trained: Trained, suite: Suite, totals: Totals, settings: Settings) -> Scores:
  """Returns how often the last word of a passage is guessed, and the perplexity of the target.

  Args:
    trained, settings: not used.
    suite: the protocol.
    totals: totals of all passages.
  """
  del trained, settings
  count = totals["scored"]
  return {"protocol": f"{count} passages, rule: {suite.rule}",
          "accuracy": totals["correct"] / count, "perplexity": perplexity(totals["nats"] / count)}


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


def add_pairs(trained: Trained, suite: Suite, pairs: Sequence[tuple[str, str]], settings: Settings,
              totals: Totals) -> list[Record]:
  """Compares the sentences of pairs, as a whole, and adds to the totals.

  Args:
    trained: the model.
    suite: the protocol; not read.
    pairs: (good, bad) sentences.
    settings: result of `resolve`.
    totals: totals of the pairs before.
  Returns:
    The log-probabilities of both sentences, for every pair.
  Raises:
    ConfigError: a sentence has no tokens, or does not fit into the window.
  """
  del suite
  sentences = [sentence for pair in pairs[:room(settings, totals)] for sentence in pair]
  encoded = trained.tokenizer.encode(sentences)
  for sentence, ids in zip(sentences, encoded, strict=True):
    if not 0 < len(ids) <= settings.window - 2:
      raise ConfigError(f"--suite pairs: {sentence[:40]!r} has {len(ids)} tokens. Give sentences "
                        f"of 1 to {settings.window - 2}, or another --window")
  scores = score_tokens(trained, encoded, settings.window, settings.stride, settings.batch_size)
  logp = [float(x.sum(dtype=np.float64)) for x in scores]
  records = []
  for good, bad in zip(logp[::2], logp[1::2], strict=True):
    add_to(totals, scored=1, correct=good > bad)
    records.append({"text": totals["scored"], "good": good, "bad": bad})
  return records


def finish_pairs(trained: Trained, suite: Suite, totals: Totals, settings: Settings) -> Scores:
  """Returns how often the good sentence of a pair is likelier than the bad one.

  Args:
    trained: the model.
    suite, settings: not used.
    totals: totals of all pairs.
  """
  del suite, settings
  return {"protocol": f"{totals['scored']} pairs, {scorers.find(trained).how}",
          "accuracy": totals["correct"] / totals["scored"]}


# -------------------------------------------------------------------- the table


class Measure(NamedTuple):
  """One measure of zero-shot evaluation.

  Attributes:
    add: (trained, suite, window of entries, settings, totals) -> scores of the texts; adds to the
      totals. `scored` counts towards the limit.
    finish: (trained, suite, totals, settings) -> the scores by name, and how they were obtained as
      'protocol'.
    compute: (trained, suite, content of its file, settings) -> the same for texts in memory.
    needs: ability that the model must have; '': any that has a scorer.
  """

  add: Callable[[Trained, Suite, Sequence[Any], Settings, Totals], list[Record]]
  finish: Callable[[Trained, Suite, Totals, Settings], Scores]
  compute: Callable[[Trained, Suite, Sequence[Any], Settings], Scores]
  needs: str = ""


def measure_perplexity(trained: Trained, suite: Suite, documents: Sequence[str],
                       settings: Settings) -> Scores:
  """Returns perplexities and bits per byte of documents; see `measure`."""
  return measure(trained, "perplexity", suite, documents, settings)


def measure_last_word(trained: Trained, suite: Suite, passages: Sequence[str],
                      settings: Settings) -> Scores:
  """Returns how often the last word of a passage is guessed; see `measure`."""
  return measure(trained, "last_word", suite, passages, settings)


def measure_pairs(trained: Trained, suite: Suite, pairs: Sequence[tuple[str, str]],
                  settings: Settings) -> Scores:
  """Returns how often the good sentence of a pair is likelier; see `measure`."""
  return measure(trained, "pairs", suite, pairs, settings)


MEASURES = {
    "perplexity": Measure(add_perplexity, finish_perplexity, measure_perplexity),
    "last_word": Measure(add_last_words, finish_last_words, measure_last_word, needs="score"),
    "pairs": Measure(add_pairs, finish_pairs, measure_pairs),
}
