"""FLOPs of a step: the known figures of BERT and GPT-2."""

import pytest

from bertgpt import config as config_lib
from bertgpt.config import presets
from bertgpt.config.flops import flops_per_step, flops_until


@pytest.mark.parametrize("model, vocab, objective, seq_len, predictions, gigaflops", [
    (presets.BERT["base"], 30522, "mlm_nsp", 128, 20, 0.546),
    (presets.BERT["base"], 30522, "mlm_nsp", 512, 77, 0.588),
    (presets.BERT["large"], 30522, "mlm_nsp", 128, 20, 1.880),
    (presets.BERT["large"], 30522, "mlm_nsp", 512, 77, 1.992),
    (presets.GPT2["small"], 50257, "causal", 1024, 0, 0.854)])
def test_flops_per_token_are_the_known_ones(model, vocab, objective, seq_len, predictions,
                                            gigaflops):
  config = config_lib.base()
  config.model.update(model)
  config.model.vocab_size = vocab
  config.objective.name = objective
  phase = config_lib.phase(seq_len=seq_len, batch_size=3, max_predictions=predictions)
  per_token = flops_per_step(config, phase) / (3 * seq_len)
  assert per_token / 1e9 == pytest.approx(gigaflops, abs=6e-4)


def test_steps_that_are_left_out_have_no_flops():
  config = config_lib.base()
  config.model.vocab_size = 1_000
  config.phases = tuple(config_lib.phase(steps=10, seq_len=n) for n in (32, 64))
  config.train.skip_steps = ((3, 4), (9, 12))  # 4 steps of the first phase, 2 of the second.
  short, long = (flops_per_step(config, p) for p in config.phases)
  assert [flops_until(config, step) for step in (0, 2, 4, 8, 12, 13, 20)] == pytest.approx(
      [0, 2 * short, 2 * short, 6 * short, 6 * short, 6 * short + long, 6 * short + 8 * long])
