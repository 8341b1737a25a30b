"""Optimizers against NumPy versions of the papers' formulas; schedules against published runs.

The NumPy versions work in float64 on a flat dict with one entry per layer, so they share neither
stacking, nor path rules, nor optax with the code under test.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt import config as config_lib
from bertgpt import models
from bertgpt.config import choices
from bertgpt.errors import ConfigError
from bertgpt.training import optimizers, schedules
from bertgpt.training.optimizers import transforms

NUM_LAYERS = 3
STEPS = 20
SHAPES = {
    "embeddings/token/embedding": (160, 128),
    "embeddings/norm/scale": (128,),
    "embeddings/norm/bias": (128,),
    "encoder/layers/mlp/up/kernel": (NUM_LAYERS, 128, 136),
    "encoder/layers/mlp/up/bias": (NUM_LAYERS, 136),
    "encoder/layers/mlp/down/kernel": (NUM_LAYERS, 24, 16),
    "encoder/layers/mlp_norm/scale": (NUM_LAYERS, 16),
    "mlm/dense/kernel": (16, 24),
    "mlm/bias": (160,),
    "nsp/kernel": (16, 2),
    "nsp/bias": (2,),
}
PEAK = 0.05  # Peak learning rate of the phase; stable_adamw divides its decay by it.
MUON_MATRICES = ("kernel#", "mlm/dense/kernel")  # Parts of unstacked names.


def make_config(name="bert_adamw", phases=None, **overrides):
  config = config_lib.base()
  config.optimizer.name = name
  config.optimizer.weight_decay = 0.1  # Large enough to be seen within 20 steps.
  config.optimizer.update(overrides)
  config.phases = phases or (config_lib.phase(steps=STEPS, learning_rate=PEAK),)
  return config


def draw(seed, scale=1.0):
  """Returns float32 arrays by path; the values of each array have a different scale."""
  rng = np.random.default_rng(seed)
  return {path: (scale * 4.0 ** -i * rng.standard_normal(shape)).astype(np.float32)
          for i, (path, shape) in enumerate(SHAPES.items())}


def initial_params():
  params = draw(0)
  params["mlm/bias"] = np.zeros_like(params["mlm/bias"])  # As at the start of a real run.
  return params


def nest(flat):
  tree = {}
  for path, leaf in flat.items():
    *nodes, last = path.split("/")
    node = tree
    for name in nodes:
      node = node.setdefault(name, {})
    node[last] = leaf
  return tree


def flatten(tree):
  return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unstack(flat):
  """Returns one float64 entry per layer: 'encoder/layers/mlp/up/kernel#0', ..."""
  result = {}
  for path, leaf in flat.items():
    leaf = np.asarray(leaf, np.float64)
    if "/layers/" in path:
      result.update({f"{path}#{i}": layer for i, layer in enumerate(leaf)})
    else:
      result[path] = leaf
  return result


def run_jax(config, learning_rate=0.02, steps=STEPS, numbers=None):
  """Returns the parameters after `steps` updates and the last direction, as flat dicts.

  `numbers` are the indices of the steps, if some were left out or not applied.
  """
  params = jax.tree.map(jnp.asarray, nest(initial_params()))
  optimizer = optimizers.make_optimizer(config)

  @jax.jit
  def step(params, state, grads, number):
    named = {} if number is None else {"step": number}
    directions, state = optimizer.update(grads, state, params, **named)
    return jax.tree.map(lambda p, u: p - learning_rate * u, params, directions), state, directions

  state = jax.jit(optimizer.init)(params)
  for i in range(steps):
    number = None if numbers is None else jnp.int32(numbers[i])
    params, state, directions = step(params, state, nest(draw(100 + i)), number)
  return unstack(flatten(params)), unstack(flatten(directions))


def first_directions(config, *cases):
  """Returns the flat directions of the first update for each (gradients, parameters)."""
  optimizer = optimizers.make_optimizer(config)

  @jax.jit
  def first(grads, params):
    return optimizer.update(grads, optimizer.init(params), params)[0]

  return [flatten(first(nest(grads), nest(params))) for grads, params in cases]


@pytest.mark.parametrize("name", ["bert_adamw", "muon", "lamb"])
@pytest.mark.parametrize("body", ["", "body/"])
def test_lower_layers_have_shorter_steps(name, body):
  """In google-research/electra's table, a model of 3 layers has the depths 0, 1, 2, 3 and 5."""
  params, grads = ({body * (not path.startswith(("mlm", "nsp"))) + path: x for path, x in
                    draw(seed).items()} for seed in (0, 1))
  configs = [make_config(name, layer_decay=decay) for decay in (1.0, 0.8)]
  for config in configs:
    config.model.num_layers = NUM_LAYERS
  (same,), (decayed,) = (first_directions(config, (grads, params)) for config in configs)
  for path, u in same.items():
    if "embeddings/" in path:
      expected = 0.8**5 * u
    elif "/layers/" in path:
      expected = np.stack([0.8**4 * u[0], 0.8**3 * u[1], 0.8**2 * u[2]])
    else:
      expected = u
    np.testing.assert_allclose(decayed[path], expected, rtol=1e-5, atol=1e-9, err_msg=path)


def test_numbered_layers_of_both_directions_step_alike():
  """ELMo's LSTMs are stacked over directions, not layers; its word embeddings are below them."""
  config = make_config("adagrad", layer_decay=0.5)
  config.model.family, config.model.num_layers = "elmo", 2
  transform = transforms.scale_by_depth(config, models.parameter_table(config))
  u = {"encoder": {f"lstm_{i}_kernel": jnp.ones((2, 4, 4, 4)) for i in (0, 1)},
       "words": {"embedding": jnp.ones((3, 4))}, "mix": {"scale": jnp.ones(1)}}
  found, _ = transform.update({"body": u}, transform.init({"body": u}))
  means = {path: float(x.mean()) for path, x in flatten(found).items()}
  assert means == {"body/encoder/lstm_0_kernel": 0.5**3, "body/encoder/lstm_1_kernel": 0.5**2,
                   "body/words/embedding": 0.5**4, "body/mix/scale": 1.0}
  assert all(np.ptp(x) == 0 for x in flatten(found).values())


@pytest.mark.parametrize("groups, depths", [(1, (4,)), (2, (2, 4))])
def test_layers_with_the_same_parameters_step_like_the_last_of_them(groups, depths):
  config = make_config("adamw", layer_decay=0.5)
  config.model.num_layers = 4
  transform = transforms.scale_by_depth(config, models.parameter_table(config))
  u = {"encoder": {"layers": {"mlp": {"up": {"bias": jnp.ones((groups, 5))}}}}}
  found, _ = transform.update(u, transform.init(u))
  np.testing.assert_allclose(found["encoder"]["layers"]["mlp"]["up"]["bias"][:, 0],
                             [0.5 ** (6 - depth) for depth in depths], rtol=1e-6)


# ------------------------------------------------------ NumPy, by the papers


def is_decayed(name):
  return name.split("#")[0].rsplit("/")[-1] in ("kernel", "embedding")


def global_norm(grads):
  return np.sqrt(sum((g ** 2).sum() for g in grads.values()))


class NumpyOptimizer:
  """State of one NumPy run: moments by name, and t, the number of the update, from 1."""

  def __init__(self, options, restart_at=None):
    self.options, self.restart_at = options, restart_at
    self.t, self.m, self.v = 0, {}, {}

  def directions(self, params, grads):
    self.t += 1
    o = self.options
    norm = global_norm(grads)
    if norm > o.clip_norm > 0:
      grads = {name: g * o.clip_norm / norm for name, g in grads.items()}
    if o.name == "nvlamb":
      norm = global_norm(grads)
      grads = {name: g / norm for name, g in grads.items()}
    return {name: self.direction(name, p, grads[name]) for name, p in params.items()}

  def direction(self, name, p, g):
    o = self.options
    decay = o.weight_decay * p if is_decayed(name) or o.decay_rule == "all" else 0.0
    if o.name == "stable_adamw":
      return self.stable(name, g, decay)
    if o.name == "adafactor":
      return self.factored(name, g) + decay
    if o.name == "adagrad":  # Duchi et al. 2011, figure 1; TensorFlow's AdagradOptimizer.
      v = self.v[name] = self.v.get(name, o.initial_accumulator) + g ** 2
      return g / np.sqrt(v) + decay
    if o.name == "muon" and any(part in name for part in MUON_MATRICES):
      return self.orthogonal(name, g) + decay
    r = self.adam(name, g) + decay
    if o.name == "lamb" or (o.name in ("nvlamb", "albert_lamb") and is_decayed(name)):
      p_norm, r_norm = np.linalg.norm(p), np.linalg.norm(r)
      r = r * (p_norm / r_norm if p_norm > 0 and r_norm > 0 else 1.0)
    return r

  def adam(self, name, g):
    """Kingma and Ba 2014, Algorithm 1; BERT and ALBERT leave out the corrections."""
    o, t = self.options, self.t
    m = self.m[name] = o.b1 * self.m.get(name, 0.0) + (1 - o.b1) * g
    v = self.v[name] = o.b2 * self.v.get(name, 0.0) + (1 - o.b2) * g ** 2
    if o.name == "fairseq_adamw":  # fairseq/optim/adam.py: denom, step_size.
      return m * np.sqrt(1 - o.b2 ** t) / (1 - o.b1 ** t) / (np.sqrt(v) + o.epsilon)
    if o.name not in ("bert_adamw", "albert_lamb"):
      if self.restart_at and t > self.restart_at:
        t -= self.restart_at
      m, v = m / (1 - o.b1 ** t), v / (1 - o.b2 ** t)
    return m / (np.sqrt(v) + o.epsilon)

  def stable(self, name, g, decay):
    """StableAdamW of AnswerDotAI/ModernBERT, src/optimizer.py (2024), whose peak rate is PEAK."""
    o, t = self.options, self.t
    b1, b2 = ((b ** t - b) / (b ** t - 1) for b in (o.b1, o.b2))
    m = self.m[name] = b1 * self.m.get(name, 0.0) + (1 - b1) * g
    v = self.v[name] = b2 * self.v.get(name, 0.0) + (1 - b2) * g ** 2
    rms = np.sqrt(np.mean(g ** 2 / np.maximum(v, o.epsilon ** 2)))
    return (m / (np.sqrt(v) + o.epsilon) + decay / PEAK) / max(1.0, rms)

  def factored(self, name, g):
    """Shazeer and Stern 2018, Algorithms 4 (matrices) and 5 (vectors), with sums."""
    b2 = 1 - self.t ** -0.8
    square = g ** 2 + 1e-30
    if g.ndim == 2 and min(g.shape) >= 128:
      row = self.m[name] = b2 * self.m.get(name, 0.0) + (1 - b2) * square.sum(1)
      column = self.v[name] = b2 * self.v.get(name, 0.0) + (1 - b2) * square.sum(0)
      v = np.outer(row, column) / row.sum()
    else:
      v = self.v[name] = b2 * self.v.get(name, 0.0) + (1 - b2) * square
    u = g / np.sqrt(v)
    return u / max(1.0, np.sqrt(np.mean(u ** 2)))

  def orthogonal(self, name, g):
    """Jordan et al. 2024 with the factor of Liu et al. 2025, by singular values.

    An odd matrix polynomial acts only on the singular values.
    """
    mu = self.options.momentum
    b = self.m[name] = mu * self.m.get(name, 0.0) + g
    left, s, right = np.linalg.svd(g + mu * b, full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(5):
      s = 3.4445 * s - 4.7750 * s ** 3 + 2.0315 * s ** 5
    return 0.2 * np.sqrt(max(g.shape)) * (left * s) @ right


def run_numpy(config, learning_rate=0.02, steps=STEPS, restart_at=None):
  params = unstack(initial_params())
  optimizer = NumpyOptimizer(config.optimizer, restart_at)
  for i in range(steps):
    directions = optimizer.directions(params, unstack(draw(100 + i)))
    params = {name: p - learning_rate * directions[name] for name, p in params.items()}
  return params, directions


def assert_same(ours, reference, what, rtol=2e-4):
  assert ours.keys() == reference.keys()
  for name, value in reference.items():
    atol = rtol * np.sqrt(np.mean(value ** 2))
    np.testing.assert_allclose(ours[name], value, 0, atol, err_msg=f"{what} of {name}")


@pytest.mark.parametrize(
    "name, clip_norm", [*((name, 1.0) for name in choices.OPTIMIZERS), ("bert_adamw", 0.0)])
def test_twenty_steps_equal_the_papers_formulas(name, clip_norm):
  config = make_config(name, clip_norm=clip_norm)
  params, directions = run_jax(config)
  expected_params, expected_directions = run_numpy(config)
  assert_same(directions, expected_directions, "last direction")
  assert_same(params, expected_params, "parameters")


def test_all_parameters_decay_by_robertas_rule():
  overrides = dict(decay_rule="all", b2=0.98, epsilon=1e-2, clip_norm=0.0)
  config = make_config("fairseq_adamw", **overrides)
  params, _ = run_jax(config)
  assert_same(params, run_numpy(config)[0], "parameters")
  others, _ = run_jax(make_config("fairseq_adamw", **(overrides | {"decay_rule": "weights"})))
  moved = {name for name in params if not np.array_equal(params[name], others[name])}
  # A bias of zero that decays is still the same after one step, but not after twenty.
  assert moved == {name for name in params if not is_decayed(name)}


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_frozen_parameters_stay_and_do_not_count(name):
  """Other parameters move as if frozen ones had no gradient. Frozen ones have no decay either."""
  frozen = "^encoder/layers/mlp/|^embeddings/token"
  params, _ = run_jax(make_config(name, freeze=frozen, decay_rule="all"))
  start = unstack(initial_params())
  is_frozen = lambda path: path.startswith(("encoder/layers/mlp/", "embeddings/token"))
  moved = {path for path, x in params.items() if not np.array_equal(x, start[path])}
  assert moved == {path for path in start if not is_frozen(path)}
  expected = NumpyOptimizer(make_config(name, decay_rule="all").optimizer)
  grads = {path: 0 * g if is_frozen(path) else g for path, g in unstack(draw(100)).items()}
  one, _ = run_jax(make_config(name, freeze=frozen, decay_rule="all"), steps=1)
  directions = expected.directions(
      {path: x for path, x in start.items() if not is_frozen(path)},
      {path: g for path, g in grads.items() if not is_frozen(path)})
  assert_same({path: one[path] for path in directions},
              {path: start[path] - 0.02 * u for path, u in directions.items()}, "parameters")


@pytest.mark.parametrize("pattern, found", [("^layers/", "matches no parameter"),
                                            ("", "matches every parameter"), ("/up/", "")])
def test_a_pattern_that_freezes_nothing_or_all_is_refused(pattern, found):
  config = make_config(freeze=f"{pattern}.")
  with (pytest.raises(ConfigError, match=found) if found else contextlib.nullcontext()) as e:
    optimizers.check_frozen(config, nest(initial_params()))
  if found:
    assert "such as embeddings/norm/bias and nsp/kernel" in str(e.value)


@pytest.mark.parametrize("rule, restart_at", [("restart", 8), ("continuous", None)])
def test_nvlamb_restarts_the_bias_correction_with_the_rate(rule, restart_at):
  phases = (config_lib.phase(steps=8), config_lib.phase(steps=12, learning_rate_rule=rule))
  config = make_config("nvlamb", phases=phases)
  _, directions = run_jax(config, steps=9)
  assert_same(directions, run_numpy(config, steps=9, restart_at=restart_at)[1], "direction")


def test_nvlamb_restarts_with_the_rate_also_if_steps_were_left_out():
  phases = (config_lib.phase(steps=8),
            config_lib.phase(steps=12, learning_rate_rule="restart"))
  config = make_config("nvlamb", phases=phases)
  _, directions = run_jax(config, steps=7, numbers=[0, 1, 2, 3, 4, 8, 9])
  assert_same(directions, run_numpy(config, steps=7, restart_at=5)[1], "direction")


def test_stable_adamw_decays_by_the_peak_of_the_step_also_if_steps_were_left_out():
  phases = (config_lib.phase(steps=8, learning_rate=100 * PEAK),
            config_lib.phase(steps=12, learning_rate=PEAK, learning_rate_rule="restart"))
  config = make_config("stable_adamw", phases=phases)
  params, _ = run_jax(config, steps=5, numbers=range(8, 13))
  assert_same(params, run_numpy(config, steps=5)[0], "parameters")
  others, _ = run_jax(config, steps=5)
  assert any(not np.allclose(params[name], others[name]) for name in params)


def test_stable_adamw_is_finite_where_no_gradient_has_arrived():
  """Such as the rows of tokens that the text lacks; the square of this epsilon is 0 in float32."""
  grads = {name: np.zeros_like(g) for name, g in draw(1).items()}
  config = make_config("stable_adamw", epsilon=1e-25)
  [directions] = first_directions(config, (grads, initial_params()))
  assert all(np.isfinite(direction).all() for direction in directions.values())


def test_bert_adamw_first_step_is_adamws_times_its_missing_correction():
  overrides = dict(weight_decay=0.0, clip_norm=0.0, epsilon=1e-30)
  case = (draw(1), initial_params())
  [bert] = first_directions(make_config("bert_adamw", **overrides), case)
  [adamw] = first_directions(make_config("adamw", **overrides), case)
  for path, direction in adamw.items():
    np.testing.assert_allclose(np.abs(direction), 1.0, rtol=1e-4, err_msg=path)
    np.testing.assert_allclose(bert[path], direction * 0.1 / np.sqrt(0.001), rtol=1e-4)


def test_epsilon_stands_outside_the_square_root():
  # With epsilon >> |g|, the direction is m / epsilon; with epsilon inside, it is m / sqrt(epsilon).
  grads = draw(1, scale=1e-12)
  for name, first_moment in (("bert_adamw", 0.1), ("adamw", 1.0)):
    config = make_config(name, weight_decay=0.0, clip_norm=0.0, epsilon=1e-3)
    [directions] = first_directions(config, (grads, initial_params()))
    for path, direction in directions.items():
      np.testing.assert_allclose(direction, first_moment * grads[path] / 1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["nvlamb", "adafactor", "muon"])
def test_direction_is_invariant_to_the_gradients_scale(name):
  # In muon's AdamW part, the direction is invariant only if epsilon is negligible.
  config = make_config(name, clip_norm=0.0, epsilon=1e-20)
  grads, params = draw(1), initial_params()
  scaled = {path: 1000 * g for path, g in grads.items()}
  small, large = first_directions(config, (grads, params), (scaled, params))
  for path in grads:
    np.testing.assert_allclose(large[path], small[path], rtol=1e-3, atol=1e-5, err_msg=path)


def test_lamb_steps_are_as_long_as_their_parameters():
  params = draw(0)
  [directions] = first_directions(make_config("lamb"), (draw(1), params))
  directions = unstack(directions)
  for name, p in unstack(params).items():
    assert np.linalg.norm(directions[name]) == pytest.approx(np.linalg.norm(p), rel=1e-4), name


def test_nvlamb_leaves_biases_and_norms_without_decay_and_trust_ratio():
  grads, params = draw(1), draw(0)
  twice = {path: 2 * p for path, p in params.items()}
  once, doubled = first_directions(make_config("nvlamb"), (grads, params), (grads, twice))
  for path in SHAPES:
    is_adapted = is_decayed(path)
    assert np.array_equal(once[path], doubled[path]) != is_adapted, path


@pytest.mark.parametrize("name", [n for n in choices.OPTIMIZERS if n != "nvlamb"])
def test_a_layers_direction_depends_on_that_layer_alone(name):
  grads, params, other_grads, other_params = draw(1), draw(0), draw(1), draw(0)
  for path in SHAPES:
    if "/layers/" in path:
      other_grads[path][1] = 7 * grads[path][1, ::-1]
      other_params[path][1] *= 5
  before, after = first_directions(
      make_config(name, clip_norm=0.0), (grads, params), (other_grads, other_params))
  for path in SHAPES:
    others = np.s_[[0, 2]] if "/layers/" in path else np.s_[:]
    np.testing.assert_allclose(after[path][others], before[path][others], rtol=1e-5, atol=1e-7,
                               err_msg=path)


def test_muon_turns_hidden_matrices_into_nearly_orthogonal_ones():
  config = make_config("muon", weight_decay=0.0, epsilon=1e-20)
  [directions] = first_directions(config, (draw(1), initial_params()))
  directions = unstack(directions)
  for name in ("encoder/layers/mlp/down/kernel#2", "mlm/dense/kernel"):
    values = np.linalg.svd(directions[name], compute_uv=False) / (0.2 * np.sqrt(24))
    assert 0.6 < values.min() and values.max() < 1.25, name
  # Embeddings and the classifier take Adam's step, whose entries are all of size 1 at first.
  for name in ("embeddings/token/embedding", "nsp/kernel"):
    np.testing.assert_allclose(np.abs(directions[name]), 1.0, rtol=1e-4, err_msg=name)


def test_clipping_sees_the_norm_over_all_parameters():
  grads = draw(1)
  scale = 1 / global_norm({path: g.astype(np.float64) for path, g in grads.items()})
  config = make_config(clip_norm=0.5)
  params = nest(initial_params())
  optimizer = optimizers.make_optimizer(config)
  _, state = jax.jit(optimizer.update)(nest(grads), jax.jit(optimizer.init)(params), params)
  first_moment = flatten(state[1][0].mu)
  for path, g in grads.items():
    np.testing.assert_allclose(first_moment[path], 0.1 * 0.5 * scale * g, rtol=1e-4)


def test_the_mask_of_weights_is_berts():
  weights_mask = transforms.weights_mask(models.parameter_table(make_config()))
  mask = flatten(weights_mask(nest(initial_params())))
  assert {path for path, decayed in mask.items() if decayed} == {
      "embeddings/token/embedding", "encoder/layers/mlp/up/kernel",
      "encoder/layers/mlp/down/kernel", "mlm/dense/kernel", "nsp/kernel"}


def test_a_parameter_without_a_decay_rule_is_named():
  params = {"decoder": {"layers": {"gate": {"temperature": jnp.ones(())}}}}
  with pytest.raises(ValueError, match="decoder/layers/gate/temperature"):
    optimizers.make_optimizer(make_config()).init(params)


@pytest.mark.parametrize("name", list(choices.OPTIMIZERS))
def test_moments_carry_the_path_and_shape_of_their_parameter(name):
  params = nest({path: jax.ShapeDtypeStruct(shape, jnp.float32)
                 for path, shape in SHAPES.items()})
  optimizer = optimizers.make_optimizer(make_config(name))
  leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf
            in jax.tree_util.tree_leaves_with_path(jax.eval_shape(optimizer.init, params))}
  sharded = {path: 0 for path in SHAPES}
  replicated = 0
  for leaf_path, shape in leaves.items():
    owners = [path for path in SHAPES
              if leaf_path.endswith(f"/{path}") and shape == SHAPES[path]]
    for path in owners:
      sharded[path] += 1
    replicated += 0 if owners else int(np.prod(shape))
  factored = {"embeddings/token/embedding", "encoder/layers/mlp/up/kernel"}
  for path, count in sharded.items():
    if name == "adafactor":
      assert count == (path not in factored), path
    elif name == "adagrad":
      assert count == 1, path
    elif name == "muon":
      assert count == (1 if "layers" in path and "kernel" in path or "dense" in path else 2), path
    else:
      assert count == 2, path
  # Only a row and a column of each factored matrix, and small arrays, are replicated.
  assert replicated <= (160 + 128 + NUM_LAYERS * (128 + 136) + 60 if name == "adafactor" else 1)


@pytest.mark.parametrize("name", list(choices.OPTIMIZERS))
def test_a_tree_without_stacked_layers_is_optimized_too(name):
  params = {"nsp": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}}
  optimizer = optimizers.make_optimizer(make_config(name))
  directions, _ = jax.jit(optimizer.update)(params, jax.jit(optimizer.init)(params), params)
  assert all(np.all(np.asarray(u) > 0) for u in jax.tree.leaves(directions))


# ---------------------------------------------------------------- schedules


def rates(phases, steps):
  config = make_config(phases=phases)
  return np.asarray(jax.jit(schedules.make_schedule(config))(jnp.asarray(steps)))


def test_bert_base_rates():
  phases = (
      config_lib.phase(steps=900_000, learning_rate=1e-4, warmup_steps=10_000),
      config_lib.phase(steps=100_000, seq_len=512, learning_rate_rule="continuous",
                       learning_rate=7.0, warmup_steps=3, schedule="constant"))
  steps = [0, 1, 5_000, 9_999, 10_000, 500_000, 899_999, 900_000, 999_999, 1_000_000, 2_000_000]
  expected = [0, 1e-8, 5e-5, 9.999e-5, 9.9e-5, 5e-5, 1.00001e-5, 1e-5, 1e-10, 0, 0]
  np.testing.assert_allclose(rates(phases, steps), expected, rtol=1e-6)


def test_nvidia_lamb_rates():
  phases = (
      config_lib.phase(steps=7_038, learning_rate=6e-3, warmup_fraction=0.2843,
                       schedule="polynomial", power=0.5),
      config_lib.phase(steps=1_563, learning_rate=4e-3, warmup_fraction=0.128,
                       schedule="polynomial", power=0.5))

  # PolyWarmUpScheduler.get_lr with last_epoch = step.
  def published(step, total, peak, warmup):
    progress = step / total
    return peak * progress / warmup if progress < warmup else peak * (1 - progress) ** 0.5

  steps = np.array([0, 1, 1_000, 2_000, 2_001, 5_000, 7_037])
  expected = [published(s, 7_038, 6e-3, 0.2843) for s in steps]
  np.testing.assert_allclose(rates(phases, steps), expected, rtol=1e-5)
  assert expected[3] > 5.99e-3 and expected[4] < 5.08e-3 and 7.1e-5 < expected[6] < 7.2e-5
  steps = np.array([0, 1, 200, 201, 1_000, 1_562])
  expected = [published(s, 1_563, 4e-3, 0.128) for s in steps]
  np.testing.assert_allclose(rates(phases, 7_038 + steps), expected, rtol=1e-5)


def fairseq_rate(num_updates, peak, warmup, total, end=0.0, power=1.0):
  """polynomial_decay_schedule.py, 2019: the rate after `num_updates` updates."""
  if num_updates <= warmup:
    return peak * num_updates / warmup
  if num_updates >= total:
    return end
  left = 1 - (num_updates - warmup) / (total - warmup)
  return (peak - end) * left ** power + end


@pytest.mark.parametrize("fields", [{}, {"end_fraction": 0.1},
                                    {"schedule": "polynomial", "power": 2.0}])
def test_roberta_rates(fields):
  phases = (config_lib.phase(steps=500_000, learning_rate=6e-4, warmup_steps=24_000,
                             warmup_rule="before", **fields),)
  at = [0, 1, 12_000, 23_999, 24_000, 24_001, 262_000, 499_999, 500_000, 600_000]
  end, power = 6e-4 * fields.get("end_fraction", 0.0), fields.get("power", 1.0)
  expected = [fairseq_rate(step, 6e-4, 24_000, 500_000, end, power) for step in at]
  np.testing.assert_allclose(rates(phases, at), expected, rtol=1e-5)
  assert max(expected) == expected[4] == 6e-4


def test_electra_rates():
  """google-research/electra, model/optimization.py: the decay times the share of the warm-up."""
  phases = (config_lib.phase(steps=1_000_000, learning_rate=5e-4, warmup_steps=10_000,
                             warmup_rule="multiply"),)
  at = np.array([0, 1, 5_000, 9_999, 10_000, 500_000, 999_999, 1_000_000])
  expected = 5e-4 * (1_000_000 - at) / 1e6 * np.minimum(1.0, at / 10_000)
  np.testing.assert_allclose(rates(phases, at), expected, rtol=1e-6)


def test_gpt2_cosine_rates():
  phases = (config_lib.phase(steps=600_000, learning_rate=6e-4, warmup_steps=2_000,
                             schedule="cosine", end_fraction=0.1),)
  # nanoGPT: 6e-5 + (6e-4 - 6e-5) (1 + cos(pi (it - 2,000) / 598,000)) / 2.
  third, middle = round(2_000 + 598_000 / 3), 2_000 + 598_000 // 2
  np.testing.assert_allclose(
      rates(phases, [0, 1_000, 2_000, third, middle, 600_000, 700_000]),
      [0, 3e-4, 6e-4, 4.65e-4, 3.3e-4, 6e-5, 6e-5], rtol=1e-5)


@pytest.mark.parametrize("power, at_quarter", [(1.0, 0.75), (0.5, 0.5)])
def test_wsd_rates(power, at_quarter):
  phases = (config_lib.phase(steps=1_000, learning_rate=2.0, warmup_steps=100, schedule="wsd",
                             decay_fraction=0.2, power=power),)
  np.testing.assert_allclose(
      rates(phases, [50, 100, 500, 800, 850, 1_000]),
      [1.0, 2.0, 2.0, 2.0, 2 * at_quarter, 0.0], rtol=1e-5, atol=1e-7)


def test_constant_keeps_its_peak_and_ignores_the_end():
  phases = (config_lib.phase(steps=10, learning_rate=3.0, warmup_steps=2, schedule="constant",
                             end_fraction=0.1),)
  np.testing.assert_allclose(rates(phases, [0, 1, 2, 9, 99]), [0, 1.5, 3, 3, 3])


@pytest.mark.parametrize("schedule", ["cosine", "constant", "wsd"])
def test_rates_do_not_jump_but_where_a_curve_restarts(schedule):
  fields = dict(learning_rate=1.0, warmup_fraction=0.1, schedule=schedule, end_fraction=0.2)
  phases = (config_lib.phase(steps=600, **fields),
            config_lib.phase(steps=400, learning_rate_rule="continuous", **fields),
            config_lib.phase(steps=500, **fields))
  changes = np.abs(np.diff(rates(phases, np.arange(1_500))))
  assert changes[999] > 0.19
  assert np.delete(changes, 999).max() < 0.021


def test_continuous_phases_share_one_curve_whatever_their_cut():
  fields = dict(learning_rate=1e-3, warmup_fraction=0.05, schedule="cosine")
  whole = rates((config_lib.phase(steps=1_000, **fields),), np.arange(1_000))
  cut = rates((config_lib.phase(steps=300, **fields),
               config_lib.phase(steps=700, learning_rate_rule="continuous")), np.arange(1_000))
  np.testing.assert_array_equal(cut, whole)


@pytest.mark.parametrize("fields", [
    dict(schedule="cosine", warmup_fraction=1.0), dict(schedule="wsd", decay_fraction=0.0),
    dict(schedule="wsd", decay_fraction=1.0, warmup_steps=10),
    dict(schedule="polynomial", power=0.5, warmup_steps=50),
    dict(warmup_rule="before", warmup_steps=10), dict(warmup_rule="before", warmup_steps=50),
    dict(warmup_rule="before", warmup_fraction=1.0),
    dict(warmup_rule="multiply", warmup_steps=50)])
def test_rates_are_finite_at_the_edges(fields):
  phases = (config_lib.phase(steps=10, learning_rate=1.0, **fields), config_lib.phase(steps=10))
  values = rates(phases, np.arange(25))
  assert np.all(np.isfinite(values)) and values.min() >= 0 and values.max() <= 1


@pytest.mark.parametrize("fields, is_long", [
    (dict(warmup_steps=9), False), (dict(warmup_steps=10), True), (dict(warmup_steps=11), True),
    (dict(warmup_fraction=0.5), False), (dict(schedule="constant", warmup_fraction=1.0), True),
    (dict(schedule="wsd", decay_fraction=0.5, warmup_steps=5), False),
    (dict(schedule="wsd", decay_fraction=0.5, warmup_steps=6), True),
    (dict(schedule="wsd", decay_fraction=1.0), False)])
def test_a_rate_that_never_reaches_its_peak_is_announced(fields, is_long):
  """The last of ten steps has index 9: with a warm-up of nine steps, it has the peak."""
  phases = [config_lib.phase(steps=7, learning_rate=1e-3, **fields),
            config_lib.phase(steps=3, learning_rate_rule="continuous")]
  lines = schedules.find_long_warmups(phases)
  assert len(lines) == is_long
  if is_long:
    assert "never reaches 0.001: the warm-up takes" in lines[0] and "are 10 in all" in lines[0]


RATES = "the learning rate of the next step is {}, that of the last step was {}"


@pytest.mark.parametrize("fields, step, rates", [
    (dict(schedule="constant"), 10, ()),
    (dict(schedule="constant", warmup_steps=4), 10, ()),
    (dict(schedule="linear"), 10, (0.5, 0.1)),
    (dict(schedule="linear"), 5, (0.75, 0.6)),
    (dict(schedule="cosine"), 10, (0.5, 0.02447)),
    (dict(schedule="wsd", decay_fraction=0.2), 5, ()),  # The decay has not begun.
    (dict(schedule="wsd", decay_fraction=0.2), 10, (1, 0.5)),
    (dict(schedule="linear", warmup_steps=8), 4, ()),
    (dict(schedule="linear", warmup_fraction=0.5), 4, (0.4, 0.6)),
])
def test_a_longer_run_describes_its_curve(fields, step, rates):
  """Steps grow from 10 to 20. By hand: cosine, (1 + cos(0.9 pi)) / 2; wsd, 1 - (9 - 8) / 2."""
  old, new = (config_lib.base() for _ in range(2))
  old.phases = (config_lib.phase(steps=10, learning_rate=1.0, **fields),)
  new.phases = (config_lib.phase(steps=20, learning_rate=1.0, **fields),)
  found = schedules.describe_change(old, new, step)
  reason = ", because the run now has 20 steps instead of 10"
  assert found == (RATES.format(*rates) + reason if rates else "")
  assert schedules.describe_change(old, old, step) == ""


def test_another_peak_is_described_without_a_number_of_steps():
  old, new = (config_lib.base() for _ in range(2))
  old.phases = (config_lib.phase(steps=10, learning_rate=1.0, schedule="constant"),)
  new.phases = (config_lib.phase(steps=10, learning_rate=0.5, schedule="constant"),)
  assert schedules.describe_change(old, new, 3) == RATES.format(0.5, 1)
