"""Losses of tasks agree with NumPy; padding and the empty rows of a batch do not count."""

import jax
import numpy as np
import pytest
import tiny
from ml_collections import FrozenConfigDict

from bertgpt.finetuning import objectives as task_objectives
from bertgpt.finetuning.tasks import rows as rows_lib
from bertgpt.finetuning.tasks.rows import Rows
from bertgpt.training import objectives, steps

KINDS = {"classes": 3, "values": 1, "tokens": 4, "spans": 2}


def make_rows(kind, count=6, seed=0):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(5, 15, count)
  tokens = [rng.integers(5, tiny.VOCAB, n).astype(np.int32) for n in lengths]
  labels = {"classes": rng.integers(0, 3, count).astype(np.int32),
            "values": rng.normal(size=count).astype(np.float32),
            "tokens": [rng.integers(-1, 4, n).astype(np.int32) for n in lengths],
            "spans": np.sort([rng.integers(0, n, 2) for n in lengths]).astype(np.int32)}[kind]
  return Rows(tokens, [np.arange(n, dtype=np.int32) // 8 for n in lengths], labels)


def make_head(family, kind, **model):
  config = tiny.make_config("causal" if family == "decoder" else "mlm_nsp", **model)
  head = task_objectives.find_task_head(config, kind)
  module = head.make_model(FrozenConfigDict(config.model), KINDS[kind])
  objective = head.make_objective(config, 0.5)
  params = jax.jit(lambda: steps.init_state(
      steps.Setup(config, None, module, objective)).params)()
  # Biases start at 0, which would hide errors.
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(1)
  params = tree.unflatten([x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves])
  return head, module, objective, params


def evaluate(objective, module, params, batch, dropout_key=None):
  return jax.jit(lambda params, batch, key: objective.compute_sums(
      objectives.BoundModel(module, params, key), batch)[0])(params, batch, dropout_key)


def collate(rows, size, length):
  return rows_lib.collate(rows, np.arange(len(rows)), size, length, seed=0)


def log_softmax(x):
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def expected_loss(kind, outputs, rows):
  """Returns the loss of float64 outputs, computed row by row without padding."""
  losses = []
  for out, label, tokens in zip(outputs, rows.labels, rows.tokens, strict=True):
    if kind == "classes":
      losses.append(-log_softmax(out)[label])
    elif kind == "values":
      losses.append((out[0] - label) ** 2)
    elif kind == "tokens":
      losses += [-log_softmax(out[i])[y] for i, y in enumerate(label) if y >= 0]
    else:
      ends = log_softmax(out[:len(tokens)].T)
      losses.append(-(ends[0, label[0]] + ends[1, label[1]]) / 2)
  return np.mean(losses)


CASES = list(task_objectives.TASK_HEADS)


@pytest.mark.parametrize("family, kind", CASES)
def test_losses_are_those_of_numpy(family, kind):
  _, module, objective, params = make_head(family, kind)
  rows = make_rows(kind)
  batch = collate(rows, 8, 16)
  outputs = jax.jit(module.apply)({"params": params}, objective.init_inputs(batch))
  outputs = outputs[0] if family == "decoder" else outputs
  sums = evaluate(objective, module, params, batch)
  loss = sums["task_loss"][0] / objective.weights(batch)["task_loss"]
  expected = expected_loss(kind, np.asarray(outputs, np.float64)[:len(rows)], rows)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(sums["task_loss"][1], objective.weights(batch)["task_loss"])


@pytest.mark.parametrize("family, kind", CASES)
def test_neither_padding_nor_other_rows_matter(family, kind):
  head, module, objective, params = make_head(family, kind)
  rows = make_rows(kind)
  results = []
  for size, length in ((6, 16), (8, 32)):
    batch = collate(rows, size, length)
    if length == 32:
      batch = {name: np.concatenate([x, np.zeros((size, 16), x.dtype)], 1)
               if x.ndim == 2 and x.shape[1] == 16 else x for name, x in batch.items()}
      batch["positions"] = np.tile(np.arange(32, dtype=np.int32), (size, 1))
      if kind == "tokens":
        batch["labels"][:, 16:] = -1
    sums = evaluate(objective, module, params, batch)
    outputs = np.asarray(jax.jit(head.predict, static_argnums=0)(module, params, batch))[:6]
    results.append((float(objectives.total_loss(sums, objective.weights(batch))),
                    [x[..., :len(t)] if x.ndim else x
                     for x, t in zip(outputs, rows.tokens, strict=True)]))
  np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
  for one, other in zip(results[0][1], results[1][1], strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_language_model_of_a_gpt_counts_half():
  """The loss is task + 0.5 * mean over all tokens after the first (Radford et al. 2018, eq. 5)."""
  _, module, objective, params = make_head("decoder", "classes")
  rows = make_rows("classes")
  batch = collate(rows, 8, 16)
  sums = evaluate(objective, module, params, batch)
  outputs, prediction = tiny.apply(module, params, objective.init_inputs(batch))
  log_p = log_softmax(np.asarray(prediction.logits(), np.float64))
  lm = [-log_p[row, i, tokens[i + 1]] for row, tokens in enumerate(rows.tokens)
        for i in range(len(tokens) - 1)]
  task = expected_loss("classes", np.asarray(outputs, np.float64)[:6], rows)
  np.testing.assert_allclose(objectives.total_loss(sums, objective.weights(batch)),
                             task + 0.5 * np.mean(lm), rtol=1e-5)


def test_a_gpt_classifies_by_its_last_token():
  _, module, objective, params = make_head("decoder", "classes")
  rows = make_rows("classes")
  batch = collate(rows, 6, 16)
  gradient = jax.jit(jax.grad(lambda table: module.apply(
      {"params": {**params, "body": {**params["body"], "embeddings": {
          **params["body"]["embeddings"], "position": {"embedding": table}}}}},
      objective.init_inputs({k: v[:1] for k, v in batch.items()}))[0].sum()))(
          params["body"]["embeddings"]["position"]["embedding"])
  read = np.flatnonzero(np.abs(gradient).sum(1))
  assert read.tolist() == list(range(len(rows.tokens[0])))


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_dropout_depends_on_the_runs_seed(family):
  _, module, objective, params = make_head(family, "classes", dropout=0.5)
  batch = collate(make_rows("classes"), 8, 16)

  def loss(seed):
    sums = evaluate(objective, module, params, batch | {"seed": np.full(8, seed, np.int32)},
                    jax.random.key(0))
    return float(sums["task_loss"][0])

  assert loss(1) == loss(1) and loss(1) != loss(2)


@pytest.mark.parametrize("family, kind", [
    ("encoder", "tokens"), pytest.param("decoder", "classes", marks=pytest.mark.slow)])
def test_gradients_do_not_depend_on_micro_batches(family, kind):
  _, module, objective, params = make_head(family, kind)
  config = tiny.make_config()
  batch = collate(make_rows(kind, count=7), 8, 16)
  results = []
  for config.phases[0].micro_batches in (1, 4):
    setup = steps.Setup(config, None, module, objective)
    results.append(jax.jit(steps.make_gradients(setup))(params, batch, 0, {})[0].grads)
  for one, other in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
