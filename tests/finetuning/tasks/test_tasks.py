"""Rows of tokens and batches of rows: no token is lost or misplaced."""

import dataclasses
import gzip
import itertools
import types

import numpy as np
import pytest

from bertgpt import config as config_lib
from bertgpt.config import families
from bertgpt.config import finetuning as finetune_config
from bertgpt.data.tokens import training
from bertgpt.errors import ConfigError, DataError
from bertgpt.finetuning import tasks
from bertgpt.finetuning.tasks import files
from bertgpt.finetuning.tasks import rows as rows_lib
from bertgpt.finetuning.tasks.rows import Rows

NAMESPACE = types.SimpleNamespace


@pytest.fixture(scope="module")
def tokenizer():
  config = NAMESPACE(kind="wordpiece", vocab_size=60, lowercase=True)
  return training.train_tokenizer(config, ["the cat sees a dog near the river"] * 9
                                  + ["what does the bird like, and who knows it"] * 9)


def make_text_format(tokenizer, family="bert", max_length=64, truncation="head", num_segments=2):
  return rows_lib.make_text_format(tokenizer, NAMESPACE(family=family, num_segments=num_segments),
                                   NAMESPACE(max_length=max_length, truncation=truncation))


def make_rows(lengths):
  """Returns rows of these lengths; token i of row n is 1000 n + i + 1."""
  tokens = [1000 * n + 1 + np.arange(length, dtype=np.int32) for n, length in enumerate(lengths)]
  return Rows(tokens, [np.ones(length, np.int32) for length in lengths],
              np.arange(len(lengths), dtype=np.int32))


# ----------------------------------------------------------------- texts


def test_rows_of_bert_are_those_of_the_paper(tokenizer):
  text_format = make_text_format(tokenizer)
  a, b = tokenizer.encode(["the cat sees a dog", "who knows"])
  tokens, segment_ids = text_format.make_row(a, b)
  assert tokenizer.decode(tokens) == "[CLS] the cat sees a dog [SEP] who knows [SEP]"
  after = np.flatnonzero(tokens == tokenizer.sep_id)[0] + 1
  assert (segment_ids[:after] == 0).all() and (segment_ids[after:] == 1).all()
  tokens, segment_ids = text_format.make_row(a)
  assert tokenizer.decode(tokens) == "[CLS] the cat sees a dog [SEP]"
  assert not segment_ids.any()


def test_a_model_without_segments_gets_none(tokenizer):
  a, b = tokenizer.encode(["the cat", "a dog"])
  assert not make_text_format(tokenizer, num_segments=1).make_row(a, b)[1].any()


def test_cut_and_unknown_texts_are_noted(tmp_path, tokenizer):
  """In these files, the text that decides does not fit into a row, or is one unknown token."""
  long = " ".join(["the cat sees a dog"] * 4)
  (tmp_path / "train.tsv").write_text(f"sentence\tlabel\n{long}\t0\nthe cat\t1\n{long}\t1\n")
  (tmp_path / "dev.tsv").write_text("sentence\tlabel\n\u0e01\u0e02 \u0e03\t0\nthe cat\t1\n")
  task = finetune_config.base().task
  task.update(name="sst2", data=str(tmp_path), max_length=12)
  text_format = make_text_format(tokenizer, max_length=12, truncation="tail")
  assert tasks.open_task(task, text_format).notes == (
      "2 of 3 rows of the train set are cut to task.max_length=12 tokens (task.truncation='tail')",
      "25% of the tokens of the dev set are unknown to the tokenizer, and the model cannot tell "
      "them apart")


def test_a_row_that_just_fits_is_not_cut(tokenizer):
  a, b = tokenizer.encode(["the cat sees a dog", "who knows"])
  for texts in ((a,), (a, b)):
    length = len(make_text_format(tokenizer).make_row(*texts)[0])
    assert not make_text_format(tokenizer, max_length=length).cuts(*texts)
    assert make_text_format(tokenizer, max_length=length - 1).cuts(*texts)


def test_rows_of_gpt_have_tokens_beyond_its_vocabulary(tokenizer):
  text_format = make_text_format(tokenizer, "gpt")
  a, b = tokenizer.encode(["the cat", "a dog"])
  tokens, _ = text_format.make_row(a, b)
  size = tokenizer.vocab_size
  assert tokens.tolist() == [size, *a, size + 1, *b, size + 2]
  assert text_format.make_row(a)[0].tolist() == [size, *a, size + 2]
  assert rows_lib.vocab_size(tokenizer, "gpt") == tokens.max() + 1


def test_a_tokenizer_without_marks_is_refused(tokenizer):
  without = NAMESPACE(kind="bpe", cls_id=-1, sep_id=5)
  with pytest.raises(ConfigError, match=r"no \[CLS\] and \[SEP\]"):
    make_text_format(without)


def test_head_and_tail_keep_128_and_382_of_a_row_of_512():
  text = np.arange(900)
  kept = rows_lib.truncate(text, 510, "head_tail")
  assert kept.tolist() == [*range(128), *range(900 - 382, 900)]
  assert rows_lib.truncate(text, 510, "head").tolist() == list(range(510))
  assert rows_lib.truncate(text, 510, "tail").tolist() == list(range(390, 900))
  for mode in ("head", "tail", "head_tail"):
    assert rows_lib.truncate(text[:510], 510, mode).tolist() == list(range(510))


@pytest.mark.parametrize("mode", ["head", "tail", "head_tail"])
def test_rows_are_never_longer_than_asked(tokenizer, mode):
  text_format = make_text_format(tokenizer, max_length=20, truncation=mode)
  rng = np.random.default_rng(0)
  for a, b in rng.integers(0, 40, (200, 2)):
    tokens, segment_ids = text_format.make_row(np.full(a, 7), np.full(b, 8))
    assert len(tokens) == len(segment_ids) == min(a + b + 3, 20)


def test_the_longer_of_two_texts_loses_first():
  """The loop of google-research/bert shortens the longer text, or the second on a tie."""
  for a, b, room in itertools.product(range(25), range(25), range(1, 20)):
    kept = [a, b]
    while sum(kept) > room:
      kept[0 if kept[0] > kept[1] else 1] -= 1
    assert rows_lib.share_length(a, b, room) == tuple(kept)


# --------------------------------------------------------------- batches


@pytest.mark.parametrize("group_by_length", [False, True])
def test_an_epoch_has_every_row_once_in_an_order_of_its_own(group_by_length):
  lengths = np.random.default_rng(0).integers(3, 60, 1003)
  order = lambda seed, epoch: rows_lib.order_epoch(lengths, 16, seed, epoch, group_by_length)
  batches = order(3, 0)
  assert len(batches) == 63 and sorted(map(len, batches)) == [11] + [16] * 62
  assert sorted(np.concatenate(batches)) == list(range(1003))
  again, other_epoch, other_seed = order(3, 0), order(3, 1), order(4, 0)
  assert all((a == b).all() for a, b in zip(batches, again, strict=True))
  for other in (other_epoch, other_seed):
    assert np.concatenate(batches).tolist() != np.concatenate(other).tolist()


def test_grouping_by_length_saves_padding():
  lengths = np.random.default_rng(0).geometric(0.05, 5000)
  def padding(group):
    batches = rows_lib.order_epoch(lengths, 16, 0, 0, group)
    return sum(lengths[b].max() * len(b) for b in batches) / lengths.sum()
  assert padding(True) < 1.25 < 2 < padding(False)


def test_evaluation_reads_every_row_once():
  lengths = np.random.default_rng(0).integers(3, 60, 77)
  batches = list(rows_lib.order_evaluation(lengths, 16))
  assert sorted(np.concatenate(batches)) == list(range(77))


def test_a_batch_holds_its_rows_and_empty_ones():
  rows = make_rows([5, 20, 9])
  batch = rows_lib.collate(rows, np.array([2, 1]), 4, 64, seed=7)
  assert batch["tokens"].shape == (4, 32)
  for row, i in enumerate([2, 1]):
    size = len(rows.tokens[i])
    assert batch["tokens"][row, :size].tolist() == rows.tokens[i].tolist()
    assert batch["sequence_ids"][row].tolist() == [1] * size + [0] * (32 - size)
    assert batch["segment_ids"][row].tolist() == [1] * size + [0] * (32 - size)
  assert batch["labels"].tolist() == [2, 1, 0, 0]
  assert batch["example_weights"].tolist() == [1, 1, 0, 0]
  assert not batch["tokens"][2:].any() and not batch["sequence_ids"][2:].any()
  assert batch["seed"].tolist() == [7] * 4


def test_labels_of_padding_are_negative():
  rows = dataclasses.replace(make_rows([3, 2]), labels=[np.array([-1, 2, 0]), np.array([1, -1])])
  labels = rows_lib.collate(rows, np.arange(2), 3, 64, seed=0)["labels"]
  assert labels[:, :4].tolist() == [[-1, 2, 0, -1], [1, -1, -1, -1], [-1] * 4]


# ----------------------------------------------------------------- files


def test_files_are_found_by_any_official_name_and_compressed(tmp_path):
  (tmp_path / "RTE").mkdir()
  path = tmp_path / "RTE" / "dev.tsv.gz"
  path.write_bytes(gzip.compress("\ufeffa\tb\r\nü\t\n".encode()))
  assert files.find(tmp_path, ["dev.tsv", "RTE/dev.tsv"]) == path
  assert list(files.read_text_lines(path)) == [(1, "a\tb"), (2, "ü\t")]
  assert files.find(tmp_path, ["test.tsv"], needed=False) is None
  with pytest.raises(DataError, match="holds no test.tsv"):
    files.find(tmp_path, ["test.tsv"])
  with pytest.raises(DataError, match="no such folder"):
    files.find(tmp_path / "none", ["test.tsv"])


def test_the_name_of_a_given_file_may_hold_commas(tmp_path):
  for name in ("a.json", "b.json", "a.json, b.json"):
    (tmp_path / name).write_text("{}")
  assert files.find_given(tmp_path, "a.json, b.json", "", []) == [tmp_path / "a.json, b.json"]
  both = [tmp_path / "b.json", tmp_path / "a.json"]
  assert files.find_given(tmp_path, "b.json, a.json", "", []) == both


def test_invalid_utf8_is_named(tmp_path):
  (tmp_path / "a.tsv").write_bytes(b"good\n\xff bad\n")
  with pytest.raises(DataError, match=r"a.tsv: invalid UTF-8 at byte 5. Repair the file$"):
    list(files.read_text_lines(tmp_path / "a.tsv"))


def test_a_choice_of_examples_is_random_and_always_the_same():
  chosen = files.choose_examples(1000, 100, is_random=True)
  assert len(set(chosen.tolist())) == 100 and (np.diff(chosen) > 0).all()
  assert 400 < chosen.mean() < 600
  assert (chosen == files.choose_examples(1000, 100, is_random=True)).all()
  assert files.choose_examples(1000, 3, is_random=False).tolist() == [0, 1, 2]
  assert len(files.choose_examples(50, 0, is_random=True)) == 50
  assert len(files.choose_examples(50, 99, is_random=True)) == 50


# -------------------------------------------------------------- registry


def test_unknown_tasks_are_named():
  (problem,) = tasks.name_problems("sst3")
  assert "--task sst3: choose one of cola, " in problem
  assert tasks.name_problems("sst2") == []


def test_a_family_without_tasks_is_told_only_of_other_models(monkeypatch):
  bert = families.FAMILIES["bert"]
  monkeypatch.setitem(families.FAMILIES, "bert", bert._replace(abilities=frozenset({"fill"})))
  with pytest.raises(ConfigError, match="is a bert. Give another --init$"):
    tasks.check_family("sst2", config_lib.base())
