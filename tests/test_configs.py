"""The recipes under configs/: each loads, is valid, is documented, and follows its source."""

import ast
import pathlib
import re
import runpy
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest

from bertgpt import config as config_lib
from bertgpt.config import finetuning as finetune_config
from bertgpt.config import recipes, resuming, unread
from bertgpt.config.overrides import override
from bertgpt.config.stored import from_json, to_json
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.devices import sharding
from bertgpt.errors import ConfigError
from bertgpt.finetuning import tasks
from bertgpt.training import steps
from bertgpt.trees import named_leaves

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
TASKS = sorted(path.stem for path in CONFIGS.glob("finetune_*.py"))
RECIPES = sorted({path.stem for path in CONFIGS.glob("*.py")} - set(TASKS))
SWEEPS = ("bert_base", "families", "wiki_mini", "ablation_masking", "ablation_mask_rate",
          "ablation_objective", "ablation_whole_words")


def load(name: str) -> config_lib.ConfigDict:
  return recipes.load(str(CONFIGS / f"{name}.py"))


def docstring(name: str) -> str:
  return ast.get_docstring(ast.parse((CONFIGS / f"{name}.py").read_text()))


def changed_fields(old: str, new: str) -> set[str]:
  lines = resuming.differences(load(old), load(new))
  return {line.split(":")[0] for line in lines}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_valid(name):
  assert config_lib.find_problems(load(name)) == []


@pytest.mark.parametrize("name", RECIPES)
def test_a_new_run_of_a_recipe_is_not_refused(name):
  """`bertgpt train` also refuses fields that nothing reads."""
  assert unread.find_problems(load(name)) == []


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_survives_json(name):
  config = load(name)
  assert from_json(to_json(config)) == config


@pytest.mark.parametrize("name", [*RECIPES, *TASKS])
def test_docstring_names_command_hardware_and_result(name):
  text = docstring(name)
  for heading in ("Command  ", "Hardware  ", "Expected  "):
    assert f"\n{heading}" in text
  assert f"--config configs/{name}.py" in text


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_of_the_docstring_is_accepted(name):
  """Parses the command as a shell does, with every --config.field=value."""
  command = docstring(name).split("Command ")[1].replace("\\\n", " ").split("\n")[0]
  words = shlex.split(command)
  assert words[:3] == ["bertgpt", "train", "--config"]
  assert words[3].partition(":")[0] == f"configs/{name}.py"
  assert words[4:6] == ["--workdir", f"runs/{name}"]
  assert all(word.startswith("--config.") for word in words[6:])
  config_lib.validate(override(load(name), words[6:]))


@pytest.mark.parametrize("name", TASKS)
def test_the_command_of_a_tasks_docstring_is_accepted(name):
  command = docstring(name).split("Command ")[1].replace("\\\n", " ").split("\n")[0]
  words = shlex.split(command)
  assert words[:5] == ["bertgpt", "finetune", "--config", f"configs/{name}.py", "--init"]
  flags = [word for word in words if word.startswith("--config.")]
  config = override(recipes.load(str(CONFIGS / f"{name}.py"), finetune_config.base), flags)
  task = words[words.index("--task") + 1] if "--task" in words else config.task.name
  assert finetune_config.find_problems(config) == [] == tasks.name_problems(task)


@pytest.mark.parametrize("name", RECIPES)
def test_fields_named_in_the_docstring_exist(name):
  words = [word.strip("`'().,;:") for word in docstring(name).split()]
  flags = [word for word in words if word.startswith("--config.") and "=" in word]
  override(load(name), flags)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_run_of_a_sweep_is_valid_and_another(name):
  runs = recipes.load_sweep(str(CONFIGS / f"{name}.py"))
  assert len(runs) > 1
  flags = [[f"--config.{field}={value}" for field, value in run.items()] for run in runs]
  configs = [override(load(name), arguments) for arguments in flags]
  for config in configs:
    config_lib.validate(config)
    unread.check(config)
  assert len({to_json(config) for config in configs}) == len(runs)


@pytest.mark.parametrize("name", ["bert_tiny", "bert_mini", "bert_small", "bert_medium",
                                  "bert_large"])
def test_bert_of_any_size_is_trained_alike(name):
  assert changed_fields("bert_base", name) <= {
      "model.num_layers", "model.width", "model.num_heads", "model.mlp_dim"}


@pytest.mark.parametrize("name", ["gpt2_medium", "gpt2_large", "gpt2_xl"])
def test_gpt2_of_any_size_is_trained_alike_but_for_the_rate(name):
  assert changed_fields("gpt2_small", name) <= {
      "model.num_layers", "model.width", "model.num_heads", "model.mlp_dim",
      "phases[0].learning_rate", "phases[0].micro_batches"}


def test_both_demos_hold_out_the_same_documents():
  bert, gpt = load("demo"), load("demo_gpt")
  assert bert.data.source == gpt.data.source == "pydocs"
  assert bert.data.validation_fraction == gpt.data.validation_fraction


def test_bert_paper_run():
  """Devlin et al. 2018, appendix A.2: 1 M steps of 256 sequences, the last tenth of 512."""
  config = load("bert_large")
  first, second = config.phases
  assert (first.steps, second.steps) == (900_000, 100_000)
  assert (first.seq_len, second.seq_len) == (128, 512)
  assert first.batch_size == second.batch_size == 256
  assert [config_lib.max_predictions(config, p) for p in config.phases] == [20, 77]
  assert second.learning_rate_rule == "continuous"
  assert (first.learning_rate, first.warmup_steps, first.schedule) == (1e-4, 10_000, "linear")
  assert config.tokenizer.vocab_size == 30_522


@pytest.mark.parametrize("name, peak, warmup", [
    ("roberta_base", 6e-4, 24_000), ("roberta_large", 4e-4, 30_000)])
def test_roberta_paper_run(name, peak, warmup):
  """Liu et al. 2019, table 9: 500k steps of 8,192 rows of 512 tokens."""
  config = load(name)
  (p,) = config.phases
  assert (p.steps, p.batch_size, p.seq_len) == (500_000, 8_192, 512)
  assert (p.learning_rate, p.warmup_steps, p.warmup_rule) == (peak, warmup, "before")
  assert config_lib.max_predictions(config, p) == 77  # 76.8, rounded up or down at random.
  optimizer = config.optimizer
  assert (optimizer.b1, optimizer.b2, optimizer.epsilon) == (0.9, 0.98, 1e-6)
  assert (optimizer.weight_decay, optimizer.decay_rule, optimizer.clip_norm) == (0.01, "all", 0.0)


@pytest.mark.parametrize("name, peak, rows, seq_len, steps, slots", [
    ("electra_small", 5e-4, 128, 128, 1_000_000, 19), ("electra_base", 2e-4, 256, 512, 766_000, 77),
    ("electra_large", 2e-4, 2_048, 512, 1_750_000, 128)])
def test_electra_paper_run(name, peak, rows, seq_len, steps, slots):
  """Clark et al. 2020, table 6, and google-research/electra, configure_pretraining.py."""
  config = load(name)
  (p,) = config.phases
  assert (p.learning_rate, p.batch_size, p.seq_len, p.steps) == (peak, rows, seq_len, steps)
  assert (p.warmup_steps, p.warmup_rule) == (10_000, "multiply")
  assert config_lib.max_predictions(config, p) == slots
  assert (config.objective.replace_with_mask, config.objective.replace_with_random) == (0.85, 0.0)
  assert config.objective.rtd_weight == 50.0


def sizes_of_families():
  """Returns the number of parameters of each model in `families`, without embedding tables."""
  recipe = runpy.run_path(str(CONFIGS / "families.py"))
  sizes = {}
  for name in recipe["MODELS"]:
    config = recipe["get_config"](name)
    assert {p.seq_len * p.batch_size for p in config.phases} == {2_048}
    config.model.vocab_size = 8_192
    vocabulary = Vocabulary(8_192, 4, (0, 2, 3, 4), np.zeros(8_192, bool), np.zeros(8_192, bool))
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    with sharding.use_mesh(mesh, config):
      state = steps.make_abstract_state(steps.make_setup(config, mesh, vocabulary))
    sizes[name] = sum(x.size for path, x in named_leaves(state.params).items()
                      if not re.search("embeddings/(token|position|segment)|mlm/bias|^lm/|spelling",
                                       path))
  return sizes


def test_the_families_are_compared_at_one_size_and_number_of_tokens():
  assert all(4.7e6 < size < 5.2e6 for size in sizes_of_families().values())
  for run in recipes.load_sweep(str(CONFIGS / "families.py")):
    if run["model.family"] != "elmo":  # ELMo reads words, so it needs other fields.
      assert not [field for field in run if field.startswith(("phases", "tokenizer"))]
    assert {field for field in run if field.startswith("data")} <= {
        "data.packing", "data.max_unused", "data.isolate_documents", "data.short_sequence_prob"}


def test_a_model_that_families_lacks_is_named():
  with pytest.raises(ConfigError, match="no model 'elmo9'. Choose one of bert, roberta"):
    recipes.load(str(CONFIGS / "families.py:elmo9"))


def test_nvidia_lamb_run():
  """DeepLearningExamples, BERT for PyTorch: 8,601 steps in two restarted phases."""
  config = load("bert_large_lamb")
  assert config.optimizer.name == "nvlamb"
  assert config_lib.total_steps(config) == 8_601
  assert [p.batch_size * p.seq_len for p in config.phases] == [2**23, 2**24]
  assert [p.learning_rate_rule for p in config.phases] == ["restart", "restart"]
  assert [round(p.warmup_fraction * p.steps) for p in config.phases] == [2_001, 200]


def test_gpt2_run():
  """nanoGPT: 491,520 tokens per step, and the rate decays to a tenth."""
  (p,) = load("gpt2_small").phases
  assert p.batch_size * p.seq_len == 491_520
  assert p.learning_rate * p.end_fraction == pytest.approx(6e-5)


def test_loading_recipes_needs_no_jax():
  """`bertgpt prepare` and errors in a config should not wait for JAX."""
  script = ("import sys; from bertgpt.config import recipes\n"
            "for path in sys.argv[1:]: recipes.load(path)\n"
            "print(*{'jax', 'flax', 'tensorflow'} & set(sys.modules))")
  paths = [str(CONFIGS / f"{name}.py") for name in RECIPES]
  result = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True,
                          check=False)
  assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "", "")
