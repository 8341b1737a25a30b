"""What `bertgpt data` shows: a corpus, and batches with the masks of the training."""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from bertgpt.config import (
  ConfigDict,
  config_of_phase,
  find_phase,
  mixtures,
  total_steps,
  unread,
)
from bertgpt.config.derived import count_left_out
from bertgpt.data.batches import formats, loader
from bertgpt.data.batches.mixture import NO_OTHERS, PhaseRows, count_rows
from bertgpt.data.batches.parts import NO_LABEL, Batch, RowFormat, token_sizes
from bertgpt.data.batches.rows import TrainRows
from bertgpt.data.corpus import corpus as corpus_lib
from bertgpt.data.corpus.corpus import Corpus, open_corpus
from bertgpt.data.tokens.tokenizers import Tokenizer
from bertgpt.errors import ConfigError, DataError
from bertgpt.runs import corpora
from bertgpt.training import objectives, steps

ROWS_SHOWN = 5


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
  others = corpora.open_others(config, corpus, mixtures.find_others(config))
  corpora.check_tokenizer(config, corpus.tokenizer)
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
  return "\n".join([*lines, describe_batches(corpus, config, numbers, mask, others)])


def describe_batches(corpus: Corpus, config: ConfigDict, numbers: Sequence[int],
                     mask_fn: Callable[[Batch], Batch] | None = None,
                     others: Mapping[str, Corpus] = NO_OTHERS) -> str:
  """Returns lines of text about the batches of a run.

  They contain statistics of every phase, some rows as text, and hashes of batches.

  Args:
    corpus: split to train on.
    config: whole config.
    numbers: steps whose global batches are hashed, counted from 0 through the whole run.
    mask_fn: batch -> batch with masks, applied to the rows before they are shown; None: no masks.
    others: name -> the same split of the other corpora of mixtures.
  Raises:
    ConfigError: a step is beyond the run.
    DataError: the corpus holds no text or does not fit the objective.
  """
  wrong = [step for step in numbers if not 0 <= step < total_steps(config)]
  if wrong:
    raise ConfigError(f"--steps={wrong[0]}: the run has steps 0 to {total_steps(config) - 1}")
  phases = [PhaseRows(corpus, config, i, others) for i in range(len(config.phases))]
  lines = [line for i, rows in enumerate(phases) for line in _describe_phase(config, i, rows)]
  in_epoch = sum(member.rows.rows_per_epoch for member in phases[0].members)
  batch = phases[0].read(np.arange(min(ROWS_SHOWN, in_epoch)))
  lines += _show_rows(mask_fn(batch) if mask_fn else batch, corpus.tokenizer, formats.find(config))
  for step in numbers:
    i, first = find_phase(config, step)
    size = config.phases[i].batch_size
    batch = loader.read_step(phases[i], size, slice(0, size), step - first)
    lines.append(f"step {step}: sha256 {loader.batch_sha256(batch)}")
  try:
    for i, rows in enumerate(phases):
      for member in rows.members:
        loader.check_rows_of_member(member, config, i)
  except DataError as e:
    lines.append(f"WARNING: no run can be trained with this config: {e}")
  return "\n".join(lines)


def _describe_phase(config: ConfigDict, phase_index: int, rows: PhaseRows) -> list[str]:
  """Returns lines about a phase and each of its corpora."""
  phase, left_out = config.phases[phase_index], count_left_out(config, phase_index)
  lines = [f"phase {phase_index}: {phase.steps:,} steps of {phase.batch_size:,} rows of "
           f"{phase.seq_len:,} tokens" + f", {left_out:,} of them left out" * bool(left_out)]
  counts = count_rows(config, phase_index, total_steps(config))
  for member in rows.members:
    count, per_epoch = counts[member.name], member.rows.rows_per_epoch
    if phase.mixture:
      lines += [f"  {member.name}",
                f"  share of the rows  {count / max(sum(counts.values()), 1):.2%}, {count:,} rows"]
      if member.first:
        lines.append(f"  read before        {member.first / per_epoch:.2f} epochs")
    lines += [f"  rows per epoch     {per_epoch:,}",
              f"  epochs             {count / per_epoch:.2f}",
              *_describe_rows(member.rows, config)]
  return lines


def _describe_rows(rows: TrainRows, config: ConfigDict) -> list[str]:
  """Returns lines with statistics of the first window of the first epoch of a corpus."""
  num_rows, seq_len = rows.rows_per_window, rows.seq_len
  parts, _ = rows.plan(np.arange(num_rows))
  row_format = formats.find(config)
  sizes = token_sizes(parts) - row_format.has_target
  # The rest of a sequence that continues one of the previous step counts as a sequence.
  begins = (parts["column"] == parts["origin"]) | (parts["column"] == 0)
  lengths = np.add.reduceat(sizes, np.flatnonzero(begins))
  labels = parts["label"][parts["label"] != NO_LABEL]
  lines = [f"  padding            {1 - sizes.sum() / (num_rows * seq_len):.2%}",
           f"  sequences per row  {len(lengths) / num_rows:.2f}"]
  if row_format.pair and len(labels):
    lines.append(f"  {row_format.pair.share:<18} {labels.mean():.2%} of {len(labels):,} pairs")
  counts, edges = np.histogram(lengths, bins=8, range=(0.5, seq_len + 0.5))
  shares = counts / len(lengths)
  return lines + ["  sequence lengths"] + [
      f"  {int(low + 0.5):>6} to {int(high - 0.5):<6} {share:7.2%} {'#' * round(40 * share)}"
      for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True)]


def _show_rows(batch: Batch, tokenizer: Tokenizer, row_format: RowFormat) -> list[str]:
  """Returns the segments of rows as text, and the tokens to predict if the batch is masked."""
  lines = []
  for row, ids in enumerate(batch["sequence_ids"]):
    for sequence in range(1, ids.max() + 1):
      label = _label_text(batch, row_format, row, sequence)
      lines.append(f"row {row}, sequence {sequence}{label}")
      # XLNet's [CLS] is a third segment.
      for segment, name in enumerate("AB " if "segment_ids" in batch else " "):
        is_inside = ids == sequence
        if "segment_ids" in batch:
          is_inside &= batch["segment_ids"][row] == segment
        if is_inside.any():
          lines.append(f"  {name} {tokenizer.decode(batch['tokens'][row][is_inside])}")
    if "backward_tokens" in batch:
      lines.append(f"  backward: {tokenizer.decode(batch['backward_tokens'][row][ids > 0])}")
    if "predict_targets" in batch:
      slots = np.argsort(batch["predict_positions"][row])
      slots = slots[batch["predict_weights"][row][slots] > 0]
      targets = [tokenizer.decode([i]).strip() for i in batch["predict_targets"][row][slots]]
      lines.append(f"  to predict: {' | '.join(targets)}")
  return lines


def _label_text(batch: Batch, row_format: RowFormat, row: int, sequence: int) -> str:
  pair = row_format.pair
  if pair is None or not batch[f"{pair.name}_weights"][row, sequence - 1]:
    return ""
  return f", {pair.labels[batch[f'{pair.name}_labels'][row, sequence - 1]]}"
