"""The picture of a run's curves, loss.png."""

import io
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from bertgpt import files
from bertgpt.config import ConfigDict, metric_names

SMOOTHED_SHARE = 0.05  # The training's accuracy is averaged over this share of its points.
MOST_SMOOTHED = 1000  # Points: the time grows with their number.


def plot_curves(curves: Mapping[str, Sequence[tuple[int, float]]], path: pathlib.Path,
                panels: Mapping[str, tuple[str, str]], baselines: Mapping[str, tuple[float, str]],
                phases: Sequence[ConfigDict]) -> None:
  """Draws the curves of losses and accuracies, in training and held out.

  Args:
    curves: tag of a metric -> [(step, value)]; result of `metrics_file.read_curves`.
    path: path of the picture, a PNG file.
    panels: metric -> (title, label of the axis); the metrics that get a panel.
    baselines: metric -> (value, legend) of a dashed line.
    phases: phases of the run. Rows of another length are another task, so a dotted line separates
      phases, and accuracy is shown only for the last phase, to which its baseline applies.
  """
  import matplotlib
  matplotlib.use("Agg")
  from matplotlib import pyplot as plt
  from matplotlib.ticker import PercentFormatter
  found = dict.fromkeys(tag.split("/")[-1] for tag in curves)
  names = [name for name in found if name in panels]
  figure, axes = plt.subplots(1, len(names), figsize=(5.5 * len(names), 4), squeeze=False)
  starts = np.cumsum([0, *(p.steps for p in phases)])[:-1]
  for axis, name in zip(axes[0], names, strict=True):
    title, label = panels[name]
    is_share = metric_names.is_share(name)
    first_step = starts[-1] if is_share else 0
    for tag, legend, style in (
        (f"train/{name}", "training", {"color": "tab:blue", "alpha": 0.6, "linewidth": 1}),
        (f"eval/validation/{name}", "held out", {"color": "tab:orange", "marker": "o",
                                                 "markersize": 4})):
      points = np.array([point for point in curves.get(tag, ()) if point[0] > first_step])
      if len(points):
        if is_share and legend == "training":
          width = max(1, round(SMOOTHED_SHARE * len(points)))
          points = smooth(points, min(width, MOST_SMOOTHED))
        axis.plot(*points.T, label=legend, **style)
    if name in baselines:
      value, legend = baselines[name]
      axis.axhline(value, color="tab:gray", linestyle="--", linewidth=1, label=legend)
    if not is_share:
      for start, phase in zip(starts[1:], phases[1:], strict=True):
        axis.axvline(start, color="tab:gray", linestyle=":", linewidth=1)
        axis.annotate(f" rows of {phase.seq_len} tokens", (start, 0.02), fontsize="small",
                      xycoords=("data", "axes fraction"), color="tab:gray")
    if is_share:
      axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
      low, high = axis.get_ylim()
      axis.set_ylim(min(low, 0.45), max(high, 0.75))
    axis.set(title=title, xlabel="step", ylabel=label)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(framealpha=1, edgecolor="none")  # Opaque: a curve or baseline may pass behind it.
  figure.tight_layout()
  picture = io.BytesIO()
  figure.savefig(picture, format="png", dpi=120)
  files.write_atomically(path, picture.getvalue())
  plt.close(figure)


def smooth(points: np.ndarray, width: int) -> np.ndarray:
  """Returns the means of every `width` consecutive points: float64 [N - width + 1, 2].

  Args:
    points: float64 [N, 2], N >= width.
    width: points per mean.
  """
  kernel = np.full(width, 1 / width)
  return np.stack([np.convolve(column, kernel, "valid") for column in points.T], axis=1)
