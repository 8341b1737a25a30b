"""bertgpt.config.families: abilities and FLOPs in the records of the families."""

import pytest

from bertgpt import config as config_lib
from bertgpt.config import choices, families, presets
from bertgpt.training.explain import explain


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_record_names_what_exists(name):
  family = families.FAMILIES[name]
  assert family.kind in ("encoder", "decoder")
  assert set(family.objectives) <= choices.OBJECTIVES.keys()
  assert family.abilities <= families.ABILITIES
  assert family.at_least.keys() <= family.reads
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
  """Layer by layer: of 22 layers, 0, 3, ..., 21 are global; MLPs have three matrices."""
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


def make_electra(**model):
  config = config_lib.base()
  config.objective.name = "rtd"
  config.model.update(families.FAMILIES["electra"].presets["small"] | model)
  return config


def test_the_generator_needs_heads_of_an_even_width_for_rotary_positions():
  sizes = {"position": "rope", "generator_num_heads": 5}
  (line,) = config_lib.find_problems(make_electra(**sizes, generator_width=65))
  assert "a head of model.generator_width=65 is 13 wide" in line
  assert not config_lib.find_problems(make_electra(**sizes, generator_width=70))


def test_a_kernel_that_only_the_generator_cannot_run_is_refused():
  sizes = {"attention": "flash", "generator_num_heads": 2, "attention_dropout": 0.0}
  assert not config_lib.find_problems(make_electra(**sizes, generator_width=64))
  (line,) = config_lib.find_problems(make_electra(**sizes, generator_width=48))
  assert "a head width of 16, 32, 64 or 128, not 24" in line


def test_the_choice_of_the_generators_kernel_is_explained():
  config = make_electra(attention="flash", generator_num_heads=2, generator_width=48)
  own, generator = explain(config)[:2]
  assert "attention by flash" in own
  assert "attention of the generator by xla: flash needs a head width" in generator


@pytest.mark.parametrize("model", [{}, {"mlp": "gated"}, {"window": 4, "global_every": 3}])
def test_a_generator_as_large_as_the_discriminator_needs_as_many_flops(model):
  config = make_electra(**model, generator_width=256, generator_num_heads=4,
                        generator_mlp_dim=1024)
  flops = families.FAMILIES["electra"].flops_per_token
  alone, both = flops(config.model, 128, 0), flops(config.model, 128, 1e-9)
  assert both == pytest.approx(2 * alone + 2 * (256 * 256 + 256), rel=1e-6)
