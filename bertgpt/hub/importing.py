"""Import of a model of `transformers`: a run with one checkpoint, at step 0.

The run appears completely or not at all: it is written next to its final place, read again, and
then renamed.
"""

import contextlib
import math
import pathlib
import shlex

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt import files, models, trees
from bertgpt.errors import ConfigError
from bertgpt.hub import opening
from bertgpt.models.parameters import find
from bertgpt.runs import checkpoint, folder_kinds, step_folders, workdir
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.metadata import make_metadata


def import_model(source: pathlib.Path, path: pathlib.Path) -> str:
  """Turns a model of `transformers` into a run with a checkpoint at step 0.

  Args:
    source: folder of the model.
    path: workdir of the new run.
  Returns:
    Lines that say what was written, what differs from the folder, and how to continue its training.
  Raises:
    ConfigError: `path` exists or no checkpoint can be saved there, or `source` is not a folder.
    DataError: a file of `source` is missing, is damaged, or belongs to an unsupported model.
  """
  files.refuse_existing(path, "--workdir")
  step_folders.check_name(path)
  if folder_kinds.is_ours(source):
    raise ConfigError(f"--from {source}: is a run of bertgpt, not a model of transformers. Use it "
                      "as --workdir, or write it for transformers with `bertgpt export`")
  model = opening.open_folder(source, "--from")
  config, params = model.config, model.params
  config.tokenizer.path = str(path / "tokenizer")
  with files.new_folder(path, "--workdir") as folder:
    with contextlib.closing(checkpoint.Checkpoints(
        folder, every_steps=0, every_minutes=0, keep=1)) as checkpoints:
      state = {"params": jax.tree.map(jnp.asarray, params)}
      metadata = make_metadata(config, model.tokenizer, corpus="", fresh=model.fresh,
                               bos_id=model.bos_id, beginning_id=model.beginning_id)
      checkpoints.save(0, state, metadata, wait=True)
    workdir.write_run(folder, config, model.tokenizer)
    trained_lib.load_trained(folder)  # Compares hashes and fingerprints.
  table = models.parameter_table(config)
  size = sum(_count(x, rule.axes, config.model.vocab_size)
             for name, x in trees.named_leaves(params).items()
             if not (rule := find(table, name)).is_constant)
  if config.model.skip_first_norm:  # The stack includes the scale of a norm that is not used.
    size -= config.model.width
  return "\n".join([
      f"{path}: the model of {source}, {size:,} parameters",
      *(f"note: {note}" for note in model.notes),
      "to train it further on your text, with a new optimizer:",
      f"bertgpt train --config {shlex.quote(f'continued:{path}')} --workdir NEW "
      "--config.data.source=SOURCE"])


def _count(x: np.ndarray, axes: tuple[str | None, ...], vocab_size: int) -> int:
  """Returns the number of values of a parameter, without rows that pad the vocabulary."""
  return math.prod(min(size, vocab_size) if axis == "vocab" else size
                   for size, axis in zip(x.shape, axes, strict=True))
