"""bertgpt.data.batches.streams: an epoch holds every sentence once, from both sides."""

import numpy as np
import pytest
from memory_corpus import CLS, FIRST, PAD, SEP, make_corpus, random_corpus

from bertgpt import config as config_lib
from bertgpt.data.batches import loader
from bertgpt.data.batches.rows import TrainRows

CORPORA = {
    "ordinary": random_corpus(40, 12, 15),
    "one document": make_corpus([[7, 2, 9, 30, 1, 1, 4] * 5]),
    "fewer sentences than streams": make_corpus([[3, 4], [5]]),
    "one word in all": make_corpus([[1]]),
    "empty documents among others": make_corpus([[], [5, 5], [], [], [9, 1, 2], []]),
    "sentences longer than a row": make_corpus([[90], [2, 70, 3], [50, 4]]),
}


def make_config(batch_size, seq_len):
  config = config_lib.base()
  config.objective.name = "bilm"
  config.model.update(families_preset())
  config.phases = (config_lib.phase(seq_len=seq_len, batch_size=batch_size),)
  config.eval.batch_size = batch_size
  return config


def families_preset():
  return config_lib.families.FAMILIES["elmo"].presets["small"]


def read_streams(corpus, config, first_step=0, steps=None):
  """Returns the rows of every stream, joined: name -> [streams, places]."""
  rows = TrainRows(corpus, config, 0, 0, num_windows=1)
  size = config.phases[0].batch_size
  assert rows.rows_per_epoch % size == 0
  steps = steps or rows.rows_per_epoch // size
  batches = [loader.read_step(rows, size, slice(0, size), first_step + s) for s in range(steps)]
  return {name: np.concatenate([batch[name] for batch in batches], 1) for name in batches[0]}


def sentences_of(corpus):
  ends = np.cumsum(corpus.sentence_lengths)
  return [tuple(range(FIRST + end - n, FIRST + end))
          for end, n in zip(ends.tolist(), corpus.sentence_lengths.tolist(), strict=True)]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("seq_len", [8, 20])
@pytest.mark.parametrize("corpus", CORPORA.values(), ids=CORPORA.keys())
def test_both_directions_read_every_sentence_once(corpus, seq_len, batch_size):
  """A plain reader of the streams, which knows nothing about parts, finds the sentences again."""
  found = read_streams(corpus, make_config(batch_size, seq_len))
  read = []
  for stream in range(batch_size):
    is_place = found["sequence_ids"][stream] > 0
    count = is_place.sum()
    assert is_place[:count].all()  # Only the end of a stream is empty.
    for name in ("tokens", "targets", "backward_tokens", "backward_targets"):
      assert (found[name][stream, count:] == PAD).all()
    tokens, targets, backward, backward_targets, positions = (
        found[name][stream, :count].tolist() for name in
        ("tokens", "targets", "backward_tokens", "backward_targets", "positions"))
    at = 0
    while at < count:
      end = targets.index(SEP, at) + 1
      words = targets[at:end - 1]
      assert tokens[at:end] == [CLS, *words]
      assert backward[at:end] == [SEP, *words[::-1]]
      assert backward_targets[at:end] == [*words[::-1], CLS]
      assert positions[at:end] == list(range(end - at))
      read.append(tuple(words))
      at = end
  assert sorted(read) == sorted(sentences_of(corpus))


def test_streams_are_equally_long():
  found = read_streams(random_corpus(200, 12, 15), make_config(16, 20))
  lengths = (found["sequence_ids"] > 0).sum(1)
  assert lengths.max() - lengths.min() < 150  # The longest sentence has about 100 words.


def test_a_batch_depends_only_on_its_step():
  corpus, config = random_corpus(40, 12, 15), make_config(4, 20)
  whole = read_streams(corpus, config)
  part = read_streams(corpus, config, first_step=3, steps=2)
  for name, array in part.items():
    np.testing.assert_array_equal(array, whole[name][:, 60:100])


def test_epochs_differ_and_have_the_same_number_of_steps():
  corpus, config = random_corpus(40, 12, 15), make_config(4, 20)
  rows = TrainRows(corpus, config, 0, 0, num_windows=1)
  steps = rows.rows_per_epoch // 4
  first = read_streams(corpus, config)
  second = read_streams(corpus, config, first_step=steps)
  assert second["tokens"].shape == first["tokens"].shape
  assert (second["tokens"] != first["tokens"]).mean() > 0.5
  # An epoch whose streams are longer than those of the first loses their ends.
  kept = set(second["tokens"][second["tokens"] >= FIRST].tolist())
  assert len(kept) >= 0.97 * corpus.document_lengths.sum()


def test_the_evaluation_reads_every_sentence_in_streams_of_its_own():
  corpus, config = random_corpus(20, 5, 15), make_config(4, 20)
  config.eval.batch_size = 6
  batches = list(loader.make_eval_batches(corpus, config, 0, slice(0, 6)))
  places = sum((batch["sequence_ids"] > 0).sum() for batch in batches)
  assert places == corpus.sentence_lengths.sum() + len(corpus.sentence_lengths)
  assert all(batch["tokens"].shape == (6, 20) for batch in batches)


def test_batch_sizes_of_phases_must_be_equal():
  config = make_config(4, 20)
  config.phases = (*config.phases, config_lib.phase(seq_len=20, batch_size=8))
  (line,) = config_lib.find_problems(config)
  assert line.startswith("phases[].batch_size: with objective bilm")
