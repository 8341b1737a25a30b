"""The size of the vocabulary that a run will have, found without its text."""

from typing import NamedTuple

from bertgpt import files
from bertgpt.config import ConfigDict
from bertgpt.data.corpus import corpus
from bertgpt.data.tokens import tokenizers


class VocabularySize(NamedTuple):
  """The number of tokens in a vocabulary, and where it comes from.

  Attributes:
    tokens: number of tokens.
    source: field that it comes from, and why a better source was not read.
    is_assumed: whether the run will read another tokenizer, which is not on this machine.
  """

  tokens: int
  source: str
  is_assumed: bool = False

  def describe(self) -> str:
    """Returns the size as one line."""
    assumed = "assumed: " * self.is_assumed
    return f"vocabulary {self.tokens:,} tokens ({assumed}{self.source})"

  def set_in(self, config: ConfigDict) -> ConfigDict:
    """Returns a copy of a config whose model has this vocabulary."""
    config = config.copy_and_resolve_references()
    config.model.vocab_size = self.tokens
    return config


def find(config: ConfigDict) -> VocabularySize:
  """Returns the size of the vocabulary of a run's model.

  A tokenizer or a corpus that the config names is read if it is on this machine. Otherwise the size
  is `tokenizer.vocab_size`, the largest that a tokenizer trained for the run can have.

  Args:
    config: the run's config.
  Raises:
    DataError: there is no tokenizer or corpus in the file or folder that the config names.
  """
  if config.model.vocab_size:
    return VocabularySize(config.model.vocab_size, "model.vocab_size")
  wanted = VocabularySize(config.tokenizer.vocab_size, "tokenizer.vocab_size")
  field = "data.corpus" if config.data.corpus else "tokenizer.path"
  name = config.data.corpus or config.tokenizer.path
  if not name:
    return wanted
  path = files.expand(name)
  if files.is_remote(name) or not path.exists():
    reason = f"{wanted.source}, because {field}={name} is not on this machine"
    return VocabularySize(wanted.tokens, reason, is_assumed=True)
  if config.data.corpus:
    return VocabularySize(corpus.read_manifest(path)["tokenizer"]["vocab_size"], f"{field}={name}")
  tokenizer = tokenizers.load_tokenizer(path, config.tokenizer.lowercase)
  return VocabularySize(tokenizer.vocab_size, f"{field}={name}")
