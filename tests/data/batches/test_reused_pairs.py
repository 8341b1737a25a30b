"""bertgpt.data.batches.reused_pairs: rows against the stream that they are cut from."""

import numpy as np
import pytest
from memory_corpus import CLS, FIRST, SEP, make_corpus, random_corpus

from bertgpt import config as config_lib
from bertgpt.data.batches import formats, parts

SEQ_LEN, REUSE, STREAMS = 64, 32, 4
ROOM = SEQ_LEN - REUSE - 3


@pytest.fixture(scope="module")
def rows():
  """Returns the stream, and X, A and B of every row."""
  corpus = random_corpus(200, 8, 12)
  config = config_lib.base()
  config.objective.update(name="plm_memory", permutation_block=REUSE)
  texts = parts.select(corpus, np.flatnonzero(corpus.document_lengths))
  plan = formats.find(config).plan(texts, config, SEQ_LEN, np.random.default_rng(0), STREAMS)
  number = np.repeat(np.arange(plan.num_rows), np.diff(plan.offsets))
  layout = parts.Layout(SEQ_LEN, 1, 0, CLS, SEP, False)
  read = lambda p: corpus.tokens([p["document"]])[0][p["start"]:p["start"] + p["length"]]
  batch = formats.find(config).assemble(parts.Placed(
      plan.parts, number, [read(p) for p in plan.parts], plan.num_rows, layout))
  stream = np.concatenate([np.append(tokens, SEP) for tokens in corpus.tokens(texts.documents)])
  return stream, batch


def split(tokens, segments):
  """Returns X, A and B of a row, without the special tokens that end them."""
  size = int(np.argmax(segments == 1)), int((segments == 1).sum())
  assert tokens[size[0] - 1] == SEP and tokens[sum(size) - 1] == SEP
  return tokens[:REUSE], tokens[REUSE:size[0] - 1], tokens[size[0]:sum(size) - 1]


def test_streams_hold_the_text_once_and_a_continues_x(rows):
  stream, batch = rows
  size = len(stream) // STREAMS
  is_next, seen = [], []
  for r, (tokens, segments, ids) in enumerate(zip(
      batch["tokens"], batch["segment_ids"], batch["sequence_ids"], strict=True)):
    begin = r % STREAMS * size + r // STREAMS * REUSE
    seen += range(begin, begin + REUSE)
    x, a, b = split(tokens, segments)
    np.testing.assert_array_equal(np.append(x, a), stream[begin:begin + REUSE + len(a)])
    last = (ids > 0).sum() - 1
    assert tokens[last] == CLS and segments[last] == 2 and (ids[:last + 1] == 1).all()
    if begin + REUSE + ROOM <= len(stream):
      assert len(a) + len(b) == ROOM and len(a) > 0
    end = begin + REUSE + len(a)
    at = np.flatnonzero(stream == b[b >= FIRST][0])[0] - np.argmax(b >= FIRST) if any(
        b >= FIRST) else None
    if at is not None:
      np.testing.assert_array_equal(b, stream[at:at + len(b)])
      is_next.append(end <= at < end + ROOM)  # A may have been shortened.
  assert len(set(seen)) == len(seen) > 0.9 * len(stream)
  assert 0.3 < np.mean(is_next) < 0.55  # Half, less those without a boundary for A.


def make_plan(corpus, key, seq_len=SEQ_LEN, streams=STREAMS):
  config = config_lib.base()
  config.objective.update(name="plm_memory", permutation_block=REUSE)
  return formats.make_plan(corpus, config, seq_len, key, num_streams=streams)


def test_the_rows_follow_from_the_key():
  corpus = random_corpus(50, 8, 12)
  one, same, other = (make_plan(corpus, key) for key in ((0, 1), (0, 1), (0, 2)))
  assert one.num_rows % STREAMS == 0
  assert np.array_equal(one.parts, same.parts) and np.array_equal(one.offsets, same.offsets)
  assert not np.array_equal(one.parts[:9], other.parts[:9])


@pytest.mark.parametrize("documents", [[[1]], [[3, 2]], [[300]], [[1], [90, 1], [2]]], ids=str)
def test_rows_of_a_short_text_fit(documents):
  """The text may be shorter than a row, or no sentence may end in one."""
  plan = make_plan(make_corpus(documents), (0,))
  rows = np.repeat(np.arange(plan.num_rows), np.diff(plan.offsets))
  ends = plan.parts["column"] + parts.token_sizes(plan.parts)
  assert ends.max() <= SEQ_LEN and plan.num_rows % STREAMS == 0
  for row in range(plan.num_rows):
    inside = (rows == row) & (parts.token_sizes(plan.parts) > 0)
    # No gap and no overlap.
    np.testing.assert_array_equal(plan.parts["column"][inside][1:], ends[inside][:-1])
    assert plan.parts["column"][inside][0] == 0 and plan.parts["opens"][inside].sum() == 1
