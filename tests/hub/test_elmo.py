"""bertgpt.hub.elmo: the files of bilm-tf return from a round trip, bit for bit."""

import functools
import importlib.util
import json
import os
import pathlib
import shlex

import jax
import numpy as np
import pytest
import tiny

from bertgpt import cli, models, trees
from bertgpt import config as config_lib
from bertgpt.data.tokens import spelling
from bertgpt.errors import ConfigError, DataError
from bertgpt.hub import elmo, opening
from bertgpt.models import Inputs
from bertgpt.runs import trained as trained_lib
from bertgpt.runs import word_tables

HAS_H5PY = importlib.util.find_spec("h5py") is not None
OPTIONS = {
    "lstm": {"cell_clip": 3, "use_skip_connections": True, "n_layers": 2, "proj_clip": 3,
             "projection_dim": 16, "dim": 64},
    "char_cnn": {"embedding": {"dim": 4}, "filters": [[1, 4], [2, 8], [3, 16]], "n_highway": 2,
                 "n_characters": 262, "max_characters_per_token": 50, "activation": "relu"}}

FLAGS = ["--config.data.cache_dir={cache}", "--config.data.prepare_workers=1",
         "--config.tokenizer.vocab_size=29", "--config.model.dtype=float32",
         "--config.optimizer.weight_decay=0.0", "--config.phases[0].steps=2",
         "--config.phases[0].seq_len=20", "--config.phases[0].batch_size=8",
         "--config.phases[0].learning_rate=0.0", "--config.eval.batch_size=8",
         "--config.log.tensorboard=False", "--config.system.compilation_cache="]


def needs_h5py(test):
  """Marks a test that `make test-hf` runs, which installs h5py."""
  return pytest.mark.hf(pytest.mark.skipif(not HAS_H5PY, reason="h5py is not installed")(test))


@pytest.fixture
def folder(tmp_path):
  """A folder in bilm-tf's format, with random weights under the published names."""
  h5py = pytest.importorskip("h5py")
  path = tmp_path / "bilm"
  path.mkdir()
  (path / "elmo_options.json").write_text(json.dumps(OPTIONS))
  rng = np.random.default_rng(0)
  with h5py.File(path / "elmo_weights.hdf5", "w") as file:
    shapes = {"char_embed": (261, 4), "CNN_proj/W_proj": (28, 16), "CNN_proj/b_proj": (16,)}
    for i, (width, count) in enumerate(OPTIONS["char_cnn"]["filters"]):
      shapes |= {f"CNN/W_cnn_{i}": (1, width, 4, count), f"CNN/b_cnn_{i}": (count,)}
    for i in range(2):
      shapes |= {f"CNN_high_{i}/{name}": (28, 28)[:1 + (name[0] == "W")]
                 for name in ("W_carry", "b_carry", "W_transform", "b_transform")}
      for layer in range(2):
        cell = f"RNN_{i}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
        shapes |= {f"{cell}/W_0": (32, 256), f"{cell}/B": (256,), f"{cell}/W_P_0": (64, 16)}
    for name, shape in shapes.items():
      file.create_dataset(name, data=rng.normal(size=shape).astype(np.float32))
  return path


def read(path):
  h5py = pytest.importorskip("h5py")
  arrays = {}
  with h5py.File(path, "r") as file:
    file.visititems(lambda name, x: arrays.update({name: x[...]}) if hasattr(x, "shape") else None)
  return arrays


@needs_h5py
def test_an_import_that_is_exported_has_the_same_bits(folder, tmp_path, capsys):
  assert cli.main(["import", "--from", str(folder), "--workdir", str(tmp_path / "run")]) == 0
  assert "drawn at random, because the folder has none: LM head" in capsys.readouterr().out
  assert cli.main(["export", "--workdir", str(tmp_path / "run"),
                   "--out", str(tmp_path / "again")]) == 0
  before, after = read(folder / "elmo_weights.hdf5"), read(tmp_path / "again" / "weights.hdf5")
  assert before.keys() == after.keys()
  for name, x in before.items():
    np.testing.assert_array_equal(after[name], x, err_msg=name)
  assert json.loads((tmp_path / "again" / "options.json").read_text()) == OPTIONS
  count = sum(x.size for x in before.values())
  assert f"{count:,} parameters" in capsys.readouterr().out


@needs_h5py
def test_the_pretraining_of_an_import_is_continued(folder, story, tmp_path, capsys):
  """The new run has the words of another text; a rate of zero leaves all other values unchanged."""
  run, new = tmp_path / "run", tmp_path / "new"
  assert cli.main(["import", "--from", str(folder), "--workdir", str(run)]) == 0
  command = capsys.readouterr().out.splitlines()[-1]  # The command that `import` prints.
  command = command.replace("NEW", str(new)).replace("SOURCE", f"text:{story}")
  flags = (flag.format(cache=tmp_path / "cache") for flag in FLAGS)
  assert cli.main([*shlex.split(command)[1:], *flags]) == 0
  before, after = (trained_lib.load_trained(path) for path in (run, new))
  assert "house" in after.tokenizer.pieces and "house" not in before.tokenizer.pieces
  assert after.can("fill") and not after.fresh
  for name, x in trees.named_leaves(before.params).items():
    if not name.startswith(("lm/", "words/spelling")):
      np.testing.assert_array_equal(trees.named_leaves(after.params)[name], x, err_msg=name)
  table = after.params["words"]["spelling"]
  np.testing.assert_array_equal(table[:after.tokenizer.vocab_size],
                                spelling.make_table(after.tokenizer))


@needs_h5py
def test_an_export_with_its_words_opens_as_the_same_model(folder, tmp_path):
  opened = opening.open_folder(folder, "--from")
  trained = trained_lib.make_trained(opened.config, opened.params, opened.tokenizer, 0, "")
  (tmp_path / "out").mkdir()
  elmo.write_folder(trained, tmp_path / "out")
  again = opening.open_folder(tmp_path / "out", "--from")
  assert again.tokenizer.fingerprint() == opened.tokenizer.fingerprint()
  apply = lambda model: jax.jit(lambda params: models.make_model(model.config).apply(
      {"params": params}, Inputs.of_texts(np.array([[2, 1, 1, 3]], np.int32), np.array([4])),
      method="features"))(model.params)
  np.testing.assert_array_equal(apply(opened), apply(again))


@needs_h5py
def test_embeddings_are_those_of_bilm_tf():
  """Uses the test files of AllenNLP: three streams of ten sentences that hand on their state.

  pip download allennlp==0.9.0 --no-deps
  unzip -d DIR allennlp-*.whl 'allennlp/tests/fixtures/elmo/*'
  """
  path = pathlib.Path(os.environ.get("BERTGPT_ELMO_FIXTURES", "allennlp/tests/fixtures/elmo"))
  if not (path / "lm_weights.hdf5").is_file():
    pytest.skip("set BERTGPT_ELMO_FIXTURES to DIR/allennlp/tests/fixtures/elmo")
  import h5py
  opened = opening.open_folder(path, "--from")
  streams = json.loads((path / "sentences.json").read_text())
  trained = trained_lib.make_trained(opened.config, opened.params, opened.tokenizer, 0, "")
  words = sorted({word for stream in streams for line in stream for word in line.split()})
  trained = word_tables.extend_vocabulary(trained, words)
  ids = {word: i for i, word in enumerate(trained.tokenizer.pieces)}
  cls, sep = trained.tokenizer.cls_id, trained.tokenizer.sep_id
  read = jax.jit(functools.partial(trained.model.apply, method="read"))
  for number, stream in enumerate(streams):
    carry = {name: np.zeros((1, *shape), dtype)
             for name, (shape, dtype) in models.elmo.carry_specs(trained.config.model).items()}
    with h5py.File(path / f"lm_embeddings_{number}.hdf5") as file:
      for i, line in enumerate(stream):
        sentence = [cls, *(ids[word] for word in line.split()), sep]
        tokens = np.array([[sentence], [sentence[::-1]]], np.int32)
        forward, backward, carry = read({"params": trained.params}, tokens,
                                        np.ones((1, len(sentence)), bool), carry)
        found = np.stack([forward.x[0], backward.x[0, ::-1]])[:, 1:-1]
        np.testing.assert_allclose(found, file[str(i)][...], atol=3e-6)


def change(**fields):
  def apply(folder):
    options = json.loads((folder / "elmo_options.json").read_text())
    for name, value in fields.items():
      group, _, key = name.partition("__")
      options[group][key] = value
    (folder / "elmo_options.json").write_text(json.dumps(options))
  return apply


def truncate(folder):
  path = folder / "elmo_weights.hdf5"
  path.write_bytes(path.read_bytes()[:2000])


def spoil(folder):
  import h5py
  with h5py.File(folder / "elmo_weights.hdf5", "r+") as file:
    file["CNN_proj/b_proj"][0] = np.nan


@needs_h5py
@pytest.mark.parametrize("damage, message", [
    (spoil, "CNN_proj/b_proj holds NaN or infinity"),
    (truncate, "elmo_weights.hdf5: is damaged, or is not an HDF5 file"),
    (change(lstm__projection_dim=8), "but options.json says"),
    (change(lstm__n_layers=3), "lacks RNN_0/RNN/MultiRNNCell/Cell2/LSTMCell/W_0"),
    (change(lstm__proj_clip=5), "lstm.proj_clip=5.0, needs 3.0"),
    (change(lstm__dim=64.0), "a size is not a whole number"),
    (change(lstm__dim="64"), "a size is not a whole number"),
    (change(lstm__n_layers="2"), "a size is not a whole number"),
    (change(lstm__n_layers=2.0), "a size is not a whole number"),
    (change(lstm__projection_dim="16"), "a size is not a whole number"),
    (change(lstm__projection_dim=True), "a size is not a whole number"),
    (change(char_cnn__n_highway=True), "a size is not a whole number"),
    (change(char_cnn__embedding={"dim": 4.0}), "a size is not a whole number"),
    (change(char_cnn__filters=[[1.0, 4], [2, 8], [3, 16]]), "a size is not a whole number"),
    (change(char_cnn__filters=[["1", 4], [2, 8], [3, 16]]), "a size is not a whole number"),
    (change(char_cnn__filters=[[1, True], [2, 8], [3, 16]]), "a size is not a whole number"),
    (change(char_cnn__activation="tanh"), "char_cnn.activation='tanh', needs 'relu'"),
    (lambda folder: (folder / "elmo_options.json").write_text("{}"), "does not describe an ELMo"),
    (lambda folder: (folder / "elmo_options.json").write_text("{"), "elmo_options.json"),
])
def test_what_is_wrong_with_a_folder_is_named(folder, tmp_path, capsys, damage, message):
  damage(folder)
  assert cli.main(["import", "--from", str(folder), "--workdir", str(tmp_path / "run")]) == 65
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
  assert not (tmp_path / "run").exists()


@needs_h5py
def test_damaged_weights_are_an_error_that_names_the_file(folder, tmp_path):
  """Every fourth damage is in the values of an array, where it may not be found."""
  import h5py
  path, found = folder / "elmo_weights.hdf5", []
  model = config_lib.base().model
  model.update(elmo.read_options(folder / "elmo_options.json"))
  content = path.read_bytes()
  is_value = np.zeros(len(content), bool)
  with h5py.File(path) as file:
    for name in read(path):
      start = file[name].id.get_offset()
      is_value[start:start + file[name].id.get_storage_size()] = True
  values, others = np.flatnonzero(is_value), np.flatnonzero(~is_value)
  rng = np.random.default_rng(0)
  for i in range(60):
    at = int(rng.choice(others if i % 4 else values))
    damaged = bytearray(content)
    if i % 2:
      damaged[at] ^= 1 << int(rng.integers(8))
    else:
      damaged[at:at + 8] = rng.bytes(min(8, len(content) - at))
    path.write_bytes(damaged)
    try:
      elmo.read_arrays(path, model)
    except DataError as e:
      found.append(str(e))
  assert len(found) > 5
  assert all(str(path) in line and "\n" not in line for line in found)


def link(file, other, name):
  import h5py
  file[name] = h5py.ExternalLink(other, name)


def link_group(file, other, name):
  import h5py
  del file["CNN_proj"]
  file["CNN_proj"] = h5py.ExternalLink(other, "CNN_proj")


def store_outside(file, other, name):
  file.create_dataset(name, shape=(16,), dtype="f4", external=[(other, 0, 64)])


def map_outside(file, other, name):
  import h5py
  layout = h5py.VirtualLayout(shape=(16,), dtype="f4")
  layout[:] = h5py.VirtualSource(other, name, shape=(16,))
  file.create_virtual_dataset(name, layout)


@needs_h5py
@pytest.mark.parametrize("refer", [link, link_group, store_outside, map_outside])
def test_arrays_of_other_files_are_refused(folder, tmp_path, refer):
  """A folder of weights could otherwise name any file of the reader's disk."""
  import h5py
  model = config_lib.base().model
  model.update(elmo.read_options(folder / "elmo_options.json"))
  weights, other, name = folder / "elmo_weights.hdf5", tmp_path / "other.hdf5", "CNN_proj/b_proj"
  other.write_bytes(weights.read_bytes())
  with h5py.File(weights, "r+") as file:
    del file[name]
    refer(file, str(other), name)
  with pytest.raises(DataError, match=r"lacks CNN_proj/\w+, or names another file for it"):
    elmo.read_arrays(weights, model)


@needs_h5py
def test_an_array_of_another_shape_is_not_read(folder):
  """A damaged shape may need more memory than there is."""
  import h5py
  model = config_lib.base().model
  model.update(elmo.read_options(folder / "elmo_options.json"))
  with h5py.File(folder / "elmo_weights.hdf5", "r+") as file:
    del file["CNN_proj/b_proj"]
    file.create_dataset("CNN_proj/b_proj", shape=(1 << 45,), dtype="f4", chunks=(1 << 10,))
  with pytest.raises(DataError, match=r"b_proj has the shape \(35184372088832,\), but options"):
    elmo.read_arrays(folder / "elmo_weights.hdf5", model)


@pytest.mark.parametrize("other", ["elmo_5.5B_weights.hdf5", "elmo_5.5B_options.json"])
def test_a_folder_with_files_of_several_models_is_refused(other, tmp_path, capsys):
  for name in ("elmo_weights.hdf5", "elmo_options.json", other):
    (tmp_path / name).write_text("{}")
  assert cli.main(["import", f"--from={tmp_path}", f"--workdir={tmp_path}/run"]) == 65
  line, = capsys.readouterr().err.splitlines()
  assert f"{tmp_path}: holds the files of several models" in line and other in line


@pytest.mark.skipif(HAS_H5PY, reason="h5py is installed")
def test_a_missing_library_is_named(tmp_path, capsys):
  folder = tmp_path / "bilm"
  folder.mkdir()
  (folder / "options.json").write_text(json.dumps(OPTIONS))
  (folder / "weights.hdf5").write_bytes(b"")
  assert cli.main(["import", "--from", str(folder), "--workdir", str(tmp_path / "run")]) == 2
  assert "pip install -e '.[hdf5]'" in capsys.readouterr().err


def test_arrays_of_bilm_tf_lead_back_to_the_same_bits():
  config = tiny.make_config("bilm")
  module = models.make_model(config)
  inputs = Inputs.of_texts(np.zeros((1, 8), np.int32), np.array([8]))
  params = jax.device_get(jax.jit(module.init)(jax.random.key(0), inputs)["params"])
  found = elmo.from_bilm(elmo.to_bilm(params, config.model), config.model)
  del params["words"]["spelling"], params["lm"]
  jax.tree.map(np.testing.assert_array_equal, found, params)
  assert jax.tree.structure(found) == jax.tree.structure(params)


@pytest.mark.parametrize("clip", [0.0, 3.0])
def test_options_of_bilm_tf_lead_back_to_the_same_fields(tmp_path, clip):
  """bilm-tf does not clip if both values are null, and would clip to 0."""
  model = tiny.make_config("bilm", state_clip=clip, num_heads=2, pooling="mean").model
  options = elmo.make_options(model)
  assert {options["lstm"][name] for name in ("cell_clip", "proj_clip")} == {clip or None}
  (tmp_path / "options.json").write_text(json.dumps(options))
  found = elmo.read_options(tmp_path / "options.json")
  assert found["state_clip"] == clip
  assert found == {name: model[name] for name in found}


def test_options_that_bilm_tf_leaves_out_have_its_defaults(tmp_path):
  options = json.loads(json.dumps(OPTIONS))
  for group, name in (("lstm", "cell_clip"), ("lstm", "proj_clip"),
                      ("lstm", "use_skip_connections"), ("char_cnn", "n_highway")):
    del options[group][name]
  (tmp_path / "options.json").write_text(json.dumps(options))
  found = elmo.read_options(tmp_path / "options.json")
  assert (found["state_clip"], found["lstm_residual"], found["num_highways"]) == (0.0, False, 0)
  assert (found["num_layers"], found["width"], found["mlp_dim"]) == (2, 32, 64)


@pytest.mark.parametrize("field, value", [
    ("mlp_dim", 16), ("mlp_dim", 8), ("filters", ((1, 8), (2, 8)))])
def test_an_elmo_that_bilm_tf_would_not_project_is_refused(tmp_path, field, value):
  config = tiny.make_config("bilm", **{field: value})
  shapes = jax.eval_shape(models.make_model(config).init, jax.random.key(0), Inputs.of_texts(
      np.zeros((1, 8), np.int32), np.array([8])))["params"]
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  trained = trained_lib.make_trained(config, params, elmo.make_tokenizer(), 0, "")
  with pytest.raises(ConfigError, match=rf"model.{field}: .* more than half of model.width=32\."):
    elmo.write_folder(trained, tmp_path)
  assert not list(tmp_path.iterdir())
