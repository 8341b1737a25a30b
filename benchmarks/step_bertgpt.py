"""Our side of step.py, in a process of its own."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from benchmarks.bare_step import BareStep
from bertgpt.config import ConfigDict
from bertgpt.config.overrides import override
from bertgpt.config.stored import from_json
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.devices import compilation_cache
from bertgpt.errors import ConfigError
from bertgpt.hub import conversion

PAD, CLS, SEP, MASK = range(4)
FIRST_TOKEN = 4


def make(config_json: str, device: str, variants: Mapping[str, Mapping[str, Any]]
         ) -> dict[str, Callable]:
  """Returns the functions that step.py calls.

  Args:
    config_json: config of our step.
    device: 'cpu' or 'cuda'.
    variants: name of a variant -> fields that differ from the config.
  """
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")  # PyTorch needs the other half.
  jax.config.update("jax_platforms", device)
  try:
    jax.devices()
  except (AssertionError, RuntimeError) as e:  # AssertionError if no plugin is installed.
    raise ConfigError(f"--device={device}: JAX sees no such device. Install its support with "
                      "pip install -e '.[cuda]'") from e
  config = from_json(config_json)
  compilation_cache.enable(config.system.compilation_cache)
  configs = {name: with_fields(config, fields) for name, fields in variants.items()}
  batch = make_batch(config)
  held = {}

  def start(config: ConfigDict) -> BareStep:
    return BareStep(config, make_vocabulary(config.model.vocab_size), [batch])

  def losses(name: str, steps: int) -> list[float]:
    """Returns the losses of the first steps, without dropout and in float32."""
    with jax.default_matmul_precision("highest"):
      return start(exactly(configs[name])).losses(steps)

  def curve(name: str, steps: int) -> list[float]:
    """Returns the losses of the first steps, trained exactly as in the config."""
    return start(configs[name]).losses(steps)

  def time(name: str, steps: int) -> float:
    if name not in held:
      held[name] = start(configs[name])
    return held[name].seconds(steps)

  def batches(steps: int) -> list[dict[str, np.ndarray]]:
    fresh = start(config)
    return [fresh.corrupt(step) for step in range(steps)]

  return {
      "losses": losses, "curve": curve, "time": time, "batches": batches,
      "weights": lambda: conversion.to_hugging_face(start(config).state.params, config),
      "forget": lambda name: held.pop(name) and None,
      "device": lambda: jax.devices()[0].device_kind,
  }


def with_fields(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
  """Returns a copy of a config with other values of some fields: 'group.field' -> value."""
  return override(config, [f"--config.{name}={value}" for name, value in fields.items()])


def exactly(config: ConfigDict) -> ConfigDict:
  """Returns a copy of a config without dropout and in float32."""
  return with_fields(config, {"model.dropout": 0.0, "model.attention_dropout": 0.0,
                              "model.dtype": "float32"})


def make_vocabulary(size: int) -> Vocabulary:
  """Returns a vocabulary of whole words, whose first ids are special."""
  return Vocabulary(size, MASK, tuple(range(FIRST_TOKEN)), continues_word=np.zeros(size, bool),
                    ends_word=np.zeros(size, bool))


def make_batch(config: ConfigDict) -> dict[str, np.ndarray]:
  """Returns a batch of full rows of random tokens: pairs of segments, or running text."""
  phase, rng = config.phases[0], np.random.default_rng(config.seed)
  shape = rows, length = phase.batch_size, phase.seq_len
  tokens = rng.integers(FIRST_TOKEN, config.model.vocab_size, shape, np.int32)
  batch = {"tokens": tokens, "sequence_ids": np.ones(shape, np.int32),
           "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1))}
  if config.objective.name == "causal":
    # Hugging Face shifts the labels itself, so that the last token of a row has none.
    weights = np.ones(shape, np.float32)
    weights[:, -1] = 0
    return batch | {"targets": np.roll(tokens, -1, axis=1), "loss_weights": weights}
  middle = length // 2
  tokens[:, 0], tokens[:, middle], tokens[:, -1] = CLS, SEP, SEP
  segments = np.tile((np.arange(length) > middle).astype(np.int32), (rows, 1))
  return batch | {
      "segment_ids": segments, "nsp_positions": np.zeros((rows, 1), np.int32),
      "nsp_labels": rng.integers(0, 2, (rows, 1), np.int32),
      "nsp_weights": np.ones((rows, 1), np.float32)}
