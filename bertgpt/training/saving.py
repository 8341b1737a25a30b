"""When the state of a run is saved."""

from bertgpt.training.step_log import StepLog


class SavePolicy:
  """Decides after every step whether to save a run.

  A save that is due is postponed while steps are not applied, because their checkpoints must not
  replace earlier ones: a run that diverges ends with good checkpoints.

  Attributes:
    is_postponed: whether a save is due that waits for a step that is applied.

  Args:
    log: log of the run, which knows whether the last step was applied.
  """

  def __init__(self, log: StepLog):
    self._log, self.is_postponed = log, False

  def should_save(self, is_due: bool, is_last: bool, is_stopping: bool) -> bool:
    """Returns whether to save the state after the last step; all processes call it.

    If a save is possible, it first waits for the step and logs it.

    Args:
      is_due: whether a checkpoint is due, see `Checkpoints.is_due`.
      is_last: whether the run is done after this step.
      is_stopping: whether a signal was received; the steps before it are then logged, because the
        next start cannot log them.
    Raises:
      DivergedError: too many consecutive steps were not applied.
    """
    must_save = is_last or is_stopping
    if not (must_save or is_due or self.is_postponed):
      return False
    self._log.finish_step()
    if is_stopping:
      self._log.write_all()
    self.is_postponed = not (must_save or self._log.is_applied)
    return not self.is_postponed
