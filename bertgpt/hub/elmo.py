"""ELMo as allenai/bilm-tf stores it: `*weights.hdf5` and `*options.json`. `transformers` has none.

These files contain neither the output layer nor words: a model reads any word by its characters.
An export also contains our tokenizer, whose words an import then knows.
"""

import importlib
import io
import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt import config as config_lib
from bertgpt import files, models
from bertgpt.config import ConfigDict
from bertgpt.data.tokens import pipelines, spelling, tokenizers
from bertgpt.errors import ConfigError, DataError, StorageError, one_line
from bertgpt.hub.family_tables import FamilyTable, FolderFormat, Opened
from bertgpt.models import Inputs
from bertgpt.runs.trained import Trained

WEIGHTS, OPTIONS = "weights.hdf5", "options.json"
# The published models use 0 for a masked character, so the ids of all characters are one higher.
CHARS_IN_OPTIONS = spelling.NUM_CHARS + 1


# --------------------------------------------------------------------- folders


def find_files(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path] | None:
  """Returns the weights and the options in a folder of bilm-tf; None for any other folder.

  Args:
    path: any path.
  Raises:
    DataError: the files of several models are there.
  """
  if not path.is_dir():
    return None
  all_weights, all_options = (sorted(path.glob(f"*{name}")) for name in (WEIGHTS, OPTIONS))
  if not all_weights or not all_options:
    return None
  if len(all_weights) > 1 or len(all_options) > 1:
    names = ", ".join(file.name for file in (*all_weights, *all_options))
    raise DataError(f"{path}: holds the files of several models ({names}). Keep one model in the "
                    "folder")
  return all_weights[0], all_options[0]


def read_folder(path: pathlib.Path) -> Opened:
  """Returns the model in a folder of bilm-tf.

  Args:
    path: the folder, in which `find_files` finds both files.
  Raises:
    ConfigError: h5py is not installed.
    DataError: a file is damaged or describes another model, or see `find_files`.
  """
  found = find_files(path)
  assert found
  weights, options = found
  fields = read_options(options)
  tokenizer = tokenizers.load_tokenizer(path) if files.has_file(
      path / tokenizers.Words.file_name) else make_tokenizer()
  config = config_lib.base()
  config.model.update(fields, dtype="float32", vocab_size=tokenizer.vocab_size)
  config.objective.name = "bilm"
  config.tokenizer.kind = tokenizer.kind
  config.phases[0].seq_len = 20
  if problem := next(iter(config_lib.find_problems(config)), ""):
    raise DataError(f"{options}: {problem}. Give a model of bilm-tf")
  arrays = read_arrays(weights, config.model)
  model = models.make_model(config)
  inputs = Inputs.of_texts(jnp.zeros((1, 8), jnp.int32), jnp.array([8]))
  fresh = jax.device_get(jax.jit(model.init)(jax.random.key(0), inputs)["params"])
  params = {**fresh, **from_bilm(arrays, config.model)}
  table = fresh["words"]["spelling"].copy()
  table[:tokenizer.vocab_size] = spelling.make_table(tokenizer)
  params["words"] = {**params["words"], "spelling": table}
  described = {f"model.{name}": value for name, value in fields.items()}
  return Opened(config, params, tokenizer, described, fresh=("lm",),
                notes=("drawn at random, because the folder has none: LM head",))


def write_folder(trained: Trained, folder: pathlib.Path) -> str:
  """Writes a model in the format of bilm-tf, with our tokenizer, and reads it again.

  Args:
    trained: a pretrained model.
    folder: existing folder.
  Returns:
    What was written, with the number of parameters.
  Raises:
    ConfigError: h5py is not installed, or bilm-tf has no such model.
    OSError: a file cannot be written.
    StorageError: a file does not hold what was written.
  """
  model = trained.config.model
  check_exportable(model)
  arrays = to_bilm(trained.params, model)
  content = io.BytesIO()  # HDF5 ends the process with a segmentation fault if a disk is full.
  with _h5py().File(content, "w") as file:
    for name, x in arrays.items():
      file.create_dataset(name, data=x)
  files.write_atomically(folder / WEIGHTS, content.getvalue())
  files.write_json(folder / OPTIONS, make_options(model))
  trained.tokenizer.save(folder)
  found = read_arrays(folder / WEIGHTS, model)
  if not all(np.array_equal(x, found[name]) for name, x in arrays.items()):
    raise StorageError(f"{folder / WEIGHTS}: does not hold what was written. Check the disk, or "
                       "export to another one")
  return f"ELMo of bilm-tf with {sum(x.size for x in arrays.values()):,} parameters"


def make_tokenizer() -> tokenizers.Words:
  """Returns a tokenizer that knows no word yet."""
  vocabulary = {piece: i for i, piece in enumerate(tokenizers.NEW_SPECIALS)}
  return tokenizers.Words(pipelines.serialize(pipelines.words_pipeline(vocabulary, False)))


def _h5py() -> Any:
  """Returns the module h5py, which only these files need."""
  try:
    return importlib.import_module("h5py")
  except ImportError as e:
    raise ConfigError(f"{WEIGHTS}: h5py is needed to read and write it. Install it: pip install "
                      "-e '.[hdf5]'") from e


# --------------------------------------------------------------------- options


def check_exportable(model: ConfigDict) -> None:
  """Checks that bilm-tf computes a model as it is: it leaves projections out of narrow layers.

  Args:
    model: `config.model`.
  Raises:
    ConfigError: it does not.
  """
  half, filters = model.width // 2, sum(count for _, count in model.filters)
  for field, size in (("filters", filters), ("mlp_dim", model.mlp_dim)):
    if size <= half:
      raise ConfigError(f"model.{field}: {size} features in total, but bilm-tf needs more than "
                        f"half of model.width={model.width}. This ELMo cannot be exported")


def make_options(model: ConfigDict) -> dict[str, Any]:
  """Returns the content of `options.json`.

  Args:
    model: `config.model`.
  """
  clip = model.state_clip or None  # bilm-tf would clip to 0.
  return {
      "lstm": {"dim": model.mlp_dim, "n_layers": model.num_layers, "proj_clip": clip,
               "cell_clip": clip, "projection_dim": model.width // 2,
               "use_skip_connections": model.lstm_residual},
      "char_cnn": {"activation": "relu", "filters": [list(pair) for pair in model.filters],
                   "n_highway": model.num_highways, "embedding": {"dim": model.character_width},
                   "n_characters": CHARS_IN_OPTIONS,
                   "max_characters_per_token": spelling.WORD_CHARS}}


def read_options(path: pathlib.Path) -> dict[str, Any]:
  """Returns the fields of `config.model` that an `options.json` describes.

  Args:
    path: the file.
  Raises:
    DataError: it is damaged, or describes a model that is not supported.
  """
  options = files.read_json(path, "Fetch it again")
  try:
    lstm, chars = options["lstm"], options["char_cnn"]
    fields = {
        "family": "elmo", "num_layers": lstm["n_layers"], "width": 2 * lstm["projection_dim"],
        "num_heads": 2, "mlp_dim": lstm["dim"], "state_clip": float(lstm.get("cell_clip") or 0),
        "lstm_residual": bool(lstm.get("use_skip_connections")),
        "character_width": chars["embedding"]["dim"], "num_highways": chars.get("n_highway") or 0,
        "filters": tuple((width, count) for width, count in chars["filters"]), "pooling": "mean"}
    counts = [lstm["projection_dim"], *itertools.chain(*fields["filters"]), *(
        fields[name] for name in ("num_layers", "mlp_dim", "character_width", "num_highways"))]
    if not all(type(count) is int for count in counts):
      raise ValueError("a size is not a whole number")
    wrong = [f"{name}={found!r}, needs {wanted!r}" for name, found, wanted in (
        ("char_cnn.activation", chars["activation"], "relu"),
        ("char_cnn.max_characters_per_token", chars["max_characters_per_token"],
         spelling.WORD_CHARS),
        ("lstm.proj_clip", float(lstm.get("proj_clip") or 0), fields["state_clip"]))
        if found != wanted]
  except (KeyError, TypeError, ValueError, AttributeError) as e:
    raise DataError(f"{path}: does not describe an ELMo ({e!r}). Give the options.json of bilm-tf"
                    ) from e
  if chars.get("n_characters") not in (spelling.NUM_CHARS, CHARS_IN_OPTIONS):
    wrong.append(f"char_cnn.n_characters={chars.get('n_characters')}, needs {CHARS_IN_OPTIONS}")
  if wrong:
    raise DataError(f"{path}: {wrong[0]}. Other models are not supported")
  return fields


# ---------------------------------------------------------------------- arrays


def read_arrays(path: pathlib.Path, model: ConfigDict) -> dict[str, np.ndarray]:
  """Returns the arrays of `weights.hdf5` by name, float32.

  Args:
    path: the file.
    model: `config.model`.
  Raises:
    ConfigError: h5py is not installed.
    DataError: an array is missing or has another shape, or the file is damaged.
  """
  arrays = {}
  try:
    with _h5py().File(path, "r") as file:
      for name, (_, _, shape) in _rules(model).items():
        if not _is_inside(file, name):
          raise DataError(f"{path}: lacks {name}, or names another file for it. Give the "
                          "weights that belong to the options.json")
        if file[name].shape != shape:  # Before it is read: a damaged shape may be huge.
          raise DataError(f"{path}: {name} has the shape {file[name].shape}, but options.json "
                          f"says {shape}. Give the files of one model")
        arrays[name] = np.asarray(file[name], np.float32)
        if not np.isfinite(arrays[name]).all():
          raise DataError(f"{path}: {name} holds NaN or infinity. Fetch it again, or give another "
                          "model")
  except (OSError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as e:
    # What h5py raises for a damaged file depends on the byte.
    raise DataError(f"{path}: is damaged, or is not an HDF5 file ({one_line(e)}). Fetch it again"
                    ) from e
  return arrays


def _is_inside(file: Any, name: str) -> bool:
  """Returns whether a file holds an array itself: HDF5 can refer to any other file of the disk."""
  parts, hard = name.split("/"), _h5py().HardLink
  return (all(isinstance(file.get("/".join(parts[:n]), getlink=True), hard)
              for n in range(1, len(parts) + 1))
          and not file[name].external and not file[name].is_virtual)


def to_bilm(params: Mapping[str, Any], model: ConfigDict) -> dict[str, np.ndarray]:
  """Returns the arrays of `weights.hdf5`, float32.

  Args:
    params: parameters of a model.
    model: its `config.model`.
  """
  return {name: np.ascontiguousarray(np.asarray(_find(params, path)[index]).reshape(shape))
          for name, (path, index, shape) in _rules(model).items()}


def from_bilm(arrays: Mapping[str, np.ndarray], model: ConfigDict) -> dict[str, Any]:
  """Returns the parameters below the output layer, without the spelling of words.

  It is the inverse of `to_bilm`.

  Args:
    arrays: arrays of `weights.hdf5`, by name.
    model: `config.model`.
  """
  params: dict[str, Any] = {"words": {}, "encoder": {}}
  for name, (path, index, _) in _rules(model).items():
    *folders, last = path
    node = params
    for folder in folders:
      node = node.setdefault(folder, {})
    x = arrays[name].reshape(_our_shape(path, model, arrays[name].shape))
    if index == ():
      node[last] = x
    else:  # A parameter of one of the two directions.
      node.setdefault(last, [None, None])[index] = x
  return {**params, "encoder": {name: np.stack(x) for name, x in params["encoder"].items()}}


def _find(params, path):
  for name in path:
    params = params[name]
  return params


def _our_shape(path, model, shape):
  """Returns the shape of our array, for one direction, from the shape in the file."""
  last = path[-1]
  if last.startswith("filter_") and last.endswith("_kernel"):
    return shape[1:]
  if last.startswith("lstm_") and not last.endswith("_project"):
    return (*shape[:-1], 4, model.mlp_dim)
  return shape


def _rules(model: ConfigDict) -> dict[str, tuple[tuple[str, ...], Any, tuple[int, ...]]]:
  """Returns name in the file -> (path of our parameter, index of the direction or (), shape)."""
  w, p, c = model.character_width, model.width // 2, model.mlp_dim
  n = sum(count for _, count in model.filters)
  rules: dict[str, Any] = {"char_embed": (("words", "embedding"), (), (spelling.NUM_CHARS, w))}
  for i, (width, count) in enumerate(model.filters):
    rules[f"CNN/W_cnn_{i}"] = ("words", f"filter_{i}_kernel"), (), (1, width, w, count)
    rules[f"CNN/b_cnn_{i}"] = ("words", f"filter_{i}_bias"), (), (count,)
  for i in range(model.num_highways):
    for part in ("carry", "transform"):
      ours = ("words", f"highway_{i}_{part}")
      rules[f"CNN_high_{i}/W_{part}"] = (*ours, "kernel"), (), (n, n)
      rules[f"CNN_high_{i}/b_{part}"] = (*ours, "bias"), (), (n,)
  rules["CNN_proj/W_proj"] = ("words", "project", "kernel"), (), (n, p)
  rules["CNN_proj/b_proj"] = ("words", "project", "bias"), (), (p,)
  for direction in range(2):
    for layer in range(model.num_layers):
      cell, ours = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell", f"lstm_{layer}_"
      rules[f"{cell}/W_0"] = ("encoder", f"{ours}kernel"), direction, (2 * p, 4 * c)
      rules[f"{cell}/B"] = ("encoder", f"{ours}bias"), direction, (4 * c,)
      rules[f"{cell}/W_P_0"] = ("encoder", f"{ours}project"), direction, (c, p)
  return rules


TABLE = FamilyTable((), own_format=FolderFormat(find_files, read_folder, write_folder))
