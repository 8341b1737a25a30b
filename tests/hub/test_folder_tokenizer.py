"""bertgpt.hub.folder_tokenizer: the tokenizer in the folder of a model, as the model expects it.

tests/hub/test_opening.py compares with transformers.
"""

import json

import pytest
import small_runs
from written_tokenizers import write

from bertgpt import config as config_lib
from bertgpt.data.tokens import hf_files, marks, tokenizers, training
from bertgpt.hub import document_bounds, folder_tokenizer


def train(kind):
  config = config_lib.base().tokenizer
  config.update(kind=kind, vocab_size={"sentencepiece": 40, "wordpiece": 90, "bpe": 300}[kind])
  return training.train_tokenizer(config, small_runs.make_text(100).splitlines())


@pytest.fixture(scope="module", params=["sentencepiece", "wordpiece", "bpe"])
def tokenizer(request):
  return train(request.param)


read = hf_files.read_hf_files


def test_the_marks_of_every_kind_are_found_again(tokenizer, tmp_path):
  """The model of SentencePiece, which is read first, has no marks; tokenizer.json has them."""
  (text,), encoder, decoder = tokenizer.encode(["a"]), config_lib.base(), config_lib.base()
  decoder.model.family = "gpt"
  write(tokenizer, tmp_path)
  again = tokenizers.load_tokenizer(tmp_path)
  template = folder_tokenizer.apply_template(tmp_path, again)
  assert template == [tokenizer.cls_id, *text, tokenizer.sep_id]
  assert not folder_tokenizer.describe_template(template, read(tmp_path), encoder, again, -1)
  write(tokenizer, tmp_path, is_encoder=False, around=marks.of_decoder(tokenizer.cls_id))
  again = tokenizers.load_tokenizer(tmp_path)
  template = folder_tokenizer.apply_template(tmp_path, again)
  assert folder_tokenizer.find_beginning(template, decoder, again) == tokenizer.cls_id


def test_two_tokenizers_in_a_folder_that_differ_are_noted(tmp_path):
  tokenizer = train("sentencepiece")
  write(tokenizer, tmp_path)
  assert not folder_tokenizer.describe_conversion(tmp_path, tokenizer)
  content = json.loads((tmp_path / "tokenizer.json").read_text())
  content["normalizer"] = {"type": "Lowercase"}
  (tmp_path / "tokenizer.json").write_text(json.dumps(content))
  line = folder_tokenizer.describe_conversion(tmp_path, tokenizer)
  assert "tokenizer.json differs from tokenizer.model, which is used here: in transf" in line


@pytest.mark.parametrize("content", [None, "{}"])
def test_without_a_readable_template_nothing_is_said_of_marks(content, tmp_path):
  tokenizer = train("sentencepiece")
  write(tokenizer, tmp_path)
  (tmp_path / "tokenizer.json").unlink()
  if content:
    (tmp_path / "tokenizer.json").write_text(content)
  template = folder_tokenizer.apply_template(tmp_path, tokenizer)
  assert not folder_tokenizer.describe_template(template, read(tmp_path), config_lib.base(),
                                                tokenizer, -1)


@pytest.mark.parametrize("names, settings, expected", [
    ({}, {"eos_token_id": 7}, 7), ({}, {"eos_token_id": None}, None), ({}, {}, None),
    ({}, {"eos_token_id": [7, 8]}, 7), ({}, {"eos_token_id": 10_000}, None),
    ({}, {"eos_token_id": 9}, None), ({}, {"eos_token_id": 200}, None),  # Part of texts.
    ({"eos_token": 3}, {"eos_token_id": 7}, 3)])
def test_a_text_ends_where_the_config_says_if_the_tokenizer_names_no_end(names, settings, expected,
                                                                         tmp_path):
  own = train("bpe")
  write(own, tmp_path)
  content = json.loads((tmp_path / "tokenizer.json").read_text())
  content["added_tokens"] = [{
      "id": i, "content": own.pieces[i], "single_word": False, "lstrip": False, "rstrip": False,
      "normalized": False, "special": i != 8} for i in range(9)]
  (tmp_path / "tokenizer.json").write_text(json.dumps(content))
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(
      {name: own.pieces[i] for name, i in names.items()}))
  before = tokenizers.load_tokenizer(tmp_path)
  hf = read(tmp_path)
  after = document_bounds.obey_end(before, hf, document_bounds.read_settings(tmp_path, settings))
  assert after.eod_id == (own.eod_id if expected is None else expected)
  (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 8}))
  settings = document_bounds.read_settings(tmp_path, settings)
  after = document_bounds.obey_end(before, hf, settings)
  assert after.eod_id == (3 if names else 8), "generation_config.json has priority"
  line = document_bounds.describe_ends(after, settings)
  assert line == (f"transformers ends a text at {own.pieces[8]}, bertgpt at {own.pieces[3]}"
                  if names else "")


@pytest.mark.parametrize("role", ["pad", "unk"])
def test_padding_that_is_the_end_of_the_model_is_saved_and_read_the_same(role, tmp_path):
  own = train("bpe")
  write(own, tmp_path)
  (tmp_path / "tokenizer_config.json").write_text("{}")
  content = json.loads((tmp_path / "tokenizer.json").read_text())
  content["added_tokens"] = [{
      "id": i, "content": own.pieces[i], "single_word": False, "lstrip": False, "rstrip": False,
      "normalized": False, "special": True} for i in range(9)]
  (tmp_path / "tokenizer.json").write_text(json.dumps(content))
  data = (tmp_path / "tokenizer.json").read_bytes()
  before = tokenizers.ByteBPE(data, {role: own.pieces[7]})
  after = document_bounds.obey_end(before, read(tmp_path), {"eos_token_id": 7})
  assert after.names == {"eod": own.pieces[7]}


@pytest.mark.parametrize("start, expected", [
    (0, 0), (5, -1), (None, -1), ([0], -1), ("0", -1), (10**9, -1), (100, -1)])
def test_a_document_begins_with_the_token_of_the_config_if_it_is_no_piece_of_words(
    start, expected, tmp_path):
  """Token 5 is the end of a document, and 100 a piece of words."""
  own = train("bpe")
  assert own.eod_id == 5
  own.save(tmp_path)
  assert document_bounds.find_start(own, read(tmp_path), {"bos_token_id": start}) == expected


@pytest.mark.parametrize("name, content, is_noted", [
    ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}', True),
    ("chat_template.jinja", "{{ messages }}", True), ("tokenizer_config.json", "{}", False)])
def test_a_chat_template_is_noted(name, content, is_noted, tmp_path):
  (tmp_path / name).write_text(content)
  assert folder_tokenizer.describe_chat(read(tmp_path)).startswith("its chat template") == is_noted


def test_marks_of_a_model_for_which_transformers_reads_no_class_are_compared(tmp_path):
  """Its tokenizer is that of tokenizer.json, whatever class is named."""
  own = train("bpe")
  write(own, tmp_path)
  (tmp_path / "config.json").write_text('{"model_type": "modernbert"}')
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(
      {"tokenizer_class": "LlamaTokenizer", "cls_token": own.pieces[own.cls_id],
       "sep_token": own.pieces[own.sep_id]}))
  (text,) = own.encode(["a"])
  line = folder_tokenizer.describe_template([7, *text, 8], read(tmp_path), config_lib.base(), own,
                                            -1)
  assert line.startswith("for the text 'a', transformers gives the model ")
