"""Optimizers, named after their sources. Each is a file, found by its name.

An optimizer is an expression of small optax transforms that turns a gradient into a
direction u; the train step applies the learning rate of its own step counter,

    params <- params - schedule(step) * u,

so weight decay (`+ weight_decay * p` inside u) is decoupled from the gradient. A gradient that
is not finite is handled by the train step. All optimizers read `optimizer.weight_decay`,
`decay_rule`, which says which parameters decay, and `layer_decay`, which makes the steps of lower
layers shorter; `choices.OPTIMIZERS` lists the other fields that each of them reads:

| name            | moments                            | trust ratio |
|-----------------|------------------------------------|-------------|
| `bert_adamw`    | Adam without bias correction       |             |
| `adamw`         | Adam                               |             |
| `fairseq_adamw` | Adam, epsilon before correction    |             |
| `stable_adamw`  | Adam, shorter step if v lags       |             |
| `lamb`          | Adam                               | all         |
| `nvlamb`        | Adam of the normalized gradient    | weights     |
| `albert_lamb`   | Adam without bias correction       | weights     |
| `adafactor`     | factored second moment, no first   |             |
| `adagrad`       | sum of squares, no first           |             |
| `muon`          | matrices: momentum; the rest: Adam |             |

The table of the family (`models.parameters`) says which parameters are weights (which decay by
default), which are matrices and which are stacked over the layers.

Every tree of moments copies the parameter tree, so the key path of a moment ends in its
parameter's path (`1/0/mu/encoder/layers/mlp/up/kernel`) and the moment is sharded like the
parameter. Arrays of other shapes may be replicated: counters, and Adafactor's `v_row` and `v_col`,
whose paths also end in a parameter's path, but which have only one of the two axes of a matrix (the
smaller, the larger). Placeholders of one element per layer replace `v_row` and `v_col` for
parameters that are not factored, and `v` for those that are.
"""

import functools
import importlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bertgpt import models, trees
from bertgpt.config import ConfigDict
from bertgpt.errors import ConfigError
from bertgpt.training.optimizers import transforms


def make_optimizer(config: ConfigDict) -> optax.GradientTransformationExtraArgs:
  """Returns the optimizer that `config.optimizer` names, after clipping by the global norm.

  Parameters that match `optimizer.freeze` have the gradient and the direction 0.

  Args:
    config: a whole config; `optimizer`, `model.family` and, for some, `phases` are read.
  Returns:
    A transform whose `update(gradients, state, params, step=step)` gives the direction `u` of
    `params - learning_rate * u`, in float32. `step` is the number of steps done, by default the
    number of updates; the learning rate belongs to the same step. The docstring of the module
    describes the state. `update` raises ValueError if no line of the family's table matches a
    parameter.
  """
  clip_norm = config.optimizer.clip_norm
  clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
  module = importlib.import_module(f"{__name__}.{config.optimizer.name}")
  table = models.parameter_table(config)
  parts = [clip, module.make(config, table)]
  if config.optimizer.layer_decay != 1:  # The state of other runs has two parts.
    parts.append(transforms.scale_by_depth(config, table))
  optimizer = optax.with_extra_args_support(optax.chain(*parts))
  if not config.optimizer.freeze:
    return optimizer
  # Before the optimizer, frozen gradients would count for the norm; after it, decay has been added.
  stop = optax.masked(optax.set_to_zero(), functools.partial(find_frozen, config))
  return optax.with_extra_args_support(optax.chain(stop, optimizer, stop))


def check_frozen(config: ConfigDict, params: Any) -> None:
  """Checks that `optimizer.freeze`, if it is set, leaves some parameters as they are, but not all.

  Args:
    config: a whole config.
    params: tree with the paths of the parameters.
  Raises:
    ConfigError: it matches no parameter, or all of them.
  """
  if not config.optimizer.freeze:
    return
  frozen = trees.named_leaves(find_frozen(config, params))
  if not any(frozen.values()) or all(frozen.values()):
    raise ConfigError(
        f"optimizer.freeze={config.optimizer.freeze!r}: matches "
        + ("every parameter, so nothing would be trained. "
           if all(frozen.values()) else "no parameter, so it would have no effect. ")
        + f"The paths of the parameters are such as {next(iter(frozen))} and {list(frozen)[-1]}")


def zero_frozen(config: ConfigDict, gradients: Any) -> Any:
  """Returns gradients that are 0 for the parameters that match `optimizer.freeze`.

  The train step calls it before it measures their norm: then nothing reads what it replaces, and
  the compiler leaves out the backward pass through layers that are frozen.

  Args:
    config: a whole config.
    gradients: tree of arrays with the paths of the parameters.
  """
  if not config.optimizer.freeze:
    return gradients
  return jax.tree.map(lambda is_frozen, g: jnp.zeros_like(g) if is_frozen else g,
                      find_frozen(config, gradients), gradients)


def find_frozen(config: ConfigDict, params: Any) -> Any:
  """Returns whether each parameter matches `optimizer.freeze`, a tree of bools.

  Args:
    config: a whole config.
    params: tree with the paths of the parameters.
  """
  pattern = re.compile(config.optimizer.freeze)
  return jax.tree_util.tree_map_with_path(
      lambda path, _: bool(pattern.search(trees.path_of(path))), params)
