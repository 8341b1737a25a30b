"""The README.md of an exported model: architecture, training, results and limits."""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from bertgpt import config as config_lib
from bertgpt.config import ConfigDict, families, mixtures, resuming
from bertgpt.config import finetuning as finetune_config
from bertgpt.config.derived import count_trained
from bertgpt.config.stored import from_json
from bertgpt.data.batches import mixture
from bertgpt.data.corpus import splits
from bertgpt.data.text import sources
from bertgpt.hub.architecture import Architecture
from bertgpt.runs import folder_kinds
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.metrics_file import read_curves
from bertgpt.runs.trained import Trained
from bertgpt.training import schedules

TOKENIZERS = {"sentencepiece": "SentencePiece", "wordpiece": "WordPiece", "bpe": "byte-level BPE",
              "gpt1_bpe": "BPE as in GPT-1", "unigram": "unigram", "words": "whole words"}

# The folders of a path that is absolute or in a home folder, at the start of a text or after ':',
# ',' or '='.
FOLDERS = re.compile(r"(?<![^:,=])(?:/(?!/)[^,#]*/|~[^/,#]*/(?:[^,#]*/)?)(?=[^,#/])")
# Fields of the host without a meaning for others; the corpora say what was read.
LEFT_OUT = {*resuming.HOST_FIELDS} - {"data.corpus", "data.corpora"}


CARD = """\
---
{language}library_name: transformers
pipeline_tag: {pipeline}
---

# {name}

A {title} in float32: {num_layers} layers, width {width}, {num_heads} heads, {max_positions} positions, {vocab_size:,} tokens of {tokenizer}.

```python
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = {auto}.from_pretrained("{name}")
```

## Training

{training}

{results}

## Limits

{limits}

## Commands

```
{command}
bertgpt export --workdir DIR --out {out}
```
"""
RECIPE = """
with this as recipe.py, in which files have no folders:

```python
{recipe}
```
"""


def write(trained: Trained, architecture: Architecture, source: pathlib.Path, out: pathlib.Path,
          title: str, part: str = "") -> str:
  """Returns the text of README.md.

  Args:
    trained: the model.
    architecture: architecture of the model in `transformers`.
    source: workdir of the run.
    out: folder of the exported model; the text has only its name.
    title: name of the architecture and number of parameters.
    part: subfolder of `out` that this model is in; '': it is in `out` itself.
  """
  config, model, task = trained.config, trained.config.model, trained.task
  if task:
    training, recipe = describe_tuning(trained), tuning_recipe(task)
    init = without_folders(task["init"])
    command = f"bertgpt finetune --config recipe.py --init {init} --workdir DIR"
    results = ["## Results on the development set", "", describe_choice(task, source), ""]
  elif not trained.step:
    training, recipe = describe_training(trained), []
    command = "bertgpt import --from FOLDER --workdir DIR"
    results = ["## Held-out results", ""]
  else:
    training, recipe = describe_training(trained), training_recipe(trained.stored or config)
    command = "bertgpt train --config recipe.py --workdir DIR"
    results = ["## Held-out results", ""]
  card = CARD.format(
      language=language_line(trained), pipeline=architecture.pipeline, auto=architecture.auto,
      name="/".join(filter(None, (out.name, part))), title=title,
      tokenizer=TOKENIZERS[trained.tokenizer.kind],
      **{field: model.get(f"{part}_{field}", model[field]) for field in (
          "num_layers", "width", "num_heads", "max_positions", "vocab_size")},
      training="\n".join(training),
      results="\n".join([*results, *describe_results(trained, source)]),
      limits="\n".join(f"- {line}" for line in describe_limits(trained, architecture)),
      command=command, out=out.name)
  return card + RECIPE.format(recipe="\n".join(recipe)) if recipe else card


def language_line(trained: Trained) -> str:
  """Returns the line of the header that names the language, in quotes: YAML reads `no` as false.

  An imported model has none, unless its config was given one: its language is not known.

  Args:
    trained: the model.
  """
  language, task = trained.config.data.language, trained.task
  is_imported = (not trained.corpus_identity and not read_tuning(task).from_scratch if task
                 else not trained.step)
  if is_imported and language == config_lib.base().data.language:
    return ""
  return f"language: {json.dumps(language)}\n"


def describe_training(trained: Trained) -> list[str]:
  """Returns the lines about the pretraining: data, objective, steps and tokens.

  Args:
    trained: a pretrained or imported model.
  """
  config, step = trained.config, trained.step
  if not step:
    return ["The weights were imported, not trained with bertgpt."]
  data = config.data
  held_out = ""  # Of a prepared corpus, the config does not say it.
  if not data.corpus:
    held_out = (f", of which the sources after `{sources.HELD_OUT}` are held out"
                if splits.holds_out(data.source) else
                f", of which {data.validation_fraction:.1%} of the documents are held out")
  lines = [f"- Data: `{without_folders(data.corpus or data.source)}`{held_out}; corpus "
           f"`{trained.corpus_identity[:16]}`.",
           f"- Objective: {config.objective.name}; optimizer: {config.optimizer.name}; seed "
           f"{config.seed}."]
  if others := mixtures.describe_paths(config, mixtures.find_others(config)):
    lines.append(f"- More data: `{without_folders(others)}`; `main` is the first.")
  lines += [f"- Rows of {line}." for line in mixture.describe_shares(config, step)]
  if config.init_from:
    lines.append("- Training started from the parameters in "
                 f"`{without_folders(config.init_from)}`.")
  tokens, first, curves = 0, 0, schedules.find_rate_curves(config.phases)
  for phase in config.phases:
    steps = min(phase.steps, step - first)
    steps = count_trained(config.train.skip_steps, first, first + steps)
    if steps > 0:
      tokens += steps * phase.batch_size * phase.seq_len
      curve = next(c.phase for c in reversed(curves) if c.first_step <= first)
      lines.append(f"- {steps:,} steps of {phase.batch_size} rows x {phase.seq_len} tokens, peak "
                   f"learning rate {curve.learning_rate:g} ({curve.schedule}).")
    first += phase.steps
  total = count_trained(config.train.skip_steps, 0, step)
  if total < step:
    lines.append(f"- {step - total:,} steps were left out (`train.skip_steps`).")
  return [*lines, f"- In total {total:,} steps, {tokens:,} tokens with padding."]


def describe_tuning(trained: Trained) -> list[str]:
  """Returns the lines about fine-tuning: task, initial weights, steps.

  Args:
    trained: a fine-tuned model.
  """
  config, task = trained.config, trained.task
  tuning = read_tuning(task)
  (phase,) = config.phases
  if tuning.from_scratch:
    start = "random weights of the model"
    before = []
  else:
    start = f"step {task['init_step']:,}"
    data = without_folders(config.data.corpus or config.data.source)
    if others := mixtures.describe_paths(config, mixtures.find_others(config)):
      data += f", {without_folders(others)}"
    before = [f"- That model was trained on `{data}`; corpus `{trained.corpus_identity[:16]}`."
              if trained.corpus_identity else
              "- That model was imported, not trained with bertgpt."]
  return [f"- Fine-tuned on {task['name']} (`{without_folders(tuning.task.data)}`) from {start} of "
          f"`{without_folders(task['init'])}`.", *before,
          f"- {trained.step:,} steps of {phase.batch_size} examples ({tuning.epochs} epochs), peak "
          f"learning rate {phase.learning_rate:g} ({phase.schedule}), optimizer "
          f"{config.optimizer.name}, seed {task['seed']}."]


def describe_results(trained: Trained, source: pathlib.Path) -> list[str]:
  """Returns a table of the last scores of the run up to the exported step.

  Args:
    trained: the model.
    source: workdir of the run.
  """
  scores = {}
  for tag, points in read_curves(source).items():
    points = [point for point in points if point[0] <= trained.step]
    if tag.startswith("eval/") and points:
      scores[tag.removeprefix("eval/")] = points[-1]
  if not scores:
    return ["There are no results: the model was not evaluated."]
  return ["| metric | value | at step |", "|---|---|---|",
          *(f"| {tag} | {value:.4g} | {step} |" for tag, (step, value) in sorted(scores.items()))]


def describe_choice(task: Mapping[str, Any], source: pathlib.Path) -> str:
  """Returns a sentence that says how the exported fine-tuning run was chosen.

  The runs are those in results.json of the fine-tuning. The config that was saved with the weights
  does not know the seeds that were added later, or whether all of its runs were done.

  Args:
    task: `Trained.task`.
    source: workdir of the run, which may have been copied without its fine-tuning.
  Raises:
    DataError: results.json is damaged.
  """
  results = folder_kinds.read_results(source.parent)
  runs = {row["folder"]: "diverged" not in row for row in results["runs"]}
  if source.name not in runs:
    tuning = read_tuning(task)
    count = len(tuning.learning_rates) * len(tuning.seeds)
    return (f"One run of a fine-tuning that planned {count} run{'s' * (count != 1)} (learning "
            "rates, seeds).")
  if len(runs) == 1:
    return "The only run of the fine-tuning."
  # Runs whose rates or seeds were left out later were not compared with the best one.
  compared = sum(median["seeds"] for median in results.get("medians", ()))
  if source.name == results.get("best_run") and compared == sum(runs.values()):
    return (f"The best of {len(runs)} runs (learning rates, seeds) by this score, which is "
            "optimistic.")
  return f"One of {len(runs)} runs (learning rates, seeds)."


def describe_limits(trained: Trained, architecture: Architecture) -> list[str]:
  """Returns the limits of the model, one or two sentences per line.

  Args:
    trained: the model.
    architecture: architecture of the model in `transformers`.
  """
  lines = limits_of_tuning(trained) if trained.task else [
      *limits_of_training(trained), *architecture.limits]
  return [*lines, "The name of a special token in a text, such as [MASK], is read as that token."]


def limits_of_training(trained: Trained) -> list[str]:
  """Returns the limits that follow from the data and the rows of pretraining.

  Args:
    trained: a pretrained model.
  """
  config = trained.config
  longest = trained_lib.longest_row(trained)
  fresh = [f"The {families.HEADS[head]} has random weights." for head in trained.fresh]
  lines = [*fresh, "It reproduces its training data, mistakes and prejudices included. It was not "
           "trained to answer questions or to follow instructions."]
  if longest < config.model.max_positions:
    lines.append(f"Positions from {longest} on were not trained in this run.")
  return lines


def limits_of_tuning(trained: Trained) -> list[str]:
  """Returns the limits that follow from the task of a fine-tuned model.

  Args:
    trained: a fine-tuned model.
  """
  kind, task = trained.task["kind"], read_tuning(trained.task).task
  lines = ["It reproduces its training data, mistakes and prejudices included. It was made for "
           "texts like those of its task, and was not scored on others.",
           f"Rows of its task had at most {task.max_length} tokens."]
  if kind in ("classes", "values"):
    lines.append(f"Longer texts were cut to their {task.truncation.replace('_', ' and ')}.")
  if kind == "tokens":
    lines.append("Only the first token of a word was labeled: the pipeline needs "
                 'aggregation_strategy="first".')
  if task.name == "squad2":
    lines.append("A question counted as unanswerable if that scored better than the best answer "
                 f"by {task.null_threshold:g}. This threshold is not stored in the model.")
  return lines


def training_recipe(config: ConfigDict) -> list[str]:
  """Returns the Python source of a recipe for a pretraining config, line by line.

  Args:
    config: a whole config.
  """
  new_phase = config_lib.phase()
  phases = [", ".join(f"{name}={p[name]!r}" for name in p if p[name] != new_phase[name])
            for p in config.phases]
  return ["from bertgpt.config import base, phase", "", "", "def get_config():",
          "  config = base()", *changed_fields(config, config_lib.base()), "  config.phases = (",
          *(f"      phase({fields})," for fields in phases), "  )", "  return config"]


def tuning_recipe(task: Mapping[str, Any]) -> list[str]:
  """Returns the Python source of a fine-tuning recipe, line by line.

  Args:
    task: `Trained.task`.
  """
  return ["from bertgpt.config.finetuning import base", "", "", "def get_config():",
          "  config = base()", *changed_fields(read_tuning(task), finetune_config.base()),
          "  return config"]


def read_tuning(task: Mapping[str, Any]) -> ConfigDict:
  """Returns the fine-tuning config.

  Args:
    task: `Trained.task`.
  """
  return from_json(task["config"], finetune_config.base)


def changed_fields(config: ConfigDict, default: ConfigDict) -> list[str]:
  """Returns Python statements that set the fields of a config that differ from the default.

  Fields of the host are left out, and files have no folders.

  Args:
    config: a whole config; `phases` is left out.
    default: result of `base()`.
  """
  defaults = dict(config_lib.leaves(default))
  return [f"  config.{field} = {without_folders(value)!r}"
          for field, value in config_lib.leaves(config) if not field.startswith("phases[")
          and field not in LEFT_OUT and value != defaults[field]]


def without_folders(value: Any) -> Any:
  """Returns a value without the folders of this machine: 'text:/home/me/a.txt' as 'text:a.txt'.

  Args:
    value: value of a field; other values than text, and paths in a bucket, stay as they are.
  """
  return FOLDERS.sub("", value) if isinstance(value, str) else value
