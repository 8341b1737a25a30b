"""FLOPs of a training step, for the MFU."""

from bertgpt import config as config_lib
from bertgpt.config import ConfigDict, families


def flops_per_step(config: ConfigDict, phase: ConfigDict) -> float:
  """Returns the FLOPs of a training step: multiply-adds times 2, times 3 for the backward pass.

  Attention is counted in full even if it is causal, and recomputation is not counted, so that MFU
  measures useful work (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).

  Args:
    config: a whole config.
    phase: one of its phases.
  """
  predicted = config_lib.predicted_share(config, phase)
  forward = families.find(config).flops_per_token(config.model, phase.seq_len, predicted)
  return 3 * phase.batch_size * phase.seq_len * forward
