"""Features of texts from a BERT, for programs that use them as they are (Devlin et al. 2018, 5.3).

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
from bertgpt.data.text import texts
from bertgpt.errors import ConfigError
from bertgpt.hub import export
from bertgpt.models import Inputs, layers
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.trained import Trained

# What is kept of a text: the number of layers, side by side, and whether of every token.
LAYERS = {
    "cls": (1, False),    # the last layer at [CLS]
    "mean": (1, False),   # its mean over all tokens, [CLS] and [SEP] among them
    "last": (1, True),    # the last layer
    "last4": (4, True),   # the last four; the paper's best features for naming entities
}
FORMATS = (".safetensors", ".npy")


def embed(trained: Trained, tokens: Sequence[np.ndarray], layer: str,
          batch_size: int) -> list[np.ndarray]:
  """Features of every text.

  Args:
    tokens: int [N] each, with [CLS] and [SEP], of at most the model's positions.
    layer: key of LAYERS.
  Returns:
    float32 arrays: [D], or [N, D * layers kept] of every token.
  """
  num_layers, is_by_token = LAYERS[layer]
  params, features = jax.device_put(trained.params), [np.zeros(0, np.float32)] * len(tokens)
  lengths = [len(ids) for ids in tokens]
  for which, size in buckets.batches(lengths, batch_size, trained.config.model.max_positions):
    tokens_BL = buckets.pad([tokens[i] for i in which], size, batch_size)
    lengths_B = np.zeros(len(tokens_BL), np.int32)
    lengths_B[:len(which)] = [lengths[i] for i in which]
    x_BLD = jax.device_get(_features(trained.model, num_layers, params, tokens_BL, lengths_B))
    for i, x_LD in zip(which, x_BLD, strict=False):
      x_LD = x_LD[:lengths[i]]
      features[i] = (x_LD if is_by_token else x_LD[0] if layer == "cls" else x_LD.mean(0)).copy()
  return features


@functools.partial(jax.jit, static_argnums=(0, 1))
def _features(model, num_layers, params, tokens_BL, lengths_B):
  """The last layers side by side, the last one last: float32 [B, L, E * D]."""
  _, kept = model.apply({"params": params}, Inputs.of_texts(tokens_BL, lengths_B),
                        method="features", mutable=["intermediates"])
  x_EBLD = layers.layer_outputs(kept["intermediates"]["encoder"])[-num_layers:]
  return jnp.concatenate(list(x_EBLD.astype(jnp.float32)), axis=-1)


# ----------------------------------------------------------------- bertgpt embed


def run(path: pathlib.Path, source: pathlib.Path, out: pathlib.Path, layer: str,
        batch_size: int) -> str:
  """Writes the features of a text a line of `source`.

  Returns:
    What was written, in one line.
  Raises:
    ConfigError: no BERT in `path`, too few layers in it, or an `out` that exists or cannot hold
      the features.
  """
  check_out(out, layer)
  lines = texts.read_texts(source, "--input")
  trained = trained_lib.load_trained(path)
  trained_lib.require(trained, path, "embed", "give features of [CLS]; use the model itself")
  if trained.config.model.num_layers < LAYERS[layer][0]:
    raise ConfigError(f"--layer {layer}: the model has only {trained.config.model.num_layers} "
                      "layers; choose last")
  tokenizer, room = trained.tokenizer, trained.config.model.max_positions - 2
  encoded = tokenizer.encode(lines)
  too_long = sum(len(ids) > room for ids in encoded)
  if too_long:
    print(f"note: {too_long} of {len(encoded)} texts are cut to the model's {room + 2} positions",
          file=sys.stderr)
  tokens = [np.array([tokenizer.cls_id, *ids[:room], tokenizer.sep_id], np.int32)
            for ids in encoded]
  arrays = collect(embed(trained, tokens, layer, batch_size), tokens, layer)
  write(out, arrays)
  shape = " x ".join(map(str, arrays["features"].shape))
  return f"{out}: {layer} of {len(lines)} texts, float32 {shape}"


def check_out(out: pathlib.Path, layer: str) -> None:
  export.refuse_existing(out, "--out")
  if out.suffix not in FORMATS:
    raise ConfigError(f"--out {out}: name a file that ends in {' or '.join(FORMATS)}")
  if out.suffix == ".npy" and LAYERS[layer][1]:
    raise ConfigError(f"--out {out}: a .npy holds one array, and --layer {layer} needs the lengths "
                      "of the texts beside it; name a .safetensors")
  if not out.parent.is_dir():
    raise ConfigError(f"--out {out}: there is no folder {out.parent}; make it first")


def collect(features: Sequence[np.ndarray], tokens: Sequence[np.ndarray],
            layer: str) -> dict[str, np.ndarray]:
  """The arrays of a file.

  Returns:
    `features` [texts, D]; or [T, D], with the `tokens` [T] they are of, and `offsets`
    [texts + 1]: those of text i are offsets[i] to offsets[i + 1].
  """
  if not LAYERS[layer][1]:
    return {"features": np.stack(features)}
  offsets = np.cumsum([0, *map(len, tokens)])
  return {"features": np.concatenate(features), "tokens": np.concatenate(tokens),
          "offsets": offsets}


def write(out: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes the file, whole or not at all."""
  with files.publish_when_done(out) as scratch:
    if out.suffix == ".npy":
      with scratch.open("wb") as file:
        np.save(file, arrays["features"])
    else:
      export.write_tensors(scratch, arrays)
