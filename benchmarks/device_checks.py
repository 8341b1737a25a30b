"""Parts of `device` about correctness: kernels, recipes, losses, resuming, generation."""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import step_bertgpt
from benchmarks.device_parts import Row, at_most, guard
from benchmarks.side_by_side import Worker
from bertgpt import config as config_lib
from bertgpt.config import ConfigDict, attention_kernels, presets, recipes
from bertgpt.config.stored import to_json
from bertgpt.data.batches import formats
from bertgpt.devices import compilation_cache, sharding
from bertgpt.models import attention as attention_lib
from bertgpt.models.attention import Visibility
from bertgpt.training import steps

# --------------------------------------------------------------- attention

ERROR = {"bfloat16": 4e-2, "float32": 2e-2}  # Allowed; float32 matmuls are rounded to TF32.


def attention(rehearse: bool) -> Iterator[Row]:
  """Yields the errors of every kernel against the plain path in float32, and leaks of sequences."""
  rows, length, heads, width = (2, 128, 2, 64) if rehearse else (8, 512, 12, 64)
  ids = _make_ids(rows, length)
  for dtype, dropout in (("bfloat16", 0.0), ("bfloat16", 0.1), ("float32", 0.0), ("float32", 0.1)):
    layer = attention_kernels.Layer(jax.default_backend(), dtype, length, width, dropout)
    able = [name for name in attention_kernels.FUSED
            if not attention_kernels.obstacles(name, layer)]
    for name in [*able, "auto", *([] if dropout else ["xla"])]:
      chosen = attention_kernels.choose(name, layer)[0]
      for kind, causal, lengths in (("packed", False, None), ("packed", True, None),
                                    ("one sequence", False, _lengths(rows, length))):
        label = f"{name} ({chosen}), {dtype}, {kind}{', causal' * causal}"
        label += f", dropout {dropout}" if dropout else ""
        run = functools.partial(_run_kernel, causal=causal, dropout=dropout)
        yield from guard(label, _check_kernel(
            label, name, dtype, (rows, length, heads, width), run,
            ids if lengths is None else _ids_of(lengths, length), lengths))


def _make_ids(rows: int, length: int) -> np.ndarray:
  """Returns rows of two or three sequences; every other one has padding."""
  at = np.arange(length)
  padded = np.where(at < length // 3, 1, np.where(at < length - 9, 2, 0))
  full = 1 + (at > 20) + (at > length // 2)
  return np.stack([padded, full] * (rows // 2)).astype(np.int32)


def _lengths(rows: int, length: int) -> np.ndarray:
  return np.linspace(length // 2, length, rows).astype(np.int32)


def _ids_of(lengths: np.ndarray, length: int) -> np.ndarray:
  return (np.arange(length) < lengths[:, None]).astype(np.int32)


def _check_kernel(label: str, name: str, dtype: str, shape: tuple[int, ...], run: Callable,
                  ids: np.ndarray, lengths: np.ndarray | None) -> Iterator[Row]:
  rng = np.random.default_rng(0)
  inputs = [rng.normal(size=shape).astype(np.float32) for _ in range(4)]
  with jax.default_matmul_precision("highest"):
    exact = run(*inputs, ids, None, "xla")
  found = run(*(jnp.asarray(x, dtype) for x in inputs), ids, lengths, name)
  is_token = (ids > 0)[:, :, None, None]  # The results at padding are not used.
  error = max(float(np.abs(np.where(is_token, np.asarray(a, np.float32) - np.asarray(b), 0)).max())
              for a, b in zip(found, exact, strict=True))
  yield at_most(f"{label}: largest error", error, ERROR[dtype])
  if lengths is None:
    other = (ids == 2)[:, :, None, None]
    changed = [jnp.asarray(np.where(other, 9 - 5 * x, x), dtype) for x in inputs]
    pairs = zip(found, run(*changed, ids, None, name), strict=True)
    leaks = sum(int((np.asarray(a != b) & (ids == 1)[:, :, None, None]).sum()) for a, b in pairs)
    yield at_most(f"{label}: elements that another sequence changes", leaks, 0)


@functools.partial(jax.jit, static_argnames=("kernel", "causal", "dropout"))
def _run_kernel(q, k, v, g, ids, lengths, kernel, causal, dropout):
  """Returns the result and the gradients of query, key and value; all kernels use the same mask."""
  visibility = Visibility(ids, lengths, causal=causal)
  attend = functools.partial(attention_lib.attend, visibility=visibility, kernel=kernel,
                             dropout=dropout,
                             dropout_key=jnp.array([7, 8], jnp.uint32) if dropout else None)
  x, backward = jax.vjp(lambda *qkv: attend(*qkv).reshape(q.shape), q, k, v)
  return x, *backward(g)


# ----------------------------------------------------------------- recipes


REHEARSED_RECIPES = ("albert_base", "bert_large_lamb", "gpt2_small")


def steps_of_recipes(rehearse: bool) -> Iterator[Row]:
  """Yields the differences between losses of two steps in 1 and in 5 pieces, for every recipe."""
  for path in sorted(pathlib.Path("configs").glob("*.py")):
    if path.stem.startswith("finetune") or rehearse and path.stem not in REHEARSED_RECIPES:
      continue
    yield from guard(path.stem, _check_recipe(path, rehearse))


def _check_recipe(path: pathlib.Path, rehearse: bool) -> Iterator[Row]:
  config = recipes.load(str(path))
  config.model.update(num_layers=2, dropout=0.0, attention_dropout=0.0, vocab_size=1_000)
  last = config.phases[-1].to_dict() | {"batch_size": 10, "learning_rate_rule": "restart"}
  if rehearse:
    config.model.update(width=64, num_heads=1, mlp_dim=128)
    last |= {"seq_len": 32, "max_predictions": 6}
  losses = []
  for pieces in (1, 5):
    config.phases = (config_lib.phase(**last | {"micro_batches": pieces}),)
    losses.append(_first_losses(config))
  difference = float(np.abs(np.subtract(*losses)).max())
  yield at_most(f"{path.stem}: losses {losses[0][0]:.4f}, {losses[0][1]:.4f} in 1 piece; in 5, "
                "difference", difference, 1e-2)


def _first_losses(config: ConfigDict) -> list[float]:
  """Returns the losses of two steps on a batch of random tokens."""
  compilation_cache.enable(config.system.compilation_cache)
  mesh = sharding.make_mesh(config, jax.devices()[:1])
  config_lib.validate(config, 1, jax.default_backend())
  with sharding.use_mesh(mesh, config):
    vocabulary = step_bertgpt.make_vocabulary(config.model.vocab_size)
    setup = steps.make_setup(config, mesh, vocabulary)
    abstract = steps.make_abstract_state(setup)
    state = steps.make_state(setup, abstract)
    step = steps.jit_train_step(setup, abstract)
    layout = sharding.batch_sharding(mesh, config)
    batch = sharding.make_global_batch(make_batch(config), layout, config.phases[0].batch_size)
    losses = []
    for _ in range(2):
      state, sums = step(state, batch)
      losses.append(float(sums["loss"][0]))
  return losses


def make_batch(config: ConfigDict) -> dict[str, np.ndarray]:
  """Returns a batch of full rows of random tokens, for any objective."""
  phase, rng = config.phases[0], np.random.default_rng(0)
  batch = formats.make_zeros(formats.specs(config, phase), phase.batch_size)
  tokens = batch["tokens"]
  tokens[:] = rng.integers(step_bertgpt.FIRST_TOKEN, config.model.vocab_size, tokens.shape)
  batch["sequence_ids"][:] = 1
  batch["positions"][:] = np.arange(phase.seq_len)
  for name, array in batch.items():
    if name.endswith("_weights"):
      array[:, 0 if name != "loss_weights" else slice(0, None)] = 1
    elif name == "targets":
      array[:] = np.roll(tokens, -1, 1)
  return batch


# ------------------------------------------------------------------ losses


def losses(rehearse: bool) -> Iterator[Row]:
  """Yields differences of losses: this device against a CPU, and `auto` against plain attention."""
  device = "cpu" if rehearse else jax.default_backend().replace("gpu", "cuda")
  few, many, preset, rows, length = (2, 4, "tiny", 4, 32) if rehearse else (3, 50, "base", 64, 128)
  for objective in ("mlm_nsp", "causal"):
    config = make_config(objective, "tiny" if rehearse else "mini", rows=8, length=length)
    found = {name: _losses(config, name, "losses", few)["auto"] for name in (device, "cpu")}
    yield at_most(f"{objective}, float32, {few} steps: this device and a CPU, difference",
                  _difference(found[device], found["cpu"]), 1e-3)
  config = make_config("mlm_nsp", preset, rows, length)
  curves = _losses(config, device, "curve", many, ("auto", "xla"))
  yield at_most(f"BERT-{preset}, {many} steps: attention auto and xla, difference",
                _difference(*curves.values()), 1e-2)
  yield Row(f"BERT-{preset}: loss of the last step", curves["auto"][-1], "nats",
            f"first {curves['auto'][0]:.4f}")


def _difference(a: list[float], b: list[float]) -> float:
  return float(np.abs(np.subtract(a, b)).max())


def make_config(objective: str, preset: str, rows: int, length: int) -> ConfigDict:
  """Returns the config of a BERT, or of a GPT of that size, without dropout."""
  config = config_lib.base()
  model = presets.BERT[preset]
  if objective == "causal":
    model = presets.GPT2["small"] | {k: model[k] for k in ("num_layers", "width", "num_heads",
                                                           "mlp_dim")}
  config.model.update(model, vocab_size=1_000, dropout=0.0, attention_dropout=0.0)
  config.data.packing = False
  config.objective.name = objective
  config.phases = (config_lib.phase(steps=1_000, seq_len=length, batch_size=rows,
                                    learning_rate=1e-4, schedule="constant",
                                    max_predictions=round(length * 20 / 128)),)
  return config


def _losses(config: ConfigDict, device: str, function: str, number: int,
            kernels: Sequence[str] = ("auto",)) -> dict[str, list[float]]:
  """Returns losses by kernel of attention, from a process of its own, on a device."""
  variants = {kernel: {"model.attention": kernel} for kernel in kernels}
  with contextlib.closing(Worker(step_bertgpt.make, to_json(config), device,
                                 variants)) as worker:
    return {kernel: worker(function, kernel, number) for kernel in kernels}


# ------------------------------------------------------- runs of the program


RECIPE = """
from bertgpt.config import recipes


def get_config():
  config = recipes.load({path!r})
  config.data.update(source={source!r}, cache_dir={cache!r}, validation_fraction=0.2)
  config.tokenizer.vocab_size = 1000
  config.phases = config.phases[:1]
  config.phases[0].steps = {steps}
  config.checkpoint.update(every_steps={steps} // 2, keep=5)
  config.eval.every_steps = 0
  config.log.update(every_steps=1, tensorboard=False)
  return config
"""
STEPS = 40


def bertgpt(*arguments: Any, **environment: str) -> str:
  """Runs the program and returns its standard output.

  Raises:
    RuntimeError: it fails; the message is the last line of its errors.
  """
  result = subprocess.run([sys.executable, "-m", "bertgpt", *map(str, arguments)], check=False,
                          capture_output=True, text=True, env=os.environ | environment)
  if result.returncode:
    raise RuntimeError(f"bertgpt {arguments[0]}: {result.stderr.strip().splitlines()[-1]}")
  return result.stdout


def _train(folder: pathlib.Path, recipe: str, name: str) -> pathlib.Path:
  """Trains the first phase of a recipe for `STEPS` steps, and returns the workdir."""
  workdir, file = folder / name, folder / f"{recipe}.py"
  file.write_text(RECIPE.format(path=str(pathlib.Path(f"configs/{recipe}.py").resolve()),
                                source=f"text:{pathlib.Path('docs').resolve()}/*.md",
                                cache=str(folder / "cache"), steps=STEPS))
  bertgpt("train", f"--config={file}", f"--workdir={workdir}")
  return workdir


def resume(rehearse: bool) -> Iterator[Row]:
  """Yields the number of losses that differ if a run resumes from its middle."""
  del rehearse  # The demo's model is small.
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    straight = _train(folder, "demo", "straight")
    again = folder / "again"
    shutil.copytree(straight, again)
    shutil.rmtree(again / "checkpoints" / str(STEPS))
    _train(folder, "demo", "again")
    expected, found = (_read_losses(workdir) for workdir in (straight, again))
    yield Row("losses of the run", len(expected), ok=len(expected) == STEPS)
    wrong = sum(found.get(step) != loss for step, loss in expected.items())
    yield at_most(f"losses that differ after resuming from step {STEPS // 2}", wrong, 0)


def _read_losses(workdir: pathlib.Path) -> dict[int, float]:
  """Returns the last logged loss of every step."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def generation(rehearse: bool) -> Iterator[Row]:
  """Yields whether greedy text of this device is that of a CPU, from the same weights."""
  del rehearse
  with tempfile.TemporaryDirectory() as name:
    workdir = _train(pathlib.Path(name), "demo_gpt", "run")
    command = ("generate", f"--workdir={workdir}", "--prompt=The function returns",
               "--max_tokens=40", "--temperature=0", "--dtype=float32")
    here, there = bertgpt(*command), bertgpt(*command, JAX_PLATFORMS="cpu")
    yield Row("greedy text equals that of a CPU", "yes" if here == there else "no", "",
              repr(here[-60:]), here == there)
