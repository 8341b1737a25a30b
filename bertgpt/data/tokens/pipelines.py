"""Tokenizers of the library `tokenizers`, configured like those of the models' authors."""

from collections.abc import Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

# Characters; a longer word is [UNK]. This is the limit of BERT in `tokenizers`; it is 200 in
# google-research/bert.
_MAX_WORD = 100
END_OF_WORD = "</w>"  # The end of the last piece of a word, in GPT-1's vocabulary.


def bert_pipeline(vocabulary: dict[str, int], lowercase: bool, *,
                  strip_accents: bool | None = None, split_chinese: bool = True,
                  unknown: str = "[UNK]") -> tokenizers.Tokenizer:
  """Returns BERT's tokenizer, like the library's own.

  Args:
    vocabulary: ids by piece; empty: still to be trained.
    lowercase: whether text is lower-cased.
    strip_accents: whether accents are stripped; None: only if text is lower-cased, as in
      google-research/bert.
    split_chinese: whether each Chinese character is a word.
    unknown: piece for words that the vocabulary lacks.
  """
  tokenizer = tokenizers.Tokenizer(models.WordPiece(
      vocabulary, unk_token=unknown, max_input_chars_per_word=_MAX_WORD))
  tokenizer.normalizer = normalizers.BertNormalizer(
      strip_accents=strip_accents, lowercase=lowercase, handle_chinese_chars=split_chinese)
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = decoders.WordPiece()
  return tokenizer


def byte_bpe_pipeline(model: models.BPE, add_prefix_space: bool = False) -> tokenizers.Tokenizer:
  """Returns GPT-2's tokenizer, like the library's own.

  Args:
    model: pieces and merges; empty: still to be trained.
    add_prefix_space: whether a text without a space at its start gets one.
  """
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def gpt1_pipeline(vocabulary: dict[str, int], merges: list[tuple[str, str]],
                  unknown: str = "<unk>") -> tokenizers.Tokenizer:
  """Returns GPT-1's tokenizer: BPE within the words of BERT's uncased normalizer.

  Args:
    vocabulary: ids by piece; the last piece of a word ends with `END_OF_WORD`.
    merges: pairs of pieces, the first merge first.
    unknown: piece for characters that the vocabulary lacks.
  """
  tokenizer = tokenizers.Tokenizer(models.BPE(
      vocabulary, merges, unk_token=unknown, end_of_word_suffix=END_OF_WORD,
      continuing_subword_prefix="", fuse_unk=False))
  tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = decoders.BPEDecoder(suffix=END_OF_WORD)
  return tokenizer


def words_pipeline(vocabulary: dict[str, int], lowercase: bool) -> tokenizers.Tokenizer:
  """Returns a tokenizer of words, numbers and runs of punctuation, as `\\w+|[^\\w\\s]+` finds them.

  Args:
    vocabulary: ids by word; empty: still to be trained.
    lowercase: whether text is lower-cased.
  """
  tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
  if lowercase:
    tokenizer.normalizer = normalizers.Lowercase()
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  return tokenizer


def serialize(tokenizer: tokenizers.Tokenizer) -> bytes:
  """Returns the content of `tokenizer.json`."""
  return tokenizer.to_str(pretty=True).encode()


def make_deterministic(library: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
  """Returns a tokenizer with everything turned off that makes ids depend on more than the text."""
  library.encode_special_tokens = True  # "[MASK]" in a text is text.
  library.no_padding()
  library.no_truncation()
  if isinstance(library.model, models.BPE):
    library.model.dropout = None
  return library


def ids_of(library: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
  """Returns the ids of texts, without special tokens around them."""
  return [e.ids for e in library.encode_batch_fast(texts, add_special_tokens=False)]
