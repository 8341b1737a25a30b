"""bertgpt.training.skipped_steps: a line for every step that was not applied."""

import json

import pytest

from bertgpt.config import recipes
from bertgpt.data.batches import loader
from bertgpt.data.batches.rows import TrainRows
from bertgpt.data.corpus import prepare
from bertgpt.data.corpus.corpus import open_corpus
from bertgpt.errors import DataError
from bertgpt.training import skipped_steps


def test_a_skipped_step_is_written_with_what_it_has_read(recipe, tmp_path, capsys):
  config = recipes.load(str(recipe))
  corpus = open_corpus(prepare.ensure_prepared(config, reports=False), "train")
  writer = skipped_steps.SkippedSteps(tmp_path, 0, corpus, config)
  writer.write(3, {"loss": 9.0, "grad_norm": 2.0})
  (line,) = (tmp_path / skipped_steps.FILE).read_text().splitlines()
  written = json.loads(line)
  assert (written["step"], written["loss"], written["rows"]) == (3, 9.0, [16, 24])
  assert written["documents"] and all(0 <= i < len(corpus) for i in written["documents"])
  with loader.make_train_batches(corpus, config, 0, 2, slice(0, 8)) as batches:
    assert loader.batch_sha256(next(batches)) == written["sha256"]
  writer.write(4, {"loss": float("nan"), "grad_norm": float("inf")})
  line = (tmp_path / skipped_steps.FILE).read_text().splitlines()[1]
  written = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
  assert written["loss"] is written["grad_norm"] is None and written["rows"] == [24, 32]
  (tmp_path / skipped_steps.FILE).unlink()
  (tmp_path / skipped_steps.FILE).mkdir()
  writer.write(4, {"loss": 9.0, "grad_norm": 2.0})
  assert "WARNING" in capsys.readouterr().err


@pytest.mark.parametrize("first_step, kept", [(0, []), (4, [3, 4]), (9, [3, 4, 7])])
def test_steps_that_will_be_repeated_are_not_written_twice(tmp_path, first_step, kept):
  path = tmp_path / skipped_steps.FILE
  path.write_text("".join(f'{{"step": {step}}}\n' for step in (3, 4, 7)) + '{"step')
  skipped_steps.SkippedSteps(tmp_path, first_step, corpus=None, config=None)
  assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == kept


def test_a_corpus_that_cannot_be_read_does_not_end_the_training(recipe, tmp_path, capsys,
                                                                monkeypatch):
  config = recipes.load(str(recipe))
  corpus = open_corpus(prepare.ensure_prepared(config, reports=False), "train")

  def fail(*_):
    raise DataError("shard-0: cannot be read")

  monkeypatch.setattr(TrainRows, "read", fail)
  skipped_steps.SkippedSteps(tmp_path, 0, corpus, config).write(3, {"loss": 9.0})
  assert "shard-0: cannot be read). The training continues" in capsys.readouterr().err
