"""The part of an objective that is jitted into the step, and functions that objectives share.

A loss is a sum and a weight; the train step divides once, by the weight of the whole global batch,
so that the loss is the same for every mesh and number of micro-batches.
"""

import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bertgpt.config import ConfigDict
from bertgpt.data.batches.parts import Specs
from bertgpt.models import Inputs, Module
from bertgpt.models.cross_entropy import Prediction

Batch = Mapping[str, jax.Array]
Carry = Mapping[str, jax.Array]  # arrays of `Objective.carry`, [rows, ...]
Sums = dict[str, tuple[jax.Array, jax.Array]]  # metric -> (sum, weight), float32 scalars


class BoundModel(NamedTuple):
  """A model bound to its parameters, its random key and the carry of its rows.

  Attributes:
    model: Flax module of a family.
    params: nested dicts of arrays.
    dropout_key: random key; None: nothing is dropped.
    carry: what the rows carry from the previous step, see `Objective.carry`.
  """

  model: Module
  params: Any
  dropout_key: jax.Array | None = None
  carry: Carry = types.MappingProxyType({})

  def predict(self, inputs: Inputs) -> Prediction:
    """Returns the result of the model's method `predict`.

    Args:
      inputs: inputs of the model.
    """
    return self.call("predict", inputs)

  def call(self, method: str, *args: Any) -> Any:
    """Returns the result of any method of the model.

    Args:
      method: name of the method.
      args: its arguments.
    """
    rngs = {} if self.dropout_key is None else {"dropout": self.dropout_key}
    return self.model.apply({"params": self.params}, *args, rngs=rngs, method=method)

  def fold(self, number: int | jax.Array) -> "BoundModel":
    """Returns the model with another random key, for one more call in the same step.

    Args:
      number: index of the call.
    """
    if self.dropout_key is None:
      return self
    return self._replace(dropout_key=jax.random.fold_in(self.dropout_key, number))


class Objective(NamedTuple):
  """One objective, as pure functions.

  Attributes:
    specs: phase of the config -> schema of a batch before it is corrupted.
    corrupt: (batch, key, row_ids_B) -> batch with inputs and targets. The result for a row depends
      only on the key and its row id, not on the other rows.
    weights: corrupted batch -> weight of every loss term, float32 scalars.
    compute_sums: (model, corrupted batch) -> (sums of the loss terms and of the other metrics, the
      new carry).
    init_inputs: batch of zeros -> inputs with which the model creates all its parameters.
    carry: schema of what every row of a step carries to the same row of the next step, such as the
      state of a recurrent network: name -> (shape per row, dtype). It begins as zeros and is part
      of the train state. No gradient flows through it. Empty: nothing.
  """

  specs: Callable[[ConfigDict], Specs]
  corrupt: Callable[[Batch, jax.Array, jax.Array], Batch]
  weights: Callable[[Batch], dict[str, jax.Array]]
  compute_sums: Callable[[BoundModel, Batch], tuple[Sums, Carry]]
  init_inputs: Callable[[Batch], Inputs]
  carry: Mapping[str, tuple[tuple[int, ...], type]] = types.MappingProxyType({})


def make_zero_carry(objective: Objective, rows: int) -> dict[str, jax.Array]:
  """Returns the carry of rows that continue nothing: name -> zeros [rows, ...].

  Args:
    objective: any objective.
    rows: number of rows, B.
  """
  return {name: jnp.zeros((rows, *shape), dtype)
          for name, (shape, dtype) in objective.carry.items()}


def total_loss(sums: Sums, weights: Mapping[str, jax.Array]) -> jax.Array:
  """Returns the loss: the sum over its terms of sum / global weight, a float32 scalar.

  Args:
    sums: sums of `Objective.compute_sums` for a part of the batch.
    weights: term -> weight in the whole global batch.
  """
  # The weight of a scaled term may be below 1. A term without targets has weight 0 and sum 0.
  return sum((sums[name][0] / jnp.where(weight > 0, weight, 1) for name, weight in weights.items()),
             jnp.zeros(()))


def name_sums(name: str, scores: tuple[jax.Array, jax.Array], weights: jax.Array) -> Sums:
  """Returns the sums of the metrics '<name>_loss' and '<name>_accuracy'.

  Args:
    name: prefix of the metrics.
    scores: result of `cross_entropy.score`.
    weights: float32, one per position.
  """
  loss, correct = scores
  weight = weights.sum()
  return {f"{name}_loss": (loss, weight), f"{name}_accuracy": (correct, weight)}


def keep_batch(batch: Batch, key: jax.Array, row_ids_B: jax.Array) -> Batch:
  """Returns a batch unchanged: `Objective.corrupt` of an objective that corrupts no tokens.

  Args:
    batch: batch.
    key, row_ids_B: not read.
  """
  del key, row_ids_B
  return batch
