"""Training of tokenizers on text.

The same text in the same order gives the same file, with the same versions of the libraries.
"""

import io
import re
from collections.abc import Callable, Iterable

import sentencepiece
from tokenizers import models, pre_tokenizers, trainers

from bertgpt.config import ConfigDict
from bertgpt.data.text.documents import cut_at_spaces
from bertgpt.data.tokens.pipelines import (
    bert_pipeline,
    byte_bpe_pipeline,
    serialize,
    words_pipeline,
)
from bertgpt.data.tokens.tokenizers import (
    NEW_SPECIALS,
    ByteBPE,
    SentencePiece,
    Tokenizer,
    WordPiece,
    Words,
)
from bertgpt.errors import ConfigError, DataError

_MAX_ALPHABET = 10_000  # Characters; the library's default of 1,000 is too small for Chinese.
# Size of the vocabulary from which characters outside of it are written as bytes. In a smaller
# vocabulary, the 256 pieces for bytes would be too large a share.
_BYTE_FALLBACK_FROM = 4096
_SENTENCEPIECE_SIZES = (
    (re.compile(r"too high.*<= (\d+)"), "at most"),
    (re.compile(r"smaller than required_chars\. \d+ vs (\d+)"), "at least"),
)


def check_kind(kind: str) -> None:
  """Checks that tokenizers of a kind are trained here.

  Args:
    kind: `config.tokenizer.kind`.
  Raises:
    ConfigError: they are only loaded.
  """
  if kind not in TRAINERS:
    raise ConfigError(f"tokenizer.kind={kind!r} cannot be trained. Set tokenizer.path to the files "
                      f"of such a tokenizer, or the kind to {' or '.join(TRAINERS)}")


def train_tokenizer(config: ConfigDict, texts: Iterable[str]) -> Tokenizer:
  """Trains a tokenizer on texts, which are held in memory.

  Args:
    config: `config.tokenizer`: kind, vocab_size, model_type, lowercase.
    texts: sentences or paragraphs in a fixed order.
  Raises:
    DataError: there is no text, or not enough for the size of the vocabulary.
  """
  texts = [text for text in texts if text.strip()]
  if not texts:
    raise DataError("tokenizer: there is no text to train on. Check data.source")
  return TRAINERS[config.kind](config, texts)


def _train_sentencepiece(config: ConfigDict, texts: list[str]) -> SentencePiece:
  # SentencePiece skips lines of more than 4,192 bytes; a character has at most 4.
  # A list, because the library would turn an exception of a generator, as Ctrl-C raises one, into
  # its own error.
  lines = [piece for text in texts for piece in cut_at_spaces(text, 1000)]
  model = io.BytesIO()
  pad, unk, *controls = NEW_SPECIALS
  try:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=2,
        vocab_size=config.vocab_size, model_type=config.model_type,
        normalization_rule_name="nmt_nfkc_cf" if config.lowercase else "nmt_nfkc",
        byte_fallback=config.vocab_size >= _BYTE_FALLBACK_FROM,
        pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, pad_piece=pad, unk_piece=unk,
        control_symbols=controls,
        # A constant, not the number of cores, because the result depends on it.
        num_threads=16)
  except RuntimeError as e:
    raise _sentencepiece_error(config.vocab_size, str(e)) from e
  return SentencePiece(model.getvalue())


def _sentencepiece_error(size: int, message: str) -> DataError:
  for pattern, relation in _SENTENCEPIECE_SIZES:
    if match := pattern.search(message):
      limit = int(match[1])
      # A vocabulary of that size may be too small for the 256 pieces for bytes.
      byte_pieces = 256 * (limit < _BYTE_FALLBACK_FROM <= size)
      return _size_error(size, relation, limit - byte_pieces)
  return DataError(f"tokenizer: SentencePiece cannot train on this text: {message.splitlines()[0]}")


def _size_error(size: int, relation: str, possible: int) -> DataError:
  return DataError(f"tokenizer.vocab_size={size} does not fit the text. Set it to {relation} "
                   f"{possible}, or give other text in data.source")


def _train_wordpiece(config: ConfigDict, texts: list[str]) -> WordPiece:
  tokenizer = bert_pipeline({}, config.lowercase)
  # The library numbers the characters inside words in the order of a hash table, which differs
  # from run to run, and breaks ties by this number. So a first pass finds them, and the second one
  # gets them in a fixed order.
  tokenizer.train_from_iterator(texts, _wordpiece_trainer(1, NEW_SPECIALS))
  characters = sorted(tokenizer.get_vocab().keys() - set(NEW_SPECIALS))
  _check_size(config.vocab_size, least=len(NEW_SPECIALS) + len(characters))
  trainer = _wordpiece_trainer(config.vocab_size, NEW_SPECIALS + characters)
  tokenizer.train_from_iterator(texts, trainer)
  vocabulary = tokenizer.get_vocab()
  _check_size(config.vocab_size, most=len(vocabulary))
  return WordPiece(serialize(bert_pipeline(vocabulary, config.lowercase)))


def _wordpiece_trainer(vocab_size: int, first: list[str]):
  return trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=first,
                                   limit_alphabet=_MAX_ALPHABET, show_progress=False)


def _train_byte_bpe(config: ConfigDict, texts: list[str]) -> ByteBPE:
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  _check_size(config.vocab_size, least=len(NEW_SPECIALS) + len(alphabet))
  tokenizer = byte_bpe_pipeline(models.BPE())
  tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
      vocab_size=config.vocab_size, special_tokens=NEW_SPECIALS, initial_alphabet=alphabet,
      show_progress=False))
  _check_size(config.vocab_size, most=tokenizer.get_vocab_size())
  return ByteBPE(serialize(tokenizer))


def _train_words(config: ConfigDict, texts: list[str]) -> Words:
  """Returns a tokenizer of the most frequent words; words of equal frequency are sorted."""
  _check_size(config.vocab_size, least=len(NEW_SPECIALS) + 1)
  tokenizer = words_pipeline({}, config.lowercase)
  tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(
      vocab_size=config.vocab_size, special_tokens=NEW_SPECIALS, show_progress=False))
  _check_size(config.vocab_size, most=tokenizer.get_vocab_size())
  return Words(serialize(tokenizer))


def _check_size(size: int, *, least: int = 0, most: int | None = None) -> None:
  if size < least:
    raise _size_error(size, "at least", least)
  if most is not None and size > most:
    raise _size_error(size, "at most", most)


# Kind -> function of `config.tokenizer` and the texts.
TRAINERS: dict[str, Callable[..., Tokenizer]] = {
    "sentencepiece": _train_sentencepiece,
    "wordpiece": _train_wordpiece,
    "bpe": _train_byte_bpe,
    "words": _train_words,
}
