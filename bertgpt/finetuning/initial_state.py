"""The state of a run at step 0: pretrained weights, and random weights for new parameters."""

import dataclasses

import jax
import numpy as np

from bertgpt import models, trees
from bertgpt.config import families
from bertgpt.errors import DataError
from bertgpt.finetuning.tuning import Program, Tuning
from bertgpt.runs import word_tables
from bertgpt.runs.trained import Trained
from bertgpt.training import steps


def init_from_pretrained(tuning: Tuning, program: Program, seed: int) -> steps.TrainState:
  """Returns the state at step 0, with the pretrained weights unless `config.from_scratch` is set.

  The head, a pooler that the checkpoint lacks, and heads that were drawn when the model was
  imported, have random weights, which depend on the seed.

  Args:
    tuning: everything that the runs share.
    program: compiled parts of the run.
    seed: seed of the random weights.
  Raises:
    DataError: the checkpoint lacks any other parameter, or has it with another shape.
  """
  config = program.setup.config.copy_and_resolve_references()
  config.seed = seed
  state = steps.make_state(program.setup._replace(config=config), program.abstract)
  if tuning.config.from_scratch:
    return dataclasses.replace(state, params=word_tables.add_words(
        config, state.params, tuning.pretrained.tokenizer))
  found = trees.named_leaves({"body": tuning.pretrained.params})
  axes_of, vocab_size = models.axes_of(config), tuning.pretrained.config.model.vocab_size

  def choose(path, fresh):
    name = trees.path_of(path)
    if name in found and not is_drawn(tuning.pretrained, name):
      return put_pretrained(name, axes_of(name), fresh, found[name], vocab_size)
    if name not in found and not name.startswith(("head/", "body/pooler/", "body/mix/")):
      raise DataError(f"{name}: is not in the checkpoint of --init {tuning.init}. Restore the "
                      "folder of that run")
    return fresh

  return dataclasses.replace(
      state, params=jax.tree_util.tree_map_with_path(choose, state.params))


def is_drawn(pretrained: Trained, name: str) -> bool:
  """Returns whether a parameter belongs to a head without trained weights: those of a run are new.

  Args:
    pretrained: model that the run starts from.
    name: path of a parameter of the task's model, such as 'body/pooler/kernel'.
  """
  part, _, inner = name.partition("/")
  head = inner.partition("/")[0]
  return part == "body" and head in families.HEADS and (
      head in pretrained.fresh or head not in pretrained.params)


def put_pretrained(name: str, axes: tuple[str | None, ...], fresh: jax.Array, trained: np.ndarray,
                   vocab_size: int) -> jax.Array:
  """Returns a trained parameter with the sharding of the fresh one.

  If its rows are tokens, only those of trained tokens are replaced. New tokens use the padding rows
  after them and keep their fresh values.

  Args:
    name: path of the parameter.
    axes: its logical axes.
    fresh: parameter with its random values.
    trained: parameter in the checkpoint.
    vocab_size: number of tokens of the pretrained model.
  Raises:
    DataError: the two have different shapes.
  """
  if (axes[0] == "vocab" and fresh.shape[1:] == trained.shape[1:]
      and vocab_size <= len(trained) <= len(fresh)):
    return jax.jit(lambda new, old: new.at[:len(old)].set(old), donate_argnums=0,
                   out_shardings=fresh.sharding)(fresh, trained[:vocab_size])
  if fresh.shape != trained.shape:
    raise DataError(f"{name}: the checkpoint has {trained.shape}, its config says {fresh.shape}. "
                    "Restore the folder of the run")
  return jax.make_array_from_callback(trained.shape, fresh.sharding, lambda index: trained[index])
