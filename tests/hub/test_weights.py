"""bertgpt.hub.weights: tensors of one file or several; an index cannot leave the folder."""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from bertgpt.errors import DataError
from bertgpt.hub import weights

X, Y = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1.5], np.float32)


def write_shards(folder, weight_map):
  save_file({"x": X}, folder / "model-1.safetensors")
  save_file({"y": Y}, folder / "model-2.safetensors")
  (folder / weights.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


GOOD = {"x": "model-1.safetensors", "y": "model-2.safetensors"}


def test_one_file_and_several_give_the_same(tmp_path):
  one, several = tmp_path / "one", tmp_path / "several"
  one.mkdir()
  several.mkdir()
  save_file({"x": X, "y": Y}, one / weights.WEIGHTS)
  write_shards(several, GOOD)
  for folder in (one, several):
    found = weights.find(folder)
    assert set(found) == {"x", "y"}
    assert np.array_equal(found["x"], X) and np.array_equal(found["y"], Y)


def test_a_shard_may_be_a_link_as_in_the_cache_of_huggingface_hub(tmp_path):
  folder = tmp_path / "snapshot"
  folder.mkdir()
  write_shards(folder, GOOD)
  (folder / "model-2.safetensors").rename(tmp_path / "blob")
  (folder / "model-2.safetensors").symlink_to("../blob")
  assert np.array_equal(weights.find(folder)["y"], Y)


def test_files_are_of_a_limited_size(tmp_path, monkeypatch):
  """A tensor that is larger than the limit has a file of its own; strides do not matter."""
  tensors = {"a": X, "b": Y, "large": np.arange(40, dtype=np.float32), "c": X.T, "d": X[:, 1]}
  for limit, count in ((10**9, 1), (40, 3), (1, 5)):
    monkeypatch.setattr(weights, "FILE_BYTES", limit)
    folder = tmp_path / str(limit)
    folder.mkdir()
    weights.write(folder, tensors)
    names = {path.name for path in folder.iterdir()}
    assert names == ({weights.WEIGHTS} if count == 1 else {weights.INDEX} | {
        f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)})
    found = weights.find(folder)
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], x) for name, x in tensors.items())
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    if count == 3:
      assert [found.path_of(name).name[6:11] for name in tensors] == [
          "00001", "00001", "00002", "00003", "00003"]
      assert json.loads((folder / weights.INDEX).read_text())["metadata"] == {"total_size": 220}


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_is_read(tmp_path, dtype):
  x = np.array([[1.5, -2.25]]).astype(dtype)
  save_file({"x": x}, tmp_path / weights.WEIGHTS)
  found = weights.find(tmp_path)["x"]
  assert found.dtype == dtype and np.array_equal(found, x)


def test_a_type_that_numpy_has_not_is_named(tmp_path):
  save_file({"x": np.ones(2, ml_dtypes.float8_e4m3fn)}, tmp_path / weights.WEIGHTS)
  with pytest.raises(DataError, match="the tensor x is quantized, of type F8_E4M3"):
    weights.find(tmp_path)["x"]


@pytest.mark.parametrize("name", [
    "../model-2.safetensors", "/etc/passwd", "a/../model-2.safetensors", "..", "", ".",
    "sub/model-2.safetensors", "..\\model-2.safetensors", "model-2.safetensors/", "\0"])
def test_an_index_names_files_of_its_folder_only(tmp_path, name):
  folder = tmp_path / "model"
  folder.mkdir()
  write_shards(folder, GOOD | {"y": name})
  save_file({"y": Y}, tmp_path / "model-2.safetensors")
  with pytest.raises(DataError, match="is not the name of a file in the folder"):
    weights.find(folder)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"x": 1}, "model-1.safetensors"])
def test_an_index_without_files_is_refused(tmp_path, weight_map):
  write_shards(tmp_path, weight_map)
  with pytest.raises(DataError, match=r"index.json: weight_map does not give a file"):
    weights.find(tmp_path)


@pytest.mark.parametrize("weight_map, message", [
    (GOOD | {"z": "model-3.safetensors"}, "model-3.safetensors: no such file, but"),
    (GOOD | {"z": "model-1.safetensors"}, "model-1.safetensors: lacks the tensor z"),
    ({"x": "model-1.safetensors", "y": "model-1.safetensors"}, "lacks the tensor y"),
    (GOOD | {"y": "model-1.safetensors", "x": "model-2.safetensors"}, "lacks the tensor y")])
def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path, weight_map, message):
  write_shards(tmp_path, weight_map)
  with pytest.raises(DataError, match=message):
    weights.find(tmp_path)


@pytest.mark.parametrize("make", [pathlib.Path.mkdir, lambda path: path.symlink_to("missing")])
def test_a_file_of_weights_that_is_none_is_said_to_be_none(tmp_path, make):
  make(tmp_path / "model.safetensors")
  with pytest.raises(DataError, match="safetensors: is a folder, or a link to a missing file"):
    weights.find(tmp_path)


def test_a_damaged_shard_is_named(tmp_path):
  write_shards(tmp_path, GOOD)
  path = tmp_path / "model-2.safetensors"
  path.write_bytes(path.read_bytes()[:-2])
  with pytest.raises(DataError, match="model-2.safetensors: is not a complete safetensors file"):
    weights.find(tmp_path)
