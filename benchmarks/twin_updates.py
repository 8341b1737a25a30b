"""Optimizers and learning rates of twin_pytorch.py, rewritten in PyTorch from the papers' code."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from bertgpt.config import ConfigDict

# ---------------------------------------------------------------- optimizers


def update_bert(o: ConfigDict, t: int, g: torch.Tensor, m: torch.Tensor, v: torch.Tensor
                ) -> torch.Tensor:
  """Returns Adam's direction without bias correction (google-research/bert, optimization.py).

  Args:
    o: `config.optimizer`.
    t: index of the update, from 1.
    g: gradient.
    m, v: first and second moment, which are updated.
  """
  m.mul_(o.b1).add_(g, alpha=1 - o.b1)
  v.mul_(o.b2).addcmul_(g, g, value=1 - o.b2)
  return m / (v.sqrt() + o.epsilon)


def update_adam(o, t, g, m, v):
  """Returns Adam's direction with bias correction (Kingma and Ba 2014, algorithm 1)."""
  update_bert(o, t, g, m, v)
  return m / (1 - o.b1**t) / ((v / (1 - o.b2**t)).sqrt() + o.epsilon)


def update_fairseq(o, t, g, m, v):
  """Returns Adam's direction with epsilon before the bias correction (fairseq, optim/adam.py)."""
  return update_bert(o, t, g, m, v) * math.sqrt(1 - o.b2**t) / (1 - o.b1**t)


def update_stable(o, t, g, m, v):
  """Returns the direction of StableAdamW (Wortsman et al. 2023, algorithm 2).

  Its moments have debiased decays, as in warner-benjamin/optimi.
  """
  b1, b2 = ((b**t - b) / (b**t - 1) for b in (o.b1, o.b2))
  m.mul_(b1).add_(g, alpha=1 - b1)
  v.mul_(b2).addcmul_(g, g, value=1 - b2)
  return m / (v.sqrt() + o.epsilon)


def lag(o, g, v) -> float:
  """Returns the factor by which StableAdamW shortens a step: max(1, rms(g / sqrt(v)))."""
  return max(1.0, (g * g / v.clamp(min=o.epsilon**2)).mean().sqrt().item())


def trust(p: torch.Tensor, u: torch.Tensor) -> float:
  """Returns LAMB's trust ratio |p| / |u|, or 1 (google-research/albert, lamb_optimizer.py)."""
  above, below = p.norm().item(), u.norm().item()
  return above / below if p.ndim > 1 and above > 0 and below > 0 else 1.0


UPDATES = {"bert_adamw": update_bert, "albert_lamb": update_bert, "adamw": update_adam,
           "fairseq_adamw": update_fairseq, "stable_adamw": update_stable}


class Optimizer:
  """The optimizers of the papers, after clipping by the global norm.

  Args:
    config: config of the run.
    model: model whose parameters are updated.
  """

  def __init__(self, config: ConfigDict, model: torch.nn.Module):
    self._o, self._peak = config.optimizer, config.phases[0].learning_rate
    self._params = [p for p in model.parameters() if p.requires_grad]
    self.t = 0
    self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self._params]

  @torch.no_grad()
  def step(self, rate: float) -> None:
    """Updates the parameters with their gradients.

    Args:
      rate: learning rate.
    """
    o = self._o
    self.t += 1
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._params]
    if o.clip_norm:
      norm = torch.stack([g.norm() for g in grads]).norm()
      grads = [g * (o.clip_norm / torch.clamp(norm, min=o.clip_norm)) for g in grads]
    for p, g, (m, v) in zip(self._params, grads, self.moments, strict=True):
      u = UPDATES[o.name](o, self.t, g, m, v)
      decay = o.weight_decay if p.ndim > 1 or o.decay_rule == "all" else 0.0
      if o.name == "stable_adamw":
        # optimi multiplies parameters by 1 - decay * rate / peak.
        shorter = rate / lag(o, g, v)
        p.mul_(1 - decay * shorter / self._peak).sub_(u, alpha=shorter)
      else:
        u += decay * p
        p.sub_(u, alpha=rate * (trust(p, u) if o.name == "albert_lamb" else 1.0))

  def state(self) -> dict[str, Any]:
    """Returns the state that `load` continues from."""
    return {"t": self.t, "moments": self.moments}

  def load(self, state: Mapping[str, Any]) -> None:
    """Continues from an earlier state."""
    self.t, self.moments = state["t"], state["moments"]


# ------------------------------------------------------------ learning rates


def linear(p: ConfigDict, step: int, warmup: float) -> float:
  """Returns the learning rate of a linear decay, as a share of the peak.

  References:
    google-research/bert, optimization.py, 2018 (replace)
    facebookresearch/fairseq, optim/lr_scheduler/polynomial_decay_schedule.py, 2019 (before)
    google-research/electra, model/optimization.py, 2020 (multiply)
  """
  first = warmup if p.warmup_rule == "before" else 0
  left = (p.steps - step) / (p.steps - first)
  if step >= warmup:
    return left
  return step / warmup * (left if p.warmup_rule == "multiply" else 1)


def cosine(p: ConfigDict, step: int, warmup: float) -> float:
  """Returns the learning rate of a cosine decay, as a share of the peak (nanoGPT, train.py)."""
  if step < warmup:
    return step / warmup
  progress = (step - warmup) / (p.steps - warmup)
  return p.end_fraction + (1 - p.end_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


def constant(p: ConfigDict, step: int, warmup: float) -> float:
  """Returns the learning rate of a linear warm-up alone, as a share of the peak."""
  del p
  return step / warmup if step < warmup else 1.0


RATES = {"linear": linear, "cosine": cosine, "constant": constant}


def learning_rate(p: ConfigDict, step: int) -> float:
  """Returns the learning rate of an update.

  Args:
    p: phase of the run.
    step: index of the update, from 0.
  """
  warmup = p.warmup_steps or p.warmup_fraction * p.steps
  return p.learning_rate * RATES[p.schedule](p, step, warmup)
