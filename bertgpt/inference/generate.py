"""Continuations of texts, from left to right with a cache of keys and values, or by unmasking.

    trained = load_trained(pathlib.Path("runs/demo_gpt"))
    print(generate(trained, ["The function returns"], sampling=Sampling(top_k=40))[0])

A draw depends only on (seed, row, position) and on the distribution. The id of a row identifies a
prompt and a sample of it, so a continuation does not depend on the rest of its batch.

Axes: B rows, S slots of a row, V vocabulary.
"""

import functools
import json
import os.path
import pathlib
from collections.abc import Callable, Iterable, Sequence, Sized
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt import files
from bertgpt.data.batches import buckets
from bertgpt.data.tokens import marks
from bertgpt.errors import ConfigError
from bertgpt.hub import opening
from bertgpt.inference import arguments, resumable, unmasking
from bertgpt.inference.draws import GREEDY, UNRESTRICTED, Sampling, draw
from bertgpt.models import precision
from bertgpt.models.cache import make_cache
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.trained import Trained

__all__ = ["GREEDY", "UNRESTRICTED", "Sampling", "continue_prompts", "generate", "run"]

DEFAULT_TOKENS = 100


class Prompts(NamedTuple):
  """Prompts that are continued together.

  Attributes:
    tokens: int32 [B, S]; the slots after a prompt are overwritten.
    lengths: int [B], tokens of the prompts.
    ends: int [B], maximum number of tokens of a prompt with its continuation.
    rows: uint32 [B], ids of the rows in the draws.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  ends: np.ndarray
  rows: np.ndarray


def generate(trained: Trained, prompts: Iterable[str], *, max_tokens: int | None = None,
             sampling: Sampling = UNRESTRICTED, seed: int = 0, num_samples: int = 1,
             batch_size: int = 8, steps: int | None = None) -> list[str]:
  """Continues texts.

  Args:
    trained: the model.
    prompts: texts; an empty one begins a document, if the model has a token that begins one, or a
      row, if the model unmasks. An imported model may expect a token that begins a text, which is
      put before each.
    max_tokens: maximum number of tokens added to a prompt; None: result of `default_tokens`.
    sampling: settings of the draws.
    seed: seed of the draws, below 2^32. With the same seed, the first samples of a prompt are the
      same for any `num_samples`.
    num_samples: continuations of each prompt.
    batch_size: rows per batch.
    steps: steps in which a model unmasks the tokens; None: one per token. Refused for models that
      do not unmask.
  Returns:
    The prompts with their continuations: all samples of the first prompt, then of the second, ...
  Raises:
    ConfigError: the model cannot continue a text, a prompt has no tokens or too many, or another
      argument is out of its range.
  """
  prompts = arguments.as_list(prompts, "prompts")
  arguments.check_at_least(0, max_tokens=max_tokens)
  arguments.check_at_least(1, num_samples=num_samples, batch_size=batch_size, steps=steps)
  arguments.check_sampling(sampling)
  generator = find_generator(trained)
  if steps is not None and not generator.has_steps:
    raise ConfigError("--steps: the model adds one token after another, from left to right. Leave "
                      "it out, or use a model trained by masked diffusion")
  tokens = trained.tokenizer.encode(prompts)
  for i, (text, ids) in enumerate(zip(prompts, tokens, strict=True), 1):
    check_prompt(trained, generator, f"prompt {i}", text, len(ids), max_tokens)
  repeated = [ids for ids in tokens for _ in range(num_samples)]
  limits = [default_tokens(trained, generator.count(ids)) if max_tokens is None else max_tokens
            for ids in repeated]
  lengths = [generator.count(ids) for ids in tokens]
  if max_tokens is None and any(length < trained_lib.longest_row(trained) < length + DEFAULT_TOKENS
                                for length in lengths):
    most = trained.config.model.max_positions - max(lengths)
    trained_lib.note_former_rows(trained, f"--max_tokens={most}")
  # The draws of a sample do not depend on the number of samples; those of the first 2^16 prompts
  # all differ.
  rows = [i + sample * 2**16 for i in range(len(tokens)) for sample in range(num_samples)]
  # The last token that is drawn from left to right is never read; one that is unmasked is.
  unread = 0 if generator.has_steps else 1
  ends = [range(generator.count(ids) + limit - unread)
          for ids, limit in zip(repeated, limits, strict=True)]
  trained_lib.note_untrained(trained, trained_lib.count_untrained(trained, ends), len(ends))
  options = {"steps": steps} if generator.has_steps else {}
  added = generator.add(trained, repeated, limits, sampling, seed=seed,
                        rows=np.array(rows) % 2**32, batch_size=batch_size, **options)
  return [trained.tokenizer.decode([*ids, *more])
          for ids, more in zip(repeated, added, strict=True)]


def check_prompt(trained: Trained, generator: "Generator", name: str, text: str, num_tokens: int,
                 max_tokens: int | None) -> None:
  """Checks that a prompt can be continued.

  Args:
    trained: the model.
    generator: generator of the model.
    name: name of the prompt, for messages.
    text: the prompt.
    num_tokens: number of its tokens.
    max_tokens: maximum number of tokens added; None: as many as fit.
  Raises:
    ConfigError: the prompt has no tokens or too many.
  """
  if not num_tokens and text.strip():
    raise ConfigError(f"{name}, {text[:40]!r}: the tokenizer finds no tokens in it. Give another "
                      "text to continue")
  if not num_tokens and not generator.num_marks and trained.start_id < 0:
    raise ConfigError(f"{name}: is empty, and no token of the model begins a document. Give a "
                      "text to continue")
  length, positions = generator.count(range(num_tokens)), trained.config.model.max_positions
  num_added = 1 if max_tokens is None else max_tokens
  if length + num_added > positions:
    count = generator.num_marks
    around = f", {count} mark{'s' * (count > 1)}" * (count > 0)
    length -= generator.num_marks
    raise ConfigError(f"{name}, {text[:40]!r}: its {length} token{'s' * (length != 1)}{around} and "
                      f"{num_added} more exceed the model's {positions} positions. "
                      "Shorten it or --max_tokens")


def default_tokens(trained: Trained, length: int) -> int:
  """Returns how many tokens are added to a prompt by default.

  At most DEFAULT_TOKENS, and not beyond the row length of training, unless the prompt is longer.

  Args:
    trained: the model.
    length: tokens of the prompt, with the marks around it.
  """
  trained_on = trained_lib.longest_row(trained)
  room = (trained_on if length < trained_on else trained.config.model.max_positions) - length
  return min(DEFAULT_TOKENS, room)


# --------------------------------------------------------------------- tokens


def continue_prompts(trained: Trained, prompts: Sequence[np.ndarray],
                     max_tokens: int | Sequence[int], sampling: Sampling = UNRESTRICTED, *,
                     seed: int = 0, rows: Sequence[int] | np.ndarray | None = None,
                     batch_size: int = 8) -> list[np.ndarray]:
  """Continues prompts until a document ends or `max_tokens` are added.

  A program is compiled for every combination of (rows of a batch, bucket of its prompts, bucket of
  the longest prompt with its continuation).

  Args:
    trained: the model.
    prompts: int [N] each, without the token that begins a text; an empty one stands for the token
      that begins a document.
    max_tokens: maximum number of tokens added, for all prompts or for each; a prompt and its
      continuation must fit into the model's positions.
    sampling: settings of the draws.
    seed: seed of the draws.
    rows: ids of the prompts in the draws, below 2^32; None: 0, 1, ...
    batch_size: prompts per batch.
  Returns:
    The tokens added to each prompt: int32 [N], without the end-of-document token that stopped it.
  Raises:
    ValueError: a prompt is too long, or is empty and no token begins a document.
  """
  most, eod_id = trained.config.model.max_positions, trained.tokenizer.eod_id
  if not len(prompts):
    return []
  prompts = [marks.of_decoder(trained.bos_id).enclose(prompt) for prompt in prompts]
  if trained.start_id >= 0:
    prompts = [prompt if len(prompt) else np.array([trained.start_id]) for prompt in prompts]
  lengths = np.array([len(prompt) for prompt in prompts])
  ends = lengths + max_tokens
  if lengths.min() == 0:
    raise ValueError("the prompt is empty, and no token of the model begins a document")
  if ends.max() > most:
    raise ValueError(f"a prompt and its continuation are {ends.max()} tokens, which exceed the "
                     f"model's {most} positions")
  rows = np.asarray(range(len(prompts)) if rows is None else rows, np.uint32)
  params, added = jax.device_put(trained.params), [np.zeros(0, np.int32)] * len(prompts)
  for which, prompt_size in buckets.batches(lengths, batch_size, most):
    slots = buckets.bucket(int(ends[which].max()), most)
    tokens_BS = buckets.pad([prompts[i] for i in which], slots, batch_size)
    fill = (0, len(tokens_BS) - len(which))  # Added rows have nothing to continue.
    starts_B = np.pad(lengths[which], fill, constant_values=1)
    ends_B = np.pad(ends[which], fill, constant_values=1)
    batch = Prompts(tokens_BS, starts_B, ends_B, np.pad(rows[which], fill))
    with precision.matmul_precision(trained.config):
      tokens_BS, lengths_B = jax.device_get(_continue(
          trained.model, prompt_size, params, batch, eod_id, jax.random.key(seed), sampling))
    for i, tokens_S, start, end in zip(which, tokens_BS, starts_B, lengths_B, strict=False):
      added[i] = tokens_S[start:end]
  return added


@functools.partial(jax.jit, static_argnums=(0, 1))
def _continue(model, prompt_size, params, prompts, stop_id, key, sampling):
  """Returns (tokens_BS, lengths_B), both with the continuations."""
  tokens_BS, lengths_B, ends_B, rows_B = prompts
  num_rows, slots = tokens_BS.shape
  apply = functools.partial(model.apply, {"params": params})
  key_of = jax.vmap(lambda row, at: jax.random.fold_in(jax.random.fold_in(key, row), at))

  def add(state):
    tokens_BS, cache, lengths_B, is_done_B = state
    last_B1 = lengths_B[:, None] - 1
    x_B1D, cache = apply(jnp.take_along_axis(tokens_BS, last_B1, axis=1), last_B1, cache,
                         method="extend")
    logits_BV = apply(x_B1D[:, 0], method="logits")[:, :model.config.vocab_size]
    drawn_B = draw(logits_BV, sampling, key_of(rows_B, lengths_B))
    is_done_B |= drawn_B == stop_id
    at_B = jnp.where(is_done_B, slots, lengths_B)
    tokens_BS = tokens_BS.at[jnp.arange(num_rows), at_B].set(drawn_B, mode="drop")
    lengths_B += ~is_done_B
    return tokens_BS, cache, lengths_B, is_done_B | (lengths_B >= ends_B)

  # The slots after a shorter prompt are overwritten before a token sees them.
  positions_BP = jnp.broadcast_to(jnp.arange(prompt_size), (num_rows, prompt_size))
  _, cache = apply(tokens_BS[:, :prompt_size], positions_BP,
                   make_cache(model.config, num_rows, slots), method="extend")
  tokens_BS, _, lengths_B, _ = jax.lax.while_loop(
      lambda state: ~state[-1].all(), add, (tokens_BS, cache, lengths_B, lengths_B >= ends_B))
  return tokens_BS, lengths_B


class Generator(NamedTuple):
  """One way to continue texts.

  Attributes:
    num_marks: special tokens around a prompt and its continuation. If there are none, an empty
      prompt becomes the token that begins a document.
    has_steps: whether `add` takes a number of steps.
    add: a function with the arguments of `continue_prompts`, and `steps`.
  """

  num_marks: int
  has_steps: bool
  add: Callable[..., list[np.ndarray]]

  def count(self, prompt: Sized) -> int:
    """Returns the number of tokens in a prompt's row before anything is added."""
    return len(prompt) + self.num_marks or 1


# Ability, one of `families.ABILITIES` -> generator. A model uses the first one that it has.
GENERATORS: dict[str, Generator] = {
    "generate": Generator(0, False, continue_prompts),
    "unmask": Generator(unmasking.NUM_MARKS, True, unmasking.continue_prompts),
}


def find_generator(trained: Trained) -> Generator:
  """Returns the generator for a model.

  Args:
    trained: the model.
  Raises:
    ConfigError: the model has none of the abilities, or came without the head for it.
  """
  for ability, generator in GENERATORS.items():
    if trained.can(ability):
      trained_lib.require_head(trained, ability)
      return generator._replace(num_marks=generator.num_marks + (trained.bos_id >= 0))
  trained_lib.require(trained, "generate", "continue a text",
                      "Guess its masked words with `bertgpt fill`")
  raise AssertionError("unreachable: `require` raises")


# ------------------------------------------------------------ bertgpt generate


def run(path: pathlib.Path, prompts: Sequence[str], max_tokens: int | None, sampling: Sampling, *,
        seed: int, num_samples: int, batch_size: int, steps: int | None = None,
        dtype: str = trained_lib.SCORING_DTYPE, out: pathlib.Path | None = None) -> list[str]:
  """Returns the texts of `bertgpt generate`, and writes them to `out` if it is given.

  Args:
    path: folder of the run, or of a model of `transformers`.
    prompts, max_tokens, sampling, seed, num_samples, batch_size, steps: see `generate`.
    dtype: see `runs.trained.make_trained`.
    out: new .jsonl file: for every text, its prompt, the index of the sample, the text with its
      prompt as the tokenizer decodes it, and the continuation, see `continuation_of`. None: no
      file is written.
  Raises:
    ConfigError: there is no model in `path`; see also `resumable.check_out` and `generate`.
    DataError: see `hub.opening`.
  """
  if out:
    resumable.check_out(out, (".jsonl",))
  trained = opening.open_model(path, dtype=dtype)
  texts = generate(trained, prompts, max_tokens=max_tokens, sampling=sampling, seed=seed,
                   num_samples=num_samples, batch_size=batch_size, steps=steps)
  trained_lib.note_dtype(trained.config)
  if out:
    decode, lines = trained.tokenizer.decode, []
    starts = [decode(ids) for ids in trained.tokenizer.encode(prompts)]
    for i, text in enumerate(texts):
      prompt, sample = divmod(i, num_samples)
      record = {"prompt": prompts[prompt], "sample": sample, "text": text,
                "continuation": continuation_of(text, starts[prompt])}
      lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    with files.publish_when_done(out, "--out") as scratch:
      scratch.write_text("".join(lines), encoding="utf-8")
  return texts


def continuation_of(text: str, start: str) -> str:
  """Returns what a text adds to its prompt.

  The text always ends with the result. It begins with the prompt, except for characters at the end
  of the prompt that are decoded differently if other tokens follow; they are in the result too.

  Args:
    text: a prompt and its continuation, decoded together.
    start: the prompt, decoded by itself.
  """
  return text[len(os.path.commonprefix([start, text])):]
