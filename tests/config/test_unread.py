"""bertgpt.config.unread: fields that nothing reads are refused, and no others."""

import pytest

from bertgpt import config as config_lib
from bertgpt.config import choices, families, finetuning, presets, unread
from bertgpt.config.overrides import override
from bertgpt.errors import ConfigError
from bertgpt.finetuning import tasks


def make_config(objective="mlm_nsp", **overrides):
  config = config_lib.base()
  config.objective.name = objective
  config.model.update(presets.GPT2["small"] if objective == "causal" else presets.BERT["tiny"])
  return override(config, [f"--config.{field}={value}" for field, value in overrides.items()])


@pytest.mark.parametrize("objective, field, value", [
    ("causal", "objective.whole_words", True),
    ("causal", "objective.mask_prob", 0.3),
    ("causal", "objective.bias_init", "frequencies"),
    ("causal", "objective.mask_rule", "fairseq"),
    ("causal", "data.random_next_prob", 0.3),
    ("causal", "data.short_sequence_prob", 0.2),
    ("causal", "model.num_segments", 3),
    ("causal", "phases[0].max_predictions", 20),
    ("mlm", "data.random_next_prob", 0.3),
    ("mlm", "data.short_sequence_prob", 0.2),
    ("mlm", "data.max_sequences", 3),
    ("mlm_nsp", "data.isolate_documents", True),
    ("mlm_nsp", "data.max_unused", 0.5),
    ("mlm_nsp", "optimizer.momentum", 0.9),
    ("mlm_nsp", "phases[0].power", 0.5),
    ("mlm_nsp", "phases[0].decay_fraction", 0.3),
])
def test_a_field_of_another_choice_is_refused_by_its_name(objective, field, value):
  with pytest.raises(ConfigError) as error:
    unread.check(make_config(objective, **{field: value}))
  (line,) = str(error.value).splitlines()
  assert line.startswith(f"{field}=") and "Leave it at" in line


@pytest.mark.parametrize("objective, switches, field, value", [
    ("mlm", {}, "train.spike_factor", 5.0),
    ("mlm", {}, "train.spike_window", 64),
    ("mlm", {"data.packing": False}, "data.max_unused", 0.5),
    ("mlm", {"data.packing": False}, "data.isolate_documents", True),
    ("causal", {"data.packing": False}, "data.isolate_documents", True),
    ("mlm_nsp", {"data.packing": False}, "data.max_sequences", 3),
    ("mlm_nsp", {"optimizer.name": "nvlamb"}, "optimizer.clip_norm", 0.5),
    ("mlm", {}, "phases[0].warmup_rule", "before"),
    ("mlm", {"phases[0].schedule": "wsd", "phases[0].decay_fraction": 0.0}, "phases[0].power", 0.5),
    ("mlm", {"log.trackers": ","}, "log.group", "a"),
    ("mlm", {"model.position": "rope", "model.window": 8, "model.global_every": 0},
     "model.rope_theta", 5e4),
    ("mlm", {"model.position": "rope", "model.window": 8, "model.global_every": 0},
     "phases[0].rope_theta", 5e4),
    ("mlm", {"model.global_every": 1}, "model.window", 8),
    ("mlm", {"tokenizer.kind": "wordpiece"}, "tokenizer.model_type", "bpe"),
    ("mlm", {"tokenizer.kind": "bpe"}, "tokenizer.model_type", "bpe"),
])
def test_a_field_that_another_field_switches_off_is_refused(objective, switches, field, value):
  with pytest.raises(ConfigError) as error:
    unread.check(make_config(objective, **switches, **{field: value}))
  (line,) = str(error.value).splitlines()
  assert line.startswith(f"{field}=") and "at " in line


@pytest.mark.parametrize("switches, field", [
    ({"train.spike_guard": "skip"}, "train.spike_factor"),
    ({"train.spike_guard": "skip"}, "train.spike_window"),
    ({"data.packing": True}, "data.max_sequences"),
    ({"optimizer.name": "lamb"}, "optimizer.clip_norm"),
    ({"phases[0].warmup_fraction": 0.1, "phases[0].warmup_rule": "before"}, "model.window"),
    ({"model.position": "rope", "model.window": 8, "model.global_every": 2}, "model.rope_theta"),
    ({"model.position": "rope", "model.window": 8, "model.global_every": 0},
     "model.rope_theta_local"),
])
def test_a_field_that_is_switched_on_is_accepted(switches, field):
  assert not problems_of(make_config(**switches, **{field: 5}))


@pytest.mark.parametrize("other", [
    {"tokenizer.path": "gpt2"}, {"data.corpus": "corpus"},
    {"tokenizer.kind": "wordpiece", "tokenizer.path": "vocab.txt"}])
def test_a_recipe_is_accepted_with_another_tokenizer_or_corpus(other):
  """The recipe sets fields of the tokenizer that it would train."""
  fields = {"tokenizer.model_type": "bpe", "tokenizer.vocab_size": 99}
  config = make_config("mlm", **fields, **other)
  assert not problems_of(config)


def test_text_of_a_byte_level_tokenizer_keeps_its_case():
  for lowercase in (True, False):
    assert not problems_of(make_config("mlm", **{"tokenizer.kind": "bpe",
                                                 "tokenizer.lowercase": lowercase}))


def test_one_field_without_effect_is_refused_once():
  config = make_config("mlm_nsp", **{"data.packing": False, "data.max_unused": 0.5})
  (line,) = problems_of(config)
  assert "objective.name='mlm_nsp' does not read it" in line


def test_a_guard_that_is_off_does_not_keep_a_run_from_continuing():
  """A run that an earlier version started may have fields of the guard that nothing read."""
  fields = {"train.spike_factor", "train.spike_window"}
  assert fields <= unread.unset_fields(make_config())
  assert not fields & unread.unset_fields(make_config(**{"train.spike_guard": "skip"}))


@pytest.mark.parametrize("objective", choices.OBJECTIVES)
def test_defaults_and_the_presets_of_a_family_are_accepted(objective):
  for family in families.FAMILIES.values():
    for fields in family.presets.values():
      config = make_config(objective)
      config.model.update(fields)
      if objective in family.objectives:
        unread.check(config)


@pytest.mark.parametrize("field, value", [
    ("learning_rate", 7.0), ("schedule", "cosine"), ("warmup_steps", 5), ("warmup_fraction", 0.5),
    ("warmup_rule", "before"), ("end_fraction", 0.5), ("power", 0.5), ("decay_fraction", 0.5)])
def test_a_continued_curve_takes_no_fields_of_its_own(field, value):
  config = make_config()
  first = config_lib.phase(learning_rate=1e-3)
  config.phases = first, config_lib.phase(learning_rate_rule="continuous", **{field: value})
  with pytest.raises(ConfigError, match=rf"phases\[1\].{field}=.*the curve of the previous phase"):
    unread.check(config)
  config.phases[0][field] = value  # The second phase may repeat the value of the first.
  assert all("phases[1]" not in problem for problem in problems_of(config))


def problems_of(config):
  try:
    unread.check(config)
  except ConfigError as e:
    return str(e).splitlines()
  return []


def test_fields_that_nothing_reads_need_not_be_set_when_a_run_continues():
  """Only fields with their default value are unset: a start that sets one differs from the run."""
  assert "objective.mask_prob" in unread.unset_fields(make_config("causal"))
  assert "objective.mask_prob" not in unread.unset_fields(make_config("mlm"))
  sets_it = make_config("causal", **{"objective.mask_prob": 0.3})
  assert "objective.mask_prob" not in unread.unset_fields(sets_it)


def test_a_run_goes_on_with_the_fields_it_was_begun_with():
  """Earlier versions accepted them; a change of such a field is refused as in a new run."""
  begun = make_config("causal", **{"seed": 2**40, "objective.mask_prob": 0.3})
  assert [line.split("=")[0] for line in problems_of(begun)] == ["objective.mask_prob", "seed"]
  assert unread.find_problems(begun, begun) == []
  changed = override(begun, ["--config.eval.mask_prob=0.2", f"--config.seed={2**41}"])
  assert [line.split("=")[0] for line in unread.find_problems(changed, begun)] == [
      "eval.mask_prob", "seed"]


@pytest.mark.parametrize("family, field", [("elmo", "num_heads"), ("xlnet", "num_segments")])
def test_a_field_of_the_model_without_a_choice_is_refused(family, field):
  config = make_config({"elmo": "bilm", "xlnet": "plm"}[family])
  config.model.update(families.FAMILIES[family].presets["small" if family == "elmo" else "base"])
  config.model[field] = 4
  (line,) = config_lib.find_problems(config) or problems_of(config)
  assert line.startswith(f"model.{field}=4: ")


def test_every_field_in_the_tables_exists():
  fields = dict(config_lib.leaves(config_lib.base()))
  named = {field for objective in choices.OBJECTIVES.values() for field in objective.reads}
  for table in (choices.OPTIMIZERS, choices.PACKING, choices.SPIKE_GUARDS, choices.TOKENIZERS):
    named |= {field for reads in table.values() for field in reads}
  named |= {f"model.{field}" for family in families.FAMILIES.values() for field in family.reads}
  of_tasks = set().union(*(entry.reads for entry in tasks.TASKS.values()))
  tuning = dict(config_lib.leaves(finetuning.base()))
  assert named <= fields.keys() and of_tasks <= tuning.keys()
  assert choices.UNUSED.keys() <= fields.keys() | tuning.keys()
  of_phase = {*choices.CURVE, *choices.WARMUP_FIELDS}.union(*choices.SCHEDULES.values())
  assert of_phase <= set(config_lib.phase())
