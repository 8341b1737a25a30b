"""bertgpt.planning.vocabulary_size: a plan is made for the vocabulary that the run will have."""

import json

import pytest
import tiny
from fake_slice import on_fake_devices

from bertgpt.config import base
from bertgpt.data.corpus import prepare
from bertgpt.errors import DataError
from bertgpt.planning import plan, vocabulary_size
from bertgpt.runs import workdir

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(392))]


def make_config(**fields):
  unset = {name: base().model[name] for name in ("filters", "num_highways", "vocab_size")}
  config = tiny.make_config(**unset)
  config.tokenizer.vocab_size = 8_192
  for name, value in fields.items():
    group, field = name.split("__")
    config[group][field] = str(value)
  return config


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
  path.write_text("\n".join(PIECES) + "\n")
  return path


def test_a_tokenizer_on_this_machine_is_read(file):
  """Otherwise the output layer would have the size of another tokenizer."""
  for path in (file, file.parent):
    config = make_config(tokenizer__path=path)
    assert vocabulary_size.find(config) == (397, f"tokenizer.path={path}", False)
    assert vocabulary_size.find(config).set_in(config).model.vocab_size == 397


def test_a_corpus_on_this_machine_is_read(finished_bert):
  stored = workdir.read_config(finished_bert)
  path = prepare.ensure_prepared(stored)
  found = vocabulary_size.find(make_config(data__corpus=path))
  assert found == (stored.model.vocab_size, f"data.corpus={path}", False)


def test_what_is_not_on_this_machine_is_assumed_and_said(tmp_path):
  for field, name in (("tokenizer__path", tmp_path / "gpt2"), ("tokenizer__path", "gs://b/gpt2"),
                      ("data__corpus", tmp_path / "corpus")):
    found = vocabulary_size.find(make_config(**{field: name}))
    assert found.tokens == 8_192 and found.is_assumed
    assert found.describe().startswith("vocabulary 8,192 tokens (assumed: tokenizer.vocab_size, ")
    assert f"{field.replace('__', '.')}={name} is not on this machine" in found.source


def test_the_size_in_the_config_comes_first(file):
  config = make_config(tokenizer__path=file)
  config.model.vocab_size = 50_257
  assert vocabulary_size.find(config) == (50_257, "model.vocab_size", False)
  assert vocabulary_size.find(make_config()) == (8_192, "tokenizer.vocab_size", False)


def test_a_file_that_is_no_tokenizer_is_an_error(tmp_path):
  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(DataError, match="tokenizer.json"):
    vocabulary_size.find(make_config(tokenizer__path=tmp_path))


def test_the_plan_says_for_which_vocabulary_it_is(file):
  config, topology = make_config(tokenizer__path=file), on_fake_devices(1)
  assert f"\nvocabulary 397 tokens (tokenizer.path={file})\n" in plan.run(
      config, topology, plan.Request())
  config.tokenizer.path = str(file.parent / "none")
  answer = json.loads(plan.run(config, topology, plan.Request(as_json=True)))
  assert answer["vocabulary"]["tokens"] == 8_192 and answer["vocabulary"]["is_assumed"]
