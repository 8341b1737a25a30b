"""The jitted train step of a config without the loop, on batches that are already on the device."""

import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from bertgpt import config as config_lib
from bertgpt.config import ConfigDict
from bertgpt.data.batches import loader
from bertgpt.data.corpus import corpus as corpus_lib
from bertgpt.data.tokens.vocabulary import Vocabulary, make_vocabulary
from bertgpt.devices import sharding
from bertgpt.runs import corpora
from bertgpt.training import steps

BATCHES = 4  # Batches read from a corpus.


class BareStep:
  """The train step of the first phase, compiled as in `train`, with its own state.

  Args:
    config: whole config, with `model.vocab_size` set.
    vocabulary: vocabulary of the batches.
    batches: batches of the loader, used in turn; whole ones in every process.
    devices: devices of the mesh; None: the first one.

  Attributes:
    objective: objective of the config.
    state: train state after the steps so far.
    mesh: mesh over the devices.
  """

  def __init__(self, config: ConfigDict, vocabulary: Vocabulary,
               batches: Sequence[Mapping[str, np.ndarray]],
               devices: Sequence[jax.Device] | None = None):
    self._config, self._done = config, 0
    devices = jax.devices()[:1] if devices is None else devices
    config_lib.validate(config, len(devices), jax.default_backend())
    self.mesh = sharding.make_mesh(config, devices)
    phase = config.phases[0]
    with sharding.use_mesh(self.mesh, config):
      setup = steps.make_setup(config, self.mesh, vocabulary)
      self.objective = setup.objective
      abstract = steps.make_abstract_state(setup)
      self.state = steps.make_state(setup, abstract)
      self._step = steps.jit_train_step(setup, abstract)
      layout = sharding.batch_sharding(self.mesh, config)
      rows = sharding.local_rows(layout, phase.batch_size)
      self._batches = [
          sharding.make_global_batch({name: x[rows] for name, x in batch.items()}, layout,
                                     phase.batch_size) for batch in batches]

  def seconds(self, steps: int) -> float:
    """Runs some steps and returns the seconds per step."""
    start = time.perf_counter()
    self._run(steps)
    jax.block_until_ready(self.state)
    return (time.perf_counter() - start) / steps

  def compile(self) -> jax.stages.Compiled:
    """Compiles the step, and returns the program that runs from then on."""
    with sharding.use_mesh(self.mesh, self._config):
      self._step = self._step.lower(self.state, self._batches[0]).compile()
    return self._step

  def losses(self, steps: int) -> list[float]:
    """Runs some steps and returns the loss of each."""
    return [float(sums["loss"][0]) for _ in range(steps) for sums in [self._run(1)]]

  def corrupt(self, step: int) -> dict[str, np.ndarray]:
    """Returns the batch of a step with the masks that the step would make."""
    batch = self._batches[step % len(self._batches)]
    key = steps.make_key(self._config, steps.MASK_STREAM, step)
    rows = np.arange(len(batch["tokens"]))
    return jax.device_get(jax.jit(self.objective.corrupt)(batch, key, rows))

  def _run(self, steps: int):
    with sharding.use_mesh(self.mesh, self._config):
      for _ in range(steps):
        batch = self._batches[self._done % len(self._batches)]
        self.state, sums = self._step(self.state, batch)
        self._done += 1
    return sums


def from_corpus(corpus: corpus_lib.Corpus, config: ConfigDict) -> BareStep:
  """Returns the step on the first batches of a corpus.

  Args:
    corpus: split to train on.
    config: config of a recipe; `model.vocab_size` is set here.
  """
  config = corpora.resolve(config, corpus.tokenizer)
  rows = slice(0, config.phases[0].batch_size)
  with loader.make_train_batches(corpus, config, 0, 0, rows) as batches:
    first = [next(batches) for _ in range(min(BATCHES, config.phases[0].steps))]
  return BareStep(config, make_vocabulary(corpus.tokenizer), first)


def open_train_set(config: ConfigDict) -> corpus_lib.Corpus:
  """Opens the train split of the corpus of a config, which is prepared if it is missing."""
  return corpus_lib.open_corpus(corpora.find_corpus(config), "train")
