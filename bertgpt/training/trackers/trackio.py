"""Trackio, https://huggingface.co/docs/trackio, which knows runs by their names."""

from collections.abc import Callable, Mapping

from bertgpt.training.trackers import RunFacts


def start(run: RunFacts
          ) -> tuple[Callable[[int, Mapping[str, float]], None], Callable[[int], None]]:
  """Begins or continues a run; see the package."""
  import trackio
  tracked = trackio.init(project=run.project, group=run.group or None, name=f"{run.name}-{run.id}",
                         resume="allow", config=run.config)

  def log(step: int, scalars: Mapping[str, float]) -> None:
    tracked.log(dict(scalars), step=step)

  def finish(code: int) -> None:
    del code  # Trackio has no field for it.
    tracked.finish()

  return log, finish
