"""Hugging Face's side of step.py, in a process of its own: transformers and PyTorch."""

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks import side_by_side
from bertgpt.config import ConfigDict
from bertgpt.config.stored import from_json
from bertgpt.errors import ConfigError
from bertgpt.hub import conversion

IGNORED = -100  # Label of a position that is not predicted, as in PyTorch.


def make(config_json: str, device: str, compiled: bool) -> dict[str, Callable]:
  """Returns the functions that step.py calls.

  Args:
    config_json: config of our step, which the model follows.
    device: 'cpu' or 'cuda'.
    compiled: whether there are sides with torch.compile too.
  """
  if device == "cuda" and not torch.cuda.is_available():
    raise ConfigError("--device=cuda: PyTorch sees no GPU. Use --device=cpu")
  torch.set_num_threads(side_by_side.cores())
  config = from_json(config_json)
  model = make_model(config).to(device)
  step = TorchStep(config, model, device)
  losses = {f"eager, {name}": functools.partial(loss, model)
            for name, loss in LOSSES[config.objective.name].items()}
  if compiled:
    losses |= {name.replace("eager", "compiled"): torch.compile(loss)
               for name, loss in losses.items()}
  return {
      "names": lambda: list(losses),
      "load": step.load,
      "losses": lambda name, batches: step.losses(losses[name], batches),
      "time": lambda name, steps: step.seconds(losses[name], steps),
  }


# ------------------------------------------------------------------ models


def make_model(config: ConfigDict, part: str = "", pad_id: int = 1,
               **changes: Any) -> transformers.PreTrainedModel:
  """Returns the model of transformers with the architecture of a config.

  Args:
    config: config with `model.vocab_size` set.
    part: second model of the run, see `conversion.find_architecture`; '': the model itself.
    pad_id: id of the padding, read only for RoBERTa.
    **changes: keys of the configuration of transformers with other values.
  """
  fields = conversion.to_hugging_face_config(config, pad_id, part=part) | changes
  cls = getattr(transformers, fields.pop("architectures")[0])
  fields = {name: value for name, value in fields.items() if name not in ("model_type", "dtype")}
  # gelu_new consists of seven operations; PyTorch has one kernel for the same function.
  fields = {name: "gelu_pytorch_tanh" if value == "gelu_new" else value
            for name, value in fields.items()}
  return cls(cls.config_class(**fields, use_cache=False, attn_implementation="sdpa"))


def bert_loss(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
  """Returns the loss of BertForPreTraining, which scores the vocabulary at every position."""
  return model(batch["tokens"], token_type_ids=batch["segment_ids"], labels=batch["labels"],
               next_sentence_label=batch["nsp_labels"]).loss


def bert_loss_of_masked(model: torch.nn.Module,
                        batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
  """Returns the same loss, but applies the head only to the predicted positions."""
  features_bld, pooled_bd = model.bert(batch["tokens"], token_type_ids=batch["segment_ids"])[:2]
  index_bkd = batch["predict_positions"][:, :, None].expand(-1, -1, features_bld.shape[-1])
  scores_bkv, relation_b2 = model.cls(features_bld.gather(1, index_bkd), pooled_bd)
  cross_entropy = torch.nn.functional.cross_entropy
  return (cross_entropy(scores_bkv.flatten(0, 1), batch["predict_labels"].flatten())
          + cross_entropy(relation_b2, batch["nsp_labels"].flatten()))


def gpt_loss(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
  """Returns the loss of GPT2LMHeadModel."""
  return model(batch["tokens"], labels=batch["tokens"]).loss


LOSSES = {
    "mlm_nsp": {"as shipped": bert_loss, "masked head": bert_loss_of_masked},
    "causal": {"as shipped": gpt_loss},
}


# -------------------------------------------------------------------- step


class TorchStep:
  """A train step in PyTorch: a model, its optimizer and a batch.

  Args:
    config: config of our step.
    model: model on the device.
    device: 'cpu' or 'cuda'.
  """

  def __init__(self, config: ConfigDict, model: torch.nn.Module, device: str):
    self._config, self._model, self._device = config, model, device
    self._weights = self._batch = self._optimizer = None
    self._precision = {"float32": contextlib.nullcontext, "bfloat16": functools.partial(
        torch.autocast, device, torch.bfloat16)}[config.model.dtype]

  def load(self, weights: Mapping[str, np.ndarray]) -> None:
    """Sets the weights from which `losses` starts: name in transformers -> array."""
    self._weights = {name: torch.from_numpy(np.array(x)) for name, x in weights.items()}
    self._restart()

  def losses(self, loss_fn: Callable, batches: Sequence[Mapping[str, np.ndarray]]) -> list[float]:
    """Returns the loss of a step on every batch, without dropout and in float32.

    Args:
      loss_fn: (model, batch) -> loss, with the model bound.
      batches: batches of `BareStep.corrupt`.
    """
    self._restart()
    self._model.eval()  # Turns off only dropout.
    losses = [float(self._step(loss_fn, self.put(batch), contextlib.nullcontext).detach())
              for batch in batches]
    self._batch = self.put(batches[0])
    return losses

  def seconds(self, loss_fn: Callable, steps: int) -> float:
    """Runs some steps and returns the seconds per step."""
    self._model.train()
    start = time.perf_counter()
    for _ in range(steps):
      loss = self._step(loss_fn, self._batch, self._precision)
    float(loss.detach())  # Waits for the last loss, and so for all steps.
    if self._device == "cuda":
      torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps

  def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Returns a batch in the form of transformers, with IGNORED at positions not predicted."""
    arrays = {name: batch[name] for name in ("tokens", "segment_ids", "predict_positions",
                                             "nsp_labels") if name in batch}
    if "predict_targets" in batch:
      labels = np.where(batch["predict_weights"] > 0, batch["predict_targets"], IGNORED)
      everywhere = np.full(batch["tokens"].shape, IGNORED)
      np.put_along_axis(everywhere, batch["predict_positions"], labels, axis=1)
      arrays |= {"predict_labels": labels, "labels": everywhere}
    return {name: torch.from_numpy(np.array(x, np.int64)).to(self._device)
            for name, x in arrays.items()}

  def _restart(self) -> None:
    missing, unknown = self._model.load_state_dict(self._weights, strict=False)
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "lm_head.weight"}
    if unknown or set(missing) - tied:
      raise RuntimeError(f"weights do not fit: missing {missing}, unknown {unknown}")
    self._optimizer = make_optimizer(self._config, self._model)

  def _step(self, loss_fn: Callable, batch: dict[str, torch.Tensor],
            precision: Callable[[], contextlib.AbstractContextManager]) -> torch.Tensor:
    self._optimizer.zero_grad(set_to_none=True)
    with precision():
      loss = loss_fn(batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._config.optimizer.clip_norm)
    self._optimizer.step()
    return loss


def make_optimizer(config: ConfigDict, model: torch.nn.Module) -> torch.optim.Optimizer:
  """Returns AdamW with our weight decay: on matrices and tables, not on biases and LayerNorm."""
  o, parameters = config.optimizer, list(model.parameters())
  groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": o.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}]
  return torch.optim.AdamW(groups, lr=config.phases[0].learning_rate, betas=(o.b1, o.b2),
                           eps=o.epsilon, fused=True)
