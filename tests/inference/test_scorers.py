"""bertgpt.inference.scorers: every token is scored once, in the way that the model allows."""

import math

import numpy as np
import pytest
from one_by_one import after, encode, instead

from bertgpt.config import families
from bertgpt.errors import ConfigError
from bertgpt.inference import scorers, zero_shot
from bertgpt.inference.scorers import left_to_right, masked
from bertgpt.inference.suites import SUITES
from bertgpt.inference.zero_shot import Settings

TEXT = "The cat sees the dog near a tree. The bird likes a cloud."


@pytest.mark.parametrize("size, stride", [(8, 4), (8, 1), (8, 7), (64, 32)])
def test_windows_score_every_token_once_with_enough_before_it(size, stride):
  for length in (1, 2, 7, 8, 9, 12, 13, 100):
    scored = []
    for first, first_scored, end in left_to_right.windows(length, size, stride):
      assert 0 <= first < first_scored < end <= length and end - first <= size
      assert first_scored - first >= min(size - stride, first_scored)
      scored += range(first_scored, end)
    assert scored == list(range(1, length))


@pytest.mark.parametrize("size, stride", [(8, 4), (8, 1), (8, 7), (16, 15)])
def test_parts_of_a_document_give_the_rows_of_the_whole(gpt, size, stride):
  rng = np.random.default_rng(0)
  for length in (0, 1, 2, 6, 7, 8, 9, 15, 16, 40, 101):
    ids = rng.integers(0, 90, length)
    whole = left_to_right.cut(gpt, ids, size, stride)
    for _ in range(5):
      borders = np.sort(rng.integers(0, length + 1, rng.integers(0, 9)))
      pieces, rest, found = np.split(ids, borders), None, []
      for i, piece in enumerate(pieces):
        rows, rest = left_to_right.cut_part(gpt, rest, piece, i + 1 == len(pieces), size, stride)
        found += rows
        assert rest is None if i + 1 == len(pieces) else len(rest.tokens) <= 2 * size
      assert [(row.tokens.tolist(), row.first) for row in found] == [
          (row.tokens.tolist(), row.first) for row in whole]


@pytest.mark.parametrize("window", [8, 9, 64])
def test_pieces_between_marks_hold_every_token_once(bert, window):
  ids = np.array(encode(bert, TEXT))
  rows = masked.cut(bert, ids, window, 3)
  assert np.concatenate([row.tokens for row in rows]).tolist() == ids.tolist()
  assert all(len(row.tokens) <= window - 2 and row.first == 0 for row in rows)


@pytest.mark.parametrize("beginning", ["bos_id", "beginning_id"])
def test_the_first_token_follows_the_one_that_begins_a_text(gpt, beginning):
  ids, cls_id = encode(gpt, TEXT), gpt.tokenizer.cls_id
  begun = gpt._replace(**{beginning: cls_id})
  row, = left_to_right.cut(begun, np.array(ids), 64, 32)
  assert (row.tokens.tolist(), row.first) == ([cls_id, *ids], 1)
  part, _ = left_to_right.cut_part(begun, None, np.array(ids), True, 64, 32)
  assert part[0].tokens.tolist() == row.tokens.tolist()
  assert left_to_right.SCORER.how(begun) == "after [CLS]"


def test_context_is_seen_and_not_scored(gpt, bert):
  """The tokens before `first` have no scores, and change the scores of the others."""
  ids = np.array(encode(gpt, TEXT))
  row, = left_to_right.score(gpt, [scorers.Row(ids, 4)], 2)
  expected = [after(gpt, ids[:i])[ids[i]] for i in range(4, len(ids))]
  np.testing.assert_allclose(row, expected, atol=1e-5)

  ids = np.array(encode(bert, TEXT))
  row, = masked.score(bert, [scorers.Row(ids, 4)], 2)
  expected = [instead(bert, ids, i)[ids[i]] for i in range(4, len(ids))]
  np.testing.assert_allclose(row, expected, atol=1e-5)


def rename_family(trained, monkeypatch, abilities=None):
  """Returns the same model under a family name that appears nowhere in the code."""
  record = families.find(trained.config)
  abilities = record.abilities if abilities is None else frozenset(abilities)
  record = record._replace(title="a newcomer", abilities=abilities)
  monkeypatch.setitem(families.FAMILIES, "newcomer", record)
  config = trained.config.copy_and_resolve_references()
  config.model.family = "newcomer"
  return trained._replace(config=config)


@pytest.mark.parametrize("which", ["gpt", "bert"])
def test_a_new_family_with_the_ability_is_scored_like_any_other(request, monkeypatch, which):
  trained = request.getfixturevalue(which)
  renamed = rename_family(trained, monkeypatch)
  settings = Settings(16, 8, 0, 4)
  for suite, content in (("text", [TEXT]), ("pairs", [("The cat sees.", "Cat the sees.")])):
    found = zero_shot.measure(renamed, SUITES[suite], content, settings)
    assert found == zero_shot.measure(trained, SUITES[suite], content, settings)
    assert all(math.isfinite(value) for value in found.values() if not isinstance(value, str))


def test_a_family_without_the_abilities_is_refused(bert, monkeypatch):
  """The message names the folder, and every family that is scored in either way."""
  with pytest.raises(ConfigError) as e:
    scorers.find(rename_family(bert, monkeypatch, {"embed"}))
  assert str(e.value).startswith(f"--workdir {bert.workdir}: holds a newcomer, which gives no prob")
  assert all(title in str(e.value)
             for title in ("a BERT", "a GPT", "a ModernBERT decoder", "an XLNet"))
