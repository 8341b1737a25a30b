"""What `bertgpt data` shows: a corpus, and batches with the masks of the training."""

from collections.abc import Sequence

import jax
import numpy as np

from bertgpt.config import ConfigDict, config_of_phase, unread
from bertgpt.data.batches import description
from bertgpt.data.corpus import corpus as corpus_lib
from bertgpt.data.corpus.corpus import open_corpus
from bertgpt.runs import corpora
from bertgpt.training import objectives, steps


def describe_data(config: ConfigDict, numbers: Sequence[int]) -> str:
  """Returns lines about the corpus, rows of the first step with their masks, and hashes of batches.

  Args:
    config: a whole config.
    numbers: steps whose batches are hashed, counted from 0.
  Raises:
    ConfigError: the config sets a field that nothing would read.
  """
  unread.check(config)
  corpus = open_corpus(corpora.find_corpus(config, reports=False), "train")
  others = corpora.open_others(config, corpus)
  config = corpora.resolve(config, corpus.tokenizer)
  objective = objectives.make_objective(config_of_phase(config, 0), corpus.vocabulary)
  corrupt = jax.jit(objective.corrupt)

  def mask(batch):
    rows = np.arange(len(batch["tokens"]), dtype=np.int32)
    return jax.device_get(corrupt(batch, steps.make_key(config, steps.MASK_STREAM, 0), rows))

  lines = []
  for name, one in {"": corpus, **others}.items():
    lines += [f"corpus     {f'{name}={one.path}' if name else one.path}",
              corpus_lib.report(one.manifest),
              *filter(None, [corpus_lib.describe_unknown(one.manifest)]), ""]
  return "\n".join([*lines, description.describe(corpus, config, numbers, mask, others)])
