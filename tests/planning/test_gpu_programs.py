"""Training steps compiled for NVIDIA GPUs, without a GPU: every recipe, and the cuDNN path.

Models have two layers of their full width: the body of the loop over layers is the same for any
number of them.
"""

import pathlib

import jax
import numpy as np
import pytest

from bertgpt import config as config_lib
from bertgpt.config import attention_kernels, families, recipes
from bertgpt.config.overrides import set_field
from bertgpt.data.batches import formats
from bertgpt.planning import aot, topologies, vocabulary_size

pytestmark = pytest.mark.cuda

FOLDER = pathlib.Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("finetune"))
# Only sizes differ from those of another recipe.
OTHER_SIZES = {"bert_small", "bert_medium", "electra_large", "ettin_32m", "ettin_68m", "ettin_150m",
               "ettin_400m", "ettin_1b", "gpt2_medium", "gpt2_large", "modernbert_large",
               "roberta_large", "xlnet_large"}
# These are always traced. Their kernels are those of a recipe, or of a variant, that is always
# compiled.
ONLY_TRACED = {"ablation_mask_rate", "ablation_masking", "ablation_objective",
               "ablation_whole_words", "albert_base", "albert_mini", "bert_base", "bert_large",
               "bert_mini", "bert_tiny", "continued", "demo", "diffusion_mini", "electra_base",
               "electra_mini", "elmo_mini", "ettin_17m", "families", "gpt2_xl", "modernbert_mini",
               "roberta_base", "roberta_mini", "twins", "wiki_base", "wiki_mini_long", "xlnet_mini"}
assert set(NAMES) >= OTHER_SIZES | ONLY_TRACED
MACHINES = ("h100:1", "h100:8", "h200:2x8", "a100:8")


def slow_unless(is_fast):
  return () if is_fast else pytest.mark.slow


def read_recipe(name, **changes):
  """Returns a recipe with two layers and changed fields ('__' stands for '.' in their names)."""
  config = recipes.load(str(FOLDER / f"{name}.py"))
  config.model.num_layers = 2
  for field, value in changes.items():
    set_field(config, field.replace("__", "."), value)
  return vocabulary_size.find(config).set_in(config)


def lower(config, machine, phase_index=0):
  topology = topologies.open_topology(machine)
  config_lib.validate(config, len(topology.devices), topology.platform)
  return aot.lower_step(config, phase_index, topology)


def compile_text(config, machine, phase_index=0):
  """Returns the text of the compiled step of a phase."""
  options = topologies.COMPILER_OPTIONS["gpu"]
  return lower(config, machine, phase_index).program.compile(compiler_options=options).as_text()


def set_phase(config, **fields):
  """Removes all phases but the first, sets fields of that one, and returns the config."""
  config.phases = config.phases[:1]
  config.phases[0].update(fields)
  return config


@pytest.mark.parametrize("name, machine", [
    pytest.param(name, machine, marks=slow_unless(
        machine == "h200:2x8" and name not in OTHER_SIZES or name in ("bert_base", "gpt2_small")))
    for name in NAMES for machine in MACHINES])
def test_every_kind_of_phase_of_every_recipe_is_traced(name, machine):
  """The last phase of each kind; in the others, only sizes differ."""
  config = read_recipe(name)
  phases = {(kernel_of(config, i), phase.mask_prob, phase.rope_theta, phase.rope_theta_local,
             phase.max_predictions > 0, phase.micro_batches > 1): i
            for i, phase in enumerate(config.phases)}
  for i in phases.values():
    assert "func.func public @main" in lower(config, machine, i).program.as_text()


@pytest.mark.parametrize("name", [pytest.param(name, marks=slow_unless(
    name not in OTHER_SIZES | ONLY_TRACED)) for name in NAMES])
def test_every_recipe_compiles(name):
  """Programs have the attention kernel that the log announces."""
  config = read_recipe(name)
  last = len(config.phases) - 1
  text = compile_text(config, "h100:1", last)
  kernel = kernel_of(config, last)
  assert ("__cudnn$fmha" in text) == (kernel == "cudnn")
  assert ("flash_attention_backward" in text) == (kernel == "flash")


def kernel_of(config, phase_index=0):
  if not families.find(config).stacks:
    return "no attention"
  model, phase = config.model, config.phases[phase_index]
  layer = attention_kernels.layer_of(model, phase.seq_len, "gpu")
  return attention_kernels.choose(model.attention, layer)[0]


VARIANTS = {
    "bert": ("bert_base", {"model__attention_dropout": 0.0}),
    "bert, fp8": ("bert_base", {"model__attention_dropout": 0.0, "model__matmul": "fp8"}),
    "bert, packed": ("bert_base", {"model__attention_dropout": 0.0, "data__packing": True}),
    "bert, dropout": ("bert_base", {}),
    "gpt": ("gpt2_small", {}),
    "gpt, isolated": ("gpt2_small", {"data__isolate_documents": True}),
    "gpt, dropout": ("gpt2_small", {"model__attention_dropout": 0.1}),
}
FOUR_PIECES = {"gpt, isolated"}
ON_ONE_DEVICE = {"bert", "gpt", "gpt, dropout"}  # By the last test but one, and by the recipe gpt1.


def make_variant(variant, pieces, mesh):
  name, changes = VARIANTS[variant]
  config = set_phase(read_recipe(name, **changes), batch_size=64, micro_batches=pieces)
  config.mesh.data, config.mesh.fsdp, config.mesh.tensor = mesh
  return config


@pytest.mark.parametrize("mesh, pieces", [
    ((8, 1, 1), 1), ((2, 2, 2), 4), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ((8, 1, 1), 4), ((2, 2, 2), 1)))])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kernel_is_traced_on_every_mesh(variant, mesh, pieces):
  config = make_variant(variant, pieces, mesh)
  text = lower(config, "h100:8").program.as_text()
  assert ("__cudnn$fmha" in text) == ("dropout" not in variant)
  assert ("flash_attention_backward" in text) == ("dropout" in variant)


# With four pieces, a program takes three times as long, so only one is compiled, with masks.
@pytest.mark.parametrize("variant, pieces", [
    pytest.param(variant, pieces, marks=slow_unless(
        pieces == (4 if variant in FOUR_PIECES else 1) and variant not in ON_ONE_DEVICE))
    for variant in VARIANTS for pieces in (1, 4)])
def test_every_kernel_compiles(variant, pieces):
  """cuDNN gets a mask only if rows may hold several sequences."""
  config = make_variant(variant, pieces, (2, 2, 2))
  text = compile_text(config, "h100:8")
  is_fused = "__cudnn$fmha" in text
  assert is_fused == ("dropout" not in variant)
  assert ("flash_attention_backward" in text) == ("dropout" in variant)
  if is_fused:
    assert ("ScaleBiasSoftmax" in text) == (not formats.has_one_sequence(config))


def test_the_fused_program_keeps_no_array_of_queries_and_keys():
  """Rows of the paper's BERT and of GPT-2 need no mask, so no array has two token axes.

  Matmuls are cuBLAS calls. Those in both layers include GELU, and two in each add up gradients.
  """
  for variant in ("bert", "gpt", "bert, dropout"):
    name, changes = VARIANTS[variant]
    config = set_phase(read_recipe(name, **changes), batch_size=8, micro_batches=1, seq_len=512)
    text = compile_text(config, "h100:1")
    assert ("__cudnn$fmha" in text) == ("dropout" not in variant)
    assert "512,512]" not in text and "ScaleBiasSoftmax" not in text
    assert "__triton_gemm" not in text and text.count('"epilogue":"BIAS_GELU_AUX"') >= 2
    assert text.count('"beta":1') >= 4


def test_the_test_finds_masks():
  """Packed rows need a mask, which the search of the test above finds."""
  name, changes = VARIANTS["bert, packed"]
  config = set_phase(read_recipe(name, **changes), batch_size=8, micro_batches=1, seq_len=512)
  assert "512,512]" in compile_text(config, "h100:1")
  assert np.array(jax.devices()).size  # Compiling for GPUs has left the process its CPU devices.
