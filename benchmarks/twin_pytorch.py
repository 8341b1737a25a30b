"""PyTorch's side of twin.py: the same training, implemented from the papers and their code.

The models are those of transformers, with their dropout. Initial values and losses are written here
in PyTorch, optimizers and learning rates in twin_updates.py, and they share no code with bertgpt's.
Only the batches are bertgpt's, with their masks.

Axes: B rows, L length, K prediction slots per row, D width, V vocabulary.
"""

import functools
import itertools
import math
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.step_hugging_face import IGNORED, make_model
from benchmarks.twin_updates import RATES, UPDATES, Optimizer, learning_rate
from bertgpt.config import ConfigDict

Batch = Mapping[str, torch.Tensor]
Sums = dict[str, tuple[torch.Tensor, torch.Tensor]]  # Loss -> (sum, weight).


# -------------------------------------------------------------------- models


class Electra(torch.nn.Module):
  """Generator and discriminator of ELECTRA, with one set of embeddings.

  Args:
    config, changes: see `make_model`.
  """

  def __init__(self, config: ConfigDict, **changes: Any):
    super().__init__()
    self.discriminator = make_model(config, **changes)
    self.generator = make_model(config, part="generator", **changes)
    self.generator.electra.embeddings = self.discriminator.electra.embeddings
    self.generator.tie_weights()


def make(config: ConfigDict, pad_id: int, seed: int) -> torch.nn.Module:
  """Returns the model of a config with new initial values.

  Args:
    config: config with `model.vocab_size` set.
    pad_id: id of the padding.
    seed: seed of the initial values; dropout and samples draw from the same random stream.
  """
  torch.manual_seed(seed)
  # The output layer of ALBERT's pairs has dropout in transformers, but not in the original.
  make_one = Electra if config.model.family == "electra" else make_model
  changes = {"classifier_dropout_prob": 0.0} if config.model.family == "albert" else {}
  model = make_one(config, pad_id=pad_id, pad_token_id=pad_id, **changes)
  if config.model.num_segments == 0 and hasattr(model, "roberta"):
    # fairseq's RoBERTa has no segments; a table of zeros that is not trained has no effect.
    model.roberta.embeddings.token_type_embeddings.weight.requires_grad_(False)
  initialize(model, config)
  return model


# Projections into the residual stream, in the names of transformers.
RESIDUAL = re.compile(r"c_proj|\.attn\.Wo|\.mlp\.Wo")


@torch.no_grad()
def initialize(model: torch.nn.Module, config: ConfigDict) -> None:
  """Draws the initial values of all parameters.

  Args:
    model: model of `make`.
    config: its config.

  References:
    google-research/bert, modeling.py, 2018 (normal, truncated at two standard deviations)
    openai/gpt-2, model.py, 2019; Radford et al. 2019, 2.3 (projections into the residual stream)
  """
  m = config.model
  for name, p in model.named_parameters():
    if not p.requires_grad:
      p.zero_()
    elif p.ndim == 1:
      p.fill_(float(name.endswith("weight")))  # Scales of norms are called weights too.
    else:
      std = m.position_init_std if re.search(r"position|wpe", name) else m.init_std
      if m.scale_residual_init and RESIDUAL.search(name):
        std /= math.sqrt(2 * m.num_layers)
      if m.truncated_init:
        torch.nn.init.trunc_normal_(p, std=std, a=-2 * std, b=2 * std)
      else:
        p.normal_(std=std)


# -------------------------------------------------------------------- losses


def encode(model: torch.nn.Module, batch: Batch, tokens_BL: torch.Tensor | None = None) -> Any:
  """Returns the output of the model without its heads.

  Args:
    model: model of transformers.
    batch: result of `to_torch`.
    tokens_BL: ids; None: those of the batch.
  """
  inputs = {"input_ids": batch["tokens"] if tokens_BL is None else tokens_BL}
  if not batch["is_text"].all():
    inputs["attention_mask"] = batch["is_text"].long()
  if "segment_ids" in batch and getattr(model.config, "type_vocab_size", 1) > 1:
    inputs["token_type_ids"] = batch["segment_ids"]
  return model.base_model(**inputs)


# Class -> (model, features [B, K, D]) -> logits [B, K, V] of masked tokens.
HEADS: Mapping[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "BertForPreTraining": lambda model, x: model.cls.predictions(x),
    "BertForMaskedLM": lambda model, x: model.cls.predictions(x),
    "RobertaForMaskedLM": lambda model, x: model.lm_head(x),
    "AlbertForPreTraining": lambda model, x: model.predictions(x),
    "ElectraForMaskedLM": lambda model, x: model.generator_lm_head(model.generator_predictions(x)),
    "ModernBertForMaskedLM": lambda model, x: model.decoder(model.head(x)),
}
# Class -> (prefix of the labels, (model, pooled features [B, D]) -> logits [B, 2] of pairs).
PAIR_HEADS: Mapping[str, tuple[str, Callable[[Any, torch.Tensor], torch.Tensor]]] = {
    "BertForPreTraining": ("nsp", lambda model, x: model.cls.seq_relationship(x)),
    "AlbertForPreTraining": ("sop", lambda model, x: model.sop_classifier(x)),
}


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
                  ) -> tuple[torch.Tensor, torch.Tensor]:
  """Returns the sum of the losses of the targets whose weight is not 0, and their number.

  Args:
    logits: [..., classes].
    targets: int64 [...].
    weights: [...], each 0 or 1.
  """
  labels = torch.where(weights > 0, targets, IGNORED)
  total = functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum",
                                   ignore_index=IGNORED)
  return total, (weights > 0).sum()


def score_masked(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, Any, Sums]:
  """Returns the logits [B, K, V], what `encode` returns, and the loss of the masked tokens."""
  output = encode(model, batch)
  features_BLD = output.last_hidden_state
  index_BKD = batch["predict_positions"][..., None].expand(-1, -1, features_BLD.shape[-1])
  logits_BKV = HEADS[type(model).__name__](model, features_BLD.gather(1, index_BKD))
  return logits_BKV, output, {"mlm_loss": cross_entropy(
      logits_BKV, batch["predict_targets"], batch["predict_weights"])}


def score_pairs(model: torch.nn.Module, batch: Batch) -> Sums:
  """Returns the losses of masked tokens and of pairs."""
  _, output, sums = score_masked(model, batch)
  name, head = PAIR_HEADS[type(model).__name__]
  return sums | {f"{name}_loss": cross_entropy(
      head(model, output.pooler_output), batch[f"{name}_labels"][:, 0],
      batch[f"{name}_weights"][:, 0])}


def score_next(model: torch.nn.Module, batch: Batch) -> Sums:
  """Returns the loss of the next tokens."""
  logits_BLV = model.lm_head(encode(model, batch).last_hidden_state)
  return {"lm_loss": cross_entropy(logits_BLV, batch["targets"], batch["loss_weights"])}


def score_replaced(model: Electra, batch: Batch) -> Sums:
  """Returns the losses of the generator and of the discriminator (Clark et al. 2020, 3.1)."""
  logits_BKV, _, sums = score_masked(model.generator, batch)
  drawn_BK = torch.distributions.Categorical(logits=logits_BKV.detach()).sample()
  shown_BK = torch.where(batch["predict_weights"] > 0, drawn_BK, batch["predict_targets"])
  original_BL = batch["tokens"].scatter(1, batch["predict_positions"], batch["predict_targets"])
  tokens_BL = batch["tokens"].scatter(1, batch["predict_positions"], shown_BK)
  features_BLD = encode(model.discriminator, batch, tokens_BL).last_hidden_state
  losses_BL = functional.binary_cross_entropy_with_logits(
      model.discriminator.discriminator_predictions(features_BLD),
      (tokens_BL != original_BL).float(), reduction="none")
  is_text_BL = batch["is_text"]
  return sums | {"rtd_loss": ((losses_BL * is_text_BL).sum(), is_text_BL.sum())}


# Objective -> (model, batch) -> sums.
LOSSES: Mapping[str, Callable[[Any, Batch], Sums]] = {
    "mlm": lambda model, batch: score_masked(model, batch)[-1],
    "mlm_nsp": score_pairs, "mlm_sop": score_pairs, "causal": score_next, "rtd": score_replaced,
}


# ------------------------------------------------------------------ training


def find_problem(config: ConfigDict) -> str:
  """Returns a line that names what PyTorch's side cannot do of a config; '': nothing."""
  (p, *others), o = config.phases, config.optimizer
  tables = (("objective.name", config.objective.name, LOSSES), ("optimizer.name", o.name, UPDATES),
            ("phases[0].schedule", p.schedule, RATES))
  for field, value, table in tables:
    if value not in table:
      return f"{field}={value!r}: the twin has only {', '.join(table)}"
  fixed = {"objective.bias_init": "zeros", "model.position_init": "normal",
           "model.dtype": "float32", "optimizer.layer_decay": 1.0, "optimizer.freeze": "",
           "init_from": ""}
  for field, value in fixed.items():
    group, _, name = field.rpartition(".")
    found = (config[group] if group else config)[name]
    if found != value:
      return f"{field}={found!r}: the twin has only {value!r}"
  if others:
    return "phases: the twin has only one phase"
  if p.schedule == "linear" and p.end_fraction:
    return f"phases[0].end_fraction={p.end_fraction}: the twin's linear decay ends at 0"
  return ""


def to_torch(batch: Mapping[str, np.ndarray], device: str) -> dict[str, torch.Tensor]:
  """Returns a corrupted batch as tensors, with `is_text` [B, L] added.

  Args:
    batch: batch of bertgpt.
    device: 'cpu' or 'cuda'.
  """
  tensors = {name: torch.from_numpy(np.array(x)).to(device) for name, x in batch.items()}
  tensors = {name: x if x.is_floating_point() else x.long() for name, x in tensors.items()
             if name != "sample_key_data"}
  return tensors | {"is_text": tensors["sequence_ids"] > 0}


class Twin:
  """A training in PyTorch that continues from its last evaluation if it is stopped.

  Args:
    config: config with `model.vocab_size` set.
    pad_id: id of the padding.
    seed: seed of everything but the batches.
    device: 'cpu' or 'cuda'.

  Attributes:
    model: model of transformers.
    curve: loss -> [(steps done, held-out loss)].
    done: number of steps done.
    seconds: time in training steps.
  """

  def __init__(self, config: ConfigDict, pad_id: int, seed: int, device: str = "cpu"):
    self._config, self._phase, self._device = config, config.phases[0], device
    self.model = make(config, pad_id, seed).to(device)
    self._optimizer = Optimizer(config, self.model)
    self._score = functools.partial(LOSSES[config.objective.name], self.model)
    self._factors = {"rtd_loss": config.objective.rtd_weight}
    self.curve: dict[str, list[tuple[int, float]]] = {}
    self.done, self.seconds = 0, 0.0

  def step(self, batch: Batch) -> float:
    """Makes a step and returns its loss.

    Args:
      batch: result of `to_torch`.
    """
    self.model.train()
    sums = self._score(batch)
    loss = sum(self._factors.get(name, 1.0) * total / weight.clamp(min=1)
               for name, (total, weight) in sums.items())
    self.model.zero_grad(set_to_none=True)
    loss.backward()
    self._optimizer.step(learning_rate(self._phase, self.done))
    self.done += 1
    return float(loss.detach())

  @torch.no_grad()
  def evaluate(self, batches: Sequence[Batch]) -> dict[str, float]:
    """Returns the held-out losses, without dropout; without those that have no targets.

    Args:
      batches: results of `to_torch`.
    """
    self.model.eval()
    found = [self._score(batch) for batch in batches]
    totals, weights = ({name: sum(float(sums[name][i]) for sums in found) for name in found[0]}
                       for i in (0, 1))
    return {name: totals[name] / weight for name, weight in weights.items() if weight}

  def train(self, batches: Iterable[Mapping[str, np.ndarray]],
            held_out: Sequence[Mapping[str, np.ndarray]], path: pathlib.Path) -> None:
    """Trains to the end, and evaluates as often as the config says.

    Args:
      batches: corrupted batches of bertgpt, from step `done` on.
      held_out: corrupted held-out batches.
      path: file for the state, which is written after every evaluation.
    """
    held_out = [to_torch(batch, self._device) for batch in held_out]
    steps, every = self._phase.steps, self._config.eval.every_steps or self._phase.steps
    start = time.perf_counter()
    for batch in itertools.islice(batches, steps - self.done):
      self.step(to_torch(batch, self._device))
      if self.done % every and self.done < steps:
        continue
      self.seconds += time.perf_counter() - start
      for name, loss in self.evaluate(held_out).items():
        self.curve.setdefault(name, []).append((self.done, loss))
      self.save(path)
      start = time.perf_counter()

  def save(self, path: pathlib.Path) -> None:
    """Writes the state to a file."""
    part = path.with_suffix(".part")
    torch.save({"model": self.model.state_dict(), "optimizer": self._optimizer.state(),
                "random": torch.get_rng_state(),
                "random_of_gpus": torch.cuda.get_rng_state_all(), "done": self.done,
                "seconds": self.seconds, "curve": self.curve}, part)
    part.replace(path)

  def load(self, path: pathlib.Path) -> None:
    """Continues from the state in a file."""
    state = torch.load(path, map_location=self._device, weights_only=True)
    self.model.load_state_dict(state["model"])
    self._optimizer.load(state["optimizer"])
    torch.set_rng_state(state["random"].cpu())
    torch.cuda.set_rng_state_all([x.cpu() for x in state.get("random_of_gpus", ())])
    self.done, self.seconds, self.curve = (state[name] for name in ("done", "seconds", "curve"))
