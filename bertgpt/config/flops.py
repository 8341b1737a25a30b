"""FLOPs of training steps, for the MFU and for the time that is left."""

from bertgpt import config as config_lib
from bertgpt.config import ConfigDict, families
from bertgpt.config.derived import count_trained


def flops_per_step(config: ConfigDict, phase: ConfigDict) -> float:
  """Returns the FLOPs of a training step: multiply-adds times 2, times 3 for the backward pass.

  Attention is counted in full even if it is causal, and recomputation is not counted, so that MFU
  measures useful work (Chowdhery et al. 2022, arXiv:2204.02311, appendix B). The backward pass of
  layers that `optimizer.freeze` names is counted too, although a step leaves it out.

  Args:
    config: a whole config.
    phase: one of its phases.
  """
  predicted = config_lib.predicted_share(config, phase)
  forward = families.find(config).flops_per_token(config.model, phase.seq_len, predicted)
  return 3 * phase.batch_size * phase.seq_len * forward


def flops_until(config: ConfigDict, step: int) -> float:
  """Returns the FLOPs of the first steps of a run, without those that are left out.

  Args:
    config: a whole config.
    step: number of steps, through all phases; `train.skip_steps` count as steps without work.
  """
  total, first = 0.0, 0
  for phase in config.phases:
    end = first + phase.steps
    total += flops_per_step(config, phase) * count_trained(config.train.skip_steps, first,
                                                           min(step, end))
    first = end
  return total
