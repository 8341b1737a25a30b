"""bertgpt.config.layer_loop: how far the loop over layers is unrolled."""

import pytest

from bertgpt.config import layer_loop


@pytest.mark.parametrize("requested, platform, layers, expected", [
    (-1, "cpu", 12, 1), (-1, "tpu", 12, 1), (-1, "gpu", 12, 12), (-1, "gpu", 24, 24),
    (-1, "gpu", 48, 24), (-1, "gpu", 36, 18), (-1, "gpu", 29, 1), (-1, "gpu", 1, 1),
    (0, "cpu", 12, 12), (0, "gpu", 48, 48), (1, "gpu", 12, 1), (4, "tpu", 12, 4), (5, "cpu", 2, 2)])
def test_layers_per_iteration(requested, platform, layers, expected):
  assert layer_loop.choose(requested, platform, layers)[0] == expected


def test_the_reason_names_the_field_that_was_set():
  assert layer_loop.choose(3, "gpu", 12)[1] == "model.scan_unroll=3"
  assert "GPU" in layer_loop.choose(-1, "gpu", 12)[1]
