"""`bertgpt finetune`: training of a trained model on a task, and its scores."""

import argparse
from typing import TYPE_CHECKING

from bertgpt.commands import flags
from bertgpt.errors import ConfigError, refuse

if TYPE_CHECKING:  # The config is slow to import.
  from bertgpt.config import ConfigDict

HELP = "Fine-tune a trained model on a task, and score it."
USES = ("bertgpt.finetuning.finetune", "bertgpt.hub.opening")


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt finetune`."""
  flags.add_config(parser, "epochs=2", "bertgpt.config.finetuning", "finetune_glue")
  parser.add_argument("--init", required=True, type=flags.any_path, metavar="DIR",
                      help="folder of the pretrained run, or of a model of transformers")
  parser.add_argument("--task", metavar="NAME",
                      help="name of the task, such as sst2; default: the task of the recipe")
  parser.add_argument("--workdir", type=flags.any_path, metavar="DIR",
                      help="folder of the results; default: finetune-TASK in the folder of --init, "
                           "if that is a run")
  flags.add_distributed(parser)
  parser.set_defaults(resumes=True)


def check(arguments: argparse.Namespace) -> "ConfigDict":
  """Returns the config of the task, which is validated."""
  from bertgpt.config import finetuning, recipes
  from bertgpt.config.overrides import try_override
  from bertgpt.finetuning import tasks
  recipe = recipes.load(arguments.recipe, finetuning.base)
  config, problems = try_override(recipe, arguments.overrides)
  config.task.name = arguments.task or config.task.name
  refuse(problems + tasks.name_problems(config.task.name) + finetuning.find_problems(config))
  return config


def run(arguments: argparse.Namespace, config: "ConfigDict") -> None:
  """Fine-tunes every run of the config and writes the results."""
  from bertgpt.finetuning import finetune
  from bertgpt.hub import opening
  init, workdir = arguments.init, arguments.workdir
  if not workdir and opening.is_of_transformers(init):
    raise ConfigError(f"--init {init}: is a model of transformers, and nothing is written into its "
                      "folder. Name a folder for the results with --workdir")
  finetune.finetune(init, config, workdir or init / f"finetune-{config.task.name}")
