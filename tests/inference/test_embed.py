"""bertgpt.inference.embed: features of every text, in order and independent of its batch."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from bertgpt import cli
from bertgpt.errors import StorageError
from bertgpt.hub import export
from bertgpt.inference import embed
from bertgpt.models import Inputs

TEXTS = ["The cat sees the dog.", "", "A bird.", "The stone near the road " * 8,
         "The tree likes the river near a field.", "The " * 100]


@pytest.fixture
def source(tmp_path):
  path = tmp_path / "texts.txt"
  path.write_text("\n".join(TEXTS) + "\n")
  return path


def run(capsys, *argv):
  """Returns (exit code, stdout, lines on stderr) of a command."""
  capsys.readouterr()
  code = cli.main([str(a) for a in argv])
  output = capsys.readouterr()
  return code, output.out, output.err.splitlines()


def encode(bert, text):
  tokenizer = bert.tokenizer
  return np.array([tokenizer.cls_id, *tokenizer.encode([text])[0][:62], tokenizer.sep_id])


def last_layer(bert, text):
  """Returns the features of one text, in a row of exactly its length: [N, D]."""
  row = encode(bert, text)[None].astype(np.int32)
  inputs = Inputs.of_texts(row, np.array([row.shape[1]]))
  return bert.model.apply({"params": bert.params}, inputs, method="features")[0]


def test_features_are_those_of_each_text_alone_in_order(capsys, bert, finished_bert, source,
                                                        tmp_path):
  files = {}
  for layer, name in (("cls", "cls.npy"), ("mean", "mean.npy"), ("mean", "mean.safetensors"),
                      ("last", "last.safetensors")):
    code, out, lines = run(capsys, "embed", f"--workdir={finished_bert}", f"--input={source}",
                           f"--out={tmp_path / name}", f"--layer={layer}", "--batch_size=3")
    assert code == 0 and str(tmp_path / name) in out
    assert lines == ["note: 1 of 6 texts are cut to the model's 64 positions"]
    path = tmp_path / name
    files[name] = np.load(path) if name.endswith("npy") else load_file(path)
  offsets = files["last.safetensors"]["offsets"]
  assert len(offsets) == len(TEXTS) + 1
  np.testing.assert_array_equal(files["mean.npy"], files["mean.safetensors"]["features"])
  for i, text in enumerate(TEXTS):
    expected, part = last_layer(bert, text), slice(offsets[i], offsets[i + 1])
    np.testing.assert_array_equal(files["last.safetensors"]["tokens"][part], encode(bert, text))
    np.testing.assert_allclose(files["last.safetensors"]["features"][part], expected, atol=1e-5)
    np.testing.assert_allclose(files["cls.npy"][i], expected[0], atol=1e-5)
    np.testing.assert_allclose(files["mean.npy"][i], np.mean(expected, 0), atol=1e-5)


def test_strings_give_the_arrays_that_the_command_writes(bert, capsys):
  for layer in ("cls", "mean", "last"):
    found = embed.embed(bert, TEXTS, layer, batch_size=4)
    assert "1 of 6 texts are cut" in capsys.readouterr().err
    if layer == "last":
      assert [len(x) for x in found] == [len(encode(bert, text)) for text in TEXTS]
    else:
      assert found.shape == (len(TEXTS), bert.config.model.width)
    for x, text in zip(found, TEXTS, strict=True):
      expected = last_layer(bert, text)
      expected = {"cls": expected[0], "mean": np.mean(expected, 0), "last": expected}[layer]
      assert x.dtype == np.float32
      np.testing.assert_allclose(x, expected, atol=1e-5)


@pytest.mark.parametrize("flags, fragment", [
    (["--out=a.txt"], "a.txt: name a file that ends in .safetensors or .npy"),
    (["--out=a.npy", "--layer=last"], "a.npy: a .npy file holds one array"),
    (["--out=a.safetensors", "--layer=last4"], "--layer last4: the model has only 1 layers"),
    (["--out=none/a.npy"], "there is no folder"),
    (["--out=texts.txt"], "texts.txt: exists already"),
    (["--out=a.npy", "--input=b.txt"], "b.txt: no such file"),
    (["--out=a.npy", "--layer=first"], "invalid choice: 'first'"),
    (["--out=a.npy", "--batch_size=0"], "--batch_size: 0: give a whole number of at least 1"),
])
def test_bad_input_is_one_line_and_writes_nothing(capsys, finished_bert, source, monkeypatch, flags,
                                                  fragment):
  monkeypatch.chdir(source.parent)
  code, out, lines = run(capsys, "embed", f"--workdir={finished_bert}", f"--input={source}", *flags)
  assert (code, out, len(lines)) == (2, "", 1)
  assert fragment in lines[0]
  assert [path.name for path in source.parent.iterdir()] == ["texts.txt"]


def test_a_gpt_is_refused(capsys, finished_gpt, source, tmp_path):
  code, _, lines = run(capsys, "embed", f"--workdir={finished_gpt}", f"--input={source}",
                       f"--out={tmp_path / 'a.npy'}")
  assert (code, len(lines)) == (2, 1) and "holds a GPT" in lines[0]


def test_a_file_appears_whole_or_not_at_all(monkeypatch, tmp_path):
  def fail(path, arrays):
    path.write_bytes(b"half")
    raise StorageError("the disk is full")

  monkeypatch.setattr(export, "write_tensors", fail)
  with pytest.raises(StorageError):
    embed.write(tmp_path / "a.safetensors", {"features": np.zeros(3)})
  assert not list(tmp_path.iterdir())
