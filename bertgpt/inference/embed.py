"""Features of texts, for use without fine-tuning (Devlin et al. 2018, 5.3).

    trained = load_trained(pathlib.Path("runs/demo"))
    features = embed(trained, ["The cat sees the dog.", "A bird."])  # [2, width]

Axes: B rows, L length, D width, E layers kept, T tokens of all texts.
"""

import functools
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt import console
from bertgpt.config import families
from bertgpt.data.batches import buckets
from bertgpt.data.text import texts as texts_lib
from bertgpt.data.tokens import marks, unknown
from bertgpt.errors import ConfigError
from bertgpt.hub import opening
from bertgpt.inference import arguments, feature_files, resumable
from bertgpt.models import Inputs, heads, layers, precision
from bertgpt.progress import Progress
from bertgpt.runs import trained as trained_lib
from bertgpt.runs import word_tables
from bertgpt.runs.trained import Trained

# Features of a text: (number of layers, concatenated; whether there is a vector per token).
LAYERS = {
    "cls": (1, False),    # the last layer at [CLS]
    "mean": (1, False),   # its mean over all tokens, including [CLS] and [SEP]
    "last": (1, True),    # the last layer
    "last3": (3, True),   # the last three layers; for an ELMo of two LSTMs, all that it has
    "last4": (4, True),   # the last four layers; the paper's best features for named entities
}
# Counted while texts are embedded: those that are cut to the model's positions, those that are
# longer than the rows of the training, all tokens, and unknown ones.
COUNTS = ("cut", "untrained", "tokens", "unknown")
CHUNK_TEXTS = 2048  # 256 batches of 8, so the few batches that are not full cost little.


def embed(trained: Trained, texts: Iterable[str], layer: str = "mean",
          batch_size: int = 8) -> np.ndarray | list[np.ndarray]:
  """Returns the features of texts.

  Args:
    trained: the model.
    texts: texts of any length; if they exceed the model's positions, their head is kept.
    layer: key of `LAYERS`.
    batch_size: texts per batch.
  Returns:
    float32 [texts, D], even without texts; for layers with a vector per token, a list of float32
    [N, D * layers kept], one array per text, whose tokens include [CLS] and [SEP].
  Raises:
    ConfigError: the model gives no features, or has too few layers; `texts` is a single one, or
      `batch_size` is not positive.
  """
  texts = arguments.as_list(texts)
  arguments.check_at_least(1, batch_size=batch_size)
  check_layer(trained, layer)
  trained = word_tables.extend_vocabulary_to(trained, texts)
  rows, num_cut = make_rows(trained, texts)
  note_cut(trained, num_cut, len(texts))
  note_unknown(unknown.count_tokens(trained.tokenizer, rows), sum(map(len, rows)))
  trained_lib.note_untrained(trained, trained_lib.count_untrained(trained, rows), len(texts))
  features = embed_rows(trained, rows, layer, batch_size)
  if LAYERS[layer][1]:
    return features
  return np.array(features, np.float32).reshape(len(texts), trained.config.model.width)


def check_layer(trained: Trained, layer: str) -> None:
  """Checks that a model has a layer of features.

  Args:
    trained: the model.
    layer: key of `LAYERS`.
  Raises:
    ConfigError: the model gives no features, or has too few layers, or there is no such layer.
  """
  if layer not in LAYERS:
    raise ConfigError(f"layer {layer!r}: choose one of {', '.join(LAYERS)}")
  trained_lib.require(trained, "embed", "give features of texts",
                      "Continue a text with `bertgpt generate`")
  # The features of words, below the first layer, count as a layer of their own.
  count = trained.config.model.num_layers + families.find(trained.config).reads_words
  if count < LAYERS[layer][0]:
    fitting = " or ".join(name for name, (size, _) in LAYERS.items() if size <= count)
    raise ConfigError(f"--layer {layer}: the model has only {count} layer{'s' * (count != 1)}. "
                      f"Choose {fitting}")


def make_rows(trained: Trained, texts: Sequence[str]) -> tuple[list[np.ndarray], int]:
  """Returns the tokens of texts as the model reads them, between [CLS] and [SEP].

  Args:
    trained: the model.
    texts: texts of any length.
  Returns:
    int32 [N] for each text, cut to the model's positions; and the number of texts that are cut.
  """
  around = marks.of_encoder(trained.tokenizer, families.find(trained.config).cls_last)
  room = trained.config.model.max_positions - around.count()
  encoded = trained.tokenizer.encode(texts)
  rows = [around.enclose(ids[:room]) for ids in encoded]
  return rows, sum(len(ids) > room for ids in encoded)


def note_cut(trained: Trained, num_cut: int, num_texts: int) -> None:
  """Prints a note on stderr if some texts are cut.

  Args:
    trained: the model.
    num_cut: texts that are cut.
    num_texts: all texts.
  """
  if num_cut:
    console.say(f"note: {num_cut} of {num_texts} texts are cut to the model's "
                f"{trained.config.model.max_positions} positions")


def note_unknown(num_unknown: int, num_tokens: int) -> None:
  """Prints a note on stderr if many tokens are unknown to the tokenizer.

  Args:
    num_unknown: tokens that are unknown.
    num_tokens: all tokens.
  """
  if remark := unknown.describe(num_unknown, num_tokens, "the tokens"):
    console.say(f"note: {remark}")


def embed_rows(trained: Trained, tokens: Sequence[np.ndarray], layer: str,
               batch_size: int) -> list[np.ndarray]:
  """Returns the features of encoded texts.

  Args:
    trained, tokens, layer, batch_size: see `iterate_features`.
  Returns:
    float32 arrays: [D], or [N, D * layers kept] if there is a vector per token.
  """
  features = dict(iterate_features(trained, tokens, layer, batch_size))
  return [features[i] for i in range(len(tokens))]


def iterate_features(trained: Trained, tokens: Sequence[np.ndarray], layer: str,
                     batch_size: int) -> Iterator[tuple[int, np.ndarray]]:
  """Yields the features of encoded texts, batch by batch of similar length.

  Args:
    trained: the model.
    tokens: int [N] each, with [CLS] and [SEP], of at most the model's positions.
    layer: key of `LAYERS`.
    batch_size: texts per batch.
  Yields:
    (index of a text, its features: float32 [D], or [N, D * layers kept] if there is a vector per
    token), every text once.
  """
  params, lengths = jax.device_put(trained.params), [len(ids) for ids in tokens]
  for which, size in buckets.batches(lengths, batch_size, trained.config.model.max_positions):
    tokens_BL = buckets.pad([tokens[i] for i in which], size, batch_size,
                            is_full=len(tokens) > batch_size)
    lengths_B = np.zeros(len(tokens_BL), np.int32)
    lengths_B[:len(which)] = [lengths[i] for i in which]
    with precision.matmul_precision(trained.config):
      x_B = jax.device_get(_features(trained.model, layer, params, tokens_BL, lengths_B))
    for i, x in zip(which.tolist(), x_B, strict=False):
      yield i, (x[:lengths[i]] if LAYERS[layer][1] else x).copy()


@functools.partial(jax.jit, static_argnums=(0, 1))
def _features(model, layer, params, tokens_BL, lengths_B):
  """Returns the features of every text, float32: [B, D], or [B, L, E * D] with one per token."""
  inputs = Inputs.of_texts(tokens_BL, lengths_B, families.FAMILIES[model.config.family].cls_last)
  last, kept = model.apply({"params": params}, inputs, method="features",
                           mutable=["intermediates"])
  num_layers, is_by_token = LAYERS[layer]
  x_EBLD = layers.layer_outputs(kept["intermediates"]["encoder"])[-num_layers:]
  # The last layer is what the heads read, after the final norm of a pre-norm model. An ELMo returns
  # all of its layers side by side; the last one is at the end.
  last_BLD = last[..., -x_EBLD.shape[-1]:]
  x_BLD = jnp.concatenate([*x_EBLD[:-1], last_BLD], axis=-1).astype(jnp.float32)
  if is_by_token:
    return x_BLD
  if layer == "cls":
    return heads.take_cls(x_BLD, inputs, model.config)
  return heads.mean_of_texts(x_BLD, inputs)


# ----------------------------------------------------------------- bertgpt embed


def run(path: pathlib.Path, source: pathlib.Path, out: pathlib.Path, layer: str,
        batch_size: int, dtype: str = trained_lib.SCORING_DTYPE) -> str:
  """Writes the features of the texts in a file, one per line, in bounded memory.

  If the work is interrupted, the same call resumes it, and the file gets the same bytes.

  Args:
    path: folder of the run, or of a model of `transformers`.
    source: file of texts, or a .jsonl file with a field text.
    out: new file, .safetensors or .npy.
    layer: key of `LAYERS`.
    batch_size: texts per batch.
    dtype: see `runs.trained.make_trained`.
  Returns:
    One line that says what was written.
  Raises:
    ConfigError: there is no model in `path`, or `out` exists or cannot hold the features; see also
      `check_layer`.
    DataError: `source` is damaged, or changes during the work; see also `hub.opening`.
  """
  check_out(out, layer)
  read = functools.partial(texts_lib.iterate_texts, source, "--input")
  measured = resumable.measure(read())
  count = measured.num_texts
  trained = opening.open_model(path, dtype=dtype)
  check_layer(trained, layer)
  trained = trained._replace(params=jax.device_put(trained.params))
  identity = {"texts": measured.digest, "layer": layer,
              "batch_size": batch_size} | resumable.identify(trained)
  with resumable.open_unfinished(out, identity) as work:
    texts = resumable.reread(read(), measured, f"--input {source}")
    num_rows, width = write(work, trained, texts, count, layer, batch_size, out.suffix)
    counts = {name: work.state.get(name, 0) for name in COUNTS}
  note_cut(trained, counts["cut"], count)
  note_unknown(counts["unknown"], counts["tokens"])
  trained_lib.note_untrained(trained, counts["untrained"], count)
  return (f"{out}: {layer} of {count} texts, float32 {num_rows} x {width}, computed in "
          f"{trained.config.model.dtype}")


def write(work: resumable.Unfinished, trained: Trained, texts: Iterator[str], count: int,
          layer: str, batch_size: int, suffix: str) -> tuple[int, int]:
  """Writes the features of texts, starting with the text at which the work was interrupted.

  Args:
    work: unfinished results.
    trained: the model.
    texts: all texts.
    count: number of texts.
    layer: key of `LAYERS`.
    batch_size: texts per batch.
    suffix: ending of the file, one of `feature_files.FORMATS`.
  Returns:
    (rows of features, width of a row). The state of the work has the `COUNTS`.
  """
  num_layers, is_by_token = LAYERS[layer]
  width = trained.config.model.width * num_layers
  file = feature_files.FORMATS[suffix](work, count, width, is_by_token)
  counts = {name: work.state.get(name, 0) for name in COUNTS}
  progress = Progress(count, done=work.state.get("texts", 0))
  for chunk in resumable.chunks(itertools.islice(texts, progress.done, None), CHUNK_TEXTS):
    knowing = word_tables.extend_vocabulary_to(trained, chunk)
    rows, cut = make_rows(knowing, chunk)
    file.begin(rows)
    for i, features in iterate_features(knowing, rows, layer, batch_size):
      file.write(i, features)
      progress.add(1)
    counts["cut"] += cut
    counts["tokens"] += sum(map(len, rows))
    counts["unknown"] += unknown.count_tokens(knowing.tokenizer, rows)
    counts["untrained"] += trained_lib.count_untrained(knowing, rows)
    work.commit(texts=progress.done, rows=file.end(), **counts)
  num_rows = file.finish()
  work.publish(feature_files.NAME)
  return num_rows, width


def check_out(out: pathlib.Path, layer: str) -> None:
  """Checks that a file can be made and can hold the features.

  Args:
    out: path of the file.
    layer: key of `LAYERS`.
  Raises:
    ConfigError: the file exists, its folder does not, or its format cannot hold the features.
  """
  resumable.check_out(out, tuple(feature_files.FORMATS))
  if out.suffix == ".npy" and LAYERS[layer][1]:
    raise ConfigError(f"--out {out}: a .npy file holds one array, but --layer {layer} also needs "
                      "the lengths of the texts. Name a .safetensors file")
