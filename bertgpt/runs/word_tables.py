"""Characters of words among the parameters, for families that read words by their characters.

Such a model reads any word. A trained model learns the words of the texts that it is used on: they
are added to its tokenizer and to its table of characters. It still predicts only the words that it
was trained to predict.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bertgpt import models
from bertgpt.config import ConfigDict, families, padded_vocab_size
from bertgpt.data.tokens import spelling
from bertgpt.data.tokens.tokenizers import RecordingWords, Tokenizer, Words
from bertgpt.devices import gather
from bertgpt.runs.trained import Trained


def add_words(config: ConfigDict, params: Any, tokenizer: Tokenizer) -> Any:
  """Returns parameters that know the characters of the words of a tokenizer.

  Parameters of families that do not read words are returned as they are.

  Args:
    config: a whole config; `config.model` is read.
    params: fresh parameters on the devices, of a model or of a task's model.
    tokenizer: tokenizer of the model.
  """
  if not families.find(config).reads_words:
    return params
  if "body" in params:
    return {**params, "body": add_words(config, params["body"], tokenizer)}
  table = params["words"]["spelling"]
  whole = _make_table(tokenizer, len(table))
  placed = jax.make_array_from_callback(whole.shape, table.sharding, lambda index: whole[index])
  return {**params, "words": {**params["words"], "spelling": placed}}


def extend_vocabulary_to(trained: Trained, texts: Sequence[str]) -> Trained:
  """Returns a model that knows the words of texts; other families are returned as they are.

  Args:
    trained: the model.
    texts: texts that it is to read.
  """
  if not families.find(trained.config).reads_words:
    return trained
  tokenizer = trained.tokenizer
  assert isinstance(tokenizer, Words)
  return extend_vocabulary(trained, tokenizer.unknown_words(texts), is_rounded=True)


def extend_vocabulary(trained: Trained, words: Sequence[str], is_rounded: bool = False) -> Trained:
  """Returns a model that knows more words.

  Args:
    trained: a model of a family that reads words.
    words: words that its tokenizer lacks.
    is_rounded: whether to round the size of its table of characters up to a power of two, so that
      few programs are compiled for different texts.
  """
  if not words:
    return trained
  assert isinstance(trained.tokenizer, Words)
  tokenizer = trained.tokenizer.with_words(words)
  config = trained.config.copy_and_resolve_references()
  config.model.target_words = config.model.target_words or config.model.vocab_size
  size = tokenizer.vocab_size
  config.model.vocab_size = 1 << (size - 1).bit_length() if is_rounded else size
  table = _make_table(tokenizer, padded_vocab_size(config.model.vocab_size))
  return trained._replace(config=config, model=models.make_model(config), tokenizer=tokenizer,
                          params=_with_table(trained.params, table))


def replace_words(trained: Trained, tokenizer: Tokenizer, head: Mapping[str, jax.Array]) -> Trained:
  """Returns a model with the words of another tokenizer, for training on other text.

  Any word is read by its characters. A word that the model already predicts keeps its row of the
  output layer; the others have the rows of a fresh one.

  Args:
    trained: a model of a family that reads words.
    tokenizer: tokenizer of the text.
    head: fresh output layer, with rows for the words that are to be predicted.
  """
  is_same = (trained.tokenizer.fingerprint() == tokenizer.fingerprint() and not trained.fresh
             and trained.params["lm"]["bias"].shape == head["bias"].shape)
  if is_same:
    return trained
  old, new = trained.params["lm"], jax.tree.map(gather.to_host, dict(head))
  rows = {} if "lm" in trained.fresh else {
      piece: i for i, piece in enumerate(trained.tokenizer.pieces[:_num_targets(trained)])}
  pairs = [(i, rows[piece]) for i, piece in enumerate(tokenizer.pieces[:len(new["bias"])])
           if piece in rows]
  to, of = np.array(pairs, np.int64).reshape(-1, 2).T
  layer = {}
  for name, x in new.items():
    layer[name] = np.array(x)
    layer[name][to] = old[name][of]
  table = _make_table(tokenizer, padded_vocab_size(tokenizer.vocab_size))
  return trained._replace(tokenizer=tokenizer, fresh=(),
                          params={**_with_table(trained.params, table), "lm": layer})


def _num_targets(trained):
  model = trained.config.model
  return min(model.target_words or model.vocab_size, model.vocab_size)


def _make_table(tokenizer: Tokenizer, rows: int) -> np.ndarray:
  """Returns the characters of the words of a tokenizer, float32 [rows, WORD_CHARS]."""
  table = np.full((rows, spelling.WORD_CHARS), spelling.PADDING, np.float32)
  table[:tokenizer.vocab_size] = spelling.make_table(tokenizer)
  return table


def _with_table(params: Any, table: np.ndarray) -> Any:
  if "body" in params:
    return {**params, "body": _with_table(params["body"], table)}
  return {**params, "words": {**params["words"], "spelling": table}}


def record_unknown_words(trained: Trained) -> Tokenizer:
  """Returns a model's tokenizer, which records the words that it lacks if the family reads words.

  Args:
    trained: the model.
  """
  tokenizer = trained.tokenizer
  if not families.find(trained.config).reads_words:
    return tokenizer
  return RecordingWords(tokenizer.data, tokenizer.names)


def recorded_words(tokenizer: Tokenizer) -> list[str]:
  """Returns the words that a tokenizer from `record_unknown_words` has recorded.

  Args:
    tokenizer: any tokenizer.
  """
  return list(tokenizer.recorded) if isinstance(tokenizer, RecordingWords) else []
