"""Pretraining objectives: the corruption and the loss, both jitted into the step.

Axes: B rows, L length, K prediction slots of a row, P sequences of a row, V vocabulary.

A loss is a sum and a weight; the train step divides once, by the weight of the whole
global batch (design contract: the same loss for every mesh and micro-batching).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt import config as config_lib
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.models import Module, cross_entropy

Batch = Mapping[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]  # metric -> (sum, weight), float32 scalars


class Objective(NamedTuple):
  """One pretraining objective, as pure functions.

  Attributes:
    corrupt: (batch, key, row_ids_B) -> batch with inputs and targets. What happens to a
      row depends on the key and its row id only, not on the batch around it.
    weights: corrupted batch -> weight of every loss term, float32 scalars.
    evaluate: (model, params, corrupted batch, dropout key or None) -> sums of the loss
      terms and of the other metrics.
    init_inputs: batch -> positional arguments that create all parameters.
  """

  corrupt: Callable[[Batch, jax.Array, jax.Array], Batch]
  weights: Callable[[Batch], dict[str, jax.Array]]
  evaluate: Callable[[Module, dict, Batch, jax.Array | None], Sums]
  init_inputs: Callable[[Batch], tuple]


def make_objective(config: config_lib.ConfigDict, vocabulary: Vocabulary) -> Objective:
  return OBJECTIVES[config.objective.name](config, vocabulary)


def total_loss(sums: Sums, weights: Mapping[str, jax.Array]) -> jax.Array:
  """The sum over loss terms of (sum / global weight): the number that is minimised."""
  return sum(sums[name][0] / jnp.maximum(weight, 1) for name, weight in weights.items())


# --------------------------------------------------------------- masked LM


def make_mlm_nsp(config: config_lib.ConfigDict, vocabulary: Vocabulary) -> Objective:
  """Masked LM + next sentence prediction (Devlin et al. 2018): mean + mean."""
  score_mlm = _make_score_mlm(config)

  def weights(batch):
    return {"mlm_loss": batch["predict_weights"].sum(), "nsp_loss": batch["nsp_weights"].sum()}

  def evaluate(model, params, batch, dropout_key):
    mlm, nsp_logits_BP2 = _predict(model, params, _encoder_inputs(batch), dropout_key)
    nsp_weights_BP = batch["nsp_weights"]
    nsp = cross_entropy.score_logits(nsp_logits_BP2, batch["nsp_labels"], nsp_weights_BP)
    return score_mlm(mlm, batch) | _sums("nsp", nsp, nsp_weights_BP)

  return Objective(_make_corrupt(config, vocabulary), weights, evaluate, _encoder_inputs)


def make_mlm(config: config_lib.ConfigDict, vocabulary: Vocabulary) -> Objective:
  """Masked LM alone (Liu et al. 2019, RoBERTa)."""
  score_mlm = _make_score_mlm(config)

  def weights(batch):
    return {"mlm_loss": batch["predict_weights"].sum()}

  def evaluate(model, params, batch, dropout_key):
    mlm, _ = _predict(model, params, _encoder_inputs(batch), dropout_key)
    return score_mlm(mlm, batch)

  return Objective(_make_corrupt(config, vocabulary), weights, evaluate, _encoder_inputs)


def _encoder_inputs(batch: Batch) -> tuple:
  return (batch["tokens"], batch["segment_ids"], batch["sequence_ids"], batch["positions"],
          batch["predict_positions"], batch.get("nsp_positions"))


def _make_score_mlm(config):

  def score_mlm(prediction, batch):
    weights_BK = batch["predict_weights"]
    return _sums("mlm", cross_entropy.score(prediction, batch["predict_targets"], weights_BK,
                                            config.objective.loss_chunk), weights_BK)

  return score_mlm


def _make_corrupt(config, vocabulary):
  slots = {p.seq_len: config_lib.max_predictions(config, p) for p in config.phases}
  objective = config.objective
  choose = choose_words if objective.whole_words else choose_tokens
  is_special_V = np.zeros(config_lib.padded_vocab_size(vocabulary.size), bool)
  is_special_V[list(vocabulary.special_ids)] = True

  def corrupt(batch, key, row_ids_B):
    tokens_BL = batch["tokens"]
    row_keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, row_ids_B)
    keys_B3 = jax.vmap(lambda k: jax.random.split(k, 3))(row_keys_B)
    is_candidate_BL = (batch["sequence_ids"] > 0) & ~jnp.asarray(is_special_V)[tokens_BL]
    count_B = count_predictions((batch["sequence_ids"] > 0).sum(1), objective.mask_prob,
                                slots[tokens_BL.shape[1]])
    continues_BL = (jnp.asarray(vocabulary.continues_word)[tokens_BL]
                    if objective.whole_words else None)
    positions_BK, weights_BK = choose(keys_B3[:, 0], is_candidate_BL, continues_BL, count_B,
                                      slots[tokens_BL.shape[1]])
    targets_BK = jnp.take_along_axis(tokens_BL, positions_BK, axis=1)
    shown_BK = show(keys_B3[:, 1], keys_B3[:, 2], targets_BK, objective, vocabulary)
    shown_BK = jnp.where(weights_BK > 0, shown_BK, targets_BK)
    return {**batch, "tokens": _put(tokens_BL, positions_BK, shown_BK),
            "predict_positions": positions_BK, "predict_targets": targets_BK,
            "predict_weights": weights_BK}

  return corrupt


def count_predictions(length_B: jax.Array, mask_prob: float, slots: int) -> jax.Array:
  """Tokens to predict in a row of so many tokens, [CLS] and [SEP] included: int32 [B].

  round(length * mask_prob), at least 1, at most `slots`; 0 in an empty row
  (create_pretraining_data.py, google-research/bert).
  """
  count_B = jnp.clip(jnp.round(length_B * mask_prob).astype(jnp.int32), 1, slots)
  return jnp.where(length_B > 0, count_B, 0)


def choose_tokens(keys_B, is_candidate_BL, continues_BL, count_B, slots):
  """A uniform choice of `count_B` candidates in every row.

  Returns:
    positions_BK int32 in random order, distinct; weights_BK float32, 1 for chosen slots.
  """
  del continues_BL
  length = is_candidate_BL.shape[1]
  scores_BL = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys_B)
  order_BL = jnp.argsort(jnp.where(is_candidate_BL, scores_BL, 2.0), axis=1)
  count_B = jnp.minimum(count_B, is_candidate_BL.sum(1))
  return _slots(order_BL, count_B, slots)


def choose_words(keys_B, is_candidate_BL, continues_BL, count_B, slots):
  """Whole words in random order, skipping a word that would exceed `count_B` tokens.

  A word is a token and the tokens after it that continue it; only candidates belong to
  words. Returns what `choose_tokens` returns.
  """
  length = is_candidate_BL.shape[1]
  follows_BL = jnp.pad(is_candidate_BL[:, :-1], ((0, 0), (1, 0)))
  starts_BL = is_candidate_BL & ~(continues_BL & follows_BL)
  word_BL = jnp.where(is_candidate_BL, jnp.cumsum(starts_BL, axis=1), 0)  # 0: no word
  rows_B1 = jnp.arange(word_BL.shape[0])[:, None]
  size_BW = jnp.zeros((word_BL.shape[0], length + 1), jnp.int32).at[rows_B1, word_BL].add(1)
  size_BW = size_BW.at[:, 0].set(length + 1)  # Too long to be taken.
  scores_BW = jax.vmap(lambda key: jax.random.uniform(key, (length + 1,)))(keys_B)
  order_BW = jnp.argsort(jnp.where(size_BW > 0, scores_BW, 2.0), axis=1)

  def take(taken_B, word_B):
    size_B = jnp.take_along_axis(size_BW, word_B[:, None], axis=1)[:, 0]
    fits_B = taken_B + size_B <= count_B
    return taken_B + jnp.where(fits_B, size_B, 0), fits_B

  taken_B, fits_WB = jax.lax.scan(take, jnp.zeros_like(count_B), order_BW.T)
  rank_BW = jnp.argsort(order_BW, axis=1)
  chosen_BW = jnp.take_along_axis(fits_WB.T & (jnp.take_along_axis(size_BW, order_BW, 1) > 0),
                                  rank_BW, axis=1)
  chosen_BL = jnp.take_along_axis(chosen_BW, word_BL, axis=1) & is_candidate_BL
  return _slots(jnp.argsort(~chosen_BL, axis=1, stable=True), taken_B, slots)


def _slots(order_BL, count_B, slots):
  positions_BK = order_BL[:, :slots].astype(jnp.int32)
  return positions_BK, (jnp.arange(slots) < count_B[:, None]).astype(jnp.float32)


def show(kind_keys_B, token_keys_B, targets_BK, objective, vocabulary: Vocabulary) -> jax.Array:
  """What the model sees in place of the targets: int32 [B, K].

  [MASK] with probability `replace_with_mask`, a uniform id of the whole vocabulary with
  `replace_with_random`, else the token itself.
  """
  slots = targets_BK.shape[1]
  draw_id = lambda key: jax.random.randint(key, (slots,), 0, vocabulary.size)
  kind_BK = jax.vmap(lambda key: jax.random.uniform(key, (slots,)))(kind_keys_B)
  random_BK = jax.vmap(draw_id)(token_keys_B)
  with_mask = objective.replace_with_mask
  shown_BK = jnp.where(kind_BK < with_mask + objective.replace_with_random, random_BK, targets_BK)
  return jnp.where(kind_BK < with_mask, vocabulary.mask_id, shown_BK)


def _put(tokens_BL, positions_BK, values_BK):
  rows_B1 = jnp.arange(tokens_BL.shape[0])[:, None]
  return tokens_BL.at[rows_B1, positions_BK].set(values_BK, unique_indices=True)


# --------------------------------------------------------------- causal LM


def make_causal(config: config_lib.ConfigDict, vocabulary: Vocabulary) -> Objective:
  """Next-token prediction (Radford et al. 2018, 2019)."""
  del vocabulary

  def weights(batch):
    return {"lm_loss": batch["loss_weights"].sum()}

  def evaluate(model, params, batch, dropout_key):
    prediction = _predict(model, params, inputs(batch), dropout_key)
    weights_BL = batch["loss_weights"]
    return _sums("lm", cross_entropy.score(prediction, batch["targets"], weights_BL,
                                           config.objective.loss_chunk), weights_BL)

  def inputs(batch):
    return batch["tokens"], batch["sequence_ids"], batch["positions"]

  return Objective(lambda batch, key, row_ids: batch, weights, evaluate, inputs)


OBJECTIVES = {"mlm_nsp": make_mlm_nsp, "mlm": make_mlm, "causal": make_causal}


# ------------------------------------------------------------------ shared


def _predict(model, params, inputs, dropout_key):
  rngs = {} if dropout_key is None else {"dropout": dropout_key}
  return model.apply({"params": params}, *inputs, rngs=rngs, method="predict")


def _sums(name: str, scores: tuple[jax.Array, jax.Array], weights: jax.Array) -> Sums:
  """What `cross_entropy.score` returned, by name and with the weight of all positions."""
  loss, correct = scores
  weight = weights.sum()
  return {f"{name}_loss": (loss, weight), f"{name}_accuracy": (correct, weight)}
