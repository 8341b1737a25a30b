"""The row format of an objective, found by the name in `choices.OBJECTIVES`.

A row format is a module of this folder, the data half of an objective:

| name                                           | what it is                                   |
|------------------------------------------------|----------------------------------------------|
| `SPECIALS`                                     | tokens that open and close a part            |
| `HAS_TARGET`                                   | whether a target lies behind a row           |
| `PAIR_NAME`                                    | prefix of the arrays of pair labels, or ''   |
| `plan(texts, config, seq_len, rng)`            | which parts make the rows of an epoch        |
| `specs(config, phase)`                         | the only schema of a batch                   |
| `assemble(parts, rows, texts, B, layout)`      | the batch                                    |
"""

import importlib
from types import ModuleType

import numpy as np

from bertgpt.config import ConfigDict, choices, max_sequences
from bertgpt.data.batches.parts import Batch, Layout, Plan, Specs, select
from bertgpt.data.batches.windows import Windows, divide, draw_documents, make_rng
from bertgpt.errors import ConfigError


def find(config: ConfigDict) -> ModuleType:
  """Returns the row format of `config.objective`."""
  rows = choices.OBJECTIVES[config.objective.name].rows
  return importlib.import_module(f"bertgpt.data.batches.{rows}")


def specs(config: ConfigDict, phase: ConfigDict) -> Specs:
  """Returns name -> (shape of a row, dtype) of what a batch of the phase holds.

  Nothing else knows what a batch holds: the zeros of initialization, the abstract batches of the
  planner and the batches of tests are made from it.
  """
  return find(config).specs(config, phase)


def make_zeros(row_specs: Specs, num_rows: int) -> Batch:
  """Returns a batch of zeros, which is padding throughout."""
  return {name: np.zeros((num_rows, *shape), dtype) for name, (shape, dtype) in row_specs.items()}


def check_tokenizer(config: ConfigDict, tokenizer) -> None:
  """Checks that the tokenizer has the special tokens that the objective needs.

  Raises:
    ConfigError: it lacks some; names them.
  """
  needs = choices.OBJECTIVES[config.objective.name].needs
  lacking = [name for name in needs if getattr(tokenizer, f"{name}_id") < 0]
  if lacking:
    raise ConfigError(f"objective.name={config.objective.name!r} needs a tokenizer with the "
                      f"special tokens {', '.join(lacking)}, which this one ({tokenizer.kind}) "
                      "lacks. Set tokenizer.path to another, or train one")


def make_layout(tokenizer, config: ConfigDict, seq_len: int) -> Layout:
  """Returns the layout of rows of `seq_len` tokens.

  Raises:
    ConfigError: see `check_tokenizer`.
  """
  check_tokenizer(config, tokenizer)
  opening_id, closing_id = (getattr(tokenizer, name) for name in find(config).SPECIALS)
  return Layout(seq_len, max_sequences(config, seq_len), max(tokenizer.pad_id, 0), opening_id,
                closing_id)


def make_plan(corpus, config: ConfigDict, seq_len: int, key: tuple[int, ...], *, window: int = 0,
              windows: Windows | None = None, num_rows: int | None = None) -> Plan:
  """The shuffled rows of one window of an epoch.

  Args:
    corpus: has `document_offsets`, `document_lengths` and `sentence_lengths`.
    key: integers that name the epoch; all that is random follows from them and `window`.
    windows: of an epoch; None: one, the whole corpus.
    num_rows: fit the plan to so many rows: rows too many are dropped, missing ones are filled
      up with repetitions, both at random. None: all rows, once.
  Raises:
    DataError: the corpus holds no token.
  """
  windows = windows or divide(corpus.document_lengths, 1)
  texts = select(corpus, draw_documents(corpus, windows, window, key))
  rng = make_rng((*key, window))
  plan = find(config).plan(texts, config, seq_len, rng)
  order = rng.permutation(plan.num_rows)
  return plan.take(order if num_rows is None else np.resize(order, num_rows))
