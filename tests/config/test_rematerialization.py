"""bertgpt.config.rematerialization: the values that a layer saves for its backward pass."""

import pytest

from bertgpt.config import rematerialization


@pytest.mark.parametrize("requested, platform, expected", [
    ("auto", "tpu", "products"), ("auto", "cpu", "none"), ("auto", "gpu", "none"),
    ("none", "tpu", "none"), ("products", "cpu", "products"), ("full", "tpu", "full")])
def test_what_is_kept(requested, platform, expected):
  name, reason = rematerialization.choose(requested, platform)
  assert name == expected
  assert (requested in reason) == (requested != "auto")
