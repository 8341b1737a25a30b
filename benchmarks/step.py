"""Our train step compared with PyTorch models of Hugging Face, and with variants of itself.

  python -m benchmarks.step --out=step.json                      on all cores, in float32
  python -m benchmarks.step --device=cuda --compile              on one GPU, in bfloat16
  python -m benchmarks.step --cases=bert_mini --ablate           our own step, part by part

A step is forward pass, loss (masked tokens and next sentence, or next token), backward pass,
clipping by the global norm, and AdamW (fused in PyTorch), with dropout 0.1. Rows are full, so that
neither side needs a mask for padding, and PyTorch gets none. Each framework has a process of its
own that uses all cores and is idle while the other is timed. "As shipped" is BertForPreTraining,
which scores the vocabulary at every position; "masked head" gathers the predicted positions first,
as our model does.

Before the timing, both train two steps without dropout in float32, from the same weights and on
the same masked batches. Their losses must agree within 1e-4.
"""

import argparse
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks import side_by_side
from benchmarks.side_by_side import Result, Row, Worker
from bertgpt import config as config_lib
from bertgpt.config import ConfigDict, presets
from bertgpt.config.flops import flops_per_step
from bertgpt.config.overrides import override
from bertgpt.config.stored import to_json
from bertgpt.devices import huge_pages
from bertgpt.errors import ConfigError

CHECKED_STEPS = 2
OURS = "bertgpt"


class Case(NamedTuple):
  """A model and its batches.

  Attributes:
    model: fields of `config.model`.
    objective: `config.objective.name`.
    vocab_size: number of token ids.
    shapes: device -> (rows per step, tokens per row).
  """

  model: Mapping[str, Any]
  objective: str
  vocab_size: int
  shapes: Mapping[str, tuple[int, int]]


CASES = {
    "bert_base": Case(presets.BERT["base"], "mlm_nsp", 30_522,
                      {"cpu": (8, 128), "cuda": (256, 128)}),
    "bert_mini": Case(presets.BERT["mini"], "mlm_nsp", 30_522,
                      {"cpu": (32, 128), "cuda": (1024, 128)}),
    "gpt2_small": Case(presets.GPT2["small"], "causal", 50_257,
                       {"cpu": (2, 512), "cuda": (32, 1024)}),
    # A tiny case for tests, which takes seconds on any machine.
    "bert_nano": Case(presets.BERT["tiny"] | {"num_layers": 1, "width": 32}, "mlm_nsp", 1_000,
                      {"cpu": (4, 32), "cuda": (4, 32)}),
    "gpt_nano": Case(presets.GPT2["small"] | {"num_layers": 1, "width": 48}, "causal", 1_000,
                     {"cpu": (2, 32), "cuda": (2, 32)}),
}
DEFAULT_CASES = "bert_base,bert_mini,gpt2_small"

# (device, case, side of Hugging Face) -> required speed of our step relative to that side.
ASKED = {
    ("cpu", "bert_base", "eager, as shipped"): ">= 1.2",
    ("cpu", "bert_base", "eager, masked head"): ">= 1.2",
    ("cpu", "bert_mini", "eager, as shipped"): ">= 1.6",
    ("cpu", "bert_mini", "eager, masked head"): ">= 1.2",
    ("cpu", "gpt2_small", "eager, as shipped"): ">= 1.2",
    ("cuda", "bert_base", "compiled, as shipped"): ">= 1.15",
    ("cuda", "gpt2_small", "compiled, as shipped"): ">= 1.10",
}

# Variants of our step: (name, overrides). The ratio is the time of the variant over that of our
# step.
ABLATIONS = (
    ("threefry dropout", {"model.dropout_rng": "threefry"}),
    ("rbg dropout", {"model.dropout_rng": "rbg"}),
    ("plain loss", {"objective.loss_chunk": -1}),
    ("plain attention", {"model.attention": "xla"}),
    ("no dropout", {"model.dropout": 0.0, "model.attention_dropout": 0.0}),
    ("layers in a loop", {"model.scan_unroll": 1}),
    ("remat=dots", {"model.remat": "dots"}),
    ("remat=full", {"model.remat": "full"}),
)


def flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of this benchmark."""
  parser.add_argument("--cases", default=DEFAULT_CASES, metavar="NAME,NAME",
                      help=f"cases among {', '.join(CASES)}; default: {DEFAULT_CASES}")
  parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu",
                      help="cpu: in float32 (the default); cuda: one GPU, in bfloat16")
  parser.add_argument("--batch", type=int, metavar="ROWS",
                      help="rows per step; default: those of the case")
  parser.add_argument("--seq_len", type=int, metavar="N",
                      help="tokens per row; default: those of the case")
  parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
  parser.add_argument("--huge_pages", action="store_true",
                      help="request huge pages for PyTorch too, as our program does for itself")
  parser.add_argument("--ablate", action="store_true",
                      help="compare with variants of our step instead of PyTorch")


def measure(arguments: argparse.Namespace) -> Result:
  """Measures the cases that the flags name."""
  names = arguments.cases.split(",")
  if wrong := [name for name in names if name not in CASES]:
    raise ConfigError(f"--cases={arguments.cases}: there is no case {wrong[0]!r}. Choose among "
                      f"{', '.join(CASES)}")
  run = ablate if arguments.ablate else compare
  results = [run(name, make_config(CASES[name], arguments), arguments) for name in names]
  return Result(results[0].device, [row for result in results for row in result.rows])


def make_config(case: Case, arguments: argparse.Namespace) -> ConfigDict:
  """Returns the config of both sides, to which the overrides of the command are applied last.

  Args:
    case: model and batches.
    arguments: values of the flags.
  """
  rows, seq_len = case.shapes[arguments.device]
  rows, seq_len = arguments.batch or rows, arguments.seq_len or seq_len
  config = config_lib.base()
  config.data.packing = False
  config.model.update(case.model, vocab_size=case.vocab_size, scan_unroll=0,
                      dtype="float32" if arguments.device == "cpu" else "bfloat16")
  config.objective.name = case.objective
  config.optimizer.update(name="adamw", epsilon=1e-8)
  config.phases = (config_lib.phase(
      steps=1_000_000, seq_len=seq_len, batch_size=rows, learning_rate=1e-4, schedule="constant",
      max_predictions=round(seq_len * 20 / 128)),)  # BERT: 20 of 128 (google-research/bert).
  config = override(config, arguments.overrides)
  config_lib.validate(config)
  return config


# ------------------------------------------------------- against PyTorch


def compare(name: str, config: ConfigDict, arguments: argparse.Namespace) -> Result:
  """Compares our step with the models of Hugging Face.

  Args:
    name: key of `CASES`.
    config: config of both sides.
    arguments: values of the flags.
  """
  try:
    from benchmarks import step_hugging_face
  except ModuleNotFoundError as e:
    raise ConfigError(f"{e.name} is not installed. Install it with pip install -e '.[hf]', or give "
                      "--ablate to measure only our own step") from e
  from benchmarks import step_bertgpt
  text = to_json(config)
  with start(step_bertgpt.make, text, arguments.device, {OURS: {}}) as ours, \
       start(step_hugging_face.make, text, arguments.device, arguments.compile,
             huge=arguments.huge_pages) as theirs:
    check_equal_work(ours, theirs)
    sides = {OURS: functools.partial(ours, "time", OURS)}
    sides |= {side: functools.partial(theirs, "time", side) for side in theirs("names")}
    times = time_sides(sides, arguments)
    device = ours("device")
  return Result(device, [*speeds(title(name, config), times, config),
                         *(Row(f"{title(name, config)}: {OURS} over Hugging Face {side}",
                               side_by_side.ratio(times[side], times[OURS]),
                               asked=ASKED.get((arguments.device, name, side), ""))
                           for side in times if side != OURS)])


def check_equal_work(ours: Worker, theirs: Worker) -> None:
  """Raises SystemExit unless both sides have the same losses on the same batches."""
  losses = {OURS: ours("losses", OURS, CHECKED_STEPS)}
  theirs("load", ours("weights"))
  batches = ours("batches", CHECKED_STEPS)
  losses |= {side: theirs("losses", side, batches) for side in theirs("names")}
  side_by_side.assert_equal_work(losses)
  print("equal work: losses", *(f"{loss:.5f}" for loss in losses[OURS]), file=sys.stderr)


# ------------------------------------------------------ against ourselves


def ablate(name: str, config: ConfigDict, arguments: argparse.Namespace) -> Result:
  """Compares our step with its variants, see `ABLATIONS`.

  Args:
    name: key of `CASES`.
    config: config of our step.
    arguments: values of the flags.
  """
  from benchmarks import step_bertgpt
  changes = {change: fields for change, fields in ABLATIONS if differs(config, fields)}
  rows = []
  with start(step_bertgpt.make, to_json(config), arguments.device,
             {OURS: {}} | changes) as ours:
    expected = ours("losses", OURS, CHECKED_STEPS)
    for change in changes:
      side_by_side.assert_equal_work({OURS: expected,
                                      change: ours("losses", change, CHECKED_STEPS)})
      times = time_sides({side: functools.partial(ours, "time", side) for side in (OURS, change)},
                         arguments)
      ours("forget", change)
      rows.append(Row(f"{title(name, config)}: time with {change}",
                      side_by_side.ratio(times[change], times[OURS])))
    return Result(ours("device"), rows)


def differs(config: ConfigDict, fields: Mapping[str, Any]) -> bool:
  """Returns whether some fields of a config have other values."""
  values = dict(config_lib.leaves(config))
  return any(values[field] != value for field, value in fields.items())


# ------------------------------------------------------------------ shared


@contextlib.contextmanager
def huge_pages_for_children() -> Iterator[None]:
  """Gives huge pages to processes that are started inside the context."""
  if huge_pages.VARIABLE in os.environ or not huge_pages.is_on_request():
    yield
    return
  os.environ[huge_pages.VARIABLE] = huge_pages.TUNABLE
  try:
    yield
  finally:
    del os.environ[huge_pages.VARIABLE]


@contextlib.contextmanager
def start(make: Callable[..., dict[str, Callable]], *arguments: Any,
          huge: bool = True) -> Iterator[Worker]:
  """Yields a worker that is closed at the end.

  Args:
    make, *arguments: see `Worker`.
    huge: whether the process uses huge pages, as in `bertgpt train`.
  """
  with huge_pages_for_children() if huge else contextlib.nullcontext():
    worker = Worker(make, *arguments)
  with contextlib.closing(worker):
    yield worker


def time_sides(sides: Mapping[str, Callable[[int], float]],
               arguments: argparse.Namespace) -> dict[str, list[float]]:
  """Returns the seconds per step of every side, for every round.

  Args:
    sides: name -> function that runs some steps and returns the seconds per step.
    arguments: values of the flags.
  """
  number = {}
  for name, side in sides.items():
    side(1)  # Compiles and fills caches.
    number[name] = side_by_side.repeats(side(1), arguments.seconds)
  return side_by_side.time_in_turns(
      {name: functools.partial(side, number[name]) for name, side in sides.items()},
      arguments.rounds)


def speeds(label: str, times: Mapping[str, list[float]], config: ConfigDict) -> Iterator[Row]:
  """Yields the tokens per second of every side, and the FLOPs per second of our step."""
  phase = config.phases[0]
  flops = flops_per_step(config, phase)
  for side, seconds in times.items():
    tokens = side_by_side.per_second(phase.batch_size * phase.seq_len, seconds)
    yield Row(f"{label}: {side}", tokens, "tokens/s")
  yield Row(f"{label}: {OURS}", side_by_side.per_second(flops / 1e12, times[OURS]), "TFLOP/s")


def title(name: str, config: ConfigDict) -> str:
  """Returns the name of a case with its rows per step and tokens per row."""
  return f"{name} {config.phases[0].batch_size} x {config.phases[0].seq_len}"


FLAGS = (side_by_side.seconds_flag(2.0), flags)

if __name__ == "__main__":
  sys.exit(side_by_side.main("benchmarks.step", __doc__, FLAGS, measure))
