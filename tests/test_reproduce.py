"""docs/reproduce.md: its commands work as written, here with tiny models on a tiny text."""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import pyarrow as pa
import pytest
import small_runs
from pyarrow import parquet
from test_docs import ROOT, commands, headings, problems_of, shell_lines
from tokenizers import pre_tokenizers

from bertgpt import cli
from bertgpt.config import recipes
from bertgpt.config.flops import flops_per_step
from bertgpt.config.overrides import override
from bertgpt.devices import hardware

PAGE = (ROOT / "docs/reproduce.md").read_text("utf-8")
RECIPES = {"BERT-base": "bert_base", "BERT-large with LAMB": "bert_large_lamb",
           "GPT-2 (124M)": "gpt2_small", "RoBERTa-base": "roberta_base"}
RUN = ("prepare", "data", "train", "evaluate", "export", "finetune", "predict", "generate",
       "verify")
# Flags that shrink the commands of the page to a test; they follow the flags of the page.
TINY = ["--config.model.num_layers=1", "--config.model.width=16", "--config.model.num_heads=2",
        "--config.model.mlp_dim=32", "--config.model.dtype=float32", "--config.eval.batch_size=8",
        "--config.data.prepare_workers=1", "--config.data.validation_fraction=0.1",
        "--config.eval.max_rows=16", "--config.system.compilation_cache=",
        "--config.log.tensorboard=False"]
TINY_TASK = ["--config.task.max_length=48", "--config.epochs=1", "--config.seeds=0,",
             "--config.learning_rates=1e-3,", "--config.batch_size=8",
             "--config.system.compilation_cache="]


def section(title: str) -> str:
  """The part of the page under a heading, up to the next one of the same level."""
  return re.split(rf"^## {re.escape(title)}$", PAGE, flags=re.MULTILINE)[1].split("\n## ")[0]


def tiny_phases(recipe: str) -> list[str]:
  """Overrides that make the phases of a recipe short and small."""
  flags = []
  for i, phase in enumerate(recipes.load(recipe).phases):
    small = {"steps": 3, "seq_len": 32, "batch_size": 16, "micro_batches": 2}
    small |= {"warmup_steps": 1} if phase.warmup_steps else {}
    small |= {"max_predictions": 5} if phase.max_predictions else {}
    flags += [f"--config.phases[{i}].{field}={value}" for field, value in small.items()]
  return flags


def made_tiny(argv: list[str]) -> list[str]:
  """A command of the page with the sizes of a test."""
  if argv[0] in ("prepare", "data", "train"):
    recipe = argv[argv.index("--config") + 1]
    vocabulary = ["--config.tokenizer.vocab_size=300"] if recipe == "roberta_base" else []
    return [*argv, *TINY, *tiny_phases(recipe), *vocabulary]
  if argv[0] == "finetune":
    is_squad = "finetune_squad" in argv
    return [*argv, *TINY_TASK,
            *(["--config.task.max_question=12", "--config.task.stride=8"] if is_squad else [])]
  if argv[0] == "evaluate" and "--suite" not in argv:
    return [*argv, "--config.eval.batch_size=8", "--config.eval.max_rows=16"]
  return argv


# ------------------------------------------------------------ the empty machine


def write_table(path: pathlib.Path, texts: list[str]) -> None:
  path.parent.mkdir(parents=True)
  parquet.write_table(pa.table({"text": texts}), path)


def write_downloads(folder: pathlib.Path) -> None:
  """Writes the files that the page downloads, with a tiny text."""
  documents = [text.replace("\n", " ") for text in small_runs.make_text(150).split("\n\n")]
  write_table(folder / "wikipedia/20231101.en/train-00000-of-00041.parquet", documents[:100])
  write_table(folder / "fineweb/sample/10BT/000_00000.parquet", documents)
  write_table(folder / "bookcorpus/plain_text/train/0000.parquet",
              [f"{s}." for text in documents[100:] for s in text.lower().split(".") if s])
  write_table(folder / "wikitext/wikitext-103-v1/test-00000-of-00001.parquet",
              [" = A cat = \n", " the cat sees the dog near a tree . \n"])
  words = (*small_runs.NOUNS, *small_runs.VERBS, "the", "near", "a", ".")
  (folder / "bert-base-uncased").mkdir()
  (folder / "bert-base-uncased/vocab.txt").write_text(
      "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
  (folder / "gpt2").mkdir()
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  (folder / "gpt2/vocab.json").write_text(json.dumps(
      {token: i for i, token in enumerate([*alphabet, "<|endoftext|>"])}))
  (folder / "gpt2/merges.txt").write_text("#version: 0.2\n")
  (folder / "glue/SST-2").mkdir(parents=True)
  for name in ("train", "dev"):
    (folder / f"glue/SST-2/{name}.tsv").write_text(
        "sentence\tlabel\n" + "the cat sees the dog\t1\nthe stone holds a river\t0\n" * 8)
  context = "the cat sees the dog near a tree."
  questions = [{"id": str(i), "question": "the cat sees a", "answers": [
      {"text": "the dog", "answer_start": context.index("the dog")}]} for i in range(8)]
  (folder / "squad").mkdir()
  for name in ("train", "dev"):
    (folder / f"squad/{name}-v1.1.json").write_text(json.dumps({"data": [
        {"title": "A", "paragraphs": [{"context": context, "qas": questions}]}]}))
  (folder / "lambada_test.jsonl").write_text(json.dumps({"text": "the cat sees the dog"}) + "\n")
  (folder / "new.txt").write_text("the cat sees the dog\n")


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
  folder = tmp_path_factory.mktemp("machine")
  write_downloads(folder)
  return folder


def run_section(title: str) -> list[str]:
  """Runs the commands of a section in their order, and returns their names."""
  done = []
  for argv in commands(section(title)):
    if argv[0] not in RUN:
      continue
    assert cli.main(made_tiny(argv)) == 0, shlex.join(argv)
    done.append(argv[0])
  return done


@pytest.mark.slow
def test_the_models_are_reproduced_in_small(machine, monkeypatch, capsys):
  monkeypatch.chdir(machine)
  line = next(line for line in shell_lines(section("The text")) if line.startswith("python -c "))
  subprocess.run([sys.executable, *shlex.split(line)[1:]], check=True)
  assert "the cat sees" in pathlib.Path("wiki.test.tokens").read_text()
  for title, recipe in RECIPES.items():
    done = run_section(title)
    assert {"train", "evaluate", "export", "finetune"} <= set(done), title
    assert "prepare" in done or recipe == "bert_large_lamb"  # It reads BERT-base's corpus.
    printed = capsys.readouterr().out
    assert "perplexity" in (machine / "runs" / recipe / "report.md").read_text()
    assert "parameters, from step" in printed and "Best on dev" in printed, title
  assert {"verify", "train"} == set(run_section("While it runs")) - {"compare", "goodput"}


# ---------------------------------------------------------------- the page


@pytest.mark.parametrize("title, recipe", RECIPES.items())
def test_every_model_has_its_parts(title, recipe):
  for part in ("### Cost", "### What to look at", "### Scores"):
    assert part in section(title), part
  trained = [argv for argv in commands(section(title)) if argv[0] == "train"]
  assert trained[0][1:3] == ["--config", recipe]
  for steps in ("1,000 steps", "10,000"):
    assert steps in section(title)


@pytest.mark.parametrize("title, recipe", RECIPES.items())
def test_flags_in_the_tables_are_accepted_for_their_recipe(title, recipe, monkeypatch):
  monkeypatch.chdir(ROOT)
  found = re.findall(r"`(--config\.[^`]+)`", section(title))
  assert found or title == "BERT-base"
  for flags in found:
    argv = ["train", "--config", recipe, "--workdir", "runs/x", *shlex.split(flags)]
    assert problems_of(argv) == [], flags


def test_the_machines_are_topologies_that_plan_knows():
  machines = re.findall(r"^\| `([a-z0-9:x]+)` \| (\d+)", section("The machine"), re.MULTILINE)
  assert [name for name, _ in machines] == ["v5e:4x4", "v5p:4x4x4", "v6e:4x4", "h100:8", "h200:8"]
  for name, chips in machines:
    kind, shape = name.split(":")
    assert kind in hardware.CHIPS
    product = 1
    for side in shape.split("x"):
      product *= int(side)
    assert product == int(chips)


def test_a_launcher_starts_a_command_that_train_takes(monkeypatch):
  monkeypatch.chdir(ROOT)
  lines = [shlex.split(line) for line in shell_lines(PAGE) if line.startswith("launch/")]
  assert lines
  for program, *argv in lines:
    assert (ROOT / program).exists()
    assert problems_of(["train", *argv, "--distributed=auto"]) == []


def test_the_downloads_are_commands_of_hf():
  """Checks that the options of each command exist. Nothing is downloaded."""
  pytest.importorskip("huggingface_hub")
  text = subprocess.run(["hf", "download", "--help"], capture_output=True, text=True, check=False,
                        env={"PATH": f"{pathlib.Path(sys.executable).parent}:/usr/bin:/bin",
                             "COLUMNS": "200", "HOME": "/nonexistent"}).stdout
  lines = [shlex.split(line) for line in shell_lines(PAGE) if line.startswith("hf ")]
  assert len(lines) > 4
  for words in lines:
    assert words[:2] == ["hf", "download"]
    for option in (word for word in words if word.startswith("--")):
      assert option in text, option


def test_the_checkpoints_of_the_page_are_those_of_the_recipes():
  rows = dict(re.findall(r"^\| (\S+(?: \(124M\))?) \| [\d.]+ M \| [\d.]+ GB \| ([\d,]+) steps",
                         section("While it runs"), re.MULTILINE))
  every = {name: recipes.load(recipe).checkpoint for name, recipe in zip(
      ("BERT-base", "BERT-large", "GPT-2 (124M)", "RoBERTa-base"), RECIPES.values(), strict=True)}
  assert rows == {name: f"{c.every_steps:,}" for name, c in every.items()}
  assert {(c.every_minutes, c.keep) for c in every.values()} == {(30.0, 3)}
  assert "checkpoints" in headings(ROOT / "docs/reproduce.md")


def cost_rows(title: str) -> list[list[str]]:
  """Cells of the planned rows of a table "Cost": machine, a cell per phase, days, hours, price."""
  cost = section(title).split("### Cost")[1].split("###")[0]
  rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in cost.splitlines()
          if re.match(r"\| `\w+:\w+` \|", line)]
  assert len(rows) == len(machine_rows())
  return [row for row in rows if row[1] != "not planned"]


def machine_rows() -> dict[str, tuple[int, float]]:
  """Returns machine -> (chips, price per chip-hour)."""
  found = re.findall(r"^\| `([a-z0-9:x]+)` \| (\d+) \|.*\| ([\d.]+) \|$", section("The machine"),
                     re.MULTILINE)
  return {name: (int(chips), float(price)) for name, chips, price in found}


def number(text: str) -> float:
  return float(re.match(r"[\d,.]+", text)[0].replace(",", ""))


def config_on(title: str, machine: str):
  """The recipe of a section with the flags that its table names for a machine."""
  config = recipes.load(RECIPES[title])
  flags = [shlex.split(found) for names, found in
           re.findall(r"^\| (`.*`) \| `(--config[^`]*)`", section(title), re.MULTILINE)
           if f"`{machine}`" in names]
  config = override(config, flags[0]) if flags else config
  config.model.vocab_size = config.tokenizer.vocab_size
  return config


@pytest.mark.parametrize("title", RECIPES)
def test_days_and_prices_follow_from_the_steps(title):
  for machine, *phases, days, chip_hours, price in cost_rows(title):
    chips, price_per_hour = machine_rows()[machine]
    seconds = sum(number(cell) * (1 if " s," in cell else 1e-3) * phase.steps for cell, phase in
                  zip(phases, config_on(title, machine).phases, strict=True))
    assert number(days) == pytest.approx(seconds / 86400, rel=0.02, abs=0.006), machine
    assert number(chip_hours) == pytest.approx(seconds / 3600 * chips, rel=0.01), machine
    assert number(price) == pytest.approx(number(chip_hours) * price_per_hour, abs=0.75), machine


@pytest.mark.parametrize("title", RECIPES)
def test_a_step_does_the_work_that_its_mfu_says_and_fits(title):
  for machine, *phases, _, _, _ in cost_rows(title):
    chips, chip = machine_rows()[machine][0], hardware.CHIPS[machine.split(":")[0]]
    config = config_on(title, machine)
    for cell, phase in zip(phases, config.phases, strict=True):
      step, mfu, memory = cell.split(", ")
      seconds = number(step) * (1 if step.endswith(" s") else 1e-3)
      flops = flops_per_step(config, phase)
      assert number(mfu) / 100 == pytest.approx(flops / seconds / chips / chip.peak_flops,
                                                rel=0.01, abs=5e-4), (machine, cell)
      assert number(memory) * 2**30 < chip.usable_hbm, (machine, cell)
