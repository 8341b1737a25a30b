"""Phases from token counts, the unit in which recent papers state the length of training."""

from typing import Any

from bertgpt.config.pretraining import ConfigDict, phase


def count_steps(tokens: float, batch_size: int, seq_len: int) -> int:
  """Returns the steps that read a number of tokens, at least 1.

  Args:
    tokens: tokens to read.
    batch_size: rows per step.
    seq_len: tokens per row.
  """
  return max(1, round(tokens / (batch_size * seq_len)))


def warm_up_batches(smallest: int, largest: int, tokens: float, warmup_tokens: float, seq_len: int,
                    **fields: Any) -> list[ConfigDict]:
  """Returns the phases of a batch warm-up, with the same number of steps of each size.

  The sizes are the multiples of `smallest` below `largest`. The first phase has the given fields
  and the warm-up of the learning rate; the others continue its curve.

  Args:
    smallest, largest: rows per step of the first phase, and after the batch warm-up.
    tokens: tokens that all these phases read together.
    warmup_tokens: tokens that the learning-rate warm-up reads; it is linear in the steps.
    seq_len: tokens per row.
    **fields: other fields of the first phase.
  """
  sizes = range(smallest, largest, smallest)
  steps = count_steps(tokens, sum(sizes), seq_len)
  warmup_steps, left = 0, warmup_tokens
  for size in sizes:
    taken = min(steps, left / (size * seq_len))
    warmup_steps, left = warmup_steps + taken, left - taken * size * seq_len
  warmup_steps += left / (largest * seq_len)
  first = phase(steps=steps, seq_len=seq_len, batch_size=smallest,
                warmup_steps=round(warmup_steps), **fields)
  return [first, *(phase(steps=steps, seq_len=seq_len, batch_size=size,
                         learning_rate_rule="continuous") for size in sizes[1:])]
