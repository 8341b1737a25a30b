"""bertgpt.config.token_budgets: phases read the tokens that a paper gives."""

import pytest

from bertgpt.config import token_budgets


@pytest.mark.parametrize("smallest, largest, tokens, warmup_tokens", [
    (768, 4608, 50e9, 3e9), (448, 4928, 10e9, 2e9), (768, 4608, 3e9, 2e9)])
def test_a_batch_warm_up_reads_its_tokens_in_equal_steps(smallest, largest, tokens, warmup_tokens):
  phases = token_budgets.warm_up_batches(smallest, largest, tokens, warmup_tokens, 1024,
                                         learning_rate=1e-3, schedule="constant")
  assert len({p.steps for p in phases}) == 1
  assert [p.batch_size for p in phases] == list(range(smallest, largest, smallest))
  assert sum(p.steps * p.batch_size * 1024 for p in phases) == pytest.approx(tokens, rel=2e-3)
  # Step by step, until the tokens of the learning-rate warm-up are read.
  read, step = 0, 0
  for p in phases:
    for _ in range(p.steps):
      if read < warmup_tokens:
        read, step = read + p.batch_size * 1024, step + 1
  while read < warmup_tokens:
    read, step = read + largest * 1024, step + 1
  assert abs(phases[0].warmup_steps - step) <= 1
  assert [p.learning_rate_rule for p in phases] == ["restart"] + ["continuous"] * (len(phases) - 1)
