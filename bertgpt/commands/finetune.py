"""`bertgpt finetune`: training of a trained model on a task, and its scores."""

import argparse

from bertgpt.commands import flags

HELP = "Fine-tune a trained model on a task, and score it."
USES = ("bertgpt.finetuning.loop",)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt finetune`."""
  flags.add_config(parser)
  parser.add_argument("--init", required=True, type=flags.local_path, metavar="DIR",
                      help="folder of the pretrained or imported run")
  parser.add_argument("--task", metavar="NAME",
                      help="name of the task, as sst2; default: the task of the recipe")
  parser.add_argument("--workdir", type=flags.local_path, metavar="DIR",
                      help="folder of the results; default: finetune-TASK in the folder of --init")
  flags.add_distributed(parser)


def check(arguments: argparse.Namespace) -> None:
  """Checks the config of the task."""
  from bertgpt.config import finetuning, recipes
  from bertgpt.finetuning import tasks
  recipe = recipes.load(arguments.recipe, finetuning.base)
  config, problems = recipes.try_override(recipe, arguments.overrides)
  config.task.name = arguments.task or config.task.name
  flags.refuse(problems + tasks.name_problems(config.task.name) + finetuning.find_problems(config))
  arguments.config = config


def run(arguments: argparse.Namespace) -> None:
  """Fine-tunes every run of the config and writes the results."""
  from bertgpt.finetuning import loop
  config, init = arguments.config, arguments.init
  loop.finetune(init, config, arguments.workdir or init / f"finetune-{config.task.name}")
