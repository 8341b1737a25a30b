"""Learning rates, weight-decay rules, and optimizers named by their source.

An optimizer is an expression of small optax transforms that turns a gradient into a
direction u; the train step applies the rate of its own step counter,

    params <- params - schedule(step) * u,

so weight decay (`+ weight_decay * p` inside u) is decoupled from the gradient. A gradient that
is not finite is the train step's business. All read `optimizer.weight_decay` and `clip_norm`:

| name         | moments                             | decay, trust ratio       | reads besides    |
|--------------|-------------------------------------|--------------------------|------------------|
| `bert_adamw` | Adam without bias correction        | decay by rule            | b1, b2, epsilon  |
| `adamw`      | Adam                                | decay by rule            | b1, b2, epsilon  |
| `lamb`       | Adam                                | decay by rule, ratio all | b1, b2, epsilon  |
| `nvlamb`     | Adam of the normalised gradient     | both by rule             | b1, b2, epsilon  |
| `adafactor`  | factored second moment, no first    | decay by rule            |                  |
| `muon`       | matrices: momentum; the rest: Adam  | decay by rule            | all the above,   |
|              |                                     |                          | momentum         |

Arrays under a `layers/` node hold one slice for each layer on their leading axis. Whatever an
algorithm does to "a layer", "a tensor" or "a matrix" is done to each slice by itself.

Every tree of moments copies the parameter tree, so the key path of a moment ends in its
parameter's path (`1/0/mu/encoder/layers/mlp/up/kernel`) and it is sharded like it. What has
another shape may be replicated: counters, and Adafactor's `v_row` and `v_col`, whose paths end
in a parameter's path too but which keep one of a matrix's two axes (the smaller, the larger)
or, where they do not apply, are placeholders of one element a layer, as `v` then is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bertgpt import trees
from bertgpt.config import ConfigDict

# ------------------------------------------------------------ learning rate


@dataclasses.dataclass(frozen=True)
class Curve:
  """A learning-rate curve: one `restart` phase and the `continuous` ones that follow it."""

  phase: ConfigDict
  first_step: int
  steps: int

  @property
  def warmup(self) -> float:
    """Length of the warm-up in steps; a share of the curve is not rounded, as at NVIDIA."""
    return self.phase.warmup_steps or self.phase.warmup_fraction * self.steps


def _linear(step, curve):
  # The difference is taken in integers: in float32, 1 - 999_999 / 1e6 is 1% off.
  return jnp.maximum(curve.steps - step, 0) / curve.steps


def _cosine(step, curve):
  progress = (step - curve.warmup) / max(curve.steps - curve.warmup, 1)
  return 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))


def _wsd(step, curve):
  decay_steps = curve.phase.decay_fraction * curve.steps
  progress = (step - (curve.steps - decay_steps)) / max(decay_steps, 1)
  return 1 - jnp.clip(progress, 0, 1) ** curve.phase.power


# (step of the curve, curve) -> what is left of the way from the end rate (0) to the peak (1)
SCHEDULES: dict[str, Callable[[jax.Array, Curve], jax.Array]] = {
    "linear": _linear,
    "polynomial": lambda step, curve: _linear(step, curve) ** curve.phase.power,
    "cosine": _cosine,
    "constant": lambda step, curve: jnp.float32(1),
    "wsd": _wsd,
}


def make_schedule(config: ConfigDict) -> Callable[[jax.Array], jax.Array]:
  """The learning rate as a function of the step, over all of `config.phases`.

  `schedule(s)` is the rate of the update with the 0-based number s, as in
  google-research/bert: under warm-up the first update has rate 0, and the last one of a
  linear decay has peak / steps. NVIDIA counts from 1, so its rates come one update earlier.

  Warm-up is peak * step / warmup. After it, with e = `end_fraction`, the rate is
  peak * (e + (1 - e) * d), where d falls from 1 to 0:

  * linear: 1 - step / steps, counted from step 0 and not from the end of the warm-up, as in
    BERT: at the end of the warm-up the rate drops to peak * (1 - warmup / steps);
  * polynomial: the same to the exponent `power` (NVIDIA's PolyWarmUpScheduler: 0.5);
  * cosine: half a cosine from the end of the warm-up, as in nanoGPT;
  * constant: 1, whatever e is;
  * wsd: 1, and over the last `decay_fraction` of the steps 1 - t ** `power`, where t goes
    from 0 to 1: power 1 is linear, power 0.5 the "1-sqrt" shape.

  A phase with the rule `continuous` lengthens the curve of the phase before it, whose peak,
  shape and warm-up hold for both; a `restart` phase starts a curve at its own step 0. Past
  the last step the rate stays at its end.

  Returns:
    A traceable function from a step (int32, any shape) to the rate (float32, that shape).

  References:
    google-research/bert, optimization.py, 2018
    NVIDIA, DeepLearningExamples, PyTorch/LanguageModeling/BERT/schedulers.py, 2021
    Hu et al., MiniCPM, 2024, https://arxiv.org/abs/2404.06395 (WSD)
    Haegele et al., Scaling Laws and Compute-Optimal Training Beyond Fixed Training
      Durations, 2024, https://arxiv.org/abs/2405.18392 (1-sqrt)
  """
  curves = _curves(config.phases)

  def schedule(step):
    step = jnp.asarray(step, jnp.int32)
    rate = _rate(step, curves[0])
    for curve in curves[1:]:
      rate = jnp.where(step < curve.first_step, rate, _rate(step, curve))
    return rate.astype(jnp.float32)

  return schedule


def _curves(phases) -> tuple[Curve, ...]:
  curves, first_step = [], 0
  for phase in phases:
    if phase.learning_rate_rule == "continuous":
      curves[-1] = dataclasses.replace(curves[-1], steps=curves[-1].steps + phase.steps)
    else:
      curves.append(Curve(phase, first_step, phase.steps))
    first_step += phase.steps
  return tuple(curves)


def _rate(step, curve):
  phase, step = curve.phase, step - curve.first_step
  left = SCHEDULES[phase.schedule](step, curve)
  share = phase.end_fraction + (1 - phase.end_fraction) * left
  if curve.warmup:
    share = jnp.where(step < curve.warmup, step / curve.warmup, share)
  return phase.learning_rate * jnp.broadcast_to(share, step.shape)


# --------------------------------------------------------------- path rules

# (regex searched in the '/'-joined path of a parameter, is it decayed); the first match counts.
# BERT decays all but LayerNorm and biases, so its embeddings too.
DECAY_RULES: tuple[tuple[str, bool], ...] = (
    (r"(^|/)(bias|scale)$", False),
    (r"(^|/)(kernel|embedding)$", True),
)

# Hidden matrices. Embeddings and output heads are for AdamW (Jordan et al., 2024).
MUON_RULES: tuple[tuple[str, str], ...] = (
    (r"(^|/)layers/.*kernel$", "muon"),
    (r"(^|/)(pooler|mlm/dense)/kernel$", "muon"),
    (r"", "adamw"),
)

LAYER_RULES: tuple[tuple[str, str], ...] = (
    (r"(^|/)layers/", "stacked"),
    (r"", "single"),
)


def decay_mask(params: Any) -> Any:
  """Which parameters take weight decay, by `DECAY_RULES`.

  Args:
    params: a tree of parameters; only its paths are read.

  Returns:
    A tree of bools of the same structure.

  Raises:
    ValueError: no rule matches a parameter; the message names it.
  """
  return _match(DECAY_RULES, params)


def _match(rules, tree):
  """The value of the first rule that matches, for every leaf of `tree`."""

  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: trees.first_match(rules, trees.path_of(path)), tree)


# --------------------------------------------------------------- transforms


def per_layer(transform: optax.GradientTransformation) -> optax.GradientTransformation:
  """Applies a transform to each layer of the stacked arrays by itself.

  For transforms that treat an array as one thing (norms, factored moments).

  Args:
    transform: any transform that treats the leaves of its tree one by one.

  Returns:
    A transform; in the state of stacked arrays everything has a leading layer axis.
  """

  def over_layers(function):
    # vmap refuses trees without arrays.
    return lambda *trees: (
        jax.vmap(function) if jax.tree.leaves(trees[0]) else function)(*trees)

  stacked = optax.GradientTransformation(
      over_layers(transform.init), over_layers(transform.update))
  return optax.partition({"stacked": stacked, "single": transform},
                         lambda tree: _match(LAYER_RULES, tree))


def scale_by_restarted_adam(
    b1: float, b2: float, epsilon: float, restarts: tuple[int, ...]
) -> optax.GradientTransformation:
  """Adam's direction m / (sqrt(v) + epsilon) with another bias correction than optax's.

  The moments are always kept; `restarts` says where the count t of the correction
  m / (1 - b1^t), v / (1 - b2^t) starts anew; no entry means no correction at all.

  Args:
    b1, b2: decay of the first and the second moment.
    epsilon: added to the denominator.
    restarts: numbers of the updates (0-based) for which t = 1.

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

  def correction(decay, count):
    if not restarts:
      return 1.0
    starts = jnp.asarray(restarts, jnp.int32)
    t = 1 + count - jnp.max(jnp.where(starts <= count, starts, 0))
    return 1 - decay ** t.astype(jnp.float32)

  def update(updates, state, params=None):
    del params
    mu = optax.tree.update_moment(updates, state.mu, b1, 1)
    nu = optax.tree.update_moment(updates, state.nu, b2, 2)
    c1, c2 = correction(b1, state.count), correction(b2, state.count)
    directions = jax.tree.map(lambda m, v: m / c1 / (jnp.sqrt(v / c2) + epsilon), mu, nu)
    return directions, optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)

  return optax.GradientTransformation(init, update)


def normalize_by_global_norm() -> optax.GradientTransformation:
  """Divides the gradient by its norm over all parameters; a gradient of 0 stays 0."""

  def divide(updates, params):
    del params
    norm = optax.tree.norm(updates)
    return jax.tree.map(lambda g: g / jnp.where(norm > 0, norm, 1), updates)

  return optax.stateless(divide)


def orthogonalize() -> optax.GradientTransformation:
  """Replaces a matrix G = U S V' by about 0.2 sqrt(max(in, out)) U V', slice by slice.

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
    x = g.mT if is_tall else g  # The Gram matrix is then the smaller of the two.
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=(-2, -1), keepdims=True), 1e-20)
    for _ in range(5):
      x = iterate(x)
    return 0.2 * max(g.shape[-2:]) ** 0.5 * (x.mT if is_tall else x)

  return optax.stateless_with_tree_map(direction)


def _add_decay(config):
  return optax.add_decayed_weights(config.optimizer.weight_decay, mask=decay_mask)


def _scale_by_adam(config):
  optimizer = config.optimizer
  return optax.scale_by_adam(optimizer.b1, optimizer.b2, eps=optimizer.epsilon)


# ------------------------------------------------------------------ presets


def bert_adamw(config: ConfigDict) -> optax.GradientTransformation:
  """AdamW as BERT was trained with: no bias correction.

  The directions are those of `adamw` times (1 - b1^t) / sqrt(1 - b2^t): 3.2 at the first
  update, 6.6 at the twelfth, 1.3 at the thousandth. The warm-up is tuned to that.

  References:
    google-research/bert, optimization.py, AdamWeightDecayOptimizer, 2018
  """
  optimizer = config.optimizer
  adam = scale_by_restarted_adam(optimizer.b1, optimizer.b2, optimizer.epsilon, restarts=())
  return optax.chain(adam, _add_decay(config))


def adamw(config: ConfigDict) -> optax.GradientTransformation:
  """Adam with bias correction and decoupled weight decay.

  References:
    Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2017,
      https://arxiv.org/abs/1711.05101
  """
  return optax.chain(_scale_by_adam(config), _add_decay(config))


def lamb(config: ConfigDict) -> optax.GradientTransformation:
  """LAMB to the letter of the paper's Algorithm 2, with phi the identity.

  u = |p| / |r + weight_decay * p| * (r + weight_decay * p), where r is Adam's direction with
  bias correction. The algorithm scales every layer i = 1..h and leaves none out, so the trust
  ratio is on every array, biases and LayerNorm included; where |p| or the other norm is 0
  (biases at the start) it is 1. Code that leaves biases and LayerNorm out is `nvlamb`.

  References:
    You et al., Large Batch Optimization for Deep Learning: Training BERT in 76 minutes,
      2019, https://arxiv.org/abs/1904.00962
  """
  return optax.chain(
      _scale_by_adam(config), _add_decay(config), per_layer(optax.scale_by_trust_ratio()))


def nvlamb(config: ConfigDict) -> optax.GradientTransformation:
  """NVIDIA's LAMB: a normalised gradient, and no trust ratio on biases and LayerNorm.

  The gradient is first divided by its global norm, which makes `optimizer.clip_norm` idle
  (NVIDIA's article has it so; its kernel divides only where the norm exceeds 1). Arrays
  without weight decay take Adam's direction as it is. Where a phase restarts the learning
  rate, the count of the bias correction restarts and the moments are kept, as NVIDIA's
  phase 2 does.

  References:
    NVIDIA, Pretraining BERT with Layer-wise Adaptive Learning Rates (article), 2019
    NVIDIA, DeepLearningExamples, PyTorch/LanguageModeling/BERT, 2021
  """
  optimizer = config.optimizer
  restarts = tuple(curve.first_step for curve in _curves(config.phases))
  return optax.chain(
      normalize_by_global_norm(),
      scale_by_restarted_adam(optimizer.b1, optimizer.b2, optimizer.epsilon, restarts),
      _add_decay(config),
      optax.masked(per_layer(optax.scale_by_trust_ratio()), decay_mask))


def adafactor(config: ConfigDict) -> optax.GradientTransformation:
  """Adafactor without momentum and without relative steps.

  The second moment of a matrix is the product of its row and column means, its decay is
  1 - t^-0.8, and a direction whose root mean square exceeds 1 is scaled down to it. The rate
  is the schedule's, not a multiple of the parameter's size. Matrices with a side under 128
  keep a whole second moment: factoring them saves little.

  References:
    Shazeer and Stern, Adafactor, 2018, https://arxiv.org/abs/1804.04235 (Algorithm 4)
  """
  moments = optax.chain(
      optax.scale_by_factored_rms(decay_rate=0.8, min_dim_size_to_factor=128, epsilon=1e-30),
      optax.clip_by_block_rms(1.0))
  return optax.chain(per_layer(moments), _add_decay(config))


def muon(config: ConfigDict) -> optax.GradientTransformation:
  """Muon for the hidden matrices (`MUON_RULES`), AdamW for everything else.

  Nesterov momentum, B = momentum * B + G and G + momentum * B, then `orthogonalize`.
  `optax.contrib.scale_by_muon` would bias-correct the two terms apart, which the source does
  not do and which changes their weights in the first steps.

  References: those of `orthogonalize`.
  """
  matrices = optax.chain(
      optax.trace(config.optimizer.momentum, nesterov=True), orthogonalize())
  return optax.chain(
      optax.partition({"muon": matrices, "adamw": _scale_by_adam(config)},
                      lambda tree: _match(MUON_RULES, tree)),
      _add_decay(config))


OPTIMIZERS: dict[str, Callable[[ConfigDict], optax.GradientTransformation]] = {
    "bert_adamw": bert_adamw, "adamw": adamw, "lamb": lamb,
    "nvlamb": nvlamb, "adafactor": adafactor, "muon": muon,
}


def make_optimizer(config: ConfigDict, params_like: Any) -> optax.GradientTransformation:
  """The optimizer that `config.optimizer` names, after clipping by the global norm.

  Args:
    config: a whole config; `optimizer` and, for `nvlamb`, `phases` are read.
    params_like: the parameters or their shapes, to check that the decay rules cover them.

  Returns:
    A transform whose `update(gradients, state, params)` gives the direction `u` of
    `params - learning_rate * u`; float32 in, float32 out. Its state: see the module.

  Raises:
    ValueError: no decay rule matches a parameter; the message names it.
  """
  decay_mask(params_like)
  clip_norm = config.optimizer.clip_norm
  clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
  return optax.chain(clip, OPTIMIZERS[config.optimizer.name](config))
