"""The measures of zero-shot evaluation: totals over texts, and scores computed from them.

A function `add_...` scores a chunk of texts and adds to the totals, which are JSON values; the
function `finish_...` turns the totals of all texts into scores. The log-probabilities of tokens
come from `scorers`, so the measures do not depend on the family of the model.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bertgpt.data.tokens import following, lost, marks, unknown
from bertgpt.errors import ConfigError
from bertgpt.inference import scorers, suites
from bertgpt.inference.long_documents import Part
from bertgpt.inference.score import score_tokens
from bertgpt.inference.scorers import Row, left_to_right
from bertgpt.inference.suites import Suite
from bertgpt.runs.trained import Trained

Scores = dict[str, float | int | str]
# Sums over the texts that are scored, as JSON values. 'open': those of a document of which more
# parts follow.
Totals = dict[str, Any]
Record = dict[str, Any]   # Scores of one text, as JSON values.


class Settings(NamedTuple):
  """Flags of `bertgpt evaluate --suite`.

  Attributes:
    window: tokens that the model sees at a time; 0: as in training.
    stride: tokens scored with each window; 0: half a window.
    limit: windows, passages, parts of lines, pairs or choices scored; 0: all.
    batch_size: rows per batch.
  """

  window: int = 0
  stride: int = 0
  limit: int = 0
  batch_size: int = 8


def perplexity(nats: float) -> float:
  """Returns exp of a mean loss.

  A result beyond the range of floats is infinite. This can happen for scripts without spaces, whose
  "words" are few and long.

  Args:
    nats: mean loss.
  """
  return math.exp(nats) if nats < 700 else math.inf


def is_enough(settings: Settings, totals: Totals) -> bool:
  """Returns whether `settings.limit` is reached."""
  return 0 < settings.limit <= totals.get("scored", 0)


def add_to(totals: Totals, **amounts: float) -> None:
  """Adds amounts to the totals of the same names."""
  for name, amount in amounts.items():
    totals[name] = totals.get(name, 0) + amount


def has_text(part: Part) -> bool:
  """Returns whether a part counts toward the limit: blank ones are skipped."""
  return any(map(str.strip, part.texts))


def texts_of(parts: Iterable[Part]) -> list[str]:
  """Returns the texts of all parts, in order."""
  return [text for part in parts for text in part.texts]


def room(settings: Settings, totals: Totals) -> int | None:
  """Returns how many more items are scored until `settings.limit`; None: there is no limit."""
  return settings.limit - totals.get("scored", 0) if settings.limit else None


def check_scored(totals: Totals) -> None:
  """Raises a ConfigError if no text was scored."""
  if not totals.get("scored"):
    raise ConfigError("there is nothing to score. Give texts that are not blank")


def make_part(suite: Suite, entry: suites.Entry) -> Part:
  """Returns an entry of a file, which is scored as a whole."""
  return Part(tuple(suites.detokenize(text, suite.detokenizer) for text in entry),
              "\t".join(entry))


def add_unknown(trained: Trained, texts: Sequence[str], encoded: Sequence[np.ndarray],
                totals: Totals) -> None:
  """Adds the bytes of texts, and those for which they have unknown tokens, to the totals.

  Args:
    trained: the model.
    texts: texts that were tokenized.
    encoded: their ids, int [N] each.
    totals: totals to add to.
  """
  if not trained.tokenizer.has_words:  # The model reads them by their characters.
    add_to(totals, encoded_bytes=sum(len(text.encode()) for text in texts),
           unknown_bytes=unknown.count_bytes(trained.tokenizer, texts, encoded))


def remark_unknown(totals: Totals) -> str:
  """Returns what is added to the description of a protocol if much of the text is unknown."""
  remark = unknown.describe(totals.get("unknown_bytes", 0), totals.get("encoded_bytes", 0),
                            "the bytes")
  return remark and f", {remark}"


# ------------------------------------------------------------------- perplexity


def add_perplexity(trained: Trained, suite: Suite, parts: Sequence[Part], settings: Settings,
                   totals: Totals) -> list[Record]:
  """Scores documents, each separately, and adds to the totals.

  Words and bytes are counted in the text of the file, before it is detokenized.

  Args:
    trained: the model.
    suite: the protocol.
    parts: documents, or consecutive parts of them.
    settings: result of `resolve`.
    totals: totals of the previous texts.
  Returns:
    Tokens and log-probability of every text that ends here or is not scored any further.
  """
  scorer = scorers.find(trained)
  if scorer.by_line:
    parts = [make_part(suite, (line,)) for part in parts for line in part.source.split("\n")
             if line.strip()]
  texts = texts_of(parts)
  encoded = trained.tokenizer.encode(texts)
  add_unknown(trained, texts, encoded, totals)
  text: Totals = totals.pop("open", {})
  cut, rest = _cut(trained, parts, encoded, settings, text.pop("rest", None))
  rows = list(itertools.chain(*cut))[:room(settings, totals)]
  add_to(totals, scored=len(rows),
         words=sum(suites.count_words(part.source, suite.counts_lines) for part in parts),
         bytes=sum(len(part.source.encode()) for part in parts))
  logp = iter(scorer.score(trained, rows, settings.batch_size))
  records: list[Record] = []
  for part, of_part in zip(parts, cut, strict=True):
    scores = list(itertools.islice(logp, len(of_part)))
    add_to(text, tokens=sum(map(len, scores)), chars=len(part.source.strip()),
           nats=-sum(float(x.sum(dtype=np.float64)) for x in scores))
    if part.is_last:
      records += _end_text(totals, text)
      text = {}
  if is_enough(settings, totals):  # The parts that are left are not scored.
    records += _end_text(totals, text)
  elif rest is not None:
    totals["open"] = text | {"rest": rest}
  return records


def _cut(trained: Trained, parts: Sequence[Part], encoded: Sequence[np.ndarray],
         settings: Settings, rest: Sequence[Any] | None
         ) -> tuple[list[list[Row]], left_to_right.Rest | None]:
  """Returns the rows of every part, and the rest of the last one.

  Args:
    trained, parts, settings: see `add_perplexity`.
    encoded: ids of the parts, int [N] each.
    rest: values of the rest of the part before; None: the first part begins a document.
  """
  rows, before = [], left_to_right.Rest(*rest) if rest else None
  for part, ids in zip(parts, encoded, strict=True):
    if before is None and part.is_last:
      cut = scorers.find(trained).cut(trained, ids, settings.window, settings.stride)
    else:
      cut, before = left_to_right.cut_part(trained, before, ids, part.is_last, settings.window,
                                           settings.stride)
    rows.append(cut)
  return rows, before


def _end_text(totals: Totals, text: Totals) -> list[Record]:
  """Adds the sums of a text, and returns its record; none if no token of it was scored."""
  num_tokens, nats = text.get("tokens", 0), text.get("nats", 0)
  add_to(totals, tokens=num_tokens, nats=nats,
         texts=int(num_tokens > 0 or text.get("chars", 0) > 0))  # A blank text has no number.
  return [{"text": totals["texts"], "tokens": num_tokens, "logp": -nats}] if num_tokens else []


def finish_perplexity(trained: Trained, suite: Suite, totals: Totals, settings: Settings) -> Scores:
  """Returns perplexities and bits per byte.

  Those per word and byte need the probabilities of whole texts: a model without a token before the
  first one has them only for one text, whose first token hardly counts. An unknown token is much
  likelier than the word for which it stands, so they are left out if a text has many. If the
  tokenizer loses case or white space, the protocol says with which ones they can be compared.

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
    least, _ = scorer.lengths(trained, settings.window)
    raise ConfigError("there is no second token to score. Give a longer text" if least > 1 else
                      "the tokenizer finds no tokens in it. Give another text")
  remark = remark_unknown(totals)
  protocol = scorer.describe(totals["scored"], settings.window, settings.stride) + remark
  if suite.detokenizer:
    protocol += f", {suite.detokenizer} detokenizer"
  result: Scores = {
      "protocol": protocol, f"{scorer.name}_perplexity": perplexity(nats / num_tokens),
      "tokens": num_tokens}
  if settings.limit or not scorer.is_likelihood or remark:
    return result
  if trained.start_id < 0 and totals["texts"] > 1:
    result["protocol"] = f"{protocol}, {scorer.how(trained)}"
    return result  # The words and bytes of all texts would count, but not their first tokens.
  if lost.find_lost(trained.tokenizer):
    result["protocol"] = (f"{protocol}, per word and byte "
                          f"{lost.describe_lost(trained.tokenizer)}")
  return result | {"word_perplexity": perplexity(nats / totals["words"]), "words": totals["words"],
                   "bits_per_byte": nats / totals["bytes"] / math.log(2), "bytes": totals["bytes"]}


# --------------------------------------------------------------------- LAMBADA


_stop_tokens = functools.lru_cache(maxsize=1)(suites.find_stop_tokens)  # Used for every chunk.


def add_last_words(trained: Trained, suite: Suite, parts: Sequence[Part], settings: Settings,
                   totals: Totals) -> list[Record]:
  """Guesses the last words of passages, and adds to the totals.

  Args:
    trained: the model, with the ability "score".
    suite: the protocol.
    parts: the passages; blank ones are skipped.
    settings: result of `resolve`.
    totals: totals of the previous passages.
  Returns:
    Whether the guess is right, and the log-probability of the target, for every passage.
  Raises:
    ConfigError: see `encode_passages`.
  """
  parts = list(filter(has_text, parts))[:room(settings, totals)]
  contexts, words = encode_passages(trained, suite, parts, settings)
  whole = [np.concatenate(pair) for pair in zip(contexts, words, strict=True)]
  add_unknown(trained, list(map(str.strip, texts_of(parts))), whole, totals)
  begin = marks.of_decoder(trained.bos_id).enclose
  rows = [begin(ids)[-settings.window:] for ids in whole]
  banned_V = _stop_tokens(trained.tokenizer) if suite.rule == "stop_words" else None
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
    trained: not used.
    suite: the protocol.
    totals: totals of all passages.
    settings: result of `resolve`.
  Raises:
    ConfigError: there are none.
  """
  del trained
  check_scored(totals)
  count = totals["scored"]
  protocol = f"{count} passages of at most {settings.window} tokens, rule: {suite.rule}"
  return {"protocol": protocol + remark_unknown(totals),
          "accuracy": totals["correct"] / count, "perplexity": perplexity(totals["nats"] / count)}


def encode_passages(trained: Trained, suite: Suite, parts: Sequence[Part], settings: Settings
                    ) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
  """Returns (ids before the last word, ids of the last word) of every passage.

  Args:
    trained, suite, settings: see `add_last_words`.
    parts: the passages, not blank.
  Raises:
    ConfigError: a passage has nothing before its last word, or the window is too short for it.
  """
  passages = list(map(str.strip, texts_of(parts)))
  split = [_split_last_word(text, suite.rule) for text in passages]
  if single := [word for context, word in split if not context]:
    raise ConfigError(f"--suite: the passage {single[0]!r} has nothing before its last word. Give "
                      f"{suite.file}")
  contexts = trained.tokenizer.encode([context for context, _ in split])
  words = following.encode_after(trained.tokenizer, [word for _, word in split])
  for text, context, word in zip(passages, contexts, words, strict=True):
    if not (len(context) and len(word)):
      raise ConfigError(f"--suite: the passage {text[-40:]!r} has no tokens "
                        f"{'in' if len(context) else 'before'} its last word. Remove it")
  if max(map(len, words), default=0) >= settings.window:
    raise ConfigError(f"--suite: a last word has {max(map(len, words))} tokens. Give a longer "
                      "--window")
  return contexts, words


def _split_last_word(text: str, rule: str) -> tuple[str, str]:
  """Returns a passage before the white space in front of its last word, and from there on.

  With the rule 'word', the last word begins after the last space, even if it then contains line
  breaks, as in lm-evaluation-harness; 7 of OpenAI's 5,153 passages are of this kind.

  Args:
    text: the passage, without white space at its ends.
    rule: see `Suite`.
  """
  context, space, word = text.rpartition(" ")
  if rule != "word" or not space:
    word = text.split()[-1]
    context = text.removesuffix(word)
  context = context.rstrip()
  return context, text[len(context):]


# ------------------------------------------------------------------------ pairs


def add_pairs(trained: Trained, suite: Suite, parts: Sequence[Part], settings: Settings,
              totals: Totals) -> list[Record]:
  """Compares the sentences of pairs, as a whole, and adds to the totals.

  Args:
    trained: the model.
    suite: the protocol; not read.
    parts: pairs of a good and a bad sentence; blank ones are skipped.
    settings: result of `resolve`.
    totals: totals of the previous pairs.
  Returns:
    The log-probabilities of both sentences, for every pair.
  Raises:
    ConfigError: see `encode_pairs`.
  """
  parts = list(filter(has_text, parts))[:room(settings, totals)]
  encoded = encode_pairs(trained, suite, parts, settings)
  add_unknown(trained, texts_of(parts), encoded, totals)
  scores = score_tokens(trained, encoded, settings.window, settings.stride, settings.batch_size)
  logp = [float(x.sum(dtype=np.float64)) for x in scores]
  records = []
  for good, bad in zip(logp[::2], logp[1::2], strict=True):
    add_to(totals, scored=1, correct=good > bad, ties=good == bad)
    records.append({"text": totals["scored"], "good": good, "bad": bad})
  return records


def encode_pairs(trained: Trained, suite: Suite, parts: Sequence[Part],
                 settings: Settings) -> list[np.ndarray]:
  """Returns the ids of both sentences of every pair, one after the other.

  Args:
    trained, suite, settings: see `add_pairs`.
    parts: the pairs, not blank.
  Raises:
    ConfigError: a sentence has no token that can be scored, or does not fit into the window.
  """
  del suite
  sentences = texts_of(parts)
  encoded = trained.tokenizer.encode(sentences)
  least, most = scorers.find(trained).lengths(trained, settings.window)
  for sentence, ids in zip(sentences, encoded, strict=True):
    if not least <= len(ids) <= most:
      raise ConfigError(f"--suite pairs: {sentence[:40]!r} has {len(ids)} tokens. Give sentences "
                        f"of {least} to {most}, or another --window")
  return encoded


def finish_pairs(trained: Trained, suite: Suite, totals: Totals, settings: Settings) -> Scores:
  """Returns how often the good sentence of a pair is likelier than the bad one.

  A tie is not correct. In lm-evaluation-harness, it is correct if the good sentence comes first.

  Args:
    trained: the model.
    suite, settings: not used.
    totals: totals of all pairs.
  Raises:
    ConfigError: there are none.
  """
  del suite, settings
  check_scored(totals)
  protocol = f"{totals['scored']} pairs, {scorers.find(trained).how(trained)}"
  if ties := totals["ties"]:
    protocol += f", {ties} tie{'s' * (ties != 1)}, counted as wrong"
  return {"protocol": protocol + remark_unknown(totals),
          "accuracy": totals["correct"] / totals["scored"]}
