"""Log-probabilities from logits, one token per pass: the oracle of scorers and measures."""

import numpy as np
import tiny

from bertgpt.models import Inputs

ROOM = 64  # Positions of the models in `small_runs`.


def log_softmax(logits):
  logits = np.float64(logits)
  return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def after(gpt, tokens):
  """Returns the log-probabilities of the token after `tokens`: [vocab_size]."""
  row = np.zeros((1, ROOM), np.int32)
  row[0, :len(tokens)] = tokens
  logits = tiny.apply(gpt.model, gpt.params, Inputs.of_texts(row, np.array([ROOM])))
  return log_softmax(logits[0, len(tokens) - 1, :gpt.tokenizer.vocab_size])


def instead(bert, tokens, at):
  """Returns the log-probabilities of the token at a place, given all others: [vocab_size]."""
  tokenizer, length = bert.tokenizer, len(tokens) + 2
  row = np.zeros((1, ROOM), np.int32)
  row[0, :length] = [tokenizer.cls_id, *tokens, tokenizer.sep_id]
  row[0, at + 1] = tokenizer.mask_id
  is_text = (np.arange(ROOM) < length)[None].astype(np.int32)
  inputs = Inputs.of_texts(row, is_text.sum(1))
  inputs = inputs._replace(predict_positions_BK=np.array([[at + 1]]))
  logits = tiny.apply(bert.model, bert.params, inputs, method="predict").logits()
  return log_softmax(logits[0, 0, :tokenizer.vocab_size])


def encode(trained, text):
  return trained.tokenizer.encode([text])[0].tolist()
