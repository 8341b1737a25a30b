"""Weights in the folder of a model of `transformers`: safetensors, in one file or several.

Only safetensors files are read, which cannot run code. A tensor is read when it is requested, so
that only one tensor is in memory at a time; when tensors are written, one file is.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator, Mapping

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from bertgpt import files
from bertgpt.errors import DataError, StorageError, one_line

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
# Most bytes of the tensors in one file: what save_pretrained() of transformers 4 writes.
FILE_BYTES = 5 * 10**9
ADAPTER = "adapter_config.json"
AGAIN = "Copy the folder again"
REMEDY = "Give a folder that save_pretrained() has written"
PICKLE = ("is a pickle, which can run code when it is read, and is never loaded. If you trust it, "
          "load it with transformers and save it again with save_pretrained()")
OTHER_PROGRAM = ("is the file of another program. Load it with transformers and save it again with "
                 "save_pretrained(), or choose a model with model.safetensors")
# End of the name of a file with weights -> what it is.
OTHER_WEIGHTS = {
    **dict.fromkeys((".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".pkl"), PICKLE),
    **dict.fromkeys((".h5", ".msgpack", ".onnx", ".gguf", ".data-00000-of-00001"), OTHER_PROGRAM),
    ".safetensors": "has another name. Rename it to model.safetensors if it holds the whole model",
}
NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "adapter_model.bin",
              "adapter_model.safetensors")
# safetensors dtypes that NumPy can represent, including integer ones.
DTYPES = frozenset({"BF16", "F16", "F32", "F64", "BOOL", "I8", "U8", "I16", "U16", "I32", "U32",
                    "I64", "U64"})


class Weights(Mapping[str, np.ndarray]):
  """The tensors of a folder by name, each read when it is requested.

  Args:
    paths: name of a tensor -> its file.
  """

  def __init__(self, paths: Mapping[str, pathlib.Path]):
    self._paths = paths

  def __getitem__(self, name: str) -> np.ndarray:
    """Returns a tensor as it is stored.

    Raises:
      DataError: the file is damaged, or NumPy lacks the type of the tensor.
    """
    path = self._paths[name]
    with open_file(path) as file:
      dtype = file.get_slice(name).get_dtype()
      if dtype not in DTYPES:
        raise DataError(f"the tensor {name} is quantized, of type {dtype}. Choose the "
                        "model that was not quantized")
      return file.get_tensor(name)

  def path_of(self, name: str) -> pathlib.Path:
    """Returns the file of a tensor."""
    return self._paths[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._paths)

  def __len__(self) -> int:
    return len(self._paths)


def find(folder: pathlib.Path) -> Weights:
  """Returns the tensors of a folder.

  Args:
    folder: folder of a model.
  Raises:
    DataError: there are no weights, or they cannot be read, or a file or an index is damaged; the
      message names the file and says what to do.
  """
  if files.has_file(folder / WEIGHTS):
    return Weights(dict.fromkeys(names_in(folder / WEIGHTS), folder / WEIGHTS))
  if files.has_file(folder / INDEX):
    return Weights(read_index(folder))
  raise DataError(f"{folder / WEIGHTS}: no such file. {find_hint(folder)}")


def refuse_adapter(folder: pathlib.Path) -> None:
  """Checks that a folder holds a whole model.

  Args:
    folder: folder of a model.
  Raises:
    DataError: it holds an adapter of peft.
  """
  if files.has_file(folder / ADAPTER):
    raise DataError(f"{folder / ADAPTER}: the folder holds an adapter, not a model. Merge it into "
                    "its model with merge_and_unload() of peft, and save the result with "
                    "save_pretrained()")


def find_hint(folder: pathlib.Path) -> str:
  """Returns what to do about a folder without safetensors, from the other files in it.

  Args:
    folder: folder of a model.
  """
  names = sorted(path.name for path in folder.iterdir() if path.name not in NO_WEIGHTS)
  for end, what in OTHER_WEIGHTS.items():
    for name in names:
      if name.endswith(end):
        return f"{name} {what}"
  return REMEDY


def names_in(path: pathlib.Path) -> list[str]:
  """Returns the names of the tensors in a safetensors file.

  Args:
    path: path of the file.
  Raises:
    DataError: the file is truncated or damaged.
  """
  with open_file(path) as file:
    return list(file.keys())


@contextlib.contextmanager
def open_file(path: pathlib.Path) -> Iterator[safetensors.safe_open]:
  """Yields an open safetensors file.

  Args:
    path: path of the file.
  Raises:
    DataError: the file is truncated or damaged.
  """
  try:
    with safetensors.safe_open(path, "np") as file:
      yield file
  except (safetensors.SafetensorError, OSError, TypeError, ValueError) as e:
    with path.open("rb") as file:
      is_pointer = re.match(files.LFS_POINTER, file.read(64))
    remedy = "It is a Git LFS pointer: run git lfs pull" if is_pointer else "Copy it again"
    raise DataError(f"{path}: is not a complete safetensors file ({one_line(e)}). {remedy}") from e


def write(folder: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes tensors to model.safetensors or, above `FILE_BYTES`, to several files with an index.

  Args:
    folder: existing folder.
    tensors: name -> array, with any strides. Those of one file are copied at a time.
  Raises:
    StorageError: a file cannot be written.
  """
  groups = _split(tensors)
  names = [f"model-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
  if len(groups) == 1:
    _write_file(folder / WEIGHTS, tensors)
    return
  for name, group in zip(names, groups, strict=True):
    _write_file(folder / name, {tensor: tensors[tensor] for tensor in group})
  size = sum(x.nbytes for x in tensors.values())
  weight_map = {x: name for name, group in zip(names, groups, strict=True) for x in group}
  files.write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})


def _split(tensors: Mapping[str, np.ndarray]) -> list[list[str]]:
  """Returns the names of the tensors of every file: in order, as many as fit into each."""
  groups: list[list[str]] = [[]]
  size = 0
  for name, x in tensors.items():
    if groups[-1] and size + x.nbytes > FILE_BYTES:
      groups.append([])
      size = 0
    groups[-1].append(name)
    size += x.nbytes
  return groups


def _write_file(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a safetensors file that whoever may read the folder can read.

  The library writes the memory of an array and ignores its strides, and makes the file readable
  only by its owner.
  """
  contiguous = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
  try:
    # transformers before version 5 requires the format.
    safetensors_numpy.save_file(contiguous, path, metadata={"format": "pt"})
  except safetensors.SafetensorError as e:
    raise StorageError(f"{path}: cannot be written ({one_line(e)})") from e
  umask = os.umask(0)
  os.umask(umask)
  path.chmod(0o666 & ~umask)


def read_index(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the file of every tensor that an index names.

  Args:
    folder: folder of the index and the files.
  Raises:
    DataError: the index is damaged or points outside the folder, or a file is missing or damaged,
      or does not hold the tensors that the index says.
  """
  index = folder / INDEX
  weight_map = files.read_json(index, AGAIN).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map or not all(
      isinstance(name, str) for name in weight_map.values()):
    raise DataError(f"{index}: weight_map does not give a file for every tensor. {AGAIN}")
  for name in sorted(set(weight_map.values())):
    if pathlib.PurePosixPath(name).name != name or name in ("", "..") or {*name} & {"\\", "\0"}:
      raise DataError(f"{index}: {name!r} is not the name of a file in the folder. {AGAIN}")
    path = folder / name
    if not path.is_file():
      raise DataError(f"{path}: no such file, but {INDEX} names it. {AGAIN}")
    wanted = {tensor for tensor, file in weight_map.items() if file == name}
    found = set(names_in(path))
    if missing := sorted(wanted - found):
      raise DataError(f"{path}: lacks the tensor {missing[0]}, which {INDEX} places there. {AGAIN}")
    if extra := sorted(found - wanted):
      raise DataError(f"{index}: does not name the tensor {extra[0]} in {name}. {AGAIN}")
  return {tensor: folder / name for tensor, name in weight_map.items()}
