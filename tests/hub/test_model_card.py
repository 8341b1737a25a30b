"""bertgpt.hub.model_card: its statements are true, and its recipe gives the run's config."""

import json
import pathlib
import re
import shutil

import pytest
import small_runs
import yaml

from bertgpt import cli
from bertgpt import config as config_lib
from bertgpt.config import finetuning as finetune_config
from bertgpt.config import recipes, resuming
from bertgpt.config.overrides import set_field
from bertgpt.config.stored import from_json, to_json
from bertgpt.data.tokens import tokenizers
from bertgpt.hub import conversion, model_card
from bertgpt.runs import trained as trained_lib

OUT = pathlib.Path("out/model")


def load_recipe(card, folder, base):
  recipe = card.split("```python\nfrom bertgpt")[1].split("```")[0]
  (folder / "recipe.py").write_text("from bertgpt" + recipe)
  return to_json(recipes.load(str(folder / "recipe.py"), base))


def shared_config(workdir, base):
  """Returns the config of a run with the defaults of its host, and files without folders."""
  config = from_json((workdir / "config.json").read_bytes(), base)
  for field, value in config_lib.leaves(config):
    if field in resuming.HOST_FIELDS:
      set_field(config, field, dict(config_lib.leaves(base()))[field])
    elif isinstance(value, str) and "/" in value:
      kind, colon, path = value.rpartition(":")
      set_field(config, field, f"{kind}{colon}{pathlib.Path(path).name}")
  return to_json(config)


def names_no_folder(card):
  """Returns whether no word of a text is a path on this machine."""
  return not re.search(r"(?<![\w/:])/\w+/|:/\w", card)


def test_of_a_pretraining(finished, tmp_path):
  trained = trained_lib.load_trained(finished)
  architecture = conversion.find_architecture(trained.config)
  card = model_card.write(trained, architecture, finished, OUT, "Model with 7 parameters")
  tokens = 20 * 8 * 32
  assert "Data: `text:story.txt`" in card and f"{tokens:,} tokens" in card
  assert "bertgpt export --workdir DIR --out model" in card
  assert names_no_folder(card)
  last = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()][-1]
  (value,) = (x for tag, x in last.items() if tag.endswith("_perplexity"))
  assert f"| {value:.4g} | 20 |" in card
  assert load_recipe(card, tmp_path, recipes.base) == shared_config(finished, recipes.base)


def test_an_imported_model_has_no_recipe(finished_bert):
  trained = trained_lib.load_trained(finished_bert)._replace(step=0)
  architecture = conversion.find_architecture(trained.config)
  card = model_card.write(trained, architecture, finished_bert, OUT, "")
  assert "bertgpt import --from FOLDER --workdir DIR\nbertgpt export --workdir DIR" in card
  assert "recipe" not in card and "bertgpt train" not in card


@pytest.mark.parametrize("language", ["no", "en", "yes", "null"])
def test_the_header_is_yaml_with_the_language_of_the_text(finished_bert, language):
  trained = trained_lib.load_trained(finished_bert)
  trained.config.data.language = language
  architecture = conversion.find_architecture(trained.config)
  card = model_card.write(trained, architecture, finished_bert, OUT, "")
  header = yaml.safe_load(card.split("---")[1])
  assert header == {"language": language, "library_name": "transformers",
                    "pipeline_tag": "fill-mask"}


def test_the_language_of_an_imported_model_is_not_known(finished_bert, tuned):
  trained = trained_lib.load_trained(finished_bert)
  fine_tuned = trained_lib.load_any(tuned / "lr0.01-seed0")
  assert model_card.language_line(fine_tuned) == 'language: "en"\n'
  for imported in (trained._replace(step=0, corpus_identity=""),
                   fine_tuned._replace(corpus_identity="")):
    assert not model_card.language_line(imported)
    imported.config.data.language = "de"
    assert model_card.language_line(imported) == 'language: "de"\n'


def test_every_kind_of_tokenizer_has_a_name():
  assert model_card.TOKENIZERS.keys() == tokenizers.KINDS.keys()


PHASES = """\
  config.phases = (
      phase(steps=2, seq_len=16, batch_size=8, learning_rate=3e-3, schedule="constant",
            warmup_steps=2, rope_theta=500.0),
      phase(steps=3, seq_len=32, batch_size=8, learning_rate_rule="continuous", rope_theta=900.0))
"""


@pytest.fixture(scope="module")
def two_phases(recipe, tmp_path_factory):
  """The workdir of a run in bfloat16 whose phases have one curve of the rate."""
  folder = tmp_path_factory.mktemp("two_phases")
  path = folder / "recipe.py"
  path.write_text(recipe.read_text().replace("  return config\n", PHASES + "  return config\n"))
  objective, *fields = small_runs.FAMILIES["modernbert"]
  assert cli.main(["train", f"--config={path}:{objective}", f"--workdir={folder / 'run'}",
                   *fields, "--config.model.dtype=bfloat16"]) == 0
  return folder / "run"


@pytest.mark.slow
def test_the_recipe_is_that_of_the_training_not_of_the_use(two_phases, tmp_path):
  """The model is used in float32, with the rotary positions of the last phase."""
  trained = trained_lib.load_trained(two_phases)
  card = model_card.write(trained, conversion.find_architecture(trained.config), two_phases, OUT,
                          "Model with 7 parameters")
  assert load_recipe(card, tmp_path, recipes.base) == shared_config(two_phases, recipes.base)


def test_steps_that_were_left_out_are_not_counted(finished_bert):
  trained = trained_lib.load_trained(finished_bert)
  config = trained.config.copy_and_resolve_references()
  config.train.skip_steps = ((1, 1), (4, 6), (100, 200))
  (phase,) = config.phases
  *_, steps, skipped, total = model_card.describe_training(trained._replace(config=config))
  count = trained.step - 4
  assert steps.startswith(f"- {count} steps of {phase.batch_size} rows x ")
  assert skipped == "- 4 steps were left out (`train.skip_steps`)."
  assert total.startswith(f"- In total {count} steps, "
                          f"{count * phase.batch_size * phase.seq_len:,} tokens")


@pytest.mark.slow
def test_a_phase_that_continues_a_curve_has_its_peak(two_phases):
  lines = model_card.describe_training(trained_lib.load_trained(two_phases))
  assert [line for line in lines if " rows x " in line] == [
      "- 2 steps of 8 rows x 16 tokens, peak learning rate 0.003 (constant).",
      "- 3 steps of 8 rows x 32 tokens, peak learning rate 0.003 (constant)."]


def test_of_a_fine_tuning(tuned, tuning, finished_bert, tmp_path):
  source = tuned / "lr0.01-seed0"
  trained = trained_lib.load_any(source)
  architecture = conversion.find_architecture(trained.config, trained.task["kind"])
  card = model_card.write(trained, architecture, source, OUT, "Model with 7 parameters")
  assert "pipeline_tag: text-classification" in card
  assert (f"Fine-tuned on sst2 (`{tuning.parent.name}`) from step 20 of `{finished_bert.name}`"
          in card)
  assert "90 steps of 16 examples (90 epochs), peak learning rate 0.01 (linear)" in card
  assert "| dev/accuracy | 1 | 90 |" in card
  assert f"bertgpt finetune --config recipe.py --init {finished_bert.name} --workdir DIR" in card
  base = finetune_config.base
  assert load_recipe(card, tmp_path, base) == shared_config(tuned, base)
  assert names_no_folder(card)


def test_how_a_run_was_chosen_is_in_the_results_not_in_the_config_that_it_was_saved_with(
    tuned, tmp_path):
  """Seeds may be added later, and a fine-tuning may be killed before its last run."""
  source = shutil.copytree(tuned / "lr0.01-seed0", tmp_path / "lr0.01-seed0")
  task = trained_lib.load_any(source).task
  assert model_card.describe_choice(task, source) == (
      "One run of a fine-tuning that planned 2 runs (learning rates, seeds).")
  rows = [{"learning_rate": 0.01, "seed": i, "folder": f"lr0.01-seed{i}", "dev": {"accuracy": 1.0}}
          for i in range(3)]
  diverged = {"learning_rate": 1e9, "seed": 0, "folder": "lr1e9-seed0", "diverged": True}

  def choice(runs, best, compared):
    (tmp_path / "results.json").write_text(json.dumps({
        "runs": runs, "best_run": best,
        "medians": [{"learning_rate": 0.01, "seeds": compared}]}))
    return model_card.describe_choice(task, source)

  best, other = source.name, "lr0.01-seed1"
  optimism = "by this score, which is optimistic."
  assert choice(rows, best, 3) == f"The best of 3 runs (learning rates, seeds) {optimism}"
  assert choice([*rows, diverged], best, 3).startswith("The best of 4 runs ")
  assert choice(rows, other, 3) == "One of 3 runs (learning rates, seeds)."
  assert choice(rows, best, 2) == "One of 3 runs (learning rates, seeds).", "the third was left out"
  assert choice(rows[:1], best, 1) == "The only run of the fine-tuning."
  of_another_fine_tuning = choice(rows[1:], other, 2)
  assert of_another_fine_tuning.startswith("One run of a fine-tuning that planned 2 ")


def test_of_random_weights(tuned):
  trained = trained_lib.load_any(tuned / "lr0.01-seed0")
  config = model_card.read_tuning(trained.task)
  config.from_scratch = True
  trained = trained._replace(task=trained.task | {"config": to_json(config)})
  lines = model_card.describe_tuning(trained)
  assert "from random weights of the model of `" in lines[0] and len(lines) == 2


def test_of_a_head_with_random_weights(finished_bert):
  trained = trained_lib.load_trained(finished_bert)
  assert not [line for line in model_card.limits_of_training(trained) if "random" in line]
  lines = model_card.limits_of_training(trained._replace(fresh=("mlm", "nsp")))
  assert lines[:2] == ["The masked-LM head has random weights.",
                       "The next-sentence head has random weights."]


@pytest.mark.parametrize("value, expected", [
    ("text:/home/me/a.txt", "text:a.txt"), ("/home/me/runs/mini", "mini"),
    ("2*jsonl:/a/b/*.jsonl#text,text:/c/d/", "2*jsonl:*.jsonl#text,text:d/"),
    ("jsonl:gs://bucket/a/b.jsonl", "jsonl:gs://bucket/a/b.jsonl"), ("pydocs", "pydocs"),
    ("text:~/secret/client/a.txt", "text:a.txt"), ("~/docs", "docs"), ("~me/runs/t0", "t0"),
    ("2*text:~me/a.txt,jsonl:~/b/c.jsonl#text", "2*text:a.txt,jsonl:c.jsonl#text"),
    ("tfds:~/a/b/c:train", "tfds:c:train"), ("text:a~b/c.txt", "text:a~b/c.txt"),
    ("text:books/a.txt", "text:books/a.txt"), ("tfds:wiki40b/en:1.3.0", "tfds:wiki40b/en:1.3.0"),
    (3, 3)])
def test_folders_of_the_machine_are_left_out(value, expected):
  assert model_card.without_folders(value) == expected
