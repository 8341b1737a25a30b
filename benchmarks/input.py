"""Speed of the input: preparing text, making batches, and the time that training waits for them.

  python -m benchmarks.input --source='jsonl:wiki/train-*.jsonl.xz#text' --out=input.json

prepare  `prepare` from the files to the finished corpus, compared with the tokenizer library's
         batch encode of the same text, which is in memory as lines. Both run on all cores,
         with a tokenizer that is already trained.
loader   batches made by a process with one core, compared with the train step on all cores.
waiting  the real `loop.train`: the share of its time in which it waits for the next batch. During
         this time, the device computes the previous step, so this is an upper bound.
"""

import argparse
import contextlib
import io
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable

import sentencepiece
import tokenizers

from benchmarks import side_by_side
from benchmarks.side_by_side import Result, Row
from bertgpt import config as config_lib
from bertgpt.config import ConfigDict
from bertgpt.config.stored import from_json, to_json
from bertgpt.data.batches import loader
from bertgpt.data.corpus import corpus as corpus_lib
from bertgpt.data.corpus import prepare
from bertgpt.data.text import sources
from bertgpt.errors import ConfigError

# The processes that `prepare` starts import this file again, so JAX is imported only in functions.

CHUNK = 10_000  # Lines per call of the bare tokenizer.
TOKENS_TOLERANCE = 0.01  # `prepare` keeps the line ends.


def flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of this benchmark."""
  parser.add_argument("--parts", default=",".join(PARTS), metavar="PART,PART",
                      help=f"parts to measure; default: {','.join(PARTS)}")
  parser.add_argument("--steps", type=int, default=40,
                      help="timed steps of a training run; default: 40")


def measure(arguments: argparse.Namespace) -> Result:
  """Measures the parts that the flags name."""
  names = arguments.parts.split(",")
  if wrong := [name for name in names if name not in PARTS]:
    raise ConfigError(f"--parts={arguments.parts}: there is no part {wrong[0]!r}. Choose among "
                      f"{', '.join(PARTS)}")
  config = side_by_side.read_config(arguments)
  path = prepare.ensure_prepared(config)
  rows = [row for name in names for row in PARTS[name](config, path, arguments)]
  import jax
  return Result(jax.devices()[0].device_kind, rows)


# ----------------------------------------------------------------- prepare


def measure_prepare(config: ConfigDict, path: pathlib.Path,
                    arguments: argparse.Namespace) -> list[Row]:
  """Compares `prepare` with the batch encode of the tokenizer library.

  Args:
    config: config of the recipe.
    path: folder of its prepared corpus.
    arguments: values of the flags.
  """
  texts = [line for document in sources.open_source(config.data.source)
           for line in document.text.split("\n") if line.strip()]
  config = config.copy_and_resolve_references()
  config.tokenizer.path = str(path / corpus_lib.TOKENIZER)
  encode = bare_encoder(path / corpus_lib.TOKENIZER)
  tokens = {}

  def prepare_all() -> float:
    with tempfile.TemporaryDirectory() as folder:
      start = time.perf_counter()
      with contextlib.redirect_stdout(io.StringIO()):  # Hides the report.
        made = prepare.prepare(config, f"{folder}/corpus")
      seconds = time.perf_counter() - start
      tokens["prepare"] = sum(corpus_lib.open_corpus(made, split).num_tokens
                              for split in corpus_lib.SPLITS)
    return seconds

  def encode_all() -> float:
    start = time.perf_counter()
    tokens["encode"] = sum(len(ids) for first in range(0, len(texts), CHUNK)
                           for ids in encode(texts[first:first + CHUNK]))
    return time.perf_counter() - start

  times = side_by_side.time_in_turns({"prepare": prepare_all, "encode": encode_all},
                                     arguments.rounds)
  if abs(tokens["prepare"] / tokens["encode"] - 1) > TOKENS_TOLERANCE:
    raise SystemExit(f"not the same work: {tokens['prepare']} and {tokens['encode']} tokens")
  speed = {name: side_by_side.per_second(tokens["prepare"], times[name]) for name in times}
  return [Row("prepare", speed["prepare"], "tokens/s"),
          Row("bare encode", speed["encode"], "tokens/s"),
          Row("prepare over bare encode: speed",
              side_by_side.ratio(times["encode"], times["prepare"]))]


def bare_encoder(folder: pathlib.Path) -> Callable[[list[str]], list[list[int]]]:
  """Returns the batch encode of the tokenizer library on all cores: texts -> ids.

  Args:
    folder: folder of a saved tokenizer.
  """
  if (folder / "tokenizer.model").is_file():
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return lambda texts: processor.encode(texts, num_threads=side_by_side.cores())
  tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  return lambda texts: [encoding.ids for encoding in
                        tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


# ------------------------------------------------------------------ loader


def measure_loader(config: ConfigDict, path: pathlib.Path,
                   arguments: argparse.Namespace) -> list[Row]:
  """Compares the loader on one core with the train step on all cores.

  Args:
    config: config of the recipe.
    path: folder of its prepared corpus.
    arguments: values of the flags.
  """
  from benchmarks import bare_step
  from bertgpt.devices import compilation_cache
  compilation_cache.enable(config.system.compilation_cache)
  corpus = corpus_lib.open_corpus(path, "train")
  step = bare_step.from_corpus(corpus, config)
  step.seconds(2)
  batches = side_by_side.Worker(make_loader, to_json(config), str(path))
  try:
    number = side_by_side.repeats(batches("seconds", 10), arguments.seconds)
    steps = side_by_side.repeats(step.seconds(1), arguments.seconds)
    times = side_by_side.time_in_turns({"loader": lambda: batches("seconds", number),
                                        "step": lambda: step.seconds(steps)}, arguments.rounds)
  finally:
    batches.close()
  phase = config.phases[0]
  slots = phase.batch_size * phase.seq_len
  speed = {name: side_by_side.per_second(slots, times[name]) for name in times}
  return [Row("loader on one core", speed["loader"], "tokens/s"),
          Row("train step", speed["step"], "tokens/s"),
          Row("loader on one core over the train step: speed",
              side_by_side.ratio(times["step"], times["loader"]), asked="> 1")]


def make_loader(config_json: str, path: str) -> dict[str, Callable]:
  """Restricts the process to one core and starts to make batches.

  Args:
    config_json: config of the recipe.
    path: folder of its prepared corpus.
  Returns:
    'seconds': number of batches -> seconds per batch.
  """
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  config = from_json(config_json)
  config.phases = (config_lib.phase(**config.phases[0].to_dict() | {"steps": 10**9}),)
  rows = slice(0, config.phases[0].batch_size)
  batches = loader.make_train_batches(corpus_lib.open_corpus(path, "train"), config, 0, 0, rows)
  for _ in range(2 * loader.BATCHES_AHEAD):  # Batches that were made ahead cost no time.
    next(batches)

  def seconds(number: int) -> float:
    start = time.perf_counter()
    for _ in range(number):
      next(batches)
    return (time.perf_counter() - start) / number

  return {"seconds": seconds}


# ----------------------------------------------------------------- waiting


def measure_waiting(config: ConfigDict, path: pathlib.Path,
                    arguments: argparse.Namespace) -> list[Row]:
  """Measures the share of a run's time that waits for batches.

  Args:
    config: config of the recipe.
    path: not used; the run finds its corpus.
    arguments: values of the flags.
  """
  from benchmarks import real_loop
  config = config.copy_and_resolve_references()
  config.eval.every_steps = config.checkpoint.every_steps = 0
  config.checkpoint.every_minutes = 0.0
  shares = [real_loop.run(config, arguments.steps).waiting() for _ in range(arguments.rounds)]
  return [Row("share of a run's time that waits for a batch", side_by_side.spread(shares), "",
              "< 0.01")]


PARTS = {"prepare": measure_prepare, "loader": measure_loader, "waiting": measure_waiting}

FLAGS = (side_by_side.config_flag("configs/demo.py"), side_by_side.seconds_flag(2.0), flags)

if __name__ == "__main__":
  sys.exit(side_by_side.main("benchmarks.input", __doc__, FLAGS, measure))
