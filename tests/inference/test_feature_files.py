"""bertgpt.inference.feature_files: other libraries read the arrays, however they are written."""

import io
import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from bertgpt.inference import feature_files, resumable

WIDTH, LENGTHS = 3, [2, 5, 3, 9, 2, 4, 1]


def make(by_token):
  """Returns the rows of texts and their features."""
  rng = np.random.default_rng(0)
  rows = [rng.integers(0, 99, n).astype(np.int32) for n in LENGTHS]
  shape = lambda n: (n, WIDTH) if by_token else (WIDTH,)
  return rows, [rng.normal(size=shape(n)).astype(np.float32) for n in LENGTHS]


def write(out, rows, features, by_token, sizes, interrupted_after=99):
  """Writes chunks of the given sizes, the rows of each in reverse order."""
  with resumable.open_unfinished(out, {}) as work:
    file = feature_files.FORMATS[out.suffix](work, len(rows), WIDTH, by_token)
    first, done = work.state.get("texts", 0), 0
    for size in sizes:
      done += size
      if done - size < first:
        continue
      chunk = slice(done - size, done)
      file.begin(rows[chunk])
      for i in reversed(range(size)):
        file.write(i, features[chunk][i])
      if done > interrupted_after:
        raise KeyError
      work.commit(texts=done, rows=file.end())
    found = file.finish()
    work.publish(feature_files.NAME)
  return found


@pytest.mark.parametrize("name, by_token", [
    ("a.npy", False), ("a.safetensors", False), ("a.safetensors", True)])
def test_arrays_are_those_that_were_given(tmp_path, name, by_token):
  rows, features = make(by_token)
  assert write(tmp_path / name, rows, features, by_token, [len(rows)]) == (
      sum(LENGTHS) if by_token else len(LENGTHS))
  content = (tmp_path / name).read_bytes()
  whole = np.concatenate(features) if by_token else np.stack(features)
  if name == "a.npy":
    expected = io.BytesIO()
    np.save(expected, whole)
    assert content == expected.getvalue()
    return
  arrays = load_file(tmp_path / name)
  assert arrays.keys() == ({"features", "tokens", "offsets"} if by_token else {"features"})
  np.testing.assert_array_equal(arrays["features"], whole)
  assert arrays["features"].dtype == np.float32
  with safe_open(tmp_path / name, "numpy") as file:
    assert file.metadata() == {"format": "pt"}
  if by_token:
    np.testing.assert_array_equal(arrays["tokens"], np.concatenate(rows))
    np.testing.assert_array_equal(arrays["offsets"], np.cumsum([0, *LENGTHS]))
    assert (arrays["tokens"].dtype, arrays["offsets"].dtype) == (np.int32, np.int64)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8:8 + size])  # Every array is aligned, so that it can be mapped.
    assert size % 8 == 0 and header["offsets"]["data_offsets"][0] % 8 == 0
    assert all(header[name]["data_offsets"][0] % 4 == 0 for name in ("features", "tokens"))


@pytest.mark.parametrize("name, by_token", [
    ("a.npy", False), ("a.safetensors", False), ("a.safetensors", True)])
def test_bytes_depend_neither_on_chunks_nor_on_interruptions(tmp_path, name, by_token):
  rows, features = make(by_token)
  found = []
  for i, (sizes, stop) in enumerate([([7], 99), ([3, 3, 1], 99), ([3, 3, 1], 3), ([3, 3, 1], 6),
                                     ([2, 2, 2, 1], 1)]):
    (tmp_path / str(i)).mkdir()
    out = tmp_path / str(i) / name
    if stop < 99:
      with pytest.raises(KeyError):
        write(out, rows, features, by_token, sizes, stop)
      assert not out.exists()
    write(out, rows, features, by_token, sizes)
    found.append(out.read_bytes())
  assert all(content == found[0] for content in found)
