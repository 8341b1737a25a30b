"""The row format of an objective, found by its name in `choices.OBJECTIVES`.

A row format is a module of this folder whose `FORMAT` is a `parts.RowFormat`.
"""

import importlib
from typing import TYPE_CHECKING

import numpy as np

from bertgpt.config import ConfigDict, choices, families, max_sequences
from bertgpt.data.batches.parts import Batch, Layout, Plan, RowFormat, Specs, select
from bertgpt.data.batches.windows import Windows, divide, draw_documents, make_rng
from bertgpt.data.corpus.corpus import Corpus
from bertgpt.errors import ConfigError

if TYPE_CHECKING:  # Reader processes do not import the tokenizer libraries.
  from bertgpt.data.tokens.tokenizers import Tokenizer


def find(config: ConfigDict) -> RowFormat:
  """Returns the row format of `config.objective`."""
  rows = choices.OBJECTIVES[config.objective.name].rows
  return importlib.import_module(f"bertgpt.data.batches.{rows}").FORMAT


def specs(config: ConfigDict, phase: ConfigDict) -> Specs:
  """Returns the schema of a batch: name -> (shape per row, dtype).

  It is the only schema: the zeros for initialization, the abstract batches of the planner and the
  batches of tests are made from it.

  Args:
    config: whole config.
    phase: one of `config.phases`.
  """
  return find(config).specs(config, phase)


def has_one_sequence(config: ConfigDict) -> bool:
  """Returns whether every row is one sequence, which only padding follows.

  Args:
    config: whole config.
  """
  return find(config).has_one_sequence(config)


def make_zeros(row_specs: Specs, num_rows: int) -> Batch:
  """Returns a batch of zeros, which consists only of padding.

  Args:
    row_specs: schema of the batch.
    num_rows: B.
  """
  return {name: np.zeros((num_rows, *shape), dtype) for name, (shape, dtype) in row_specs.items()}


def check_tokenizer(config: ConfigDict, tokenizer: "Tokenizer") -> None:
  """Checks that a tokenizer has the tokens that the objective needs, and words if the family does.

  Args:
    config: a whole config.
    tokenizer: the tokenizer of the run.
  Raises:
    ConfigError: special tokens are missing, which the message names, pieces are not words, or the
      unknown word is not predicted.
  """
  needs = choices.OBJECTIVES[config.objective.name].needs
  lacking = [name for name in needs if getattr(tokenizer, f"{name}_id") < 0]
  if lacking:
    raise ConfigError(f"objective.name={config.objective.name!r} needs a tokenizer with the "
                      f"special tokens {', '.join(lacking)}, which this one ({tokenizer.kind}) "
                      "lacks. Set tokenizer.path to another tokenizer, or train one")
  if families.find(config).reads_words and not tokenizer.has_words:
    raise ConfigError(f"model.family={config.model.family!r} reads whole words, but the tokenizer "
                      f"({tokenizer.kind}) cuts them into pieces. Set tokenizer.kind='words'")
  if 0 < config.model.target_words <= tokenizer.unk_id:
    raise ConfigError(f"model.target_words={config.model.target_words}: words that are not among "
                      f"them are predicted as the unknown word, whose id is {tokenizer.unk_id}. "
                      f"Set it to more than {tokenizer.unk_id}, or to 0 for all words")


def make_layout(tokenizer: "Tokenizer", config: ConfigDict, seq_len: int) -> Layout:
  """Returns the layout of rows.

  Args:
    tokenizer: tokenizer of the corpus.
    config: whole config.
    seq_len: tokens per row.
  Raises:
    ConfigError: the tokenizer lacks special tokens, see `check_tokenizer`.
  """
  check_tokenizer(config, tokenizer)
  row_format = find(config)
  opening_id, closing_id = (getattr(tokenizer, name) for name in row_format.specials)
  return Layout(seq_len, max_sequences(config, seq_len), max(tokenizer.pad_id, 0), opening_id,
                closing_id, row_format.has_target)


def make_plan(corpus: Corpus, config: ConfigDict, seq_len: int, key: tuple[int, ...], *,
              window: int = 0, windows: Windows | None = None,
              num_rows: int | None = None, num_streams: int = 1) -> Plan:
  """Returns the shuffled rows of one window of an epoch.

  The rows of streams stay in order: empty rows are added at the end, or the last rows are dropped.

  Args:
    corpus: corpus, of which only the index arrays are read.
    config: whole config.
    seq_len: tokens per row.
    key: integers that identify the epoch. All randomness depends only on them and on `window`.
    window: index of the window within the epoch.
    windows: division of an epoch; None: one window, the whole corpus.
    num_rows: rows of the plan: superfluous rows are dropped and missing ones are filled with
      repetitions, both at random. None: all rows, once.
    num_streams: number of streams, if the format has them.
  Raises:
    DataError: the corpus holds no token.
  """
  windows = windows or divide(corpus.document_lengths, 1)
  row_format = find(config)
  texts = select(corpus, draw_documents(corpus, windows, window, key), row_format.reads_sentences)
  rng = make_rng((*key, window))
  if choices.OBJECTIVES[config.objective.name].continues_rows:
    plan = row_format.plan(texts, config, seq_len, rng, num_streams)
    return plan if num_rows is None else plan.fit(num_rows)
  plan = row_format.plan(texts, config, seq_len, rng)
  order = rng.permutation(plan.num_rows)
  return plan.take(order if num_rows is None else np.resize(order, num_rows))
