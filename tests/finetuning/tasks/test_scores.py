"""Metrics of tasks agree with closed forms, and with scikit-learn if it is installed."""

import numpy as np
import pytest

from bertgpt.finetuning.tasks import scores


def draw_classes(seed, count):
  """Returns labels of classes that are not equally frequent, and predictions that often agree.

  No label is class 0; only one prediction is.
  """
  rng = np.random.default_rng(seed)
  labels = rng.choice(np.arange(1, count), 300, p=np.arange(1, count) / np.arange(count).sum())
  predictions = np.where(rng.random(300) < 0.6, labels, rng.integers(1, count, 300))
  predictions[0] = 0
  return labels.astype(np.int32), predictions.astype(np.int32)


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
  # The F1 of class 0 is 2 * 2 / (4 + 2), that of class 1 is 0.
  assert value == pytest.approx({"accuracy": 1 / 2, "macro_f1": 1 / 3}.get(name, 0.0))


def test_the_names_of_three_classes_do_not_matter():
  """Class 2 is confused with class 0; a correlation of the numbers would differ."""
  labels, predictions = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 0, 2])
  for order in ([0, 1, 2], [2, 0, 1], [1, 0, 2], [7, 3, 5]):
    renamed = np.array(order)
    # Hits 5, 6 examples; labels 2, 2, 2 and predictions 3, 2, 1 of the classes.
    assert scores.matthews(renamed[labels], renamed[predictions]) == pytest.approx(
        (5 * 6 - (2 * 3 + 2 * 2 + 2 * 1)) / np.sqrt((36 - 14) * (36 - 12)))
    assert scores.macro_f1(renamed[labels], renamed[predictions]) == pytest.approx(
        (4 / 5 + 1 + 2 / 3) / 3)


def test_large_sets_do_not_overflow():
  labels = np.tile(np.array([0, 1, 1, 2], np.int32), 250_000)
  predictions = np.tile(np.array([0, 1, 2, 2], np.int32), 250_000)
  assert scores.matthews(labels, predictions) == pytest.approx(
      scores.matthews(labels[:4], predictions[:4]))


def test_a_metric_that_a_task_cannot_have_is_refused():
  scores.check_metrics("t", ["f1", "accuracy"], 2)
  scores.check_metrics("t", ["macro_f1", "matthews"], 3)
  with pytest.raises(ValueError, match="task t: the metric f1 is of two classes, and the task has "
                                       r"3\. Use macro_f1"):
    scores.check_metrics("t", ["accuracy", "f1"], 3)
  with pytest.raises(ValueError, match="task t: no metric 'recall'"):
    scores.check_metrics("t", ["recall"], 2)


@pytest.mark.hf
@pytest.mark.parametrize("count", [3, 7, 30])
def test_scikit_learn_agrees_on_many_classes(count):
  metrics = pytest.importorskip("sklearn.metrics")
  for seed in range(5):
    labels, predictions = draw_classes(seed, count)
    assert scores.matthews(labels, predictions) == pytest.approx(
        metrics.matthews_corrcoef(labels, predictions), abs=1e-12)
    assert scores.macro_f1(labels, predictions) == pytest.approx(
        metrics.f1_score(labels, predictions, average="macro"), abs=1e-12)


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
