"""bertgpt.config.families: abilities and FLOPs in the records of the families."""

import pytest

from bertgpt import config as config_lib
from bertgpt.config import choices, families, presets


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_record_names_what_exists(name):
  family = families.FAMILIES[name]
  assert family.kind in ("encoder", "decoder")
  assert set(family.objectives) <= choices.OBJECTIVES.keys()
  assert family.abilities <= families.CAPABILITIES
  assert {fields["family"] for fields in family.presets.values()} == {name}


def test_every_objective_trains_a_family():
  trained = {name for family in families.FAMILIES.values() for name in family.objectives}
  assert trained == choices.OBJECTIVES.keys()


def test_a_misspelled_ability_is_an_error_and_not_no():
  with pytest.raises(ValueError, match="no ability 'generates'"):
    families.FAMILIES["gpt"].can("generates")


@pytest.mark.parametrize("fields, seq_len, predicted, gflops", [
    (presets.BERT["base"], 128, 20 / 128, 0.546), (presets.BERT["base"], 512, 77 / 512, 0.588),
    (presets.BERT["large"], 128, 20 / 128, 1.880), (presets.BERT["large"], 512, 77 / 512, 1.992),
    (presets.GPT2["small"], 1024, 1.0, 0.854)])
def test_training_flops_per_token_are_the_published_ones(fields, seq_len, predicted, gflops):
  """A step costs three forward passes; the vocabularies are those of the published models."""
  config = config_lib.base()
  config.model.update(fields, vocab_size=50257 if predicted == 1 else 30522)
  flops = 3 * families.find(config).flops_per_token(config.model, seq_len, predicted)
  assert flops / 1e9 == pytest.approx(gflops, abs=6e-4)


@pytest.mark.parametrize("name, seen", [("modernbert", 129), ("modernbert_decoder", 64)])
@pytest.mark.parametrize("seq_len", [32, 1024, 8192])
def test_local_layers_count_only_the_keys_of_their_window(name, seen, seq_len):
  """One layer after the other: of 22 layers, 0, 3, ..., 21 are global; MLPs have three matrices."""
  config = config_lib.base()
  config.model.update(families.FAMILIES[name].presets["base"], vocab_size=50_368)
  d, f, vocab = 768, 1152, 50_368
  flops = 0
  for i in range(22):
    keys = seq_len if i in (0, 3, 6, 9, 12, 15, 18, 21) else min(seq_len, seen)
    flops += 2 * (4 * d * d + 3 * d * f) + 4 * keys * d
  flops += 2 * 0.3 * (d * d + d * vocab)
  found = families.find(config).flops_per_token(config.model, seq_len, 0.3)
  assert found == pytest.approx(flops, rel=1e-12)
