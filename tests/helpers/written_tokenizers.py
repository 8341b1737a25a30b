"""Tokenizers as `bertgpt export` writes them, for a model of either kind."""

from bertgpt.data.tokens import marks
from bertgpt.hub import tokenizer_files


def _describe(tokenizer, is_encoder, around):
  default = marks.of_encoder(tokenizer) if is_encoder else marks.of_decoder()
  return around or default, tokenizer_files.special_tokens(tokenizer, is_encoder)


def to_fast(tokenizer, is_encoder=True, around=None):
  """Returns the tokenizer of the library `tokenizers`."""
  return tokenizer_files.to_fast(tokenizer, *_describe(tokenizer, is_encoder, around), is_encoder)


def write(tokenizer, folder, is_encoder=True, around=None, **how):
  """Writes the files of a tokenizer into a folder."""
  tokenizer_files.write(tokenizer, folder, *_describe(tokenizer, is_encoder, around),
                        **{"max_length": 64, "has_segments": is_encoder, **how})
