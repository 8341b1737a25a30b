"""bertgpt.data.corpus.splits: both splits get documents, and equal documents share one."""

import numpy as np
import pytest

from bertgpt.data.corpus import splits
from bertgpt.data.corpus.writer import EncodedDocument
from bertgpt.errors import ConfigError


def fake_document(key, order=0):
  return EncodedDocument(key, str(order).encode(), np.ones(1, np.int32), 1, 0, 0, 0)


def test_both_splits_get_documents_whatever_the_fraction():
  rng = np.random.default_rng(0)
  for fraction in (0.0, 1e-9, 0.01, 0.5, 0.99, 1 - 1e-9):
    border = splits.validation_border(fraction)
    for size in range(2, 30):
      keys = [int(k) for k in rng.integers(0, 2**64, size, np.uint64)] * 2
      keys = [keys[i] for i in rng.permutation(len(keys))]
      found = list(splits.assign_splits(map(fake_document, keys), border))
      assert sorted(d.key for _, d in found) == sorted(keys)
      held_out = {d.key for split, d in found if split == "validation"}
      trained_on = {d.key for split, d in found if split == "train"}
      assert held_out and trained_on and not held_out & trained_on
      assert max(held_out) < min(trained_on)
      below = {k for k in keys if k < border}
      if below and len(below) < size:
        assert held_out == below


def test_all_documents_may_be_held_out():
  border = splits.validation_border(1.0)
  found = list(splits.assign_splits(map(fake_document, (0, 5, 2**64 - 1)), border))
  assert [(split, d.key) for split, d in found] == [
      ("validation", 0), ("validation", 5), ("validation", 2**64 - 1)]
  assert splits.find_splits(1.0) == ("validation",)
  assert splits.find_splits(0.999) == splits.find_splits(0.0) == ("train", "validation")


def test_a_source_that_is_held_out_decides_without_moving_a_document():
  border = splits.validation_border(0.0)
  for keys in ([0, 9, 0, 2**64 - 1], [1, 2], [0, 0]):
    found = [(split, d.key) for split, d in
             splits.assign_splits(map(fake_document, keys), border, is_given=True)]
    assert found == [("train" if key else "validation", key) for key in keys]


@pytest.mark.parametrize("spec, fraction, parts", [
    ("text:a,validation*text:b", 0.01, ("data.validation_fraction=0.01: ",
                                        "Set data.validation_fraction=0")),
    ("validation*text:b", 0.0, ("data.source='validation*text:b': all sources are held out",
                                "data.validation_fraction=1")),
])
def test_only_one_field_says_what_is_held_out(spec, fraction, parts):
  with pytest.raises(ConfigError) as e:
    splits.check(spec, fraction)
  assert str(e.value).startswith(parts[0]) and parts[1] in str(e.value)


def test_a_file_is_not_both_held_out_and_trained_on(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ("story.txt", "valid.txt", "a.jsonl"):
    (tmp_path / name).write_text("{}\n")
  splits.check("text:story.txt,validation*text:valid.txt", 0.0)
  splits.check("jsonl:a.jsonl#body,validation*jsonl:a.jsonl#title", 0.0)
  for spec, name in (("text:*.txt,validation*text:valid.txt", "valid.txt"),
                     ("text:story.txt,validation*text:story.txt", "story.txt")):
    with pytest.raises(ConfigError, match=f"{name} is held out, and trained on as well"):
      splits.check(spec, 0.0)


def test_a_source_says_whether_it_holds_out():
  splits.check("text:a", 0.01)
  assert splits.holds_out("text:a,validation*text:b") and not splits.holds_out("text:a,2*text:b")


def test_one_text_many_times_is_kept_in_memory_once():
  documents = (fake_document(5, order) for order in range(1000))
  found = list(splits.assign_splits(documents, 0))
  assert len(found) == 1000 and len({id(d) for _, d in found}) == 1
