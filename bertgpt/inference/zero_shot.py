"""Zero-shot evaluation by named protocols: what a model scores on texts it was not trained for.

A published number depends on its protocol as much as on the model: GPT-2's 45.99% on LAMBADA count
the last token of a word; others count whole words, and give 32.6% to the same model. So a protocol
is a line of `SUITES`, and its text is always named: `--suite lambada=FILE`, or a TFDS dataset as
`lambada=tfds:name:split#feature`. No data comes with the program.

Axes: B rows, L length, V vocabulary.
"""

import difflib
import functools
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.data.batches import buckets
from bertgpt.data.text import sources, texts
from bertgpt.data.tokens.tokenizers import Tokenizer
from bertgpt.errors import ConfigError, DataError
from bertgpt.models import Inputs
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.trained import Trained


class Suite(NamedTuple):
  """One protocol.

  Attributes:
    score: key of SCORES.
    file: what its file is, for people.
    detokenizer: key of DETOKENIZERS, applied to the text before it is tokenized.
    counts_lines: the end of a line counts as a word, as in the token counts of WikiText.
    rule: of LAMBADA: 'word' (every token of the last word is the likeliest after those before it),
      'stop_words' (the same with the first token drawn from what is no stop word), 'token' (the
      last token alone).
    source: where the protocol comes from.
  """

  score: str
  file: str
  detokenizer: str = ""
  counts_lines: bool = False
  rule: str = ""
  source: str = ""


_WIKITEXT = Suite(
    "perplexity", "wiki.test.tokens, in which words are parted by spaces", "wikitext", True,
    source="Merity et al. 2016, arXiv:1609.07843; detokenized as Radford et al. 2019, 3.1 advise")
_LAMBADA_FILE = "lambada_test.jsonl of openai/gpt-2, an object with a field text a line"
SUITES = {
    "text": Suite("perplexity", "any text, or .jsonl with a document in a field text"),
    "wikitext2": _WIKITEXT,
    "wikitext103": _WIKITEXT,
    "lambada": Suite("last_word", _LAMBADA_FILE, rule="word",
                     source="Paperno et al. 2016; lm-evaluation-harness, lambada_openai"),
    "lambada_stop_words": Suite("last_word", _LAMBADA_FILE, rule="stop_words",
                                source="after Radford et al. 2019, 3.3; the list is ours"),
    "lambada_last_token": Suite("last_word", _LAMBADA_FILE, rule="token",
                                source="Radford et al. 2019, 3.3, by openai/gpt-2#131"),
    "pairs": Suite("pairs", "a table with the columns good and bad, parted by tabs",
                   source="Warstadt et al. 2020, arXiv:1912.00582 (BLiMP)"),
}

# (pattern, what takes its place), in this order.
DETOKENIZERS = {
    "": (),
    "wikitext": (
        (r" @([-,.])@ ", r"\1"),
        (r"(?m)^ | $", ""),
        (r"= (?==)", "="),                        # Headings: = = Career = =
        (r" ([.,:;!?%)\]])", r"\1"),
        (r"([(\[$\u00a3]) ", r"\1"),
        (r'" ([^"\n]*?) "', r'"\1"'),
        (r" ('s|'re|'ve|'ll|'d|'m|n't)\b", r"\1"),
        (r"s ' ", "s' "),
    ),
}

STOP_WORDS = frozenset("""
a about above after again against all am an and any are as at be because been before being below
between both but by can could did do does doing down during each few for from further had has
have having he her here hers herself him himself his how i if in into is it its itself just me more
most my myself no nor not now of off on once only or other our ours ourselves out over own same
she should so some such than that the their theirs them themselves then there these they this
those through to too under until up very was we were what when where which while who whom why will
with would you your yours yourself yourselves
""".split())


class Settings(NamedTuple):
  """What the flags of `bertgpt evaluate --suite` say.

  Attributes:
    window: tokens that the model sees at a time; 0: what it was trained on.
    stride: tokens scored with each window; 0: half a window.
    limit: windows, passages, lines or pairs scored; 0: all.
    batch_size: rows at a time.
  """

  window: int = 0
  stride: int = 0
  limit: int = 0
  batch_size: int = 8


def parse(spec: str) -> list[tuple[str, str]]:
  """(name, file) of 'NAME=FILE,NAME=FILE'.

  Raises:
    ConfigError: a name that is no suite, or that has no file.
  """
  parts = [tuple(part.strip().partition("=")[::2]) for part in spec.split(",") if part.strip()]
  if not parts:
    raise ConfigError(f"--suite {spec!r}: names none; choose among {', '.join(SUITES)}")
  for name, file in parts:
    if name not in SUITES:
      close = difflib.get_close_matches(name, SUITES, n=1)
      raise ConfigError(f"--suite {name}: no such suite; " + (
          f"did you mean {close[0]}?" if close else f"choose among {', '.join(SUITES)}"))
    if not file:
      raise ConfigError(f"--suite {name}: no data come with the program; give {name}=FILE with "
                        f"{SUITES[name].file}")
  return parts


def run(path: pathlib.Path, spec: str, settings: Settings) -> Iterator[str]:
  """The lines that `bertgpt evaluate --suite` prints.

  Raises:
    ConfigError: no run in `path`, a suite that is none or not for the model, or a wrong setting.
    DataError: a file that is not what the suite needs.
  """
  suites = parse(spec)
  trained = trained_lib.load_trained(path)
  settings = resolve(settings, trained)
  for name, _ in suites:
    if SUITES[name].score == "last_word":
      trained_lib.require(trained, path, "score", f"be scored by {name}; use pairs or text")
  read = [read_suite(SUITES[name], file, f"--suite {name}") for name, file in suites]
  for (name, file), content in zip(suites, read, strict=True):
    scores = SCORES[SUITES[name].score](trained, SUITES[name], content, settings)
    yield f"{name}: {pathlib.PurePath(file).name}, {scores.pop('protocol')}"
    for metric, value in scores.items():
      yield f"{name}/{metric} {value if isinstance(value, int) else format(value, '.6g')}"


def resolve(settings: Settings, trained: Trained) -> Settings:
  """The settings with their defaults for a model.

  Raises:
    ConfigError: a window that the model has not, or a stride that leaves nothing to see.
  """
  most, window = trained.config.model.max_positions, settings.window or trained_lib.window(trained)
  if not 4 <= window <= most:
    raise ConfigError(f"--window={window}: the model has {most} positions; give 4 to {most}")
  stride = settings.stride or window // 2
  if stride >= window:
    raise ConfigError(f"--stride={stride}: must be less than the window of {window} tokens")
  return settings._replace(window=window, stride=stride)


def read_suite(suite: Suite, file: str, flag: str) -> list[str] | list[tuple[str, ...]]:
  """The documents, passages or pairs of a suite."""
  path = pathlib.Path(file).expanduser()
  if file.startswith("tfds:"):
    content = read_dataset(file, flag)
  elif suite.score == "pairs":
    content = texts.read_columns(path, flag, ("good", "bad"))
  elif suite.score == "last_word" or ".jsonl" in path.suffixes:
    content = texts.read_texts(path, flag)
  else:
    content = [texts.read_text(path, flag)]
  if not any(text.strip() for entry in content for text in np.atleast_1d(entry)):
    raise ConfigError(f"{flag} {file}: holds no text; give {suite.file}")
  return content


def read_dataset(spec: str, flag: str) -> list[str]:
  """The texts of a dataset that TFDS has prepared."""
  try:
    return ["\n".join(document.paragraphs) for document in sources.open_source(spec)]
  except (ConfigError, DataError) as e:
    raise type(e)(f"{flag}: {str(e).removeprefix('data.source: ')}") from e


def detokenize(text: str, detokenizer: str) -> str:
  for pattern, replacement in DETOKENIZERS[detokenizer]:
    text = re.sub(pattern, replacement, text)
  return text


# -------------------------------------------------------------- token by token


class Scored(NamedTuple):
  """Of the tokens of a row [L], of which a GPT cannot score the first.

  Attributes:
    logp: float32 log-probabilities.
    is_top: no other token is likelier.
    is_top_allowed: nor would one be if some were not allowed.
  """

  logp: np.ndarray
  is_top: np.ndarray
  is_top_allowed: np.ndarray


def score_rows(trained: Trained, rows: Sequence[np.ndarray], batch_size: int,
               banned_V: np.ndarray | None = None) -> list[Scored]:
  """Scores by a GPT of the tokens of rows, each after those before it in its row.

  Args:
    rows: int [N] each, of at most the model's positions.
    banned_V: bool, tokens that `is_top_allowed` leaves out.
  """
  if banned_V is None:
    banned_V = np.zeros(trained.config.model.vocab_size, bool)
  scored: list[Scored] = [Scored(*(np.zeros(0),) * 3)] * len(rows)
  params, most = jax.device_put(trained.params), trained.config.model.max_positions
  for which, size in buckets.batches([len(row) for row in rows], batch_size, most):
    tokens_BL = buckets.pad([rows[i] for i in which], size, batch_size)
    batch = jax.device_get(_score(trained.model, params, tokens_BL, banned_V))
    for i, *arrays in zip(which, *batch, strict=False):
      scored[i] = Scored(*(x_L[:len(rows[i])] for x_L in arrays))
  return scored


@functools.partial(jax.jit, static_argnums=0)
def _score(model, params, tokens_BL, banned_V):
  """Scored [B, L]. Logits are formed row by row: those of all would not fit."""
  lengths_B = jnp.full(len(tokens_BL), tokens_BL.shape[1])
  x_BLD = model.apply({"params": params}, Inputs.of_texts(tokens_BL, lengths_B), method="features")

  def score_row(row):
    x_LD, targets_L = row
    logits_LV = model.apply({"params": params}, x_LD, method="logits")
    logits_LV = logits_LV[:, :model.config.vocab_size]
    target_L1 = jnp.take_along_axis(logits_LV, targets_L[:, None], axis=1)
    is_higher_LV = logits_LV > target_L1
    return (target_L1[:, 0] - jax.nn.logsumexp(logits_LV, axis=1), ~is_higher_LV.any(1),
            ~(is_higher_LV & ~banned_V).any(1) & ~banned_V[targets_L])

  found = jax.lax.map(score_row, (x_BLD[:, :-1], tokens_BL[:, 1:]))
  return tuple(jnp.pad(x_BL, ((0, 0), (1, 0))) for x_BL in found)


def score_masked(trained: Trained, rows: Sequence[np.ndarray], batch_size: int) -> list[np.ndarray]:
  """Log-probabilities by a BERT of every token of rows, each seen as [MASK] and the others as
  they are (Salazar et al. 2020, arXiv:1910.14659).

  Args:
    rows: int [N] each, without [CLS] and [SEP].
  Returns:
    float32 [N] each.
  """
  params, tokenizer = jax.device_put(trained.params), trained.tokenizer
  whole = [np.array([tokenizer.cls_id, *row, tokenizer.sep_id], np.int32) for row in rows]
  scores = [np.zeros(len(row), np.float32) for row in rows]
  places = np.array([(i, at) for i, row in enumerate(rows) for at in range(1, len(row) + 1)])
  lengths = [len(whole[i]) for i, _ in places]
  for which, size in buckets.batches(lengths, batch_size,
                                      trained.config.model.max_positions):
    tokens_BL = buckets.pad([whole[i] for i, _ in places[which]], size, batch_size)
    fill = (0, len(tokens_BL) - len(which))
    logp_B = jax.device_get(_score_masked(
        trained.model, params, tokens_BL, np.pad([lengths[j] for j in which], fill),
        np.pad(places[which, 1], fill), tokenizer.mask_id))
    for (i, at), logp in zip(places[which], logp_B, strict=False):
      scores[i][at - 1] = logp
  return scores


@functools.partial(jax.jit, static_argnums=0)
def _score_masked(model, params, tokens_BL, lengths_B, at_B, mask_id):
  rows_B = jnp.arange(len(tokens_BL))
  inputs = Inputs.of_texts(tokens_BL.at[rows_B, at_B].set(mask_id), lengths_B)
  logits_B1V, _ = model.apply({"params": params},
                              inputs._replace(predict_positions_BK=at_B[:, None]))
  logp_BV = jax.nn.log_softmax(logits_B1V[:, 0, :model.config.vocab_size])
  return logp_BV[rows_B, tokens_BL[rows_B, at_B]]


# ------------------------------------------------------------------- perplexity


def windows(num_tokens: int, size: int, stride: int) -> Iterator[tuple[int, int, int]]:
  """(first, first scored, end) of windows over a document: all tokens but the first are scored
  once, each after at least `size - stride` others or all that there are.
  """
  end = min(size, num_tokens)
  if num_tokens > 1:
    yield 0, 1, end
  while end < num_tokens:
    scored, end = end, min(end + stride, num_tokens)
    yield end - size, scored, end


def score_perplexity(trained: Trained, suite: Suite, documents: list[str],
                     settings: Settings) -> dict[str, float | str]:
  """Perplexities and bits per byte, each document by itself.

  Words and bytes are those of the text as it is in the file. A GPT sees the end of another document
  before a document; a BERT sees one line, or so much of it as fits, at a time.
  """
  is_gpt = trained.can("score")
  if not is_gpt:
    documents = [line for text in documents for line in text.split("\n") if line.strip()]
  encoded = trained.tokenizer.encode([detokenize(text, suite.detokenizer) for text in documents])
  if is_gpt:
    nats, num_tokens, examples = _sum_windows(trained, encoded, settings)
    protocol = (f"{examples} windows of {settings.window} tokens, {settings.stride} scored with "
                "each")
  else:
    room = settings.window - 2
    lines = [ids[i:i + room] for ids in encoded for i in range(0, len(ids), room)]
    lines = lines[:settings.limit or None]
    scores = score_masked(trained, lines, settings.batch_size)
    nats = -sum(float(x.sum(dtype=np.float64)) for x in scores)
    num_tokens = sum(map(len, lines))
    protocol = f"{len(lines)} lines of at most {room} tokens, each token masked once"
  if suite.detokenizer:
    protocol += f", {suite.detokenizer} detokenizer"
  if not num_tokens:
    raise ConfigError("--suite: there is no second token to score; give a longer text")
  name = "token_perplexity" if is_gpt else "pseudo_perplexity"
  result = {"protocol": protocol, name: perplexity(nats / num_tokens), "tokens": num_tokens}
  if settings.limit or not is_gpt:
    return result
  num_words = sum(count_words(text, suite.counts_lines) for text in documents)
  num_bytes = sum(len(text.encode()) for text in documents)
  return result | {"word_perplexity": perplexity(nats / num_words), "words": num_words,
                   "bits_per_byte": nats / num_bytes / math.log(2), "bytes": num_bytes}


def perplexity(nats: float) -> float:
  """Of the mean loss; infinite where it is no float, as of 'words' in scripts without spaces."""
  return math.exp(nats) if nats < 700 else math.inf


def count_words(text: str, counts_lines: bool) -> int:
  """What is parted by white space, and with `counts_lines` the end of every line."""
  return len(text.split()) + counts_lines * text.count("\n")


def _sum_windows(trained: Trained, encoded: Sequence[np.ndarray],
                 settings: Settings) -> tuple[float, int, int]:
  """(nats, tokens scored, windows) of documents."""
  before = [trained.tokenizer.eod_id] if trained.tokenizer.eod_id >= 0 else []
  rows, firsts = [], []
  for ids in encoded:
    ids = np.array([*before, *ids])
    for first, scored, end in windows(len(ids), settings.window, settings.stride):
      rows.append(ids[first:end])
      firsts.append(scored - first)
  rows = rows[:settings.limit or None]
  scored = [x.logp[first:] for x, first in zip(
      score_rows(trained, rows, settings.batch_size), firsts, strict=False)]
  nats = -sum(float(logp.sum(dtype=np.float64)) for logp in scored)
  return nats, sum(map(len, scored)), len(rows)


# --------------------------------------------------------------------- LAMBADA


def score_last_word(trained: Trained, suite: Suite, passages: list[str],
                    settings: Settings) -> dict[str, float | str]:
  """How often the last word of a passage is guessed, and the perplexity of the target."""
  passages = [text.strip() for text in passages if text.strip()][:settings.limit or None]
  parts = [text.rsplit(maxsplit=1) for text in passages]  # At any white space.
  if alone := [part[0] for part in parts if len(part) == 1]:
    raise ConfigError(f"--suite: the passage {alone[0]!r} has nothing before its last word; give "
                      f"{suite.file}")
  contexts = trained.tokenizer.encode([context for context, _ in parts])
  words = trained.tokenizer.encode([f" {word}" for _, word in parts])
  for text, context, word in zip(passages, contexts, words, strict=True):
    if not (len(context) and len(word)):
      raise ConfigError(f"--suite: the passage {text[-40:]!r} has no tokens "
                        f"{'in' if len(context) else 'before'} its last word; take it out")
  rows = [np.concatenate(pair)[-settings.window:]
          for pair in zip(contexts, words, strict=True)]
  if max(map(len, words)) >= settings.window:
    raise ConfigError(f"--suite: a last word has {max(map(len, words))} tokens; give a --window of "
                      "more")
  banned_V = stop_tokens(trained.tokenizer) if suite.rule == "stop_words" else None
  correct, nats = 0, 0.0
  for word, scored in zip(words, score_rows(trained, rows, settings.batch_size, banned_V),
                          strict=True):
    size = 1 if suite.rule == "token" else len(word)
    is_right = scored.is_top[-size:].copy()
    if suite.rule == "stop_words":
      is_right[0] = scored.is_top_allowed[-size]
    correct += bool(is_right.all())
    nats -= float(scored.logp[-size:].sum(dtype=np.float64))
  return {"protocol": f"{len(passages)} passages, rule: {suite.rule}",
          "accuracy": correct / len(passages), "perplexity": perplexity(nats / len(passages))}


def stop_tokens(tokenizer: Tokenizer) -> np.ndarray:
  """Tokens that are special, a stop word, or without a letter or digit: bool [vocab_size]."""
  names = [tokenizer.decode([i]).strip().lower() for i in range(tokenizer.vocab_size)]
  is_stop = np.array([name in STOP_WORDS or (bool(name) and not any(map(str.isalnum, name)))
                      for name in names])
  is_stop[list(tokenizer.special_ids)] = True
  return is_stop


# ------------------------------------------------------------------------ pairs


def score_pairs(trained: Trained, suite: Suite, pairs: list[tuple[str, str]],
                settings: Settings) -> dict[str, float | str]:
  """How often the good sentence of a pair is likelier than the bad one, all its tokens together."""
  del suite
  pairs = pairs[:settings.limit or None]
  sentences = [sentence for pair in pairs for sentence in pair]
  encoded = trained.tokenizer.encode(sentences)
  is_gpt = trained.can("score")
  for sentence, ids in zip(sentences, encoded, strict=True):
    if not 0 < len(ids) <= settings.window - 2:
      raise ConfigError(f"--suite pairs: {sentence[:40]!r} has {len(ids)} tokens; give sentences "
                        f"of 1 to {settings.window - 2}, or another --window")
  if is_gpt:
    before = [trained.tokenizer.eod_id] if trained.tokenizer.eod_id >= 0 else []
    rows = [np.array([*before, *ids]) for ids in encoded]
    scores = [x.logp[1:] for x in score_rows(trained, rows, settings.batch_size)]
  else:
    scores = score_masked(trained, encoded, settings.batch_size)
  good, bad = np.array([x.sum(dtype=np.float64) for x in scores]).reshape(-1, 2).T
  how = "after the end of a document" if is_gpt else "each token masked once"
  return {"protocol": f"{len(pairs)} pairs, {how}", "accuracy": float((good > bad).mean())}


SCORES: dict[str, Callable] = {
    "perplexity": score_perplexity, "last_word": score_last_word, "pairs": score_pairs}
