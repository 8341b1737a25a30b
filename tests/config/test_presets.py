"""bertgpt.config.presets: the sizes have the parameter counts of the published models."""

import pytest

from bertgpt.config import base, presets
from bertgpt.config.families import FAMILIES


def stack_parameters(size) -> int:
  """Counts transformer layers: four projections, two LayerNorms, an MLP, all with biases."""
  d, f = size["width"], size["mlp_dim"]
  return size["num_layers"] * (4 * (d * d + d) + 2 * 2 * d + (d * f + f) + (f * d + d))


def bert_parameters(size, vocab_size: int) -> int:
  """Counts embeddings with their LayerNorm, layers and pooler."""
  d = size["width"]
  embeddings = (vocab_size + size["max_positions"] + size["num_segments"]) * d + 2 * d
  return embeddings + stack_parameters(size) + d * d + d


def gpt_parameters(size, vocab_size: int) -> int:
  """Counts embeddings, layers, and a final LayerNorm if the blocks are pre-LN."""
  d = size["width"]
  final_norm = 2 * d if size["norm"] == "pre" else 0
  return (vocab_size + size["max_positions"]) * d + stack_parameters(size) + final_norm


@pytest.mark.parametrize("name, vocab_size, count", [
    ("tiny", 30_522, 4_385_920),
    ("mini", 30_522, 11_170_560),
    ("small", 30_522, 28_763_648),
    ("medium", 30_522, 41_373_184),
    ("base", 30_522, 109_482_240),
    ("large", 30_522, 335_141_888),
    ("base", 28_996, 108_310_272),
    ("large", 28_996, 333_579_264),
])
def test_bert_has_the_published_number_of_parameters(name, vocab_size, count):
  assert bert_parameters(presets.BERT[name], vocab_size) == count


@pytest.mark.parametrize("name, count", [("base", 124_697_433), ("large", 355_412_057)])
def test_roberta_has_the_number_of_parameters_of_its_masked_lm_in_transformers(name, count):
  """RoBERTa has 514 rows of positions, one segment and no pooler; its head is tied to the table."""
  size = presets.ROBERTA[name]
  d = size["width"]
  theirs = size | {"max_positions": size["max_positions"] + 2, "num_segments": 1}
  head = d * d + d + 2 * d + 50_265
  assert bert_parameters(theirs, 50_265) - (d * d + d) + head == count


@pytest.mark.parametrize("name, count", [
    ("small", 124_439_808), ("medium", 354_823_168), ("large", 774_030_080),
    ("xl", 1_557_611_200),
])
def test_gpt2_has_the_published_number_of_parameters(name, count):
  assert gpt_parameters(presets.GPT2[name], 50_257) == count


def test_gpt1_has_the_published_number_of_parameters():
  assert gpt_parameters(presets.GPT1, 40_478) == 116_534_784


SIZES = {**{f"BERT {name}": size for name, size in presets.BERT.items()}, "GPT-1": presets.GPT1,
         **{f"RoBERTa {name}": size for name, size in presets.ROBERTA.items()},
         **{f"GPT-2 {name}": size for name, size in presets.GPT2.items()}}


@pytest.mark.parametrize("name", SIZES)
def test_heads_are_64_wide(name):
  assert SIZES[name]["width"] == 64 * SIZES[name]["num_heads"]


@pytest.mark.parametrize("name", SIZES)
def test_a_preset_decides_the_whole_architecture(name):
  """Only fields that no paper defines are left open: vocabulary, precision, execution.

  Fields that only other families read say nothing about it.
  """
  model = base().model
  model.update(SIZES[name])  # An unknown field or a wrong type would raise.
  reads = (family.reads for family in FAMILIES.values())
  unread = set().union(*reads) - FAMILIES[model.family].reads
  assert set(model) - set(SIZES[name]) - unread == {
      "vocab_size", "dtype", "matmul", "attention", "remat", "scan_unroll", "dropout_rng"}
