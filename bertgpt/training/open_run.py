"""Opens a training run: all checks, its lock, corpus and mesh, and the constants of its loop."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from bertgpt import config as config_lib
from bertgpt.config import ConfigDict, mixtures, resuming, unread
from bertgpt.data.batches import formats, loader
from bertgpt.data.batches.mixture import NO_OTHERS
from bertgpt.data.corpus import splits
from bertgpt.data.corpus.corpus import SPLITS, Corpus, describe_unknown, open_corpus
from bertgpt.devices import agreement, cluster, compilation_cache, hardware, sharding, watchdog
from bertgpt.errors import ConfigError
from bertgpt.runs import corpora, folder_kinds, former, workdir
from bertgpt.runs.metadata import make_metadata
from bertgpt.training import evaluate, init_from, optimizers, steps, trackers


class Run(NamedTuple):
  """An opened run, whose lock and mesh are held.

  Attributes:
    config: resolved config of the run.
    path: workdir of the run.
    setup: constants of the training.
    corpus: documents of the training.
    evaluator: evaluator of the held-out documents.
    abstract_state: `TrainState` of ShapeDtypeStructs with their shardings.
    metadata: entries of a checkpoint in addition to the state; see `make_metadata`.
    others: name -> documents of the training, of the other corpora of mixtures.
  """

  config: ConfigDict
  path: pathlib.Path
  setup: steps.Setup
  corpus: Corpus
  evaluator: evaluate.Evaluator
  abstract_state: steps.TrainState
  metadata: dict[str, Any]
  others: Mapping[str, Corpus] = NO_OTHERS


@contextlib.contextmanager
def open_run(config: ConfigDict, path: pathlib.Path, allow_change: Sequence[str]) -> Iterator[Run]:
  """Checks everything that can be checked, prepares the corpus and lays out the state.

  The lock of the workdir and the mesh are held while the run is open.

  Args:
    config: a whole config.
    path: workdir of the run.
    allow_change: config fields that may differ from the start of the run.
  Raises:
    UserError: see `errors`.
  """
  agreement.check({"command": "train", "--workdir": str(path),
                   "--allow_change": sorted(allow_change), **resuming.shared_fields(config)})
  config_lib.validate(config, cluster.count_devices(), jax.default_backend())
  kind = jax.devices()[0].device_kind
  hardware.check_matmul(config.model.matmul, kind, hardware.find_chip(kind))
  compilation_cache.enable(config.system.compilation_cache)
  with watchdog.restored(), workdir.make_and_lock(path, jax.process_index() == 0):
    watchdog.arm_for(config.system, compiles=True)
    asked, config = config, former.as_begun(path, config)
    workdir.check_unchanged(path, config, allow_change)
    cluster.say_once(*former.describe(asked, config))
    is_new = not folder_kinds.is_run(path)
    unread.check(config, None if is_new else workdir.read_config(path))
    if is_new:
      init_from.check(config)
    if jax.process_index() == 0:
      trackers.check(config)
    train_set, held_out = open_corpora(config, None if is_new else path)
    others = corpora.open_others(config, train_set, mixtures.find_others(config))
    scored = corpora.open_others(config, held_out, mixtures.find_scored(config))
    cluster.say_once(*(describe_unknown(c.manifest)
                       for c in (train_set, *(scored | others).values())))
    if is_new:
      corpora.check_tokenizer(config, train_set.tokenizer)
    config = corpora.resolve(config, train_set.tokenizer)
    if formats.find(config).reads_sentences:  # In a bucket: copied now, not by the first batch.
      for corpus in (train_set, held_out, *others.values(), *scored.values()):
        corpus.open_sentences()
    loader.check_rows(train_set, config, others)
    mesh = sharding.make_mesh(config)
    with sharding.use_mesh(mesh, config):
      setup = steps.make_setup(config, mesh, train_set.vocabulary)
      evaluator = evaluate.Evaluator(setup, held_out)
      for name, corpus in scored.items():
        evaluator.others[name] = evaluate.Evaluator(setup, corpus, evaluator.programs)
      metadata = make_metadata(
          config, train_set.tokenizer, corpus=train_set.identity,
          corpora={name: corpus.identity for name, corpus in others.items()})
      abstract_state = steps.make_abstract_state(setup)
      optimizers.check_frozen(config, abstract_state.params)
      yield Run(config, path, setup, train_set, evaluator, abstract_state, metadata, others)


def open_corpora(config: ConfigDict, run: pathlib.Path | None = None) -> tuple[Corpus, Corpus]:
  """Returns the train and validation splits, and checks that all hosts have the same.

  Args:
    config: a whole config.
    run: workdir of the run that continues; None: a new one.
  Raises:
    ConfigError: no document of `data.source` is left to train on.
  """
  if not config.data.corpus and not splits.trains(config.data.validation_fraction):
    raise ConfigError("data.validation_fraction=1: holds out all documents, and leaves none to "
                      "train on. Set a smaller one")
  identity = corpora.find_identity(run, config) if run else ""
  path = corpora.find_corpus(config, resumes=bool(run), identity=identity, workdir=run)
  train_set, held_out = (open_corpus(path, split) for split in SPLITS)
  agreement.check({"the prepared corpus": train_set.identity})
  return train_set, held_out
