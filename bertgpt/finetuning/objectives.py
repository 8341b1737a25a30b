"""What a task minimises and predicts, for the train step of pretraining.

Axes: B rows, L length, C outputs.

A batch holds `tokens`, `segment_ids`, `sequence_ids` (1, and 0 for padding), `positions`, int32
[B, L]; `labels`; `example_weights` float32 [B], 0 for rows that only fill up the batch; `seed`
int32 [B], of the run.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.config import ConfigDict, families
from bertgpt.data.batches.parts import Specs, sequence_specs
from bertgpt.models import Inputs, Module, cross_entropy, heads
from bertgpt.training.objectives import Batch, Objective, Sums

NEVER = -1e9  # Logit of a position that cannot be chosen.


class Head(NamedTuple):
  """One kind of task.

  Attributes:
    make_model: (config.model, number of outputs) -> module.
    make_objective: (config of the run, weight of the LM loss) -> objective.
    predict: (module, params, batch) -> what the task's scores are made of.
  """

  make_model: Callable[..., Module]
  make_objective: Callable[[ConfigDict, float], Objective]
  predict: Callable[[Module, dict, Batch], jax.Array]


def _apply(model, params, batch, keys):
  """The seed comes with the batch: one compiled step serves every run."""
  rngs = {}
  if "dropout" in keys:
    rngs = {"dropout": jax.random.fold_in(keys["dropout"], batch["seed"][0])}
  return model.apply({"params": params}, Inputs.of(batch), rngs=rngs)


def _specs(phase: ConfigDict) -> Specs:
  """Returns what a batch holds that the model reads; labels differ between tasks."""
  return sequence_specs(phase.seq_len) | {"segment_ids": ((phase.seq_len,), np.int32)}


def _make_encoder_objective(score: Callable[[jax.Array, Batch], Sums], config: ConfigDict,
                            lm_weight: float) -> Objective:
  """Returns the objective with one loss, `task_loss`, over examples."""
  del config, lm_weight

  def evaluate(model, params, batch, keys):
    return score(_apply(model, params, batch, keys), batch)

  def weights(batch):
    return {"task_loss": _task_weight(batch)}

  return Objective(_specs, _keep, weights, evaluate, Inputs.of)


def _keep(batch, key, row_ids):
  return batch


def _task_weight(batch: Batch) -> jax.Array:
  """Examples, or labelled tokens."""
  labels = batch["labels"]
  if labels.shape == batch["tokens"].shape:
    return _token_weights(batch).sum()
  return batch["example_weights"].sum()


def _token_weights(batch: Batch) -> jax.Array:
  return (batch["labels"] >= 0) * batch["example_weights"][:, None]


def score_classes(logits_BC: jax.Array, batch: Batch) -> Sums:
  """Cross-entropy of `labels`, int32 [B]."""
  loss, correct = cross_entropy.score_logits(logits_BC, batch["labels"], batch["example_weights"])
  weight = batch["example_weights"].sum()
  return {"task_loss": (loss, weight), "task_accuracy": (correct, weight)}


def score_values(outputs_B1: jax.Array, batch: Batch) -> Sums:
  """Squared error of `labels`, float32 [B]."""
  errors_B = (outputs_B1[:, 0] - batch["labels"]) ** 2
  weights_B = batch["example_weights"]
  return {"task_loss": ((errors_B * weights_B).sum(), weights_B.sum())}


def score_tokens(logits_BLC: jax.Array, batch: Batch) -> Sums:
  """Cross-entropy of `labels`, int32 [B, L], where they are not negative."""
  weights_BL = _token_weights(batch)
  labels_BL = jnp.maximum(batch["labels"], 0)
  loss, correct = cross_entropy.score_logits(logits_BLC, labels_BL, weights_BL)
  weight = weights_BL.sum()
  return {"task_loss": (loss, weight), "task_accuracy": (correct, weight)}


def score_spans(logits_BL2: jax.Array, batch: Batch) -> Sums:
  """Mean of the cross-entropies of start and end; `labels` are positions, int32 [B, 2]."""
  logits_B2L = _possible(logits_BL2, batch)
  weights_B = batch["example_weights"]
  loss, correct = cross_entropy.score_logits(logits_B2L, batch["labels"],
                                             jnp.stack([weights_B, weights_B], 1))
  weight = weights_B.sum()
  return {"task_loss": (loss / 2, weight), "task_accuracy": (correct / 2, weight)}


def _possible(logits_BL2, batch):
  """Starts and ends, [B, 2, L]: no answer lies in the padding, however long it is."""
  return jnp.where(batch["sequence_ids"][:, None] > 0, jnp.swapaxes(logits_BL2, 1, 2), NEVER)


def _make_decoder_objective(score: Callable[[jax.Array, Batch], Sums], config: ConfigDict,
                       lm_weight: float) -> Objective:
  """Returns the task's loss + lm_weight * the language model's (Radford et al. 2018, eq. 5).

  The auxiliary loss is a mean over all tokens of the batch but the first of each row.
  """

  def weights(batch):
    both = {"task_loss": _task_weight(batch)}
    if lm_weight:  # The step divides by it, so a loss counts half with twice the weight.
      both["lm_loss"] = _lm_targets(batch)[1].sum() / lm_weight
    return both

  def evaluate(model, params, batch, keys):
    outputs_BC, prediction = _apply(model, params, batch, keys)
    sums = score(outputs_BC, batch)
    if lm_weight:
      targets_BL, weights_BL = _lm_targets(batch)
      loss, _ = cross_entropy.score(prediction, targets_BL, weights_BL,
                                    config.objective.loss_chunk)
      sums["lm_loss"] = loss, weights_BL.sum()
    return sums

  return Objective(_specs, _keep, weights, evaluate, Inputs.of)


def _lm_targets(batch):
  targets_BL = jnp.roll(batch["tokens"], -1, 1)
  is_next_BL = jnp.roll(batch["sequence_ids"], -1, 1).at[:, -1].set(0) > 0
  return targets_BL, is_next_BL * batch["example_weights"][:, None]


# -------------------------------------------------------------- predictions


def _encoder_head(make_model, score, finish) -> Head:
  return Head(make_model, functools.partial(_make_encoder_objective, score),
              lambda model, params, batch: finish(_apply(model, params, batch, {}), batch))


def _decoder_head(score, finish) -> Head:
  return Head(heads.DecoderClassifier, functools.partial(_make_decoder_objective, score),
              lambda model, params, batch: finish(_apply(model, params, batch, {})[0], batch))


def _classes(logits, batch):
  return logits.argmax(-1).astype(jnp.int32)


def _values(outputs_B1, batch):
  return outputs_B1[:, 0]


# (kind of family, kind of task) -> head
HEADS = {
    ("encoder", "classes"): _encoder_head(heads.EncoderClassifier, score_classes, _classes),
    ("encoder", "values"): _encoder_head(heads.EncoderClassifier, score_values, _values),
    ("encoder", "tokens"): _encoder_head(functools.partial(heads.EncoderTagger, use_dropout=True),
                                         score_tokens, _classes),
    ("encoder", "spans"): _encoder_head(functools.partial(heads.EncoderTagger, use_dropout=False),
                                        score_spans, _possible),
    ("decoder", "classes"): _decoder_head(score_classes, _classes),
    ("decoder", "values"): _decoder_head(score_values, _values),
}


def find_head(config: ConfigDict, kind: str) -> Head:
  """Returns the head of a task for the family of a config.

  Args:
    kind: of the task, as in `tasks.rows.Task`.
  """
  return HEADS[families.find(config).kind, kind]
