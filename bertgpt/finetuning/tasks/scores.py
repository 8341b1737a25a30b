"""Metrics that several tasks share.

A metric is a share: a number of at most 1, which is 1 if all predictions are right, and better if
it is higher. The best run is chosen, and the table is printed in percent, on this condition.
"""

from collections.abc import Callable, Iterable

import numpy as np
import scipy.stats


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
  """Returns the share of predictions that are right.

  Args:
    labels: classes, int [N].
    predictions: predicted classes, int [N].
  """
  return float((labels == predictions).mean())


def f1(labels: np.ndarray, predictions: np.ndarray) -> float:
  """Returns the F1 of class 1, of two classes; 0 if neither labels nor predictions have it.

  Args:
    labels: classes 0 and 1, int [N].
    predictions: predicted classes, int [N].
  """
  return _f1_of(1, labels, predictions)


def macro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
  """Returns the mean of the F1 of all classes that labels or predictions have, without weights.

  This is `f1_score(average="macro")` of scikit-learn, the first of the two definitions that Opitz
  and Burst (2019, arXiv:1911.03347) compare.

  Args:
    labels: classes, int [N].
    predictions: predicted classes, int [N].
  """
  found = np.union1d(labels, predictions)
  return float(np.mean([_f1_of(c, labels, predictions) for c in found]))


def _f1_of(c: int, labels: np.ndarray, predictions: np.ndarray) -> float:
  hits = ((labels == c) & (predictions == c)).sum()
  return harmonic_mean(hits, (predictions == c).sum(), (labels == c).sum())


def harmonic_mean(hits: int, predicted: int, expected: int) -> float:
  """Returns F1, the harmonic mean of precision and recall: 2 hits / (predicted + expected).

  Args:
    hits: number of predictions that are right.
    predicted: number of predictions.
    expected: number of right answers. If it and `predicted` are 0, F1 is 0.
  """
  return float(2 * hits / (predicted + expected)) if predicted + expected else 0.0


def matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
  """Returns the correlation of classes, R_K (Gorodkin 2004); 0 if one side is constant.

  For two classes, it is the correlation of Matthews (1975).

  Args:
    labels: classes, int [N].
    predictions: predicted classes, int [N].
  """
  _, numbers = np.unique(np.concatenate([labels, predictions]), return_inverse=True)
  # Shares instead of counts, whose products could exceed int64.
  expected, found = (np.bincount(x, minlength=numbers.max() + 1) / len(x)
                     for x in np.split(numbers, 2))
  variances = (1 - expected @ expected) * (1 - found @ found)
  covariance = (labels == predictions).mean() - expected @ found
  return float(covariance / np.sqrt(variances)) if variances > 0 else 0.0


def pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
  """Returns the correlation of values (Pearson 1895); 0 if one side is constant.

  Args:
    labels: values, float [N].
    predictions: predicted values, float [N].
  """
  return _correlation(scipy.stats.pearsonr, labels, predictions)


def spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
  """Returns the correlation of ranks (Spearman 1904); 0 if one side is constant.

  Args:
    labels: values, float [N].
    predictions: predicted values, float [N].
  """
  return _correlation(scipy.stats.spearmanr, labels, predictions)


def _correlation(function, labels, predictions):
  labels, predictions = (np.asarray(x, np.float64) for x in (labels, predictions))
  if len(labels) < 2 or not np.ptp(labels) or not np.ptp(predictions):
    return 0.0
  correlation = float(function(labels, predictions).statistic)
  return correlation if np.isfinite(correlation) else 0.0  # 0 if a prediction is not finite.


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy, "f1": f1, "macro_f1": macro_f1, "matthews": matthews,
    "pearson": pearson, "spearman": spearman,
}
ONLY_BINARY = frozenset({"f1"})  # Metrics of two classes.


def check_metrics(task: str, metrics: Iterable[str], num_classes: int) -> None:
  """Checks that metrics exist and suit the outputs of a task.

  Args:
    task: name of the task.
    metrics: names of its metrics.
    num_classes: number of its classes; 0: its outputs are values.
  Raises:
    ValueError: they do not. It is an error in the table of tasks, not of the user.
  """
  for name in metrics:
    if name not in METRICS:
      raise ValueError(f"task {task}: no metric {name!r}. Add it to METRICS in tasks/scores.py, or "
                       f"choose one of {', '.join(METRICS)}")
    if name in ONLY_BINARY and num_classes != 2:
      raise ValueError(f"task {task}: the metric {name} is of two classes, and the task has "
                       f"{num_classes or 'none'}. Use macro_f1 for classes")
