"""The prepared corpus of a run, found by all its processes, and what follows from its tokenizer."""

import itertools
import pathlib

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from bertgpt.config import ConfigDict
from bertgpt.data.batches import formats
from bertgpt.data.corpus import prepare
from bertgpt.data.corpus.corpus import is_corpus
from bertgpt.data.tokens import tokenizers
from bertgpt.errors import ConfigError, DataError

PREPARE_TIMEOUT_S = 48 * 3600  # How long the others wait for process 0 to prepare a corpus.
_searches = itertools.count()


def find_corpus(config: ConfigDict) -> pathlib.Path:
  """The prepared corpus of a config. Process 0 prepares what is missing, the others wait.

  Only process 0 reads the source: the others learn from it where to look.

  Raises:
    DataError: the corpus is not where this process can read it.
  """
  if jax.process_count() == 1:
    return prepare.ensure_prepared(config)
  is_first = jax.process_index() == 0
  path = prepare.ensure_prepared(config) if is_first else pathlib.Path()
  # No collective of the devices: these give up long before a large corpus is prepared.
  multihost.get_barrier_sync_fn()(key=f"bertgpt_corpus_{next(_searches)}",
                                  timeout_ms=PREPARE_TIMEOUT_S * 1000)
  name = np.zeros(256, np.uint8)
  name[:len(path.name)] = np.frombuffer(path.name.encode(), np.uint8)
  name = bytes(multihost_utils.broadcast_one_to_all(name)).rstrip(b"\0").decode()
  if not is_first:
    path = pathlib.Path(config.data.corpus or f"{config.data.cache_dir}/{name}").expanduser()
    if not is_corpus(path):
      raise DataError(f"{path}: process 0 has prepared this corpus, but it is not here; put "
                      "data.cache_dir on storage that all hosts share")
  return path.absolute()


def resolve(config: ConfigDict, tokenizer: tokenizers.Tokenizer) -> ConfigDict:
  """The config with what follows from the tokenizer filled in.

  Raises:
    ConfigError: the tokenizer lacks tokens that the objective needs, or is not the one that
      the config names.
  """
  path = config.tokenizer.path
  if (config.data.corpus and path
      and tokenizers.load_tokenizer(path).fingerprint() != tokenizer.fingerprint()):
    raise ConfigError(f"tokenizer.path={path} is not the tokenizer that "
                      f"data.corpus={config.data.corpus} was prepared with; leave tokenizer.path "
                      "empty, or leave data.corpus empty to prepare data.source anew")
  config = config.copy_and_resolve_references()
  with config.unlocked():
    if config.model.vocab_size not in (0, tokenizer.vocab_size):
      raise ConfigError(f"model.vocab_size={config.model.vocab_size}, but the tokenizer has "
                        f"{tokenizer.vocab_size} tokens; leave model.vocab_size at 0")
    config.model.vocab_size = tokenizer.vocab_size
  formats.check_tokenizer(config, tokenizer)
  return config
