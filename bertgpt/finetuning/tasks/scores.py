"""Metrics that several tasks share, as fractions of 1."""

from collections.abc import Callable

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
  """Returns the F1 of class 1; 0 if neither labels nor predictions have it.

  Args:
    labels: classes, int [N].
    predictions: predicted classes, int [N].
  """
  hits = ((labels == 1) & (predictions == 1)).sum()
  return harmonic_mean(hits, (predictions == 1).sum(), (labels == 1).sum())


def harmonic_mean(hits: int, predicted: int, expected: int) -> float:
  """Returns F1, the harmonic mean of precision and recall: 2 hits / (predicted + expected).

  Args:
    hits: number of predictions that are right.
    predicted: number of predictions.
    expected: number of right answers. If it and `predicted` are 0, F1 is 0.
  """
  return float(2 * hits / (predicted + expected)) if predicted + expected else 0.0


def matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
  """Returns the correlation of binary classes (Matthews 1975); 0 if one side is constant.

  Args:
    labels: classes 0 and 1, int [N].
    predictions: predicted classes, int [N].
  """
  deviations = [(x - x.mean()) for x in (labels.astype(float), predictions.astype(float))]
  norm = np.sqrt(np.prod([(d ** 2).sum() for d in deviations]))
  return float((deviations[0] * deviations[1]).sum() / norm) if norm else 0.0


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
    "accuracy": accuracy, "f1": f1, "matthews": matthews, "pearson": pearson,
    "spearman": spearman,
}
