"""Weights & Biases, https://docs.wandb.ai/ref/python. WANDB_MODE=offline keeps everything local."""

from collections.abc import Callable, Mapping

from bertgpt.training.trackers import RunFacts


def start(run: RunFacts
          ) -> tuple[Callable[[int, Mapping[str, float]], None], Callable[[int], None]]:
  """Begins or continues a run; see the package."""
  import wandb
  tracked = wandb.init(project=run.project, group=run.group or None, name=run.name, id=run.id,
                       resume="allow", dir=run.workdir, config=run.config)

  def log(step: int, scalars: Mapping[str, float]) -> None:
    tracked.log(dict(scalars), step=step)

  def finish(code: int) -> None:
    tracked.finish(exit_code=code)

  return log, finish
