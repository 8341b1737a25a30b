"""bertgpt.hub.tensor_names: names of wrappers are taken off, and of several models one is read."""

import re

import pytest

from bertgpt.errors import DataError
from bertgpt.hub import bert, electra, gpt, tensor_names

TABLES = {"bert": "bert.embeddings.word_embeddings.weight",
          "electra": "electra.embeddings.word_embeddings.weight", "gpt": "transformer.wte.weight"}
LAYERS = {"bert": "bert.encoder.layer.0.attention.self.query.weight",
          "electra": "electra.encoder.layer.0.attention.self.query.weight",
          "gpt": "transformer.h.0.attn.c_attn.weight"}
CANDIDATES = {"bert": [bert.MASKED_LM], "electra": [electra.DISCRIMINATOR], "gpt": [gpt.GPT2]}
HEADS = {"bert": "cls.predictions.bias", "electra": "discriminator_predictions.dense.bias",
         "gpt": "score.weight"}


def rename(family, names):
  return tensor_names.rename(names, CANDIDATES[family], {HEADS[family]})


@pytest.fixture(params=TABLES)
def family(request):
  return request.param


@pytest.fixture
def names(family):
  return [TABLES[family], LAYERS[family], HEADS[family]]


@pytest.mark.parametrize("wrapper", [
    "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
    "_fsdp_wrapped_module._checkpoint_wrapped_module"])
@pytest.mark.parametrize("outer", ["", "module."])
def test_names_of_wrappers_may_be_anywhere(family, names, wrapper, outer):
  head, part = LAYERS[family].split(".0.")
  own = [f"{outer}{wrapper}.{TABLES[family]}", f"{outer}{head}.0.{wrapper}.{part}",
         f"{outer}{HEADS[family]}"]
  assert rename(family, own) == (dict(zip(names, own, strict=True)), ())


def test_a_word_that_contains_the_name_of_a_wrapper_stays(family, names):
  own = [*names, "my_orig_mod.weight"]
  assert rename(family, own)[0].keys() == {*own}


@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize("other", ["ema.", "generator.", "swa_model.module."])
def test_of_several_models_the_one_with_the_names_of_transformers_is_read(family, names, other,
                                                                          is_plain):
  prefix = TABLES[family].partition(".")[0] + "."
  own = [name.removeprefix(prefix) if is_plain else name for name in names]
  others = [other + name for name in own]
  for mixed in ([*own, *others], [*others, *own]):
    assert rename(family, mixed) == (dict(zip(names, own, strict=True)), (other,))


@pytest.mark.parametrize("other", ["c", "model."])
def test_the_heads_of_the_model_stay_if_another_one_begins_alike(family, names, other):
  """With 'cbert.' next to 'bert.', not all names that begin with 'c' are the other model's."""
  prefix = TABLES[family].partition(".")[0] + "."
  other = prefix if other == "model." else other
  table = other + TABLES[family]
  own, others = rename(family, [*names, table])
  assert own == {name: name for name in names} and table.startswith(others)


def test_several_models_with_additional_names_are_named(family, names):
  own = [f"{outer}.{name}" for outer in ("discriminator", "generator") for name in names]
  prefix = TABLES[family].partition(".")[0]
  message = f"the tensors are those of 2 models, discriminator.{prefix}.* and generator.{prefix}.*."
  with pytest.raises(DataError, match=f"{re.escape(message)} Load .* save it alone with"):
    rename(family, own)
