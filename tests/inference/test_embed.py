"""bertgpt.inference.embed: features of every text, in order and independent of its batch."""

import functools
import json
import os
import random
import signal
import subprocess
import sys

import jax
import numpy as np
import program
import pytest
import small_runs
import tiny
from program import ROOT
from safetensors.numpy import load_file

from bertgpt import cli
from bertgpt.errors import DataError, StorageError
from bertgpt.inference import embed, resumable
from bertgpt.models import Inputs
from bertgpt.runs.trained import Trained

GENERATOR = {"generator_width": 16, "generator_num_heads": 2, "generator_mlp_dim": 32}
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
  return tiny.apply(bert.model, bert.params, inputs, method="features")[0]


def test_features_are_those_of_each_text_alone_in_order(capsys, bert, finished_bert, source,
                                                        tmp_path):
  files = {}
  for layer, name in (("cls", "cls.npy"), ("mean", "mean.npy"), ("mean", "mean.safetensors"),
                      ("last", "last.safetensors")):
    code, out, lines = run(capsys, "embed", f"--workdir={finished_bert}", f"--input={source}",
                           f"--out={tmp_path / name}", f"--layer={layer}", "--batch_size=3")
    assert code == 0 and str(tmp_path / name) in out
    assert lines == [
        "note: 1 of 6 texts are cut to the model's 64 positions",
        "note: 2 of 6 texts have more tokens than the rows of the training (32). The position "
        "embeddings beyond that length are untrained"]
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


@pytest.mark.parametrize("family, objective", [
    ("bert", "mlm"), ("modernbert", "mlm"), pytest.param("albert", "mlm", marks=pytest.mark.slow),
    pytest.param("electra", "rtd", marks=pytest.mark.slow)])
def test_the_last_layer_of_a_pre_norm_model_is_what_its_heads_read(family, objective):
  """Only the last layer goes through the final norm, as in transformers."""
  config = tiny.make_config(objective, **GENERATOR, family=family, num_layers=3, norm="pre")
  with tiny.Setup(config) as setup:
    trained = Trained(config, setup.model, setup.init().params, None, 1, "")
  rng, width = np.random.default_rng(0), config.model.width
  tokens = [rng.integers(5, tiny.VOCAB, n).astype(np.int32) for n in (9, 14)]
  last, cls, mean, last3 = (embed.embed_rows(trained, tokens, layer, 2)
                            for layer in ("last", "cls", "mean", "last3"))
  features = jax.jit(functools.partial(trained.model.apply, method="features"))
  for i, ids in enumerate(tokens):
    inputs = Inputs.of_texts(ids[None], np.array([len(ids)]))
    expected = np.array(features({"params": trained.params}, inputs)[0])
    np.testing.assert_allclose(last[i], expected, atol=1e-5)
    np.testing.assert_allclose(cls[i], expected[0], atol=1e-5)
    np.testing.assert_allclose(mean[i], expected.mean(0), atol=1e-5)
    np.testing.assert_allclose(last3[i][:, 2 * width:], expected, atol=1e-5)
    np.testing.assert_allclose(expected.mean(-1), 0, atol=1e-5)
    assert abs(last3[i][:, width:2 * width].mean(-1)).max() > 1e-3


def test_unknown_texts_are_noted(capsys, bert, finished_bert, tmp_path):
  """All of them have the same features."""
  texts = ["\u0e01\u0e02", "\u0e03", "\u0e04"]
  (tmp_path / "a.txt").write_text("\n".join(texts))
  found = embed.embed(bert, texts)
  assert np.ptp(found, axis=0).max() < 1e-6
  note, = capsys.readouterr().err.splitlines()
  assert note.startswith("note: 33% of the tokens are unknown to the tokenizer, and the model ")
  _, _, lines = run(capsys, "embed", f"--workdir={finished_bert}", f"--input={tmp_path / 'a.txt'}",
                    f"--out={tmp_path / 'a.npy'}")
  assert lines == [note]


@pytest.mark.parametrize("layer, shape", [("cls", (0, 16)), ("mean", (0, 16)), ("last", (0,))])
def test_no_texts_give_no_features(bert, layer, shape):
  found = embed.embed(bert, [], layer)
  assert np.shape(found) == shape
  assert layer == "last" or found.dtype == np.float32


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
    (["--out=a.safetensors", "--layer=last4"],
     "--layer last4: the model has only 1 layer. Choose cls or mean or last"),
    (["--out=a.npy", "--input=."], ": is a folder. Give a file"),
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


# ---------------------------------------------------------------- many texts


MANY = 2 * embed.CHUNK_TEXTS + 17


def start(finished_bert, source, out, *flags, before=()):
  env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
  return subprocess.Popen([*before, sys.executable, "-m", "bertgpt", "embed",
                           f"--workdir={finished_bert}", f"--input={source}", f"--out={out}",
                           *flags], env=env, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)


def state_of(out):
  """Returns the entries of the last commit of unfinished work."""
  paths = list(out.parent.glob(f"{out.name}.unfinished-*/state.json"))
  return json.loads(paths[0].read_text())["state"] if paths else {}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
  """A file with several chunks of texts, whose lengths fall into several buckets."""
  rng = random.Random(0)
  path = tmp_path_factory.mktemp("many") / "texts.txt"
  path.write_text("".join(f"The {' '.join(rng.choices(small_runs.NOUNS, k=rng.randint(0, 70)))}\n"
                          for _ in range(MANY)))
  return path


@pytest.mark.slow
@pytest.mark.parametrize("name, layer", [
    ("a.npy", "mean"), ("a.safetensors", "last")])
def test_work_that_was_killed_resumes_to_the_same_bytes(finished_bert, many, tmp_path, name, layer):
  (tmp_path / "whole").mkdir()
  whole = program.finish(start(finished_bert, many, tmp_path / "whole" / name, f"--layer={layer}"))
  assert whole.returncode == 0, whole.stderr

  process = start(finished_bert, many, tmp_path / name, f"--layer={layer}")
  program.wait_for(lambda: state_of(tmp_path / name).get("texts", 0) > 0, process)
  process.kill()
  assert program.finish(process).returncode == -signal.SIGKILL
  done = state_of(tmp_path / name)["texts"]
  assert 0 < done < MANY and not (tmp_path / name).exists()

  resumed = program.finish(start(finished_bert, many, tmp_path / name, f"--layer={layer}"))
  assert resumed.returncode == 0, resumed.stderr
  first, *rest = [line for line in resumed.stderr.splitlines() if line.startswith("note: ")]
  assert first == f"note: resuming after {done:,} of {MANY:,} texts"
  assert len(rest) == 2 and set(rest) <= set(whole.stderr.splitlines())  # Counts of all texts.
  assert resumed.stdout.split(": ")[1] == whole.stdout.split(": ")[1]
  assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
  assert sorted(path.name for path in tmp_path.iterdir()) == [name, "whole"]


@pytest.mark.slow
def test_a_full_disk_is_an_error_after_which_the_command_resumes(capsys, finished_bert, many,
                                                                 tmp_path):
  """A limit on file sizes, reached in the second chunk, stands for a full disk."""
  out, kib_per_chunk = tmp_path / "a.npy", embed.CHUNK_TEXTS * 16 * 4 // 1024
  limited = ("bash", "-c", f'ulimit -f {kib_per_chunk * 3 // 2}; exec "$@"', "bash")
  failed = program.finish(start(finished_bert, many, out, before=limited))
  assert failed.returncode == StorageError.exit_code and failed.stdout == ""
  assert "File too large" in failed.stderr and not out.exists()
  assert state_of(out)["texts"] == embed.CHUNK_TEXTS
  code, _, lines = run(capsys, "embed", f"--workdir={finished_bert}", f"--input={many}",
                       f"--out={out}")
  assert code == 0 and f"note: resuming after {embed.CHUNK_TEXTS:,} of" in lines[0]
  assert np.load(out).shape == (MANY, 16)


def test_other_flags_and_texts_do_not_destroy_unfinished_work(capsys, finished_bert, source,
                                                              tmp_path, monkeypatch):
  """The error names the former flags and texts; with these, the command resumes."""
  argv = ["embed", f"--workdir={finished_bert}", f"--input={source}", f"--out={tmp_path}/a.npy"]
  commit = resumable.Unfinished.commit

  def interrupt(self, **state):
    commit(self, **state)
    raise KeyboardInterrupt

  monkeypatch.setattr(embed, "CHUNK_TEXTS", 3)
  with monkeypatch.context() as patch:
    patch.setattr(resumable.Unfinished, "commit", interrupt)
    assert run(capsys, *argv)[0] == 130
  source.write_text("A bird.\n")
  code, _, lines = run(capsys, *argv, "--batch_size=3", "--layer=cls")
  assert (code, len(lines)) == (2, 1)
  assert "of other texts, layer mean, batch_size 8. Go back to that" in lines[0]
  source.write_text("\n".join(TEXTS) + "\n")
  code, _, lines = run(capsys, *argv)
  assert code == 0 and "resuming after 3 of 6 texts" in lines[0]
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "texts.txt"]


@pytest.mark.parametrize("layer, name", [("mean", "a.npy"), ("last", "a.safetensors")])
@pytest.mark.parametrize("change", [["One more."], ["Two", "more."], -1, 0])
def test_a_file_that_changes_during_the_work_gives_no_result(
    capsys, finished_bert, source, tmp_path, monkeypatch, layer, name, change):
  texts = TEXTS + change if isinstance(change, list) else [*TEXTS]
  if texts == TEXTS:
    del texts[change]
  check_layer = embed.check_layer

  def write_and_check(*args):  # Between the first reading of the file and the second one.
    source.write_text("\n".join(texts) + "\n")
    check_layer(*args)

  monkeypatch.setattr(embed, "CHUNK_TEXTS", 2)
  monkeypatch.setattr(embed, "check_layer", write_and_check)
  code, out, lines = run(capsys, "embed", f"--workdir={finished_bert}", f"--input={source}",
                         f"--out={tmp_path / name}", f"--layer={layer}")
  assert (code, out) == (DataError.exit_code, "")  # A slow machine also shows its progress.
  assert f"--input {source}: changed while it was read" in lines[-1]
  assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_features_do_not_depend_on_the_texts_around(bert):
  """Alone, in another order, or in other batch sizes, features are equal up to rounding."""
  whole = embed.embed(bert, TEXTS)
  order = [3, 0, 5, 1, 4, 2]
  for batch_size in (1, 2, 5):
    found = embed.embed(bert, [TEXTS[i] for i in order], batch_size=batch_size)
    np.testing.assert_allclose(found, whole[order], atol=1e-6)
