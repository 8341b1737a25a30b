"""bertgpt.config.presets: a preset decides all that a paper decides."""

import pytest

from bertgpt.config import base, presets
from bertgpt.config.families import FAMILIES

SIZES = {**{f"BERT {name}": size for name, size in presets.BERT.items()}, "GPT-1": presets.GPT1,
         **{f"RoBERTa {name}": size for name, size in presets.ROBERTA.items()},
         **{f"GPT-2 {name}": size for name, size in presets.GPT2.items()}}


@pytest.mark.parametrize("name", SIZES)
def test_heads_are_64_wide(name):
  assert SIZES[name]["width"] == 64 * SIZES[name]["num_heads"]


PRESETS = {f"{name} {size}": preset for name, family in FAMILIES.items()
           for size, preset in family.presets.items()}
LEFT_OPEN = {"vocab_size", "dtype", "matmul", "attention", "remat", "scan_unroll", "dropout_rng"}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_decides_the_whole_architecture(name):
  """Only fields that no paper defines are left open: vocabulary, precision, execution.

  Fields that the family does not read say nothing about it.
  """
  model = base().model
  model.update(PRESETS[name])  # An unknown field or a wrong type would raise.
  reads = (family.reads for family in FAMILIES.values())
  family = FAMILIES[model.family]
  unread = set().union(*reads) - family.reads | family.ignores
  assert set(model) - set(PRESETS[name]) - unread == LEFT_OPEN - unread
