"""Positions of tokens in the text that they come from."""

from collections.abc import Sequence

import numpy as np

from bertgpt.data.tokens.tokenizer import Tokenizer


def encode_with_offsets(tokenizer: Tokenizer, texts: Sequence[str]
                        ) -> list[tuple[np.ndarray, np.ndarray]]:
  """Returns the token ids of every text, and where each token is in the text.

  Args:
    tokenizer: any tokenizer; the ids are those of its `encode`.
    texts: any texts.
  Returns:
    For every text, ids int32 [N] and characters int32 [N, 2]: the first character of a token and
    the one after its last. A token may include spaces before its word. Several tokens may share a
    character whose bytes were split between them, and a token that the tokenizer inserted is empty.
    Characters that the tokenizer drops, such as accents, belong to the token before them, or after
    white space to the token that follows them. White space that it drops belongs to none.
  """
  return [(ids, _extend(spans, text)) for text, (ids, spans)
          in zip(texts, tokenizer.encode_with_spans(texts), strict=True)]


def _extend(spans: np.ndarray, text: str) -> np.ndarray:
  """Returns the spans, extended by the characters without a token next to them, up to white space.

  Args:
    spans: first character of every token, and the one after its last, int32 [N, 2].
    text: text of the tokens.
  """
  is_space = np.fromiter(map(str.isspace, text), bool, len(text))
  is_free = _find_free(spans, is_space)
  # For every character: its index if it is not free, otherwise the index of the next such one.
  stops = np.append(np.where(is_free, len(text), np.arange(len(text))), len(text))
  stops = np.minimum.accumulate(stops[::-1])[::-1]
  starts, ends = spans.T
  ends = np.where(ends > starts, stops[ends], ends)
  # What is still free follows white space, or is at the beginning. For every character: the index
  # after the last character before it that is not free.
  is_free = _find_free(np.stack([starts, ends], 1), is_space)
  begins = np.append(0, np.where(is_free, 0, np.arange(len(text)) + 1))
  begins = np.maximum.accumulate(begins)
  is_word = (ends > starts) & ~np.append(is_space, False)[starts]
  return np.stack([np.where(is_word, begins[starts], starts), ends], 1).astype(np.int32)


def _find_free(spans: np.ndarray, is_space: np.ndarray) -> np.ndarray:
  """Returns which characters are in no span and are no white space, bool [characters]."""
  is_free = ~is_space
  for start, end in spans:
    is_free[start:end] = False
  return is_free
