"""Parts of `device` about speed: peaks, and steps and kernels next to their predictions."""

import collections
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import step_bertgpt
from benchmarks.bare_step import BareStep
from benchmarks.device_parts import Row, guard
from bertgpt import config as config_lib
from bertgpt.config import ConfigDict, recipes
from bertgpt.config.flops import flops_per_step
from bertgpt.config.overrides import set_field
from bertgpt.devices import compilation_cache, hardware
from bertgpt.planning import aot, collectives, roofline
from bertgpt.planning.kernels import Kernel

REHEARSED_CHIP = "h100"  # Its figures stand for those of a CPU.
SECONDS = 2.0  # A step is timed three times for at least this long.
PROFILED_STEPS = 3
SHOWN_KERNELS = 10

# Name -> (recipe, fields that differ). Rows of one sequence length, in one piece.
PROGRAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT-base 256 x 128, both dropouts": ("bert_base", {"rows": 256, "seq_len": 128}),
    "BERT-base 256 x 128, attention_dropout=0": (
        "bert_base", {"rows": 256, "seq_len": 128, "model.attention_dropout": 0.0}),
    "BERT-large 64 x 512, packed, attention_dropout=0": (
        "bert_large", {"rows": 64, "seq_len": 512, "data.packing": True,
                       "model.attention_dropout": 0.0}),
    "GPT-2 small 32 x 1,024": ("gpt2_small", {"rows": 32, "seq_len": 1024}),
}


def find_chip() -> hardware.Chip:
  """Returns the figures of the first device; on a CPU, those of `REHEARSED_CHIP`."""
  return hardware.find_chip(jax.devices()[0].device_kind) or hardware.CHIPS[REHEARSED_CHIP]


def read_program(name: str, rehearse: bool) -> ConfigDict:
  """Returns the config of one of `PROGRAMS`; for a rehearsal, with a tiny model and few rows."""
  recipe, fields = PROGRAMS[name]
  config = recipes.load(f"configs/{recipe}.py")
  rows, seq_len = fields["rows"], fields["seq_len"]
  if rehearse:
    rows, seq_len = 4, 128
    config.model.update(num_layers=2, width=64, num_heads=1, mlp_dim=128)
  for field, value in fields.items():
    if "." in field:
      set_field(config, field, value)
  config.model.vocab_size = 1_000 if rehearse else config.tokenizer.vocab_size
  phase = config.phases[0].to_dict() | {
      "seq_len": seq_len, "batch_size": rows, "micro_batches": 1,
      "max_predictions": seq_len if config.objective.name == "causal"
      else round(seq_len * 20 / 128)}
  config.phases = (config_lib.phase(**phase),)
  return config


def start(config: ConfigDict) -> BareStep:
  """Returns the step of a config on a batch of random tokens."""
  compilation_cache.enable(config.system.compilation_cache)
  vocabulary = step_bertgpt.make_vocabulary(config.model.vocab_size)
  return BareStep(config, vocabulary, [step_bertgpt.make_batch(config)])


# ----------------------------------------------------------------- matmuls


def products(rehearse: bool) -> Iterator[Row]:
  """Yields the shares of the data sheet's peaks that are reached, next to the planner's."""
  chip, size = find_chip(), 256 if rehearse else 8192
  yield Row("device", jax.devices()[0].device_kind)
  planned = chip.efficiency
  for dtype, peak, planned_share in (("bfloat16", chip.peak_flops, planned.matmul),
                                     ("float8_e4m3fn", chip.fp8_flops, planned.fp8)):
    if peak and not (rehearse and dtype != "bfloat16"):
      # Random: ones would draw less power, and run faster.
      x = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
      seconds = time_call(lambda x: jnp.dot(x, x, preferred_element_type=jnp.bfloat16), x)
      share = 2 * size**3 / seconds / peak
      yield Row(f"matmul of {size} x {size} in {dtype}, share of the peak", share,
                beside=f"planner, of all matmuls: {planned_share}")
  x = jnp.ones((2**16 if rehearse else 2**28,), jnp.float32)
  share = 2 * x.nbytes / time_call(lambda x: x + 1, x) / chip.hbm_bandwidth
  yield Row(f"copy of {x.nbytes / 2**20:g} MiB, share of the bandwidth of the memory", share,
            beside=f"planner, of all kernels: {planned.memory}")
  count = 20 if rehearse else 1000

  def chain(x):
    for _ in range(count):
      x = jax.lax.optimization_barrier(x * 1.01)
    return x

  yield Row("one tiny kernel of many", time_call(chain, jnp.ones(128)) / count * 1e6, "us",
            f"planner: {planned.kernel_seconds * 1e6:g}")


def time_call(function: Callable, *arguments: jax.Array) -> float:
  """Returns the seconds of a call, the best of five groups of ten."""
  jitted = jax.jit(function)
  jax.block_until_ready(jitted(*arguments))
  best = float("inf")
  for _ in range(5):
    begin = time.perf_counter()
    for _ in range(10):
      result = jitted(*arguments)
    jax.block_until_ready(result)
    best = min(best, (time.perf_counter() - begin) / 10)
  return best


# ------------------------------------------------------- steps, predicted


def analyze(bare: BareStep, flops: float, network: collectives.Network | None = None
            ) -> tuple[Any, roofline.Roofline]:
  """Compiles a step and returns the program and its roofline on its devices.

  Args:
    bare: step.
    flops: analytic FLOPs per step and device.
    network: the devices as collectives see them; None: there is one device.
  """
  compiled = bare.compile()
  network = network or collectives.Network(find_chip(), [collectives.Place(0, ())], (), {})
  return compiled, roofline.analyze(compiled.as_text(), network, flops)


def programs(rehearse: bool) -> Iterator[Row]:
  """Yields step time, MFU, memory and kernels of some programs, each next to its prediction."""
  for name in list(PROGRAMS)[:2] if rehearse else PROGRAMS:
    yield from guard(name, _measure_program(name, rehearse))


def _measure_program(name: str, rehearse: bool) -> Iterator[Row]:
  config, chip, begin = read_program(name, rehearse), find_chip(), time.perf_counter()
  flops = flops_per_step(config, config.phases[0])
  bare = start(config)
  ready = time.perf_counter()
  compiled, roof = analyze(bare, flops)
  yield Row(f"{name}: compilation", time.perf_counter() - ready, "s",
            f"initial state {ready - begin:.3g}")
  bare.seconds(3)
  number = 2 if rehearse else max(3, round(SECONDS / max(roof.seconds, 1e-3)))
  fastest, seconds, slowest = sorted(bare.seconds(number) for _ in range(3))
  yield Row(f"{name}: step", seconds * 1e3, "ms",
            f"{fastest * 1e3:.4g} to {slowest * 1e3:.4g}; predicted {roof.seconds * 1e3:.4g}, "
            f"ratio {seconds / roof.seconds:.3f}")
  yield Row(f"{name}: MFU", flops / seconds / chip.peak_flops, "",
            f"predicted {flops / roof.seconds / chip.peak_flops:.4g}")
  memory = aot.read_memory(compiled.memory_analysis(), aot.StateBytes(0.0, 0.0))
  peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", float("nan"))
  yield Row(f"{name}: memory so far, at most", peak / 2**30, "GiB",
            f"compiled {memory.total / 2**30:.4g}")
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      bare.seconds(PROFILED_STEPS)
    measured = kernels_of(pathlib.Path(folder))
  yield from _compare_kernels(name, measured, roof)


# --------------------------------------------------------- Hugging Face


def speed(rehearse: bool) -> Iterator[Row]:
  """Yields the rows of `step` against Hugging Face, eager and compiled, case by case."""
  cases = ("bert_nano", "gpt_nano") if rehearse else ("bert_base", "gpt2_small", "bert_mini")
  for case in cases:
    with tempfile.TemporaryDirectory() as folder:
      out = pathlib.Path(folder) / "step.json"
      command = [sys.executable, "-m", "benchmarks.step", f"--cases={case}", f"--out={out}"]
      command += (["--rounds=1", "--seconds=0.01"] if rehearse else
                  ["--device=cuda", "--compile", "--rounds=2", "--seconds=1.5"])
      result = subprocess.run(command, capture_output=True, text=True, check=False)
      if result.returncode:
        said = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
        yield Row(f"{case} against Hugging Face", "failed", "", said[:200], False)
        continue
      for row in json.loads(out.read_text())["rows"]:
        asked = f"asked {row['asked']}" if row["asked"] and not rehearse else ""
        ok = row["median"] >= float(row["asked"].removeprefix(">= ")) if asked else None
        yield Row(row["what"], row["median"], row["unit"], asked, ok)


# ------------------------------------------------------------------ kernels


# Kind -> pattern of the names of its kernels: XLA's own, and those of cuBLAS, cuDNN and Triton.
KINDS = {"matmuls": r"nvjet|gemm|cutlass|splitK|^dot", "attention": r"sdpa|flash|cudnn",
         "everything else": ""}


def kind_of(kernel: str) -> str:
  """Returns the first of `KINDS` whose pattern is in the name of a kernel."""
  return next(kind for kind, pattern in KINDS.items() if re.search(pattern, kernel))


def kind_of_predicted(kernel: Kernel) -> str:
  """Returns the one of `KINDS` that a predicted kernel belongs to."""
  matmuls, attention, rest = KINDS
  return attention if kernel.work.attention_flops else matmuls if kernel.work.matmul_flops else rest


def kernels_of(folder: pathlib.Path) -> dict[str, float]:
  """Returns the seconds of every kernel of a profile, by name, all runs together.

  Args:
    folder: folder written by `jax.profiler.trace`. On a CPU, XLA's threads stand for the device.
  """
  (path,) = folder.rglob("*.xplane.pb")
  seconds: collections.Counter[str] = collections.Counter()
  planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
  devices = [plane for plane in planes if plane.name.startswith("/device:")]
  for plane in devices or planes:
    for line in plane.lines:
      if line.name.startswith("Stream" if devices else "tf_XLA") or line.name == "XLA Ops":
        for event in line.events:
          seconds[event.name] += event.duration_ns * 1e-9
  return dict(seconds)


def _compare_kernels(name: str, measured: dict[str, float],
                     roof: roofline.Roofline) -> Iterator[Row]:
  """Yields the time of every kind of kernels, and the kernels that take longest.

  Args:
    name: name of the program.
    measured: kernel -> seconds in `PROFILED_STEPS` steps.
    roof: its prediction.
  """
  for kind in KINDS:
    taken = sum(seconds for kernel, seconds in measured.items() if kind_of(kernel) == kind)
    predicted = sum(kernel.seconds for kernel in roof.kernels if kind_of_predicted(kernel) == kind)
    yield Row(f"{name}: {kind}", taken / PROFILED_STEPS * 1e3, "ms",
              f"predicted {predicted * 1e3:.4g}")
  longest = sorted(measured.items(), key=lambda item: -item[1])[:SHOWN_KERNELS]
  for kernel, seconds in longest:
    yield Row(f"  measured: {kernel[:80]}", seconds / PROFILED_STEPS * 1e3, "ms")
  for kernel in roof.kernels[:SHOWN_KERNELS]:
    yield Row(f"  predicted: {kernel.name}, {kernel.source[-60:]}", kernel.seconds * 1e3, "ms",
              f"bound by {kernel.bound}, {kernel.runs:.0f} runs")
