"""Preparing a corpus with Apache Beam: the parts of `machines`, made by the workers of an engine.

The pipeline only distributes the indices of the parts. All files are read and written by the
functions of `machines`, so the source and the folder of the corpus must be in a bucket, or on
storage that all workers have mounted. The corpus has the same bytes as one made without an engine.
"""

import functools
import pathlib
import shlex
from collections.abc import Callable

from bertgpt import files
from bertgpt.config import ConfigDict
from bertgpt.config.stored import from_json, to_json
from bertgpt.data.corpus import machines
from bertgpt.data.text import sources
from bertgpt.data.text.pieces import Part
from bertgpt.errors import ConfigError, DataError, one_line

PART_BYTES = 2**28  # Bytes of source files per part: minutes of work for one worker.
MAX_PARTS = 10_000


def prepare(config: ConfigDict, out: pathlib.Path, arguments: str) -> pathlib.Path:
  """Prepares a corpus, and prints a report. Parts that are there already are not made again.

  Args:
    config: whole config, of which `data` and `tokenizer` are read.
    out: folder of the corpus.
    arguments: options of Beam, such as '--runner=FlinkRunner --parallelism=64'; '': its
      DirectRunner.
  Returns:
    The folder of the corpus.
  Raises:
    ConfigError: Beam is not installed, or does not know an option.
    DataError: the pipeline failed.
    UserError: see `machines.merge`.
  """
  total = count_parts(config.data.source)
  if not config.tokenizer.path:
    _run(config, out, total, arguments, machines.sample_part)
    machines.train_tokenizer(config, out, merges=True)
  _run(config, out, total, arguments, machines.prepare_part)
  return machines.merge(config, out)


def count_parts(spec: str) -> int:
  """Returns the number of parts for a source, which depends only on the sizes of its files.

  Args:
    spec: `config.data.source`.
  Raises:
    ConfigError, DataError: see `sources.open_source`.
  """
  listed = sources.list_pieces(sources.parse(spec))
  num_bytes = sum(piece.size for source in listed for piece in source.pieces)
  return min(max(-(-num_bytes // PART_BYTES), 1), MAX_PARTS)


def _run(config: ConfigDict, out: pathlib.Path, total: int, arguments: str,
         make: Callable) -> None:
  """Runs a pipeline that makes all parts, and waits for its end."""
  try:
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as e:
    raise ConfigError(f"--engine beam: Apache Beam cannot be imported ({one_line(e)}). Install it "
                      "with requirements-beam.lock, in an environment of its own") from e
  make_part = functools.partial(_make_part, make, to_json(config), str(out), total)
  try:
    with apache_beam.Pipeline(options=PipelineOptions(shlex.split(arguments))) as pipeline:
      numbers = pipeline | apache_beam.Create(list(range(total)))
      numbers | apache_beam.Reshuffle() | apache_beam.Map(make_part)  # noqa: B018
  except Exception as e:  # Every runner has errors of its own.
    raise DataError(f"--engine beam: the pipeline failed ({one_line(e)}). Give the same command "
                    "again: parts that are done are not made again") from e


def _make_part(make: Callable, config: str, out: str, total: int, number: int) -> str:
  """Runs on a worker: makes one part."""
  return str(make(from_json(config), files.make_path(out), Part(number, total)))
