"""The prepared corpus of a run, and the config fields that depend on its tokenizer."""

import pathlib

import jax

from bertgpt import files
from bertgpt.config import ConfigDict
from bertgpt.data.batches import formats
from bertgpt.data.corpus import prepare
from bertgpt.data.corpus.corpus import is_corpus
from bertgpt.data.tokens import tokenizers
from bertgpt.devices import peers, watchdog
from bertgpt.errors import ConfigError, DataError


def find_corpus(config: ConfigDict, *, reports: bool = True,
                resumes: bool = False) -> pathlib.Path:
  """Returns the folder of a config's prepared corpus, which process 0 prepares if it is missing.

  Only process 0 reads the source. The other processes wait, and get the name of the corpus from it.

  Args:
    config: config of a run; all processes call with the same one.
    reports: whether to print a report on a corpus that is prepared.
    resumes: whether a run began with this config, see `prepare.ensure_prepared`.
  Raises:
    DataError: the data is wrong, or this process cannot read the corpus that process 0 prepared.
  """
  if jax.process_count() == 1:
    return prepare.ensure_prepared(config, reports=reports, resumes=resumes)
  is_first = jax.process_index() == 0
  path = pathlib.Path()
  if is_first:
    path = prepare.ensure_prepared(config, reports=reports, resumes=resumes)
  with watchdog.paused():  # Process 0 has its own limit.
    name = peers.ask_first(path.name)
  if not is_first:
    path = files.make_path(config.data.corpus or f"{config.data.cache_dir}/{name}")
    if not is_corpus(path):
      raise DataError(f"{path}: process 0 has prepared this corpus, but it is not here. Put "
                      "data.cache_dir on storage that all hosts share")
  return path.absolute()


def resolve(config: ConfigDict, tokenizer: tokenizers.Tokenizer,
            will_train: bool = True) -> ConfigDict:
  """Returns the config with the field that depends on the tokenizer, `model.vocab_size`.

  Args:
    config: config of a run.
    tokenizer: tokenizer of its corpus.
    will_train: whether the tokenizer must have the special tokens that the objective needs.
  Raises:
    ConfigError: the tokenizer lacks tokens that the objective needs, or the config names another
      tokenizer or another size of the vocabulary.
  """
  path = config.tokenizer.path
  if config.data.corpus and path and tokenizer.fingerprint() not in {
      prepare.load_tokenizer(config, is_saved).fingerprint() for is_saved in (False, True)}:
    raise ConfigError(f"tokenizer.path={path} is not the tokenizer that "
                      f"data.corpus={config.data.corpus} was prepared with. Leave tokenizer.path "
                      "empty, or leave data.corpus empty to prepare data.source again")
  config = config.copy_and_resolve_references()
  with config.unlocked():
    if config.model.vocab_size not in (0, tokenizer.vocab_size):
      raise ConfigError(f"model.vocab_size={config.model.vocab_size}, but the tokenizer has "
                        f"{tokenizer.vocab_size} tokens. Leave model.vocab_size at 0")
    config.model.vocab_size = tokenizer.vocab_size
  if will_train:
    formats.check_tokenizer(config, tokenizer)
  return config
