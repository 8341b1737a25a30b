"""Metrics that several tasks share, as fractions of 1."""

from collections.abc import Callable

import numpy as np
import scipy.stats


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
  return float((labels == predictions).mean())


def f1(labels: np.ndarray, predictions: np.ndarray) -> float:
  """Of class 1; 0 where there is none."""
  hits = ((labels == 1) & (predictions == 1)).sum()
  return harmonic_mean(hits, (predictions == 1).sum(), (labels == 1).sum())


def harmonic_mean(hits: int, predicted: int, expected: int) -> float:
  """F1 of counts: 2 hits / (predicted + expected); 0 where there are none."""
  return float(2 * hits / (predicted + expected)) if predicted + expected else 0.0


def matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
  """Correlation of two classes (Matthews 1975); 0 where one of them is constant."""
  deviations = [(x - x.mean()) for x in (labels.astype(float), predictions.astype(float))]
  norm = np.sqrt(np.prod([(d ** 2).sum() for d in deviations]))
  return float((deviations[0] * deviations[1]).sum() / norm) if norm else 0.0


def pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
  """0 where one of them is constant; so `spearman`."""
  return _correlation(scipy.stats.pearsonr, labels, predictions)


def spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
  return _correlation(scipy.stats.spearmanr, labels, predictions)


def _correlation(function, labels, predictions):
  labels, predictions = (np.asarray(x, np.float64) for x in (labels, predictions))
  if len(labels) < 2 or not np.ptp(labels) or not np.ptp(predictions):
    return 0.0
  return float(function(labels, predictions).statistic)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy, "f1": f1, "matthews": matthews, "pearson": pearson,
    "spearman": spearman,
}
