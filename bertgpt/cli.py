"""`bertgpt <command>`: parse flags, start jax.distributed, dispatch."""

import argparse
import contextlib
import difflib
import errno
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

from bertgpt import config as config_lib
from bertgpt.commands import flags
from bertgpt.commands.flags import folder
from bertgpt.config import ConfigDict, recipes
from bertgpt.devices import guard, huge_pages
from bertgpt.errors import INTERRUPTED, ConfigError, PeerError, StorageError, UserError

# Modules are imported by the commands that need them: `bertgpt --help` and `prepare`
# should not wait for JAX.


HEAVY = ("train", "evaluate", "finetune")  # Commands that allocate much memory, step by step.

# OSErrors that are the storage's or the user's, not a bug's.
STORAGE_ERRORS = frozenset({
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ENAMETOOLONG,
    errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS, errno.ESTALE})


class Parser(argparse.ArgumentParser):
  """Says in one line what is wrong with the flags."""

  def parse_known_args(self, args=None, namespace=None):
    """As argparse's; what is left over are config fields, all else is an error."""
    self._given = args
    namespace, rest = super().parse_known_args(args, namespace)
    for flag in rest:
      if not flag.startswith("--config."):
        self.error(self.describe_unknown(flag))
    return namespace, rest

  def error(self, message: str):
    if "required" in message and self._subparsers is None:  # Perhaps it is there, misspelt.
      names = [flag.split("=")[0] for flag in self._given]
      unknown = [flag for flag, name in zip(self._given, names, strict=True)
                 if re.fullmatch(r"--\w+", name) and name not in self._flags()]
      message = self.describe_unknown(unknown[0]) if unknown else message
    raise ConfigError(f"{message}; see {self.prog} --help")

  def describe_unknown(self, flag: str) -> str:
    close = difflib.get_close_matches(flag.split("=")[0], self._flags(), n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown argument {flag}; {hint}config fields are given as --config.FIELD=VALUE"

  def _flags(self) -> list[str]:
    return [flag for flag in self._option_string_actions if flag.startswith("--")]


def run_program() -> int:
  """`main` for a process of its own, which a guard stands behind if it is one of several."""
  if sys.argv[1:2] and sys.argv[1] in HEAVY:
    huge_pages.restart()
  is_distributed = any(flag.split("=")[0] == "--distributed" for flag in sys.argv[1:])
  if is_distributed:
    guard.fork_worker("bertgpt")
  code = main()
  if is_distributed and code == PeerError.exit_code:
    sys.stdout.flush()
    os._exit(code)  # JAX would wait for those who are gone before it lets the process end.
  return code


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns the exit code; see `errors` for the codes."""
  argv = sys.argv[1:] if argv is None else list(argv)
  name = "bertgpt"
  try:
    arguments = parse(argv)
    name = f"bertgpt {arguments.command}"
    with hold_interrupt() as arguments.release_interrupt:
      arguments.run(arguments)
    sys.stdout.flush()  # Here a closed pipe is still an exception that can be caught.
    return 0
  except UserError as e:
    print(f"{name}: {e}", file=sys.stderr)
    return e.exit_code
  except KeyboardInterrupt:
    print(f"{name}: interrupted; the same command goes on where it stopped", file=sys.stderr)
    return INTERRUPTED
  except BrokenPipeError:  # As in `bertgpt data | head`.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return StorageError.exit_code
  except OSError as e:
    if e.errno not in STORAGE_ERRORS:
      raise
    print(f"{name}: {e.filename or 'a file'}: {e.strerror}; free or change the storage, then give "
          "the same command again", file=sys.stderr)
    return StorageError.exit_code


@contextlib.contextmanager
def hold_interrupt() -> Iterator[Callable[[], None]]:
  """Ctrl-C raises KeyboardInterrupt when, or after, the function yielded is called; not before.

  C++ libraries that are being imported crash at an exception, or swallow it.
  """
  is_held, was_pressed = True, False

  def interrupt(signum, frame):
    nonlocal was_pressed
    was_pressed = True
    if not is_held:
      raise KeyboardInterrupt

  def release() -> None:
    nonlocal is_held
    is_held = False
    if was_pressed:
      raise KeyboardInterrupt

  previous = signal.signal(signal.SIGINT, interrupt)
  try:
    yield release
  finally:
    signal.signal(signal.SIGINT, previous)


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """The flags, with `overrides`: the --config.FIELD=VALUE among them.

  Raises:
    ConfigError: unknown, missing or malformed flags.
  """
  arguments, arguments.overrides = make_parser().parse_known_args(argv)
  return arguments


def make_parser() -> argparse.ArgumentParser:
  parser = Parser(
      "bertgpt", description="Pretrain BERT and GPT: text in, a trained model out.",
      epilog="Config fields are overridden by --config.FIELD=VALUE, as in "
             "--config.model.num_layers=4.")
  commands = parser.add_subparsers(dest="command", required=True)

  def add(name, run, summary, *flags):
    command = commands.add_parser(name, help=summary, description=summary, epilog=parser.epilog,
                                  allow_abbrev=False)
    for flag in flags:
      flag(command)
    command.set_defaults(run=run)

  add("train", run_train, "Train a model, or go on where the run in --workdir stopped.",
      config_flag, workdir_flag, distributed_flag, allow_change_flag)
  add("evaluate", run_evaluate, "Score a trained model on the validation split, or zero-shot.",
      workdir_flag, distributed_flag, flags.suite_flags, flags.batch_size_flag)
  add("generate", run_generate, "Go on with texts, by a GPT.", workdir_flag, flags.prompt_flags,
      flags.sampling_flags, flags.batch_size_flag)
  add("fill", run_fill, "Guess masked words, by a BERT.", workdir_flag, flags.fill_flags)
  add("embed", run_embed, "Write the features that a BERT has of texts.", workdir_flag,
      flags.embed_flags, flags.batch_size_flag)
  add("export", run_export, "Write a trained model as a folder that transformers reads.",
      workdir_flag, export_flag)
  add("import", run_import, "Make a run of a model of transformers, to evaluate or to train on.",
      from_flag, workdir_flag)
  add("finetune", run_finetune, "Train a trained model on a task, and score it.",
      config_flag, finetune_flags, distributed_flag)
  add("prepare", run_prepare, "Turn text into a prepared corpus.", config_flag, out_flag)
  add("data", run_data, "Show what batches a config makes.", config_flag, steps_flag)
  add("plan", run_plan, "Predict memory, time and price on hardware that need not be there.",
      config_flag, topology_flag, plan_flags)
  add("sweep", run_sweep, "Train every run of the config's get_sweep(), one after the other.",
      config_flag, workdir_flag)
  return parser


def config_flag(command):
  command.add_argument("--config", required=True, metavar="FILE",
                       help="a recipe, as configs/demo.py")


def workdir_flag(command):
  command.add_argument("--workdir", required=True, type=folder, metavar="DIR",
                       help="folder of the run")


def distributed_flag(command):
  command.add_argument("--distributed", default="", metavar="auto|HOST:PORT,N,I",
                       help="join several processes: auto on TPU pods, SLURM and Kubernetes")
  command.add_argument("--distributed_timeout", type=float, default=300, metavar="SECONDS",
                       help="for all processes to find each other")


def allow_change_flag(command):
  command.add_argument("--allow_change", default="", metavar="FIELD,FIELD",
                       help="config fields that may differ from those the run was started with")


def out_flag(command):
  command.add_argument("--out", type=folder, metavar="DIR",
                       help="where to write the corpus; default: the cache of the config")


def export_flag(command):
  command.add_argument("--out", required=True, type=folder, metavar="DIR",
                       help="new folder, for config.json, model.safetensors, tokenizer.json ...")


def from_flag(command):
  command.add_argument("--from", required=True, type=folder, metavar="DIR", dest="source",
                       help="folder with config.json, model.safetensors and a tokenizer")


def finetune_flags(command):
  command.add_argument("--init", required=True, type=folder, metavar="DIR",
                       help="folder of the pretrained or imported run")
  command.add_argument("--task", metavar="NAME", help="as sst2; default: the recipe's")
  command.add_argument("--workdir", type=folder, metavar="DIR",
                       help="where the results go; default: finetune-TASK in the folder of --init")


def steps_flag(command):
  command.add_argument("--steps", metavar="N,N",
                       help="steps whose batches are hashed; default: the first three")


def topology_flag(command):
  command.add_argument("--topology", required=True, metavar="KIND:SHAPE",
                       help="v4, v5e, v5p or v6e as v5e:4x4 (v5e:4x4:2 for two slices); a100, h100 "
                            "or h200 as h100:8 or h100:2x8 (nodes x GPUs)")


def plan_flags(command):
  command.add_argument("--phase", type=int, metavar="N", help="this phase alone, counted from 0")
  command.add_argument("--price_per_chip_hour", type=float, metavar="PRICE",
                       help="adds what the run will cost")
  command.add_argument("--search", action="store_true",
                       help="compile other micro-batches, remat, meshes and scans of the phase "
                            "(the last one) and rank them")
  command.add_argument("--json", action="store_true", help="print JSON instead of a table")


# ---------------------------------------------------------------- commands


def read_config(arguments, num_devices: Callable[[], int | None] = lambda: None) -> ConfigDict:
  """The recipe with its overrides.

  Args:
    num_devices: called when all else was read; see `config.validate`.
  Raises:
    ConfigError: every problem, one a line.
  """
  config, problems = recipes.try_override(recipes.load(arguments.config), arguments.overrides)
  problems += source_problems(config)
  problems += config_lib.find_problems(config, num_devices())
  if problems:
    raise ConfigError("\n".join(problems))
  return config


def source_problems(config: ConfigDict) -> list[str]:
  from bertgpt.data.text import sources
  try:
    if not config.data.corpus:
      sources.parse(config.data.source)
  except ConfigError as e:
    return [str(e)]
  return []


def count_devices() -> int:
  from bertgpt.devices import process
  return process.count_devices()


def start(arguments) -> None:
  if arguments.distributed:
    from bertgpt.devices import process
    arguments.release_interrupt()  # The others may be long in coming.
    process.start_distributed(arguments.distributed, arguments.distributed_timeout)


def absolute(path: pathlib.Path) -> pathlib.Path:
  return path.expanduser().absolute()


def run_train(arguments) -> None:
  # Before the processes have joined, the devices of all cannot be counted.
  config = read_config(arguments, (lambda: None) if arguments.distributed else count_devices)
  allow_change = parse_fields(arguments.allow_change, config)
  start(arguments)
  from bertgpt.devices import process
  from bertgpt.report import end_of_run as report
  from bertgpt.training import loop as train
  path = absolute(arguments.workdir)
  arguments.release_interrupt()
  with process.name_lost_peer():
    report.write(path, train.train(config, path, allow_change))


def parse_fields(text: str, config: ConfigDict) -> list[str]:
  """The fields, or groups of fields, of --allow_change."""
  fields = [field.strip() for field in text.split(",") if field.strip()]
  for field in fields:
    if not recipes.is_field(config, field):
      raise ConfigError(f"--allow_change={text}: the config has no field or group {field!r}")
  return fields


def run_evaluate(arguments) -> None:
  if arguments.suite is not None:
    run_suite(arguments)
    return
  for flag in ("window", "stride", "limit", "batch_size"):
    if getattr(arguments, flag):
      raise ConfigError(f"--{flag} belongs to --suite, which is not given")
  start(arguments)
  from bertgpt.devices import process
  from bertgpt.training import evaluate
  arguments.release_interrupt()
  with process.name_lost_peer():
    results = evaluate.evaluate_workdir(absolute(arguments.workdir), arguments.overrides)
  for name, value in results.items():
    print(f"{name} {value:.6g}")


def run_suite(arguments) -> None:
  refuse_overrides(arguments)
  if arguments.distributed:
    raise ConfigError("--suite runs in one process; leave --distributed out")
  from bertgpt.inference import zero_shot
  arguments.release_interrupt()
  settings = zero_shot.Settings(arguments.window, arguments.stride, arguments.limit,
                                arguments.batch_size or flags.BATCH_SIZE)
  for line in zero_shot.run(absolute(arguments.workdir), arguments.suite, settings):
    print(line, flush=True)


def run_generate(arguments) -> None:
  refuse_overrides(arguments)
  from bertgpt.data.text import texts
  from bertgpt.inference import generate
  prompts = arguments.prompt or texts.read_texts(absolute(arguments.input), "--input")
  sampling = generate.Sampling(arguments.temperature, arguments.top_k, arguments.top_p)
  arguments.release_interrupt()
  print("\n\n".join(generate.run(
      absolute(arguments.workdir), prompts, arguments.max_tokens, sampling, seed=arguments.seed,
      num_samples=arguments.num_samples, batch_size=arguments.batch_size or flags.BATCH_SIZE)))


def run_fill(arguments) -> None:
  refuse_overrides(arguments)
  from bertgpt.inference import fill
  arguments.release_interrupt()
  for line in fill.run(absolute(arguments.workdir), arguments.text, arguments.top):
    print(line)


def run_embed(arguments) -> None:
  refuse_overrides(arguments)
  from bertgpt.inference import embed
  arguments.release_interrupt()
  print(embed.run(absolute(arguments.workdir), absolute(arguments.input), absolute(arguments.out),
                  arguments.layer, arguments.batch_size or flags.BATCH_SIZE))


def run_export(arguments) -> None:
  from bertgpt.hub import export
  refuse_overrides(arguments)
  arguments.release_interrupt()
  print(export.export(absolute(arguments.workdir), absolute(arguments.out)))


def run_import(arguments) -> None:
  from bertgpt.hub import export
  refuse_overrides(arguments)
  arguments.release_interrupt()
  print(export.import_model(absolute(arguments.source), absolute(arguments.workdir)))


def run_finetune(arguments) -> None:
  from bertgpt.config import finetuning as finetune_config
  from bertgpt.finetuning import tasks
  recipe = recipes.load(arguments.config, finetune_config.base)
  config, problems = recipes.try_override(recipe, arguments.overrides)
  config.task.name = arguments.task or config.task.name
  problems += tasks.name_problems(config.task.name) + finetune_config.find_problems(config)
  if problems:
    raise ConfigError("\n".join(problems))
  start(arguments)
  from bertgpt.devices import process
  from bertgpt.finetuning import loop as finetune
  init = absolute(arguments.init)
  path = absolute(arguments.workdir or init / f"finetune-{config.task.name}")
  arguments.release_interrupt()
  with process.name_lost_peer():
    finetune.finetune(init, config, path)


def refuse_overrides(arguments) -> None:
  if arguments.overrides:
    raise ConfigError(f"{arguments.overrides[0]}: {arguments.command} takes no config fields")


def run_prepare(arguments) -> None:
  config = read_config(arguments)
  if arguments.out is None and config.data.corpus:
    raise ConfigError(f"data.corpus={config.data.corpus} is prepared already; leave it empty to "
                      "prepare data.source, or give --out")
  from bertgpt.data.corpus import prepare
  arguments.release_interrupt()
  if arguments.out is None:
    print(prepare.ensure_prepared(config))
  else:
    print(prepare.prepare(config, absolute(arguments.out)))


def run_data(arguments) -> None:
  config = read_config(arguments)
  num_steps = config_lib.total_steps(config)
  if arguments.steps is None:
    steps = list(range(min(3, num_steps)))
  else:
    steps = parse_steps(arguments.steps, num_steps)
  from bertgpt.report import end_of_run as report
  arguments.release_interrupt()
  print(report.describe_data(config, steps))


def parse_steps(text: str, num_steps: int) -> list[int]:
  try:
    steps = [int(step) for step in text.split(",") if step.strip()]
  except ValueError:
    raise ConfigError(f"--steps={text}: give numbers, as 0,1,2") from None
  for step in steps:
    if not 0 <= step < num_steps:
      raise ConfigError(f"--steps={text}: the run has steps 0 to {num_steps - 1}, not {step}")
  return steps


def run_plan(arguments) -> None:
  from bertgpt.planning import plan, topologies
  topology = topologies.open_topology(arguments.topology)
  config = read_config(arguments, lambda: len(topology.devices))
  arguments.release_interrupt()
  print(plan.run(config, topology, phase=arguments.phase, price=arguments.price_per_chip_hour,
                 do_search=arguments.search, as_json=arguments.json))


def run_sweep(arguments) -> None:
  from bertgpt.training import sweep
  arguments.release_interrupt()
  sweep.run(arguments.config, absolute(arguments.workdir), arguments.overrides)


if __name__ == "__main__":
  sys.exit(run_program())
