"""Where in a text every token comes from."""

from collections.abc import Sequence

import numpy as np
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_pb2

from bertgpt.data.tokens.tokenizers import SentencePiece, Tokenizer


def encode_with_offsets(tokenizer: Tokenizer, texts: Sequence[str]
                        ) -> list[tuple[np.ndarray, np.ndarray]]:
  """Token ids of every text, as `tokenizer.encode` gives them, and where they are in it.

  Returns:
    For every text int32 [N] and int32 [N, 2]: the first character of a token and the one after its
    last. A token may hold spaces before its word; tokens may share a character that was taken
    apart, and one that came out of nothing is empty.
  """
  if isinstance(tokenizer, SentencePiece):
    return _encode_sentencepiece(tokenizer, texts)
  library = tokenizers.Tokenizer.from_buffer(tokenizer.data)
  library.encode_special_tokens = True
  library.no_padding()
  library.no_truncation()
  return [(np.array(e.ids, np.int32), np.array(e.offsets, np.int32).reshape(-1, 2))
          for e in library.encode_batch(list(texts), add_special_tokens=False)]


def _encode_sentencepiece(tokenizer, texts):
  processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.data)
  encoded = []
  for text, data in zip(texts, processor.encode(list(texts), out_type="serialized_proto"),
                        strict=True):
    pieces = sentencepiece_pb2.SentencePieceText.FromString(data).pieces
    ids = np.array([piece.id for piece in pieces], np.int32)
    ends = np.array([(piece.begin, piece.end) for piece in pieces], np.int32).reshape(-1, 2)
    encoded.append((ids, _characters_of_bytes(text)[ends]))
  return encoded


def _characters_of_bytes(text: str) -> np.ndarray:
  """Number of the character that begins at or holds a byte of the UTF-8: int32 [bytes + 1]."""
  data = np.frombuffer(text.encode(), np.uint8)
  starts = np.cumsum((data & 0xC0) != 0x80, dtype=np.int32)
  return np.append(starts - 1, len(text)).astype(np.int32)
