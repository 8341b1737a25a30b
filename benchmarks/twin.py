"""Our training next to an independent one in PyTorch, with several seeds each.

  python -m benchmarks.twin --source='jsonl:wiki/train-*.jsonl.xz#text' --workdir=runs/twins/bert
  python -m benchmarks.twin --config=configs/twins.py:gpt2 --workdir=runs/twins/gpt2 ...

Both sides start from values drawn from the same distribution, but not from the same values, and
have their own dropout, optimizer, schedule and loss (see twin_pytorch.py). Run s of both sides
reads the same batches, with the same masks, as `bertgpt train --config.seed=s` does. The held-out
rows and masks are the same for all runs.

At every evaluation, the mean over the seeds is compared: the sides agree if the difference is at
most two of its standard errors, sqrt(s1^2 / n + s2^2 / n), where s1 and s2 are the standard
deviations over the seeds. Even equal trainings fail this test by chance: at one evaluation in nine
with three seeds, one in twelve with five, and one in twenty with many.

A side that was stopped continues from its last checkpoint if the same command is given again.
"""

import argparse
import hashlib
import math
import pathlib
import shlex
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import side_by_side
from bertgpt import config as config_lib
from bertgpt import files
from bertgpt.config import ConfigDict
from bertgpt.data.batches import formats, loader
from bertgpt.data.batches.rows import EVAL_SEED
from bertgpt.data.corpus.corpus import Corpus, open_corpus
from bertgpt.devices import huge_pages
from bertgpt.errors import ConfigError, UserError
from bertgpt.report import curves as curves_lib
from bertgpt.runs import corpora, metrics_file
from bertgpt.training import loop, objectives, steps

MODULE = "benchmarks.twin"
RECIPE = "configs/twins.py"
OURS, THEIRS = "bertgpt", "PyTorch"
LIMIT = 2.0  # Standard errors.

Curves = Mapping[str, Sequence[tuple[int, float]]]  # Loss -> [(steps done, held-out loss)].


# ------------------------------------------------------------------- verdict


class Row(NamedTuple):
  """The held-out loss of both sides at an evaluation.

  Attributes:
    loss: name of the loss.
    step: steps done.
    ours, theirs: mean over the seeds.
    our_spread, their_spread: standard deviation over the seeds.
    error: standard error of the difference of the means.
  """

  loss: str
  step: int
  ours: float
  theirs: float
  our_spread: float
  their_spread: float
  error: float

  @property
  def errors(self) -> float:
    """Difference of the means, in standard errors; above 0: our loss is larger."""
    difference = self.ours - self.theirs
    if not self.error:
      return math.copysign(math.inf, difference) if difference else 0.0
    return difference / self.error

  @property
  def agrees(self) -> bool:
    """Whether the means differ by at most `LIMIT` standard errors; False for NaN."""
    return abs(self.errors) <= LIMIT


def compare(ours: Sequence[Curves], theirs: Sequence[Curves]) -> list[Row]:
  """Returns a row per loss and evaluation.

  Args:
    ours, theirs: curves of every seed, with the same losses and steps; at least two seeds.
  Raises:
    ValueError: the losses or the steps of two runs differ, or there are too few runs.
  """
  if min(len(ours), len(theirs)) < 2:
    raise ValueError("a spread needs at least two seeds")
  runs = [{name: dict(points) for name, points in run.items()} for run in (*ours, *theirs)]
  for run in runs:
    if {name: [*points] for name, points in run.items()} != {
        name: [*points] for name, points in runs[0].items()}:
      raise ValueError("the runs have different losses or evaluations")
  rows = []
  for name, points in runs[0].items():
    for step in points:
      values = [run[name][step] for run in runs]
      sides = [np.array(side, float) for side in (values[:len(ours)], values[len(ours):])]
      a, b = (float(side.mean()) for side in sides)
      s, t = (float(side.std(ddof=1)) for side in sides)
      error = math.sqrt(s**2 / len(sides[0]) + t**2 / len(sides[1]))
      rows.append(Row(name, step, a, b, s, t, error))
  return rows


# -------------------------------------------------------------------- report


def make_report(rows: Sequence[Row], **about: Any) -> dict[str, Any]:
  """Returns the JSON of a comparison.

  Args:
    rows: result of `compare`.
    **about: entries about the runs.
  """
  root_mean_square = lambda values: math.sqrt(statistics.fmean(x * x for x in values))
  return {
      **about, "limit": LIMIT, "agrees": all(row.agrees for row in rows),
      "evaluations": len(rows), "outside": sum(not row.agrees for row in rows),
      "spread": {OURS: root_mean_square([row.our_spread for row in rows]),
                 THEIRS: root_mean_square([row.their_spread for row in rows])},
      "rows": [row._asdict() | {"errors": row.errors, "agrees": row.agrees} for row in rows]}


def to_lines(report: Mapping[str, Any]) -> list[str]:
  """Returns the report as a table in Markdown, and the verdict."""
  lines = [f"| loss | step | {OURS} | {THEIRS} | difference | in standard errors |",
           "|---|---|---|---|---|---|"]
  for row in report["rows"]:
    lines.append(
        f"| `{row['loss']}` | {row['step']:,} | {row['ours']:.4f} ± {row['our_spread']:.4f} "
        f"| {row['theirs']:.4f} ± {row['their_spread']:.4f} | {row['ours'] - row['theirs']:+.4f} "
        f"| {row['errors']:+.1f}{'' if row['agrees'] else ' (!)'} |")
  verdict = ("within two standard errors at every evaluation" if report["agrees"] else
             f"NOT within two standard errors at {report['outside']} of {report['evaluations']} "
             "evaluations")
  ours, theirs = report["spread"].values()
  return [*lines, "", f"The means lie {verdict}. Standard deviation over the seeds, root mean "
                      f"square over the evaluations: {ours:.4f} ({OURS}), {theirs:.4f} ({THEIRS})."]


def draw(report: Mapping[str, Any], path: pathlib.Path) -> None:
  """Draws the curves of both sides, and below them their difference.

  Args:
    report: result of `make_report`.
    path: SVG or PNG file to write.
  """
  import matplotlib
  matplotlib.use("Agg")
  matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": MODULE})
  from matplotlib import pyplot as plt
  names = list(dict.fromkeys(row["loss"] for row in report["rows"]))
  figure, axes = plt.subplots(2, len(names), figsize=(5 * len(names), 5), sharex=True,
                              squeeze=False, height_ratios=(2, 1))
  for column, name in zip(axes.T, names, strict=True):
    table = [row for row in report["rows"] if row["loss"] == name]
    of = lambda key, table=table: np.array([row[key] for row in table])
    step, (curves, difference) = of("step"), column
    for side, mean, spread, style in (
        (OURS, of("ours"), of("our_spread"), {"color": "tab:blue"}),
        (THEIRS, of("theirs"), of("their_spread"), {"color": "tab:orange", "linestyle": "--"})):
      curves.plot(step, mean, label=side, **style)
      curves.fill_between(step, mean - spread, mean + spread, color=style["color"], alpha=0.2,
                          linewidth=0)
    difference.fill_between(step, -LIMIT * of("error"), LIMIT * of("error"), color="tab:gray",
                            alpha=0.3, linewidth=0, label="two standard errors")
    difference.plot(step, of("ours") - of("theirs"), color="tab:blue", marker="o", markersize=3)
    difference.axhline(0, color="black", linewidth=0.5)
    curves.set(title=f"held-out {name}", ylabel="nats")
    difference.set(xlabel="step", ylabel=f"{OURS} - {THEIRS}")
    for axis in column:
      axis.grid(alpha=0.3)
      axis.spines[["top", "right"]].set_visible(False)
      axis.legend(framealpha=1, edgecolor="none")
  figure.tight_layout()
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
  plt.close(figure)


# -------------------------------------------------------------------- batches


def train_batches(config: ConfigDict, corpus: Corpus, first_step: int
                  ) -> Iterator[dict[str, np.ndarray]]:
  """Yields the batches of a run with their masks, as its steps see them.

  Args:
    config: config of the run, with `model.vocab_size` set.
    corpus: documents of the training.
    first_step: index of the first step, from 0.
  """
  rows = np.arange(config.phases[0].batch_size)
  corrupt = jax.jit(objectives.make_objective(config, corpus.vocabulary).corrupt)
  with loader.make_train_batches(corpus, config, 0, first_step, slice(0, len(rows))) as batches:
    for step, batch in enumerate(batches, first_step):
      yield jax.device_get(corrupt(batch, steps.make_key(config, steps.MASK_STREAM, step), rows))


def held_out_batches(config: ConfigDict, corpus: Corpus) -> list[dict[str, np.ndarray]]:
  """Returns the held-out batches with their masks, as every evaluation sees them.

  Args:
    config: config of the run, with `model.vocab_size` set.
    corpus: documents of the evaluation.
  """
  config, size = config_lib.config_of_phase(config, 0, in_evaluation=True), config.eval.batch_size
  corrupt = jax.jit(objectives.make_objective(config, corpus.vocabulary).corrupt)
  key, rows = jax.random.key(EVAL_SEED), np.arange(size, dtype=np.int32)
  return [jax.device_get(corrupt(batch, key, i * size + rows)) for i, batch in
          enumerate(loader.make_eval_batches(corpus, config, 0, slice(0, size)))]


# ----------------------------------------------------------------------- runs


class Run(NamedTuple):
  """A finished run of a side.

  Attributes:
    curves: held-out losses.
    seconds: time in training steps.
  """

  curves: Curves
  seconds: float


def train_ours(config: ConfigDict, path: pathlib.Path) -> Run:
  """Trains our side, as `bertgpt train` does.

  Args:
    config: config of the run.
    path: its workdir.
  """
  loop.train(config, path)
  seconds = max(curve.seconds[-1] for curve in curves_lib.read_run(path).curves.values())
  return Run(read_losses(path), seconds)


def read_losses(path: pathlib.Path) -> Curves:
  """Returns the held-out losses of a run at all of its evaluations.

  Args:
    path: its workdir.
  """
  return {tag.split("/")[-1]: points for tag, points in metrics_file.read_curves(path).items()
          if tag.startswith("eval/validation/") and tag.endswith("_loss")}


def train_theirs(config: ConfigDict, path: pathlib.Path, device: str) -> Run:
  """Trains PyTorch's side, on the batches of our side.

  Args:
    config: config of our run.
    path: file for the state, from which a stopped run continues.
    device: 'cpu' or 'cuda'.
  """
  from benchmarks import twin_pytorch
  corpus = corpora.find_corpus(config)
  train_set, held_out = (open_corpus(corpus, split) for split in ("train", "validation"))
  config = corpora.resolve(config, train_set.tokenizer)
  twin = twin_pytorch.Twin(config, max(train_set.tokenizer.pad_id, 0), config.seed, device)
  if path.is_file():
    twin.load(path)
  if twin.done < config.phases[0].steps:
    twin.train(train_batches(config, train_set, twin.done), held_out_batches(config, held_out),
               path)
  return Run(twin.curve, twin.seconds)


def check(config: ConfigDict) -> None:
  """Raises ConfigError if PyTorch's side cannot train with a config.

  Args:
    config: config of the runs.
  """
  config_lib.validate(config)
  try:
    from benchmarks import twin_pytorch
  except ModuleNotFoundError as e:
    raise ConfigError(f"{e.name} is not installed. Install it with pip install -e '.[hf]'") from e
  if problem := twin_pytorch.find_problem(config):
    raise ConfigError(problem)
  if not formats.has_one_sequence(config):
    raise ConfigError("the rows hold several sequences, which transformers does not keep apart. "
                      "Set --config.data.packing=False")


def train(config: ConfigDict, seeds: Sequence[int], workdir: pathlib.Path, device: str
          ) -> dict[str, Any]:
  """Trains both sides with every seed and returns the report.

  Args:
    config: config of the runs; its seed is not read.
    seeds: seeds of the runs.
    workdir: folder of the runs.
    device: 'cpu' or 'cuda'.
  """
  check(config)
  runs: dict[str, list[Run]] = {OURS: [], THEIRS: []}
  hashes = []
  for seed in seeds:
    own = config.copy_and_resolve_references()
    own.seed = seed
    path = workdir / f"bertgpt-{seed}"
    runs[OURS].append(train_ours(own, path))
    hashes.append(hashlib.sha256((path / "config.json").read_bytes()).hexdigest())
    runs[THEIRS].append(train_theirs(own, workdir / f"pytorch-{seed}.pt", device))
    print(f"seed {seed}: {runs[OURS][-1].seconds:.0f} s ({OURS}), "
          f"{runs[THEIRS][-1].seconds:.0f} s ({THEIRS}) in training steps", file=sys.stderr)
  try:
    rows = compare(*([run.curves for run in side] for side in runs.values()))
  except ValueError as e:
    raise ConfigError(f"--workdir {workdir}: {e}. Give another folder") from e
  return make_report(
      rows, seeds=list(seeds), config_sha256=hashes,
      seconds={side: [round(run.seconds, 1) for run in found] for side, found in runs.items()},
      curves={side: [dict(run.curves) for run in found] for side, found in runs.items()})


# ---------------------------------------------------------------- the command


def read_seeds(text: str) -> list[int]:
  """Returns the seeds in --seeds."""
  seeds = [int(part) for part in text.split(",")]
  if len(set(seeds)) < max(2, len(seeds)):
    raise argparse.ArgumentTypeError(f"{text}: give at least two different seeds")
  return seeds


def flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of this benchmark."""
  parser.add_argument("--workdir", type=pathlib.Path, required=True, metavar="DIR",
                      help="folder of the runs")
  parser.add_argument("--seeds", type=read_seeds, default=[0, 1, 2], metavar="N,N",
                      help="seeds of the runs of both sides; default: 0,1,2")
  parser.add_argument("--steps", type=int, metavar="N", help="steps; default: those of the recipe")
  parser.add_argument("--batch", type=int, metavar="ROWS",
                      help="rows per step; default: those of the recipe")
  parser.add_argument("--picture", type=pathlib.Path, metavar="FILE", help="SVG or PNG to write")
  parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu",
                      help="device of both sides; default: cpu")


FLAGS = (side_by_side.config_flag(RECIPE), flags)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command.

  Args:
    argv: arguments; None: those of this process.
  Returns:
    0 if the sides agree, 1 if they do not, or the exit code of an error.
  """
  if argv is None:
    huge_pages.restart()  # As `bertgpt train` does.
  argv = sys.argv[1:] if argv is None else list(argv)
  try:
    _, arguments = side_by_side.parse_flags(MODULE, __doc__, FLAGS, argv)
    config = side_by_side.read_config(arguments)
    if arguments.steps:
      config.phases[0].steps = arguments.steps
    if arguments.batch:
      config.phases[0].batch_size = arguments.batch
    jax.config.update("jax_platforms", arguments.device)
    report = train(config, arguments.seeds, arguments.workdir, arguments.device)
  except UserError as e:
    print(f"{MODULE}: {e}", file=sys.stderr)
    return e.exit_code
  report = {"command": shlex.join(["python", "-m", MODULE, *argv]),
            "machine": side_by_side.machine(), "versions": dict(side_by_side.versions()), **report}
  print("\n".join(to_lines(report)))
  if arguments.out:
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(arguments.out, report)
  if arguments.picture:
    draw(report, arguments.picture)
  return 0 if report["agrees"] else 1


if __name__ == "__main__":
  sys.exit(main())
