"""Metrics of tasks agree with closed forms, and with scikit-learn if it is installed."""

import numpy as np
import pytest

from bertgpt.finetuning.tasks import scores


def draw(seed, share):
  """Returns labels, and predictions that agree with a part of them."""
  rng = np.random.default_rng(seed)
  labels = (rng.random(500) < share).astype(np.int32)
  noise = rng.integers(0, 2, 500)
  return labels, np.where(rng.random(500) < 0.6, labels, noise).astype(np.int32)


def test_a_known_table():
  """The table has 3 true positives, 1 false positive, 2 false negatives and 4 true negatives."""
  labels = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
  predictions = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
  assert scores.accuracy(labels, predictions) == pytest.approx(7 / 10)
  assert scores.f1(labels, predictions) == pytest.approx(6 / 9)
  assert scores.matthews(labels, predictions) == pytest.approx((3 * 4 - 1 * 2) / np.sqrt(
      4 * 5 * 5 * 6))


def test_pearson_finds_lines_and_spearman_orders():
  x = np.linspace(0, 5, 50)
  assert scores.pearson(x, 3 * x - 1) == pytest.approx(1)
  assert scores.spearman(x, np.exp(x)) == pytest.approx(1)
  assert 0.5 < scores.pearson(x, np.exp(x)) < 0.9
  assert scores.spearman(x, -x) == pytest.approx(-1)


@pytest.mark.parametrize("name", scores.METRICS)
def test_a_constant_answer_is_no_error(name):
  labels = np.array([0, 1, 1, 0])
  value = scores.METRICS[name](labels, np.zeros(4, np.int64))
  assert value == (0.5 if name == "accuracy" else 0.0)


@pytest.mark.hf
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name, other", [
    ("accuracy", "accuracy_score"), ("f1", "f1_score"), ("matthews", "matthews_corrcoef")])
def test_scikit_learn_agrees(name, other, share):
  metrics = pytest.importorskip("sklearn.metrics")
  for seed in range(5):
    labels, predictions = draw(seed, share)
    assert scores.METRICS[name](labels, predictions) == pytest.approx(
        getattr(metrics, other)(labels, predictions), abs=1e-12)
