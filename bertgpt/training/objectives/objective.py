"""The part of an objective that is jitted into the step, and functions that objectives share.

A loss is a sum and a weight; the train step divides once, by the weight of the whole global batch,
so that the loss is the same for every mesh and number of micro-batches.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bertgpt.config import ConfigDict
from bertgpt.data.batches.parts import Specs
from bertgpt.models import Inputs, Module

Batch = Mapping[str, jax.Array]
Keys = Mapping[str, jax.Array]  # stream -> key; 'dropout' is absent in evaluation
Sums = dict[str, tuple[jax.Array, jax.Array]]  # metric -> (sum, weight), float32 scalars


class BoundModel(NamedTuple):
  """A model bound to its parameters and random keys.

  Attributes:
    model: Flax module of a family.
    params: nested dicts of arrays.
    keys: random keys by stream; without 'dropout', nothing is dropped.
  """

  model: Module
  params: Any
  keys: Keys

  def predict(self, inputs: Inputs) -> Any:
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
    rngs = {"dropout": self.keys["dropout"]} if "dropout" in self.keys else {}
    return self.model.apply({"params": self.params}, *args, rngs=rngs, method=method)

  def fold(self, number: int) -> "BoundModel":
    """Returns the model with other keys, for one more call in the same step.

    Args:
      number: number of the call.
    """
    return self._replace(keys={name: jax.random.fold_in(key, number)
                               for name, key in self.keys.items()})


class Objective(NamedTuple):
  """One objective, as pure functions.

  Attributes:
    specs: phase of the config -> schema of a batch before it is corrupted.
    corrupt: (batch, key, row_ids_B) -> batch with inputs and targets. The result for a row depends
      only on the key and its row id, not on the other rows.
    weights: corrupted batch -> weight of every loss term, float32 scalars.
    evaluate: (model, corrupted batch) -> sums of the loss terms and of the other metrics.
    init_inputs: batch of zeros -> inputs with which the model creates all its parameters.
  """

  specs: Callable[[ConfigDict], Specs]
  corrupt: Callable[[Batch, jax.Array, jax.Array], Batch]
  weights: Callable[[Batch], dict[str, jax.Array]]
  evaluate: Callable[[BoundModel, Batch], Sums]
  init_inputs: Callable[[Batch], Inputs]


def total_loss(sums: Sums, weights: Mapping[str, jax.Array]) -> jax.Array:
  """Returns the loss: the sum over its terms of sum / global weight, a float32 scalar.

  Args:
    sums: result of `Objective.evaluate` for a part of the batch.
    weights: term -> weight in the whole global batch.
  """
  # A weight of a scaled term may be below 1. That of a term without targets is 0, as is its sum.
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
