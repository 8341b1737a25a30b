"""The choices that the program makes for a training, with reasons, for the beginning of its log."""

import itertools

from bertgpt.config import (
    ConfigDict,
    attention_kernels,
    families,
    layer_loop,
    rematerialization,
)
from bertgpt.config.families.family import num_global_layers
from bertgpt.devices import sharding
from bertgpt.training import schedules


def explain(config: ConfigDict) -> list[str]:
  """Returns lines on the choices for training, with reasons: the attention kernel of every phase,
  the loop over layers, and the values that layers save for the backward pass. Before them come
  warnings about learning rates.

  Args:
    config: a whole config; a family without transformer layers has no such choices.
  """
  model = config.model
  lines = schedules.find_long_warmups(config.phases)
  family = families.find(config)
  for (i, phase), stack in itertools.product(enumerate(config.phases), family.stacks):
    layer = attention_kernels.layer_of(model, phase.seq_len, sharding.platform(),
                                       sharding.compute_capability(), stack)
    name, reason = attention_kernels.choose(model.attention, layer)
    if model.window:
      how = attention_kernels.explain_window(name, family.kind == "decoder")
      num_local = model.num_layers - num_global_layers(model)
      reason += f"; a window of {model.window} in {num_local} layers: {how}"
    of = f" of the {stack.removesuffix('_')}" if stack else ""
    lines.append(f"phases[{i}], {phase.seq_len} tokens per row: attention{of} by {name}: {reason}")
  if not family.stacks:
    return lines
  layers, reason = layer_loop.choose(model.scan_unroll, sharding.platform(), model.num_layers)
  lines.append(f"{layers} of {model.num_layers} layers per iteration of the loop: {reason}")
  remat, reason = rematerialization.choose(model.remat, sharding.platform())
  lines.append(f"values that layers save for the backward pass: remat={remat}: {reason}")
  return lines
