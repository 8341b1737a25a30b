"""Transforms that optimizers are made of.

An operation that an algorithm applies to "a layer", "a tensor" or "a matrix" is applied to each
slice of a stacked array separately.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bertgpt.config import ConfigDict
from bertgpt.models import parameters
from bertgpt.models.parameters import Param, Table
from bertgpt.trees import path_of


def label(table: Table, choose: Callable[[Param], Any]) -> Callable[[Any], Any]:
  """Returns a function that replaces every leaf of a tree of parameters with a label.

  Args:
    table: table of the parameters; see `models.parameters`.
    choose: line of the table -> label.
  Returns:
    tree -> tree of labels. It raises ValueError if no line matches a parameter.
  """

  def label_tree(tree):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: choose(parameters.find(table, path_of(path))), tree)

  return label_tree


# `optimizer.decay_rule` -> (line of the table -> whether the parameter decays).
DECAY_RULES: dict[str, Callable[[Param], bool]] = {
    "weights": lambda param: param.decays,
    "all": lambda param: not param.is_constant,
}


def add_decay(config: ConfigDict, table: Table) -> optax.GradientTransformation:
  """Returns a transform that adds `optimizer.weight_decay` times the parameters that decay.

  Args:
    config: a whole config; `optimizer.decay_rule` says which of the parameters decay.
    table: table of the parameters.
  """
  rule = DECAY_RULES[config.optimizer.decay_rule]
  return optax.add_decayed_weights(config.optimizer.weight_decay, mask=label(table, rule))


def scale_by_depth(config: ConfigDict, table: Table) -> optax.GradientTransformation:
  """Returns a transform that makes the steps of lower layers shorter.

  With L layers and `optimizer.layer_decay` d, the factor is d^(L + 1 - l) in layer l = 0, 1, ...,
  d^(L + 2) for embeddings and 1 for all other parts. A group of layers with the same parameters has
  the factor of its last layer.

  Args:
    config: a whole config.
    table: table of the parameters.

  References:
    Clark et al., ELECTRA, 2020, https://arxiv.org/abs/2003.10555 (table 7);
      google-research/electra, model/optimization.py, _get_layer_lrs
  """
  decay, layers = config.optimizer.layer_decay, config.model.num_layers

  def scale_array(path, u):
    name = path_of(path)
    param = parameters.find(table, name)
    if param.is_embedding:
      return u * decay ** (layers + 2)
    if not param.is_stacked:
      return u
    if numbered := re.search(r"_(\d+)_", name):  # For example encoder/lstm_1_kernel.
      return u * decay ** (layers + 1 - int(numbered[1]))
    last_layers = jnp.arange(1, len(u) + 1) * layers // len(u)  # Counted from 1.
    factors = decay ** (layers + 2.0 - last_layers)
    return u * factors.reshape(-1, *[1] * (u.ndim - 1)).astype(u.dtype)

  def scale(updates, params):
    del params
    return jax.tree_util.tree_map_with_path(scale_array, updates)

  return optax.stateless(scale)


def weights_mask(table: Table) -> Callable[[Any], Any]:
  """Returns a function from a tree of parameters to a tree of bools: which are weights.

  Biases and LayerNorm are not. Only weights have a trust ratio, and by default only they decay.

  Args:
    table: table of the parameters.
  """
  return label(table, DECAY_RULES["weights"])


def scale_by_adam(config: ConfigDict) -> optax.GradientTransformation:
  """Returns Adam's direction with bias correction (Kingma and Ba 2014, arXiv:1412.6980).

  Args:
    config: a whole config; `optimizer.b1`, `b2` and `epsilon` are read.
  """
  optimizer = config.optimizer
  return optax.scale_by_adam(optimizer.b1, optimizer.b2, eps=optimizer.epsilon)


def per_layer(transform: optax.GradientTransformation,
              table: Table) -> optax.GradientTransformation:
  """Applies a transform to each layer of the stacked arrays separately.

  It is for transforms that treat an array as a whole (norms, factored moments).

  Args:
    transform: any transform that treats the leaves of its tree one by one.
    table: table of the parameters, which says which arrays are stacked.

  Returns:
    A transform; every array in the state of a stacked array has a leading layer axis.
  """

  def over_layers(function):
    # vmap refuses trees without arrays.
    return lambda *trees: (
        jax.vmap(function) if jax.tree.leaves(trees[0]) else function)(*trees)

  stacked = optax.GradientTransformation(
      over_layers(transform.init), over_layers(transform.update))
  return optax.partition({"stacked": stacked, "single": transform},
                         label(table, lambda param: "stacked" if param.is_stacked else "single"))


def scale_by_adam_moments(
    b1: float, b2: float, epsilon: float, *, correction_starts: tuple[int, ...] | None,
    corrects_epsilon: bool = False
) -> optax.GradientTransformationExtraArgs:
  """Returns Adam's direction m / (sqrt(v) + epsilon); a bias correction may restart.

  The moments are always kept; at `correction_starts`, the count t of the correction
  m / (1 - b1^t), v / (1 - b2^t) is 1.

  Args:
    b1, b2: decay of the first and the second moment per update.
    epsilon: added to the denominator.
    correction_starts: indices of the steps (0-based) with t = 1, (0,) as in the paper; None: no
      correction.
    corrects_epsilon: whether the correction divides the sum sqrt(v) + epsilon, not only sqrt(v):
      Kingma and Ba's "epsilon hat".

  Returns:
    A transform with the state of `optax.scale_by_adam`.

  References:
    Kingma and Ba, Adam, 2014, https://arxiv.org/abs/1412.6980
    NVIDIA, DeepLearningExamples, PyTorch/LanguageModeling/BERT/run_pretraining.py, 2021
      (phase 2 sets the step to 0 and keeps the moments)
  """

  def init(params):
    return optax.ScaleByAdamState(
        count=jnp.zeros((), jnp.int32), mu=optax.tree.zeros_like(params),
        nu=optax.tree.zeros_like(params))

  def correction(decay, count, step):
    if correction_starts is None:
      return 1.0
    starts = jnp.asarray(correction_starts, jnp.int32)
    # Steps before the restart that were left out, or not applied, do not count after it.
    t = 1 + jnp.minimum(count, step - jnp.max(jnp.where(starts <= step, starts, 0)))
    return 1 - decay ** t.astype(jnp.float32)

  def update(updates, state, params=None, *, step=None, **_):
    del params
    mu = optax.tree.update_moment(updates, state.mu, b1, 1)
    nu = optax.tree.update_moment(updates, state.nu, b2, 2)
    step = state.count if step is None else step
    c1, c2 = correction(b1, state.count, step), correction(b2, state.count, step)
    added = epsilon / jnp.sqrt(c2) if corrects_epsilon else epsilon
    directions = jax.tree.map(lambda m, v: m / c1 / (jnp.sqrt(v / c2) + added), mu, nu)
    return directions, optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)

  return optax.GradientTransformationExtraArgs(init, update)


def normalize_by_global_norm() -> optax.GradientTransformation:
  """Returns a transform that divides the gradient by its norm over all parameters.

  A gradient of 0 stays 0.
  """

  def divide(updates, params):
    del params
    norm = optax.tree.norm(updates)
    return jax.tree.map(lambda g: g / jnp.where(norm > 0, norm, 1), updates)

  return optax.stateless(divide)


def orthogonalize() -> optax.GradientTransformation:
  """Returns a transform from matrices G = U S V' to about 0.2 sqrt(max(in, out)) U V'.

  Five steps of a quintic Newton-Schulz iteration bring the singular values near 1 (within
  about 0.7 and 1.2); the factor gives the result the root mean square of a typical AdamW
  step, so that both can share learning rate and weight decay.

  Returns:
    A stateless transform of arrays [..., in, out].

  References:
    Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024,
      https://kellerjordan.github.io/posts/muon (coefficients)
    Liu et al., Muon is Scalable for LLM Training, 2025, https://arxiv.org/abs/2502.16982
      (factor)
  """

  def iterate(x):
    a, b, c = 3.4445, -4.7750, 2.0315
    gram = x @ x.mT
    return a * x + (b * gram + c * gram @ gram) @ x

  def direction(g, _):
    is_tall = g.shape[-2] > g.shape[-1]
    x = g.mT if is_tall else g  # So that the Gram matrix is the smaller of the two.
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=(-2, -1), keepdims=True), 1e-20)
    for _ in range(5):
      x = iterate(x)
    return 0.2 * max(g.shape[-2:]) ** 0.5 * (x.mT if is_tall else x)

  return optax.stateless_with_tree_map(direction)
