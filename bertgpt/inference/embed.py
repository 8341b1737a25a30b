"""Features of texts, for programs that use them as they are (Devlin et al. 2018, 5.3).

    trained = load_trained(pathlib.Path("runs/demo"))
    features = embed(trained, ["The cat sees the dog.", "A bird."])  # [2, width]

Axes: B rows, L length, D width, E layers kept, T tokens of all texts.
"""

import functools
import pathlib
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt import files
from bertgpt.data.batches import buckets
from bertgpt.data.text import texts as texts_lib
from bertgpt.data.tokens import marks
from bertgpt.errors import ConfigError
from bertgpt.hub import export
from bertgpt.models import Inputs, layers
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.trained import Trained

# Features of a text: (number of layers, concatenated; whether there is a vector per token).
LAYERS = {
    "cls": (1, False),    # the last layer at [CLS]
    "mean": (1, False),   # its mean over all tokens, [CLS] and [SEP] among them
    "last": (1, True),    # the last layer
    "last4": (4, True),   # the last four layers; the paper's best features for named entities
}
FORMATS = (".safetensors", ".npy")


def embed(trained: Trained, texts: Sequence[str], layer: str = "mean",
          batch_size: int = 8) -> np.ndarray | list[np.ndarray]:
  """Returns the features of texts.

  Args:
    trained: the model.
    texts: texts of any length; longer ones than the model's positions are cut to their head.
    layer: key of `LAYERS`.
    batch_size: texts per batch.
  Returns:
    float32 [texts, D]; or, for layers with a vector per token, a list of float32
    [N, D * layers kept], one array per text, [CLS] and [SEP] among its tokens.
  Raises:
    ConfigError: the model gives no features, or has too few layers.
  """
  check_layer(trained, layer)
  features = embed_rows(trained, make_rows(trained, texts), layer, batch_size)
  return features if LAYERS[layer][1] else np.stack(features)


def check_layer(trained: Trained, layer: str) -> None:
  """Checks that a model has a layer of features.

  Args:
    trained: the model.
    layer: key of `LAYERS`.
  Raises:
    ConfigError: the model gives no features, or has too few layers.
  """
  trained_lib.require(trained, "embed", "give features of texts", "Use the weights themselves")
  if trained.config.model.num_layers < LAYERS[layer][0]:
    raise ConfigError(f"--layer {layer}: the model has only {trained.config.model.num_layers} "
                      "layers. Choose last")


def make_rows(trained: Trained, texts: Sequence[str]) -> list[np.ndarray]:
  """Returns the tokens of texts as the model reads them, between [CLS] and [SEP].

  Prints a note on stderr if some texts are cut.

  Args:
    trained: the model.
    texts: texts of any length.
  Returns:
    int32 [N] each, cut to the model's positions.
  """
  positions = trained.config.model.max_positions
  encoded, room = trained.tokenizer.encode(texts), positions - 2
  if too_long := sum(len(ids) > room for ids in encoded):
    print(f"note: {too_long} of {len(encoded)} texts are cut to the model's {positions} positions",
          file=sys.stderr)
  return [marks.of_encoder(trained.tokenizer).enclose(ids[:room]) for ids in encoded]


def embed_rows(trained: Trained, tokens: Sequence[np.ndarray], layer: str,
               batch_size: int) -> list[np.ndarray]:
  """Returns the features of encoded texts.

  Args:
    trained: the model.
    tokens: int [N] each, with [CLS] and [SEP], of at most the model's positions.
    layer: key of `LAYERS`.
    batch_size: texts per batch.
  Returns:
    float32 arrays: [D], or [N, D * layers kept] if there is a vector per token.
  """
  num_layers, is_by_token = LAYERS[layer]
  params, features = jax.device_put(trained.params), [np.zeros(0, np.float32)] * len(tokens)
  lengths = [len(ids) for ids in tokens]
  for which, size in buckets.batches(lengths, batch_size, trained.config.model.max_positions):
    tokens_BL = buckets.pad([tokens[i] for i in which], size, batch_size)
    lengths_B = np.zeros(len(tokens_BL), np.int32)
    lengths_B[:len(which)] = [lengths[i] for i in which]
    with trained_lib.exact_products(trained.config):
      x_BLD = jax.device_get(_features(trained.model, num_layers, params, tokens_BL, lengths_B))
    for i, x_LD in zip(which, x_BLD, strict=False):
      x_LD = x_LD[:lengths[i]]
      features[i] = (x_LD if is_by_token else x_LD[0] if layer == "cls" else x_LD.mean(0)).copy()
  return features


@functools.partial(jax.jit, static_argnums=(0, 1))
def _features(model, num_layers, params, tokens_BL, lengths_B):
  """Returns the last layers, concatenated in order: float32 [B, L, E * D]."""
  _, kept = model.apply({"params": params}, Inputs.of_texts(tokens_BL, lengths_B),
                        method="features", mutable=["intermediates"])
  x_EBLD = layers.layer_outputs(kept["intermediates"]["encoder"])[-num_layers:]
  return jnp.concatenate(list(x_EBLD.astype(jnp.float32)), axis=-1)


# ----------------------------------------------------------------- bertgpt embed


def run(path: pathlib.Path, source: pathlib.Path, out: pathlib.Path, layer: str,
        batch_size: int, dtype: str = trained_lib.SCORING_DTYPE) -> str:
  """Writes the features of the texts in a file, one per line.

  Args:
    path: workdir of the run.
    source: file of texts, or a .jsonl file with a field text.
    out: new file, .safetensors or .npy.
    layer: key of `LAYERS`.
    batch_size: texts per batch.
    dtype: see `runs.trained.make_trained`.
  Returns:
    One line that says what was written.
  Raises:
    ConfigError: there is no run in `path`, or `out` exists or cannot hold the features; see also
      `check_layer`.
    DataError: `source` is damaged; see also `load_trained`.
  """
  check_out(out, layer)
  lines = texts_lib.read_texts(source, "--input")
  trained = trained_lib.load_trained(path, dtype=dtype)
  check_layer(trained, layer)
  tokens = make_rows(trained, lines)
  arrays = collect(embed_rows(trained, tokens, layer, batch_size), tokens, layer)
  write(out, arrays)
  shape = " x ".join(map(str, arrays["features"].shape))
  return f"{out}: {layer} of {len(lines)} texts, float32 {shape}, computed in {dtype}"


def check_out(out: pathlib.Path, layer: str) -> None:
  """Checks that a file can be made and can hold the features.

  Args:
    out: path of the file.
    layer: key of `LAYERS`.
  Raises:
    ConfigError: the file exists, its folder does not, or its format cannot hold the features.
  """
  export.refuse_existing(out, "--out")
  if out.suffix not in FORMATS:
    raise ConfigError(f"--out {out}: name a file that ends in {' or '.join(FORMATS)}")
  if out.suffix == ".npy" and LAYERS[layer][1]:
    raise ConfigError(f"--out {out}: a .npy file holds one array, but --layer {layer} also needs "
                      "the lengths of the texts. Name a .safetensors file")
  if not out.parent.is_dir():
    raise ConfigError(f"--out {out}: there is no folder {out.parent}. Make it first")


def collect(features: Sequence[np.ndarray], tokens: Sequence[np.ndarray],
            layer: str) -> dict[str, np.ndarray]:
  """Returns the arrays of a file.

  Args:
    features: result of `embed_rows`, one array per text.
    tokens: int32 [N] each, the rows of the texts.
    layer: key of `LAYERS`.
  Returns:
    `features`, float32 [texts, D]. With a vector per token: `features`, float32
    [T, D * layers kept]; `tokens`, int32 [T]; and `offsets`, int64 [texts + 1]: text i has the
    tokens from offsets[i] up to offsets[i + 1].
  """
  if not LAYERS[layer][1]:
    return {"features": np.stack(features)}
  offsets = np.cumsum([0, *map(len, tokens)])
  return {"features": np.concatenate(features), "tokens": np.concatenate(tokens),
          "offsets": offsets}


def write(out: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes a file, completely or not at all.

  Args:
    out: .safetensors, or .npy for features only.
    arrays: result of `collect`.
  """
  with files.publish_when_done(out) as scratch:
    if out.suffix == ".npy":
      with scratch.open("wb") as file:
        np.save(file, arrays["features"])
    else:
      export.write_tensors(scratch, arrays)
