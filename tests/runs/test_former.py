"""bertgpt.runs.former: a field that a run's first version ignored stays without effect."""

import json

import pytest
from program import fingerprints

from bertgpt import cli
from bertgpt.config import base, stored
from bertgpt.config.overrides import override
from bertgpt.config.stored import from_json, to_json
from bertgpt.runs import checkpoint, former, history
from bertgpt.runs import manifest as manifest_lib
from bertgpt.runs import trained as trained_lib

ISOLATED = "--config.data.isolate_documents=True"


@pytest.fixture
def train(recipe):
  return lambda path, steps, *arguments: cli.main([
      "train", f"--config={recipe}:mlm", f"--workdir={path}", f"--config.phases[0].steps={steps}",
      "--config.phases[0].schedule=constant", *arguments])


def as_written_before(text):
  """Returns a run's config in the form of version 0.1, with the field set."""
  config = json.loads(text)
  config["data"]["isolate_documents"] = True
  groups = {"phases": config["phases"]} | {
      name: [value] for name, value in config.items() if isinstance(value, dict)}
  for name, tables in groups.items():
    for table in tables:
      for field in set(table) - {"axes"}:
        if f"{name}.{field}" not in stored.FIRST_FIELDS:
          del table[field]
  return json.dumps(config)


def make_older(path):
  (path / "config.json").write_text(as_written_before((path / "config.json").read_text()))
  (path / "history.jsonl").unlink()
  for step in checkpoint.committed_steps(path):
    file = path / "checkpoints" / str(step) / manifest_lib.MANIFEST
    content = json.loads(file.read_text())["content"]
    content["metadata"]["config"] = as_written_before(content["metadata"]["config"])
    file.write_text(manifest_lib.encode(content))


@pytest.mark.slow
def test_an_old_run_continues_as_it_began(train, tmp_path, capsys):
  whole, old, isolated = (tmp_path / name for name in ("whole", "old", "isolated"))
  assert train(whole, 4) == train(old, 2) == train(isolated, 4, ISOLATED) == 0
  make_older(old)
  assert not trained_lib.load_trained(old).config.data.isolate_documents
  for _ in range(2):  # The second time, config.json is of this version.
    assert train(old, 4, ISOLATED) == 0
    assert "note: data.isolate_documents is False here, not True" in capsys.readouterr().err
    assert fingerprints(old) == fingerprints(whole) != fingerprints(isolated)
  assert train(old, 4) == 0
  assert [event["event"] for event in history.read(old)].count(former.EVENT) == 1
  capsys.readouterr()
  assert train(whole, 4, ISOLATED) == 2  # This version began the run, without the field.
  assert "data.isolate_documents: False -> True" in capsys.readouterr().err


def test_an_old_run_keeps_its_held_out_rows(tmp_path):
  assert former.as_begun(tmp_path, base()).eval.rows_by == "length"  # There is no run yet.
  text = as_written_before(to_json(base()))
  for _ in range(2):  # The second time, config.json is of this version.
    (tmp_path / "config.json").write_text(text)
    config = former.as_begun(tmp_path, base())
    assert former.describe(base(), config) == [
        "note: eval.rows_by is 'phase' here, not 'length', as it was when an earlier version began "
        "this run"]
    assert config.eval.rows_by == from_json(text).eval.rows_by == "phase"
    former.note(tmp_path)
    text = to_json(config)
  assert [event["event"] for event in history.read(tmp_path)] == [former.FORMER_EVENT]


def test_the_held_out_rows_of_a_run_of_this_version_may_change(tmp_path):
  config = base()
  config.eval.rows_by = "phase"
  (tmp_path / "config.json").write_text(to_json(config))
  assert former.as_begun(tmp_path, base()).eval.rows_by == "length"


@pytest.mark.parametrize("objective, is_ignored", [("mlm", True), ("causal", False),
                                                   ("mlm_nsp", False)])
def test_only_objectives_that_did_not_read_it_ignore_it(objective, is_ignored):
  config = base()
  config.objective.name, config.data.isolate_documents = objective, True
  text = to_json(config)
  assert from_json(text).data.isolate_documents
  assert from_json(as_written_before(text)).data.isolate_documents is not is_ignored


@pytest.mark.parametrize("fields", [5, None, "data.isolate_documents", {}, [5, None]])
def test_damaged_fields_of_the_history_are_none(tmp_path, fields):
  history.add(tmp_path, former.EVENT, fields=fields)
  history.add(tmp_path, former.FORMER_EVENT, fields=fields)
  assert former.find_ignored(tmp_path) == []
  (tmp_path / "config.json").write_text(to_json(base()))
  assert former.as_begun(tmp_path, base()) == base()


@pytest.mark.parametrize("event, field", [("ignored", "data.isolate_documents"),
                                          ("former", "eval.rows_by")])
def test_the_history_of_a_run_whose_config_was_deleted_changes_no_new_run(tmp_path, event, field):
  config = override(base(), ["--config.data.isolate_documents=True"])
  history.add(tmp_path, event, fields=[field])
  assert former.as_begun(tmp_path, config) == config


def test_another_run_in_the_folder_ignores_nothing(tmp_path):
  history.add(tmp_path, former.EVENT, fields=["data.isolate_documents"])
  assert former.find_ignored(tmp_path) == ["data.isolate_documents"]
  history.add(tmp_path, "start")
  assert former.find_ignored(tmp_path) == []
