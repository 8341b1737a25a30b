"""bertgpt.models.kept: what `model.remat=products` saves, and what it recomputes."""

import collections

import jax
import jax.extend
import pytest

from tests import tiny


def count(jaxpr, counts=None):
  """Counts the primitives of a jaxpr, including inner ones."""
  counts = collections.Counter() if counts is None else counts
  for equation in jaxpr.eqns:
    counts[equation.primitive.name] += 1
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      count(inner, counts)
  return counts


def trace(remat, **model):
  config = tiny.make_config(remat=remat, dropout=0.1, attention_dropout=0.1, scan_unroll=1, **model)
  with tiny.Setup(config) as setup:
    jaxpr = jax.make_jaxpr(setup.gradients(1))(setup.abstract.params, tiny.make_batch(config), 3)
    return count(jaxpr.jaxpr)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_no_product_and_no_softmax_is_computed_again(norm):
  none, products, full = (trace(remat, norm=norm) for remat in ("none", "products", "full"))
  assert products["dot_general"] == none["dot_general"] < full["dot_general"]
  assert products["reduce_max"] == none["reduce_max"] < full["reduce_max"]
