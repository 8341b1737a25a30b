"""Every list of choices in a config has exactly the names of what implements them."""

import importlib

import numpy as np
import pytest

from bertgpt import config as config_lib
from bertgpt.config import choices, families, finetuning
from bertgpt.data.batches import formats, parts
from bertgpt.data.tokens import tokenizers, training
from bertgpt.finetuning import objectives as task_objectives
from bertgpt.finetuning import tasks
from bertgpt.finetuning.tasks import rows
from bertgpt.models import attention, layers, remat
from bertgpt.training import schedules
from bertgpt.training.objectives import masking
from bertgpt.training.optimizers import transforms

REGISTRIES = {
    "tokenizer.kind": tokenizers.KINDS,
    "model.activation": layers.ACTIVATIONS,
    "model.remat": ["auto", *remat.POLICIES],
    "model.attention": ["auto", *attention.KERNELS],
    "objective.mask_rule": masking.MASK_RULES,
    "optimizer.decay_rule": transforms.DECAY_RULES,
}


@pytest.mark.parametrize("field", REGISTRIES)
def test_the_choices_of_a_field_are_the_keys_of_its_registry(field):
  assert set(config_lib.CHOICES[field]) == set(REGISTRIES[field])


def test_tokenizers_that_are_trained():
  assert set(choices.TOKENIZERS) == set(training.TRAINERS)


def test_schedules():
  assert set(config_lib.PHASE_CHOICES["schedule"]) == set(schedules.SCHEDULES)


@pytest.mark.parametrize("name", choices.OBJECTIVES)
def test_an_objective_has_both_halves(name):
  jax_half = importlib.import_module(f"bertgpt.training.objectives.{name}")
  rows = importlib.import_module(f"bertgpt.data.batches.{choices.OBJECTIVES[name].rows}")
  assert callable(jax_half.make)
  rows_half = rows.FORMAT
  assert isinstance(rows_half, parts.RowFormat)
  assert choices.OBJECTIVES[name].has_pairs or not rows_half.pair_name
  needed = {special.removesuffix("_id") for special in rows_half.specials}
  assert needed <= set(choices.OBJECTIVES[name].needs)


@pytest.mark.parametrize("name", choices.OPTIMIZERS)
def test_an_optimizer_has_its_file(name):
  assert callable(importlib.import_module(f"bertgpt.training.optimizers.{name}").make)


@pytest.mark.parametrize("name", choices.OBJECTIVES)
@pytest.mark.parametrize("packing", [True, False])
def test_specs_say_what_the_row_format_makes(name, packing):
  """The zeros made from the specs have the names, shapes and dtypes of an assembled batch."""
  config = config_lib.base()
  config.objective.name = name
  config.data.packing = packing
  phase = config.phases[0]
  row_format = formats.find(config)
  layout = parts.Layout(phase.seq_len, config_lib.max_sequences(config, phase.seq_len), 0, 1, 2,
                        row_format.has_target)
  nothing = np.zeros(0, parts.PART), np.zeros(0, np.int64), []
  made = row_format.assemble(parts.Placed(*nothing, 5, layout))
  zeros = formats.make_zeros(formats.specs(config, phase), 5)
  assert {n: (x.shape, x.dtype) for n, x in zeros.items()} == {
      n: (x.shape, x.dtype) for n, x in made.items()}


def test_tasks_and_heads_name_abilities():
  """A task asks for an ability; every family that has it has a head for it."""
  for entry in tasks.TASKS.values():
    assert entry.kind in families.ABILITIES
  for family in families.FAMILIES.values():
    kinds = {kind for owner, kind in task_objectives.TASK_HEADS if owner == family.kind}
    assert family.abilities & {"classes", "values", "tokens", "spans"} <= kinds


def test_truncations_of_fine_tuning():
  text = np.arange(1000)
  for mode in finetuning.TRUNCATIONS:
    assert len(rows.truncate(text, 510, mode)) == 510
