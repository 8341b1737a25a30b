"""bertgpt.config.stored: JSON brings a config back, and one of an earlier version has a meaning."""

import json
import re

import pytest

from bertgpt import config as config_lib
from bertgpt.config import finetuning, stored
from bertgpt.config.stored import from_json, to_json
from bertgpt.errors import ConfigError


def problems_of(call, *args) -> list[str]:
  with pytest.raises(ConfigError) as e:
    call(*args)
  return str(e.value).splitlines()


@pytest.mark.parametrize("text", [
    "", "{", "[]", "1", '{"phases": 1}', b"\xff", "[" * 100_000, '{"seed": ' + "9" * 5000 + "}"])
def test_invalid_json_of_a_config_is_one_line(text):
  (line,) = problems_of(from_json, text)
  assert line.startswith("config.json is not the config of a run: ")


def test_json_round_trip_keeps_values_and_tuples():
  config = config_lib.base()
  config.phases = (config_lib.phase(steps=5), config_lib.phase(seq_len=512))
  config.profile.steps = (1, 2)
  config.data.source = 'text:"ü"\n'
  again = from_json(to_json(config))
  assert again == config
  assert isinstance(again.phases, tuple)
  assert again.mesh.axes.batch == ("data", "fsdp")
  assert again.profile.steps == (1, 2)
  with pytest.raises(AttributeError):
    again.model.widht = 1
  config_lib.validate(again)


def test_json_of_another_version_is_refused_field_by_field():
  stored = json.loads(to_json(config_lib.base()))
  del stored["model"]["width"]
  stored["model"]["depth"] = 3
  stored["phases"][0].update(steps="many", seq_len=None)
  assert problems_of(from_json, json.dumps(stored)) == [
      "config.json has the unknown field model.depth",
      "config.json lacks the field model.width",
      "config.json: phases[0].seq_len: expected int, got None",
      "config.json: phases[0].steps: expected int, got 'many'"]


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "3", '{"phases": 3}'])
def test_text_that_is_not_a_config_is_refused(text):
  (line,) = problems_of(from_json, text)
  assert "not the config of a run" in line


def test_json_runs_no_code(tmp_path):
  stored = json.loads(to_json(config_lib.base()))
  trap = f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()"
  stored["data"]["source"] = trap
  assert from_json(json.dumps(stored)).data.source == trap
  assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("make_base", [config_lib.base, finetuning.base])
def test_a_field_that_was_added_later_may_be_missing(make_base):
  """Only fields of version 0.1 must be there, so a new field needs no line in a table."""
  config = make_base()
  for field, _ in config_lib.leaves(config):
    *path, last = field.replace("[", ".").replace("]", "").split(".")
    values = found = json.loads(to_json(config))
    for name in path:
      found = found[int(name)] if name.isdigit() else found[name]
    del found[last]
    if re.sub(r"\[\d+\]", "", field) in stored.FIRST_FIELDS:
      assert problems_of(from_json, json.dumps(values), make_base) == [
          f"config.json lacks the field {field}"]
    else:
      found = dict(config_lib.leaves(from_json(json.dumps(values), make_base)))
      assert found == dict(config_lib.leaves(config)) | {
          name: value for name, value in stored.FORMER_VALUES.items() if name == field}


def test_the_fields_of_version_0_1_are_still_fields():
  fields = {re.sub(r"\[\d+\]", "", field) for make_base in (config_lib.base, finetuning.base)
            for field, _ in config_lib.leaves(make_base())}
  assert stored.FIRST_FIELDS <= fields

