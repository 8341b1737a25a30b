"""Any folder of a model is imported, or refused in one line with nothing left behind."""

import json
import shutil

import fuzzing
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors import numpy as safetensors_numpy

from bertgpt import cli, errors
from bertgpt.hub import opening

CODES = {0, errors.ConfigError.exit_code, errors.DataError.exit_code}
JSON = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
SETTINGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "tokenizer_class",
            "model_type", "architectures", "vocab_size", "hidden_act", "activation_function",
            "num_hidden_layers", "num_attention_heads", "intermediate_size", "pad_token_id",
            "layer_norm_eps", "tie_word_embeddings", "auto_map", "dtype", "n_head", "n_inner",
            "is_decoder", "position_embedding_type", "unk_token", "mask_token")


@pytest.fixture(scope="module", params=["bert", "gpt"])
def model(request, finished_bert, finished_gpt, tmp_path_factory):
  """Returns the folder of an exported model."""
  run = {"bert": finished_bert, "gpt": finished_gpt}[request.param]
  out = tmp_path_factory.mktemp("exported") / "model"
  assert cli.main(["export", f"--workdir={run}", f"--out={out}"]) == 0
  return out


def import_copy(model, capsys, **contents):
  """Imports a copy of a model in which some files have other contents; None: they are missing."""
  with fuzzing.folder() as folder:
    source, run = shutil.copytree(model, folder / "model"), folder / "run"
    for name, content in contents.items():
      (source / name).unlink(missing_ok=True)
      if content is not None:
        (source / name).write_bytes(content)
    capsys.readouterr()
    code = cli.main(["import", f"--from={source}", f"--workdir={run}"])
    lines = capsys.readouterr().err.strip().splitlines()
    assert code in CODES
    if code:
      assert lines[-1].startswith("bertgpt import: ") and not run.exists()
      assert not list(folder.glob("run*"))


def dump(content):
  return json.dumps(content).encode(errors="surrogatepass")


@pytest.mark.parametrize("name", JSON)
def test_any_settings_are_imported_or_refused(model, name, capsys):
  path = model / name
  content = json.loads(path.read_text("utf-8")) if path.exists() else {}
  value = fuzzing.values(st.none() | st.booleans() | st.integers(-1, 100) | st.floats()
                         | fuzzing.texts(9) | st.sampled_from(("gelu", "bert", "gpt2", 10**9)))
  added = st.dictionaries(st.sampled_from(SETTINGS), value, min_size=1, max_size=2)
  added = added.map(lambda new: content | new)
  choices = added | (fuzzing.changed(content, value) if content else added) | fuzzing.values()

  def check(content):
    import_copy(model, capsys, **{name: dump(content)})
  fuzzing.run(check, 12, content=choices)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "vocab.txt",
                                  "config.json"])
def test_damaged_files_are_imported_or_refused(model, name, capsys):
  path = model / name
  content = path.read_bytes() if path.exists() else b""

  def check(data):
    import_copy(model, capsys, **{name: data})
  fuzzing.run(check, 8, data=st.none() | fuzzing.damaged(content) | fuzzing.damaged(content[:300]))


def test_any_files_may_be_missing(model, capsys):
  names = [path.name for path in model.iterdir()]

  def check(missing):
    import_copy(model, capsys, **dict.fromkeys(missing))
  fuzzing.run(check, 12, missing=st.sets(st.sampled_from(names), min_size=1))


CHANGES = {
    "drop": lambda name, x: {},
    "rename": lambda name, x: {f"x.{name}": x},
    "without_prefix": lambda name, x: {name.partition(".")[2]: x},
    "double": lambda name, x: {name: x, f"{name}.copy": x},
    "cut": lambda name, x: {name: x[:-1]},
    "empty": lambda name, x: {name: x[:0]},
    "longer": lambda name, x: {name: np.concatenate([x, x[:1]])},
    "flat": lambda name, x: {name: x.reshape(-1)},
    "scalar": lambda name, x: {name: x.reshape(-1)[0]},
    "whole": lambda name, x: {name: x.astype(np.int32)},
    "half": lambda name, x: {name: x.astype(np.float16)},
    "nan": lambda name, x: {name: np.where(x == x.reshape(-1)[0], np.nan, x).astype(x.dtype)},
}


def test_any_tensors_are_opened_or_refused(model):
  tensors = safetensors_numpy.load_file(model / "model.safetensors")
  changes = st.dictionaries(st.sampled_from(sorted(tensors)), st.sampled_from(sorted(CHANGES)),
                            min_size=1, max_size=3)

  def check(changes, everywhere):
    new = {}
    for name, x in tensors.items():
      change = changes.get(name, everywhere)
      new |= CHANGES[change](name, x) if change else {name: x}
    with fuzzing.folder() as folder:
      source = shutil.copytree(model, folder / "model")
      safetensors_numpy.save_file({name: np.ascontiguousarray(x) for name, x in new.items()},
                                  source / "model.safetensors")
      opened = fuzzing.attempt(opening.open_model, source)
      if opened is not fuzzing.FAILED:
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(opened.params))
  every = st.sampled_from((None, None, None, "without_prefix", "rename", "half", "drop"))
  fuzzing.run(check, 25, changes=changes, everywhere=every)
