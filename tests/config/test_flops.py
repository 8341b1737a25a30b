"""FLOPs of a step: the known figures of BERT and GPT-2."""

import pytest

from bertgpt import config as config_lib
from bertgpt.config import presets
from bertgpt.config.flops import flops_per_step


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
