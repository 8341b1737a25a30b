"""bertgpt.data.batches.loader: rows against a plain assembly; a batch depends only on its step."""

import dataclasses
import multiprocessing
import os
import pickle
import signal
import threading
import tracemalloc

import numpy as np
import pytest
from memory_corpus import (
    CLS,
    EOD,
    FIRST,
    PAD,
    SEP,
    MemoryCorpus,
    document_of,
    make_corpus,
    random_corpus,
)

from bertgpt import config as config_lib
from bertgpt.data.batches import formats, loader, windows
from bertgpt.data.batches import rows as rows_lib
from bertgpt.data.batches.rows import EvalRows, TrainRows
from bertgpt.data.batches.windows import divide
from bertgpt.data.corpus.corpus import open_corpus
from bertgpt.data.corpus.prepare import prepare
from bertgpt.errors import ConfigError, DataError, WorkerError

ORDINARY = random_corpus(60, 12, 10)
OBJECTIVES = ("mlm_nsp", "mlm_sop", "mlm", "plm", "causal")
PAIRS = {"mlm_nsp": "nsp", "mlm_sop": "sop"}
VARIANTS = [("mlm_nsp", {}), ("mlm_sop", {}), ("mlm_nsp", {"packing": False}), ("mlm", {}),
            ("plm", {}), ("plm", {"packing": False}),
            ("mlm", {"packing": False}), ("causal", {}), ("causal", {"packing": False}),
            ("causal", {"isolate_documents": True}), ("mlm", {"isolate_documents": True})]
every_variant = pytest.mark.parametrize(
    "objective, data", VARIANTS, ids=["-".join([o, *d]) for o, d in VARIANTS])


def make_config(objective="mlm_nsp", seq_len=32, batch_size=8, steps=40, **data):
  config = config_lib.base()
  config.objective.name = objective
  config.data.update(data)
  config.phases = (config_lib.phase(seq_len=seq_len, batch_size=batch_size, steps=steps),)
  config.eval.batch_size = batch_size
  return config


def make_rows(corpus, config):
  return TrainRows(corpus, config, 0, config.seed)


def read_epoch(corpus, config):
  rows = make_rows(corpus, config)
  return rows.read(np.arange(rows.rows_per_epoch))


def assert_equal(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]), name


def join(batches):
  return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def train_batches(corpus, config, first_step=0, row_slice=slice(None)):
  with loader.make_train_batches(corpus, config, 0, first_step, row_slice) as batches:
    return list(batches)


# ---------------------------------------------------------------- assembly


def pad(values, length, fill=0):
  return values + [fill] * (length - len(values))


def assemble_token_by_token(corpus, objective, seq_len, plan, max_sequences):
  """Returns the rows of a plan, assembled by appending to lists."""
  opening, closing = (EOD, EOD) if objective == "causal" else (CLS, SEP)
  rows = []
  for parts in np.split(plan.parts, plan.offsets[1:-1]):
    tokens, sequences, positions, segments = [], [], [], []
    nsp = np.zeros((3, max_sequences))
    for part in parts:
      text = corpus.tokens([part["document"]])[0][part["start"]:][:part["length"]].tolist()
      piece = [opening] * int(part["opens"]) + text + [closing] * int(part["closes"])
      if objective == "causal":
        del tokens[len(sequences):]  # The part before has predicted the first token of this one.
      elif objective in PAIRS and part["opens"]:
        nsp[:, part["sequence"] - 1] = len(tokens), max(part["label"], 0), part["label"] >= 0
      tokens += piece
      size = len(piece) - (objective == "causal")
      sequences += [part["sequence"]] * size
      positions += [len(positions) - part["origin"] + i for i in range(size)]
      segments += [part["segment"]] * size
    tokens = pad(tokens, seq_len + (objective == "causal"), PAD)
    row = {"tokens": tokens[:seq_len], "sequence_ids": pad(sequences, seq_len),
           "positions": pad(positions, seq_len)}
    if objective == "causal":
      row |= {"targets": tokens[1:], "loss_weights": pad([1] * len(sequences), seq_len)}
    else:
      row["segment_ids"] = pad(segments, seq_len)
    if objective in PAIRS:
      names = [f"{PAIRS[objective]}_{name}" for name in ("positions", "labels", "weights")]
      row |= dict(zip(names, nsp, strict=True))
    rows.append(row)
  return {name: np.array([r[name] for r in rows],
                         np.float32 if name.endswith("weights") else np.int32) for name in rows[0]}


@every_variant
@pytest.mark.parametrize("seq_len", [8, 32, 130])
def test_rows_are_those_of_the_plan(objective, data, seq_len):
  config = make_config(objective, seq_len, **data)
  plan = formats.make_plan(ORDINARY, config, seq_len, (config.seed, 0, 0))
  expected = assemble_token_by_token(ORDINARY, objective, seq_len, plan,
                                     config_lib.max_sequences(config, seq_len))
  assert_equal(read_epoch(ORDINARY, config), expected)


def sequences_of(batch):
  """Yields (row, sequence, columns) of every sequence of a batch."""
  for row, ids in enumerate(batch["sequence_ids"]):
    for sequence in range(1, ids.max() + 1):
      yield row, sequence, np.flatnonzero(ids == sequence)


@pytest.mark.parametrize("objective", PAIRS)
def test_a_single_sentence_has_an_empty_b_and_no_label(objective):
  batch = read_epoch(make_corpus([[3]]), make_config(objective, 16))
  assert batch["tokens"][0, :6].tolist() == [CLS, FIRST, FIRST + 1, FIRST + 2, SEP, SEP]
  assert batch["segment_ids"][0, :6].tolist() == [0, 0, 0, 0, 0, 1]
  assert not batch[f"{PAIRS[objective]}_weights"].any()


@pytest.mark.parametrize("seq_len", [8, 32, 130])
@pytest.mark.parametrize("packing", [True, False])
def test_pairs_read_as_bert_reads_them(seq_len, packing):
  """Rows are [CLS] A [SEP] B [SEP]: running text, where B follows A or is from elsewhere."""
  batch = read_epoch(ORDINARY, make_config("mlm_nsp", seq_len, packing=packing))
  filled = 0
  for row, sequence, columns in sequences_of(batch):
    tokens, segments = (batch[name][row, columns] for name in ("tokens", "segment_ids"))
    assert np.array_equal(batch["positions"][row, columns], np.arange(len(columns)))
    assert np.array_equal(columns, np.arange(columns[0], columns[0] + len(columns)))
    first_sep, last_sep = np.flatnonzero(tokens == SEP)
    assert tokens[0] == CLS and last_sep == len(tokens) - 1
    assert np.array_equal(segments, np.arange(len(tokens)) > first_sep)
    a, b = tokens[1:first_sep], tokens[first_sep + 1:last_sep]
    assert np.all(np.diff(a) == 1) and np.all(np.diff(b) == 1) and len(a) and len(b)
    (document,), (document_b,) = (set(document_of(ORDINARY, x).tolist()) for x in (a, b))
    label = batch["nsp_labels"][row, sequence - 1]
    assert (document == document_b) == (label == 0)
    if label == 0:
      assert a[-1] < b[0]
    assert batch["nsp_positions"][row, sequence - 1] == columns[0]
    assert batch["nsp_weights"][row, sequence - 1] == 1
    filled += 1
  assert batch["nsp_weights"].sum() == filled


@every_variant
def test_padding_is_padding_in_every_array(objective, data):
  batch = read_epoch(ORDINARY, make_config(objective, 130, **data))
  is_padding = batch["sequence_ids"] == 0
  assert is_padding.any()
  for name in batch.keys() & {"positions", "segment_ids", "loss_weights"}:
    assert not batch[name][is_padding].any(), name
  if objective != "causal":
    assert np.all(batch["tokens"][is_padding] == PAD)
  assert np.all(np.diff(is_padding.astype(int)) >= 0), "padding comes last"


@pytest.mark.parametrize("seq_len", [8, 32, 130])
@pytest.mark.parametrize("data", [{}, {"packing": False}, {"isolate_documents": True}])
def test_causal_targets_are_the_next_tokens_and_each_occurs_once(seq_len, data):
  batch = read_epoch(ORDINARY, make_config("causal", seq_len, **data))
  here = batch["loss_weights"] > 0
  tokens, targets = batch["tokens"][here], batch["targets"][here]
  starts = np.cumsum(ORDINARY.document_lengths) - ORDINARY.document_lengths + FIRST
  after_end = tokens == EOD
  assert set(targets[after_end]) == set(starts)
  ends = targets == EOD
  assert np.array_equal(np.sort(tokens[ends]), starts + ORDINARY.document_lengths - 1)
  rest = ~after_end & ~ends
  assert np.all(targets[rest] == tokens[rest] + 1)
  expected = np.concatenate([np.full(len(starts), EOD),
                             FIRST + np.arange(ORDINARY.document_lengths.sum())])
  assert np.array_equal(np.sort(targets), expected)


@every_variant
@pytest.mark.parametrize("seq_len", [16, 64])
def test_rows_of_one_sequence_are_those_that_the_format_says(objective, data, seq_len):
  """Such a row is tokens of sequence 1, then padding; the attention kernels rely on this."""
  config = make_config(objective, seq_len, **data)
  ids = read_epoch(ORDINARY, config)["sequence_ids"]
  lengths = (ids > 0).sum(1, keepdims=True)
  is_one = np.array_equal(ids, np.arange(seq_len) < lengths)
  assert formats.has_one_sequence(config) == is_one


@pytest.mark.parametrize("seq_len", [16, 64, 256])
def test_packed_texts_are_sequences_of_one_document_each(seq_len):
  """[CLS] sentences [SEP], with positions that restart; every token occurs exactly once."""
  batch = read_epoch(ORDINARY, make_config("mlm", seq_len, isolate_documents=True))
  counts, seen = [], []
  for row, _, columns in sequences_of(batch):
    tokens = batch["tokens"][row, columns]
    assert tokens[0] == CLS and tokens[-1] == SEP and (tokens[1:-1] >= FIRST).all()
    assert len(set(document_of(ORDINARY, tokens[1:-1]))) == 1
    assert np.array_equal(batch["positions"][row, columns], np.arange(len(columns)))
    seen.append(tokens[1:-1])
    counts.append(batch["sequence_ids"][row].max())
  assert np.array_equal(np.sort(np.concatenate(seen)),
                        FIRST + np.arange(ORDINARY.document_lengths.sum()))
  if seq_len == 256:
    assert max(counts) > 2, "no row holds several texts"
    assert (batch["sequence_ids"] > 0).mean() > 0.9


def test_isolated_documents_are_sequences_of_their_own():
  batch = read_epoch(ORDINARY, make_config("causal", 64, isolate_documents=True))
  lengths = []
  for row, _, columns in sequences_of(batch):
    seen = np.concatenate([batch["tokens"][row, columns], batch["targets"][row, columns]])
    assert len(set(document_of(ORDINARY, seen[seen >= FIRST]))) == 1
    assert np.array_equal(batch["positions"][row, columns], np.arange(len(columns)))
    assert columns[0] == 0 or batch["tokens"][row, columns[0]] == EOD
    lengths.append(len(columns))
  assert min(lengths) < 64, "no document ended within a row: nothing was tested"
  joined = read_epoch(ORDINARY, make_config("causal", 64))
  assert joined["sequence_ids"].max() == 1
  assert np.array_equal(joined["tokens"], batch["tokens"])


@pytest.mark.parametrize("documents", [
    [[1]], [[1]] * 9, [[300]], [[5, 5, 5]], [[2], [1000], [3, 4]], [[], [4, 4], []],
], ids=["one word", "words", "one sentence", "one document", "long sentence", "empty documents"])
@every_variant
def test_odd_corpora_make_rows(documents, objective, data):
  batch = read_epoch(make_corpus(documents), make_config(objective, 16, **data))
  assert (batch["sequence_ids"][:, 0] == 1).all()
  if objective == "mlm_nsp" and len(documents) == 1:
    assert not batch["nsp_labels"].any(), "there is no other document"
    assert (batch["nsp_weights"].sum() == 0) == (len(documents[0]) == 1)


# ------------------------------------------- a pure function of the step


@every_variant
def test_a_batch_does_not_depend_on_where_reading_starts(objective, data):
  config = make_config(objective, steps=20, **data)
  batches = train_batches(ORDINARY, config)
  assert len(batches) == 20
  for first in (0, 1, 7, 19, 20):
    later = train_batches(ORDINARY, config, first_step=first)
    assert len(later) == 20 - first
    for a, b in zip(later, batches[first:], strict=True):
      assert_equal(a, b)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_divide_a_batch(objective, hosts):
  config = make_config(objective, steps=5)
  whole = train_batches(ORDINARY, config)
  shares = [train_batches(ORDINARY, config, row_slice=slice(8 * h // hosts, 8 * (h + 1) // hosts))
            for h in range(hosts)]
  for step, batch in enumerate(whole):
    assert_equal(join([share[step] for share in shares]), batch)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("num_windows", [1, 3])
def test_steps_go_through_the_epochs_row_by_row(objective, num_windows):
  """Batches across windows and epochs consist of the rows of the plans, in order."""
  config = make_config(objective)
  rows = TrainRows(ORDINARY, config, 0, config.seed, num_windows=num_windows)
  windows = divide(ORDINARY.document_lengths, num_windows)
  fitted = [formats.make_plan(ORDINARY, config, 32, (config.seed, 0, epoch), window=window,
                              windows=windows, num_rows=rows.rows_per_window)
            for epoch in range(3) for window in range(num_windows)]
  expected = join([assemble_token_by_token(ORDINARY, objective, 32, plan, 2) for plan in fitted])
  numbers = np.arange(3 * rows.rows_per_epoch)
  batch = join([rows.read(numbers[i:i + 13]) for i in range(0, len(numbers), 13)])
  assert_equal(batch, expected)
  backwards = join([rows.read(numbers[::-1][i:i + 50]) for i in range(0, len(numbers), 50)])
  assert_equal(backwards, {name: x[::-1] for name, x in expected.items()})


def test_seed_and_phase_make_other_rows():
  config = make_config()
  config.phases *= 2
  hashes = {loader.batch_sha256(TrainRows(ORDINARY, config, phase, seed).read(np.arange(8)))
            for phase in (0, 1) for seed in (0, 1)}
  assert len(hashes) == 4


def test_pickled_rows_are_the_same():
  rows = make_rows(ORDINARY, make_config())
  assert_equal(pickle.loads(pickle.dumps(rows)).read(np.arange(8)), rows.read(np.arange(8)))


def test_the_hash_sees_values_types_names_and_shapes():
  batch = {"a": np.arange(6, dtype=np.int32), "b": np.zeros(2, np.float32)}
  others = [batch | {"a": np.arange(6, dtype=np.int32)[::-1]}, batch | {"b": -batch["b"]},
            batch | {"a": batch["a"].reshape(2, 3)}, batch | {"b": np.zeros(2, np.int32)},
            {"c": batch["a"], "b": batch["b"]}]
  assert len({loader.batch_sha256(b) for b in [batch, *others]}) == 6
  assert loader.batch_sha256(batch | {"a": np.arange(12, dtype=np.int32)[::2] // 2}) == (
      loader.batch_sha256(batch))


# ---------------------------------------------------------------- readers


def test_reader_processes_make_the_same_batches_and_their_death_is_an_error():
  config = make_config(steps=200)
  expected = train_batches(ORDINARY, make_config(steps=6))
  config.data.reader_workers = 2
  with loader.make_train_batches(ORDINARY, config, 0, 0, slice(None)) as batches:
    for batch in expected:
      assert_equal(next(batches), batch)
    children = multiprocessing.active_children()
    assert len(children) == 2
    for child in children:
      os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="data.reader_workers"):
      for _ in range(200):
        next(batches)
  assert not multiprocessing.active_children()


def test_signals_to_all_processes_of_a_group_do_not_end_the_readers():
  """The training gets them too, and needs its readers until it has saved its work."""
  config = make_config(steps=60)
  expected = train_batches(ORDINARY, config)
  config.data.reader_workers = 2
  with loader.make_train_batches(ORDINARY, config, 0, 0, slice(None)) as batches:
    found = [next(batches), next(batches)]  # One of each reader.
    children = multiprocessing.active_children()
    for child in children:
      for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(child.pid, number)
    found += batches
    assert len(children) == 2
  for batch, other in zip(found, expected, strict=True):
    assert_equal(batch, other)


def test_signals_to_readers_that_are_starting_do_not_end_them(monkeypatch):
  """They take seconds to import their modules, in which Python handles Ctrl-C, but not SIGTERM."""
  config = make_config(steps=20)
  expected = train_batches(ORDINARY, config)
  config.data.reader_workers = 1
  signaled, start = [], multiprocessing.process.BaseProcess.start

  def start_and_signal(process):
    start(process)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
      os.kill(process.pid, number)
      signaled.append(number)

  monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start_and_signal)
  with loader.make_train_batches(ORDINARY, config, 0, 0, slice(None)) as batches:
    found = list(batches)
  assert len(signaled) == 3
  for batch, other in zip(found, expected, strict=True):
    assert_equal(batch, other)


@dataclasses.dataclass(frozen=True)
class DamagedCorpus:
  """A corpus that can be read only once."""

  corpus: object
  reads: list

  def __getattr__(self, name):
    return getattr(self.corpus, name)

  def tokens(self, documents):
    self.reads.append(1)
    if len(self.reads) > 1:
      raise DataError("shard 3: damaged")
    return self.corpus.tokens(documents)


def test_an_unreadable_batch_is_an_error_and_the_end(monkeypatch):
  """Grain would skip the batch and continue with the next one."""
  monkeypatch.setattr(loader, "READ_THREADS", 1)
  with loader.make_train_batches(DamagedCorpus(ORDINARY, []), make_config(), 0, 0,
                                 slice(None)) as batches:
    next(batches)
    with pytest.raises(DataError, match="shard 3"):
      next(batches)
    assert list(batches) == []


def test_a_closed_iterator_is_exhausted_and_leaves_no_thread():
  before = set(threading.enumerate())
  batches = loader.make_train_batches(ORDINARY, make_config(), 0, 0, slice(None))
  next(batches)
  batches.close()
  batches.close()
  for thread in set(threading.enumerate()) - before:
    thread.join(timeout=1200)
    assert not thread.is_alive()
  assert list(batches) == []


def test_a_corpus_smaller_than_a_batch_is_an_error_with_a_remedy():
  with pytest.raises(DataError, match=r"phases\[0\].batch_size=10000. Lower batch_size"):
    loader.make_train_batches(ORDINARY, make_config(batch_size=10_000), 0, 0, slice(None))


@pytest.mark.parametrize("objective, ids", [("mlm", {"cls_id": -1}), ("mlm_nsp", {"sep_id": -1}),
                                            ("causal", {"eod_id": -1})])
def test_a_tokenizer_without_the_special_tokens_is_an_error(objective, ids):
  tokenizer = dataclasses.replace(ORDINARY.tokenizer, **ids)
  with pytest.raises(ConfigError, match=f"objective.name='{objective}'"):
    make_rows(dataclasses.replace(ORDINARY, tokenizer=tokenizer), make_config(objective))


# ------------------------------------------------------------- evaluation


@every_variant
@pytest.mark.parametrize("batch_size, hosts", [(1, 1), (7, 1), (7, 2), (64, 2), (5000, 2)])
def test_evaluation_reads_every_row_once(objective, data, batch_size, hosts):
  """Every batch size and number of hosts yields the rows of one epoch, then empty ones."""
  config = make_config(objective, batch_size=batch_size, **data)
  expected = read_epoch(ORDINARY, make_config(objective, **data))
  cuts = [batch_size * h // hosts for h in range(hosts + 1)]
  shares = [loader.make_eval_batches(ORDINARY, config, 0, slice(a, b))
            for a, b in zip(cuts, cuts[1:], strict=False)]
  batch = join([join(pieces) for pieces in zip(*shares, strict=True)])
  num_rows = len(expected["tokens"])
  assert len(batch["tokens"]) == -(-num_rows // batch_size) * batch_size
  assert_equal({name: x[:num_rows] for name, x in batch.items()}, expected)
  for name in batch.keys() & {"sequence_ids", "loss_weights", "nsp_weights"}:
    assert not batch[name][num_rows:].any(), name


@pytest.mark.parametrize("objective, array", [("mlm", "tokens"), ("causal", "targets")])
@pytest.mark.parametrize("batch_size", [7, 64])
def test_evaluation_in_several_windows_reads_every_token_once(objective, array, batch_size,
                                                              monkeypatch):
  total = int(ORDINARY.document_lengths.sum())
  monkeypatch.setattr(rows_lib, "WINDOW_TOKENS", total // 5)
  config = make_config(objective, batch_size=batch_size)
  batch = join(list(loader.make_eval_batches(ORDINARY, config, 0, slice(None))))
  tokens = batch[array][batch["sequence_ids"] > 0]
  assert np.sort(tokens[tokens >= FIRST]).tolist() == list(range(FIRST, FIRST + total))
  is_row = batch["sequence_ids"].any(axis=1)
  assert is_row[:is_row.sum()].all() and len(is_row) - is_row.sum() < batch_size
  config.eval.max_rows = int(is_row.sum()) - 3
  some = join(list(loader.make_eval_batches(ORDINARY, config, 0, slice(None))))
  kept = config.eval.max_rows
  assert_equal({name: x[:kept] for name, x in some.items()},
               {name: x[:kept] for name, x in batch.items()})
  assert not some["sequence_ids"][kept:].any()


@pytest.mark.slow
def test_evaluation_needs_the_memory_of_a_window(monkeypatch):
  """Two million tokens are planned in one window and in forty."""
  corpus, peaks = make_corpus([[20]] * 100_000), []
  for count in (1, 40):
    monkeypatch.setattr(rows_lib, "WINDOW_TOKENS", 2_000_000 // count)
    tracemalloc.start()
    rows = EvalRows(corpus, make_config("mlm"), 0)
    assert rows.count(10**9) >= 62_500
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert peaks[1] < peaks[0] / 5


def test_evaluation_does_not_depend_on_the_seed_and_stops_at_max_rows():
  config = make_config()
  config.eval.max_rows = 11
  first = join(list(loader.make_eval_batches(ORDINARY, config, 0, slice(None))))
  config.seed = 5
  assert_equal(join(list(loader.make_eval_batches(ORDINARY, config, 0, slice(None)))), first)
  assert (first["sequence_ids"][:, 0] > 0).sum() == 11


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_held_out_rows_of_one_length_are_those_of_every_phase_and_run(objective):
  def read(lengths, index, rows_by="length", max_rows=0):
    config = make_config(objective)
    config.phases = tuple(config_lib.phase(seq_len=length, batch_size=8) for length in lengths)
    config.eval.update(rows_by=rows_by, max_rows=max_rows)
    return join(list(loader.make_eval_batches(ORDINARY, config, index, slice(None))))

  for max_rows in (0, 5):
    expected = read([32], 0, max_rows=max_rows)
    for lengths, index in (([16, 32], 1), ([32, 32, 16], 0), ([32, 32, 16], 1)):
      assert_equal(read(lengths, index, max_rows=max_rows), expected)
  assert_equal(read([32], 0, "phase"), read([32], 0))  # Earlier versions drew these.
  assert loader.batch_sha256(read([16, 32], 1, "phase")) != loader.batch_sha256(read([32], 0))


def test_an_empty_validation_split_is_an_error():
  with pytest.raises(DataError, match="data.validation_fraction"):
    loader.make_eval_batches(make_corpus([[]]), make_config(), 0, slice(None))


# ------------------------------------------------------- a prepared corpus


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """Returns a prepared corpus of artificial sentences, with a trained WordPiece tokenizer."""
  folder = tmp_path_factory.mktemp("prepared")
  rng = np.random.default_rng(0)
  words = ["".join(rng.choice(list("abcdefgh"), n)) for n in rng.integers(2, 8, 300)]
  documents = [[" ".join(rng.choice(words, n)) for n in rng.integers(3, 12, 9)] for _ in range(80)]
  (folder / "text.txt").write_text("\n\n".join(map("\n".join, documents)))
  config = config_lib.base()
  config.data.source = f"text:{folder}/text.txt"
  config.data.validation_fraction = 0.1
  config.data.prepare_workers = 1
  config.tokenizer.kind = "wordpiece"
  config.tokenizer.vocab_size = 200
  return prepare(config, folder / "corpus")


@every_variant
def test_rows_of_a_prepared_corpus_are_its_text(prepared, objective, data):
  corpus = open_corpus(prepared, "train")
  config = make_config(objective, **data)
  plan = formats.make_plan(corpus, config, 32, (config.seed, 0, 0))
  batch = read_epoch(corpus, config)
  for row, parts in enumerate(np.split(plan.parts, plan.offsets[1:-1])):
    for part in parts:
      (tokens,) = corpus.tokens([part["document"]])
      first = part["column"] + part["opens"]
      length = min(part["length"], 32 - first)
      assert np.array_equal(batch["tokens"][row, first:first + length],
                            tokens[part["start"]:part["start"] + length])
  assert batch["tokens"].dtype == np.int32
  assert batch["tokens"].max() < corpus.tokenizer.vocab_size


def test_threads_read_a_prepared_corpus_as_one_reader_does(prepared, monkeypatch):
  corpus, config = open_corpus(prepared, "train"), make_config()
  one = [loader.read_step(make_rows(corpus, config), 8, slice(None), step) for step in range(40)]
  monkeypatch.setattr(loader, "READ_THREADS", 8)
  for a, b in zip(train_batches(open_corpus(prepared, "train"), config), one, strict=True):
    assert_equal(a, b)


def test_the_memory_of_a_plan_does_not_grow_with_the_corpus(tmp_path, monkeypatch):
  """The index is in files. Planning 24 MB of it takes as little memory as planning 3 MB."""
  monkeypatch.setattr(rows_lib, "WINDOW_TOKENS", 2**16)
  monkeypatch.setattr(windows, "DOCUMENTS_AT_ONCE", 2**13)
  monkeypatch.setattr(windows, "BLOCKS_PER_WINDOW", 16)
  peaks = []
  for size in (2**17, 2**20):
    lengths, arrays = np.random.default_rng(0).integers(1, 40, size), []
    for array in (np.arange(size + 1), lengths, lengths.astype(np.int32)):
      np.save(tmp_path / "index.npy", array)
      arrays.append(np.load(tmp_path / "index.npy", mmap_mode="r"))
      (tmp_path / "index.npy").unlink()
    tracemalloc.start()
    rows = make_rows(MemoryCorpus(*arrays), make_config("causal"))
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert rows.rows_per_window == pytest.approx(2**16 / 32, rel=0.2)
  assert peaks[1] < 1.5 * peaks[0] < 4_000_000
