"""Values that follow from a config: its steps, the shapes of its rows, the model of a phase."""

from collections.abc import Sequence

from bertgpt.config import choices
from bertgpt.config.pretraining import ConfigDict

PHASE_OF_MODEL = ("rope_theta", "rope_theta_local")  # Fields of the model that a phase may change.
VOCAB_MULTIPLE = 128  # Lanes of a TPU matrix unit; the embedding table is padded to a multiple.


def total_steps(config: ConfigDict) -> int:
  """Returns the number of steps of all phases."""
  return sum(p.steps for p in config.phases)


def ranges_to_train(skipped: Sequence[tuple[int, int]], start: int, end: int
                    ) -> list[tuple[int, int]]:
  """Returns the parts of [start, end) that are not left out.

  Args:
    skipped: (first, last) of the steps that are left out, counted from 1, in order.
    start, end: steps, counted from 0.
  """
  parts = []
  for first, last in skipped:
    parts.append((start, min(first - 1, end)))
    start = max(start, last)
  return [(a, b) for a, b in [*parts, (start, end)] if a < b]


def count_trained(skipped: Sequence[tuple[int, int]], start: int, end: int) -> int:
  """Returns how many steps of [start, end) are not left out; see `ranges_to_train`."""
  return sum(b - a for a, b in ranges_to_train(skipped, start, end))


def count_left_out(config: ConfigDict, index: int) -> int:
  """Returns how many steps of a phase `train.skip_steps` leaves out.

  Args:
    config: whole config.
    index: index of the phase.
  """
  steps = config.phases[index].steps
  first = sum(p.steps for p in config.phases[:index])
  return steps - count_trained(config.train.skip_steps, first, first + steps)


def find_phase(config: ConfigDict, step: int) -> tuple[int, int]:
  """Returns the phase of a step.

  Args:
    config: whole config.
    step: step, counted from 0 through the whole run.
  Returns:
    (index of the phase, its first step).
  Raises:
    IndexError: the run has fewer steps.
  """
  first = 0
  for i, p in enumerate(config.phases):
    if step < first + p.steps:
      return i, first
    first += p.steps
  raise IndexError(f"step {step} is beyond the last phase")


def max_predictions(config: ConfigDict, p: ConfigDict) -> int:
  """Returns the prediction slots per row, which are a static shape.

  Args:
    config: whole config.
    p: one of its phases.
  """
  share = p.mask_prob or config.objective.mask_prob
  count = round(p.seq_len * share, 6)  # 100 x 0.07 is 7, not a little more.
  slots = choices.SLOTS_OF_MASK_RULE[config.objective.mask_rule](count)
  return p.max_predictions or max(1, min(slots, p.seq_len))


def config_of_phase(config: ConfigDict, index: int, in_evaluation: bool = False) -> ConfigDict:
  """Returns a config with one phase only, and with its values in the model and the objective.

  Args:
    config: whole config.
    index: index of the phase.
    in_evaluation: whether to use `eval.mask_prob`, if that is set, as the share that is predicted.
  """
  config, p = config.copy_and_resolve_references(), config.phases[index]
  p = p.copy_and_resolve_references()
  config.objective.mask_prob = p.mask_prob or config.objective.mask_prob
  for field in PHASE_OF_MODEL:
    config.model[field] = p[field] or config.model[field]
  p.update(mask_prob=0.0, **dict.fromkeys(PHASE_OF_MODEL, 0.0))
  if in_evaluation and config.eval.mask_prob:
    config.objective.mask_prob = config.eval.mask_prob
    p.max_predictions = 0
  config.phases = (p,)
  return config


def with_model_at(config: ConfigDict, step: int) -> ConfigDict:
  """Returns a copy whose model, in all phases, is the one that a run has after a step.

  Args:
    config: whole config.
    step: steps done; 0: none.
  """
  config = config.copy_and_resolve_references()
  config.phases = tuple(p.copy_and_resolve_references() for p in config.phases)
  index, _ = find_phase(config, min(max(step, 1), total_steps(config)) - 1)
  for field in PHASE_OF_MODEL:
    config.model[field] = config.phases[index][field] or config.model[field]
    for p in config.phases:
      p[field] = 0.0
  return config


def predicted_share(config: ConfigDict, p: ConfigDict) -> float:
  """Returns the share of a row's tokens for which the output layer is computed.

  Args:
    config: whole config.
    p: one of its phases.
  """
  if choices.OBJECTIVES[config.objective.name].predicts_all:
    return 1.0
  return max_predictions(config, p) / p.seq_len


def max_sequences(config: ConfigDict, seq_len: int) -> int:
  """Returns the maximum number of sequences per row, which is a static shape.

  Args:
    config: whole config.
    seq_len: tokens per row.
  """
  if not config.data.packing:
    return 1
  return min(config.data.max_sequences or max(2, seq_len // 32), seq_len)


def padded_vocab_size(size: int) -> int:
  """Returns the rows of the embedding table: the size rounded up to a multiple."""
  return -(-size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
