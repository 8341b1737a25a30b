"""metrics.jsonl: a damaged line costs no other line."""

import json

import pytest

from bertgpt.runs import metrics_file


def test_a_damaged_line_costs_no_other_line(tmp_path):
  good = [b'{"step": 1, "a": 1.0}', b'{"step": 2, "a": 2.0}']
  bad = [b'{"step": 1, "\xff": 1.0', b'{"step": "2"}', b"[2]", b'{"step": true, "a": 1.0}',
         b'{"step": 1, "a": "1.0"}', b'{"step": 1, "a": null}', b'{"step": 1, "a": [1.0]}', b"2",
         b"[" * 100_000, b"", b"\x00"]
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(b"\n".join([good[0], *bad, good[1]]) + b"\n")
  assert metrics_file.read_curves(tmp_path) == {"a": [(1, 1.0), (2, 2.0)]}
  metrics_file.keep_lines(tmp_path, 3)
  assert path.read_bytes().splitlines() == good
  assert list(tmp_path.iterdir()) == [path]


def test_scores_are_those_of_one_evaluation():
  """The last one had no precision, because no token was called replaced."""
  curves = {"train/loss": [(1, 3.0), (3, 1.0)], "eval/validation/loss": [(1, 3.0), (2, 2.0)],
            "eval/validation/precision": [(1, 0.5)]}
  assert metrics_file.last_scores(curves) == {"eval/validation/loss": 2.0}
  assert metrics_file.last_scores({"train/loss": [(1, 3.0)]}) == {}


@pytest.mark.parametrize("is_evaluated, kept", [(True, [1, 2]), (False, [1, 2, 2])])
def test_only_an_evaluation_that_is_made_again_is_dropped(tmp_path, is_evaluated, kept):
  points = [{"step": 1, "train/loss": 1.0}, {"step": 2, "train/loss": 1.0},
            {"step": 2, "eval/validation/loss": 1.0}, {"step": 3, "train/loss": 1.0}]
  path = tmp_path / "metrics.jsonl"
  path.write_text("".join(json.dumps(point) + "\n" for point in points))
  metrics_file.prepare(tmp_path, 2, is_evaluated)
  assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == kept
