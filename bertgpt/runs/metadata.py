"""Metadata of a checkpoint: what a step holds besides its arrays.

| key          | value                                                    | compared when          |
|--------------|----------------------------------------------------------|------------------------|
| config       | resolved config of the run, as JSON text                 | a run is resumed       |
| corpus       | identity of the pretraining corpus; '' if unknown        | a run is resumed       |
| corpora      | only with mixtures: name -> identity of other corpora    | a run is resumed       |
| tokenizer    | SHA-256 of the tokenizer's file                          | a checkpoint is opened |
| data_order   | `rows.ORDER_VERSION`, the order in which rows are read   | a run is resumed       |
| step         | number of steps done, set by `Checkpoints.save`          |                        |
| task         | only after fine-tuning: description of the task's run    |                        |
| fresh        | only after an import: heads with random weights          |                        |
| bos_id       | only after an import: token that begins a text           |                        |
| beginning_id | only after an import: token that begins a document       |                        |

Checkpoints that version 0.1.0 wrote after fine-tuning or an import lack `data_order`. It is not
read there, because no run is resumed from them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bertgpt.config import ConfigDict
from bertgpt.config.stored import to_json
from bertgpt.data.batches.rows import ORDER_VERSION
from bertgpt.data.tokens.tokenizers import Tokenizer


def make_metadata(config: ConfigDict, tokenizer: Tokenizer, *, corpus: str,
                  task: Mapping[str, Any] | None = None, fresh: Sequence[str] = (),
                  bos_id: int = -1, beginning_id: int = -1,
                  corpora: Mapping[str, str] | None = None) -> dict[str, Any]:
  """Returns the metadata of a checkpoint, as JSON values.

  Args:
    config: resolved config of the run.
    tokenizer: tokenizer of the model.
    corpus: identity of the pretraining corpus; '' if it is unknown.
    task: description of the fine-tuning run, as JSON values; None after pretraining.
    fresh: heads of an imported model that have random weights, keys of `families.HEADS`.
    bos_id, beginning_id: see `Trained`.
    corpora: name -> identity of the other corpora of mixtures.
  """
  metadata = {"config": to_json(config), "corpus": corpus,
              "tokenizer": tokenizer.fingerprint(), "data_order": ORDER_VERSION}
  if task is not None:
    metadata["task"] = dict(task)
  if corpora:
    metadata["corpora"] = dict(corpora)
  metadata |= {name: i for name, i in (("bos_id", bos_id), ("beginning_id", beginning_id))
               if i >= 0}
  return metadata | {"fresh": list(fresh)} if fresh else metadata
