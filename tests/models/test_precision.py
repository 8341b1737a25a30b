"""bertgpt.models.precision: matmuls of a float32 model are exact on every device."""

import jax

from bertgpt import config as config_lib
from bertgpt.models import precision


def test_products_are_exact_only_in_the_context_of_a_float32_model():
  found = []
  for dtype in ("float32", "bfloat16"):
    config = config_lib.base()
    config.model.dtype = dtype
    with precision.matmul_precision(config):
      found.append(jax.config.jax_default_matmul_precision)
  assert [*found, jax.config.jax_default_matmul_precision] == ["highest", None, None]
