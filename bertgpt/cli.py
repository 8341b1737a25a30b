"""`bertgpt <command>`: parse flags, start jax.distributed, dispatch."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from bertgpt import config as config_lib
from bertgpt.errors import ConfigError, UserError

# Modules are imported by the commands that need them: `bertgpt --help` and `prepare`
# should not wait for JAX.


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns the exit code; see `errors` for the codes."""
  parser = make_parser()
  arguments, overrides = parser.parse_known_args(argv)
  unknown = [a for a in overrides if not a.startswith("--config.")]
  if unknown:
    parser.error(f"unknown argument {unknown[0]}; config fields are given as --config.FIELD=VALUE")
  arguments.overrides = overrides
  try:
    arguments.run(arguments)
  except UserError as e:
    print(f"bertgpt {arguments.command}: {e}", file=sys.stderr)
    return e.exit_code
  return 0


def make_parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      "bertgpt", description="Pretrain BERT and GPT: text in, a trained model out.",
      epilog="Config fields are overridden by --config.FIELD=VALUE, as in --config.model.num_layers=4.")
  commands = parser.add_subparsers(dest="command", required=True)

  def add(name, run, summary, *flags):
    command = commands.add_parser(name, help=summary, description=summary, epilog=parser.epilog,
                                  allow_abbrev=False)
    for flag in flags:
      flag(command)
    command.set_defaults(run=run)

  add("train", run_train, "Train a model, or go on where the run in --workdir stopped.",
      config_flag, workdir_flag, distributed_flag, allow_change_flag)
  add("evaluate", run_evaluate, "Score a trained model on the validation split.",
      workdir_flag, distributed_flag)
  add("prepare", run_prepare, "Turn text into a prepared corpus.", config_flag, out_flag)
  add("data", run_data, "Show what batches a config makes.", config_flag, steps_flag)
  add("sweep", run_sweep, "Train every run of the config's get_sweep(), one after the other.",
      config_flag, workdir_flag)
  return parser


def config_flag(command):
  command.add_argument("--config", required=True, metavar="FILE", help="a recipe, as configs/demo.py")


def workdir_flag(command):
  command.add_argument("--workdir", required=True, type=pathlib.Path, metavar="DIR",
                       help="folder of the run")


def distributed_flag(command):
  command.add_argument("--distributed", default="", metavar="auto|HOST:PORT,N,I",
                       help="join several processes: auto on TPU pods, SLURM and Kubernetes")


def allow_change_flag(command):
  command.add_argument("--allow_change", default="", metavar="FIELD,FIELD",
                       help="config fields that may differ from those the run was started with")


def out_flag(command):
  command.add_argument("--out", type=pathlib.Path, metavar="DIR",
                       help="where to write the corpus; default: the cache of the config")


def steps_flag(command):
  command.add_argument("--steps", default="0,1,2", metavar="N,N",
                       help="steps whose batches are hashed")


# ---------------------------------------------------------------- commands


def read_config(arguments) -> config_lib.ConfigDict:
  return config_lib.override(config_lib.load(arguments.config), arguments.overrides)


def start(arguments) -> None:
  if arguments.distributed:
    from bertgpt import process
    process.start_distributed(arguments.distributed)


def run_train(arguments) -> None:
  config = read_config(arguments)
  config_lib.validate(config)
  start(arguments)
  import jax

  from bertgpt import report, train
  path = arguments.workdir.expanduser().absolute()
  train.train(config, path, [f for f in arguments.allow_change.split(",") if f])
  if jax.process_index() == 0:
    report.write(path)


def run_evaluate(arguments) -> None:
  start(arguments)
  from bertgpt import evaluate
  results = evaluate.evaluate_workdir(arguments.workdir.expanduser().absolute(), arguments.overrides)
  for name, value in results.items():
    print(f"{name} {value:.6g}")


def run_prepare(arguments) -> None:
  config = read_config(arguments)
  config_lib.validate(config)
  from bertgpt.data import prepare
  if arguments.out is None:
    print(prepare.ensure_prepared(config))
  else:
    print(prepare.prepare(config, arguments.out.expanduser().absolute()))


def run_data(arguments) -> None:
  config = read_config(arguments)
  config_lib.validate(config)
  try:
    steps = [int(step) for step in arguments.steps.split(",")]
  except ValueError:
    raise ConfigError(f"--steps={arguments.steps}: give numbers, as 0,1,2") from None
  from bertgpt import report
  print(report.describe_data(config, steps))


def run_sweep(arguments) -> None:
  from bertgpt import sweep
  sweep.run(arguments.config, arguments.workdir.expanduser().absolute(), arguments.overrides)


if __name__ == "__main__":
  sys.exit(main())
