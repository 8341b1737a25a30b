"""bertgpt.planning.aot: the compiled step is that of training, and its figures add up."""

import threading
import types

import jax
import numpy as np
import pytest
import tiny
from fake_slice import on_fake_devices

from bertgpt import config as config_lib
from bertgpt.config.flops import flops_per_step
from bertgpt.config.overrides import override
from bertgpt.data.batches import formats, parts
from bertgpt.errors import ConfigError
from bertgpt.planning import aot, topologies
from bertgpt.training import objectives, steps


@pytest.mark.parametrize("objective", ["mlm_nsp", "mlm", "causal"])
@pytest.mark.parametrize("packing", [True, False])
def test_the_batch_is_the_loaders(objective, packing):
  config = tiny.make_config(objective)
  config.data.packing = packing
  phase = config.phases[0]
  row_format = formats.find(config)
  layout = parts.Layout(phase.seq_len, config_lib.max_sequences(config, phase.seq_len), 0, 1, 2,
                        row_format.has_target)
  nothing = np.zeros(0, parts.PART), np.zeros(0, np.int64), []
  made = row_format.assemble(parts.Placed(*nothing, phase.batch_size, layout))
  with tiny.Setup(config) as setup:
    planned = aot.abstract_batch(config, phase, setup.mesh)
  assert {n: (x.shape, x.dtype) for n, x in planned.items()} == {
      n: (x.shape, x.dtype) for n, x in made.items()}


@pytest.mark.parametrize("objective", ["mlm_nsp", "causal"])
def test_the_program_is_the_one_that_training_runs(objective):
  """The text equals that of the program lowered with a real state and batch."""
  config = tiny.make_config(objective, mesh=(4, 2, 1))
  with tiny.Setup(config) as setup:
    objective_fns = objectives.make_objective(config, aot.make_vocabulary(tiny.VOCAB))
    step = steps.jit_train_step(setup.training._replace(objective=objective_fns), setup.abstract)
    state = steps.make_state(setup.training, setup.abstract)
    trained = step.lower(state, setup.put(tiny.make_batch(config))).as_text()
  config.data.max_sequences = 2
  planned = aot.lower_step(config, 0, on_fake_devices()).program.as_text()
  assert planned == trained


@pytest.mark.parametrize("objective", ["mlm_nsp", "causal"])
@pytest.mark.parametrize("micro_batches", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_compiled_flops_are_those_of_the_formula(objective, micro_batches):
  """The program's FLOPs count loops by their trip counts; the formula knows only the config."""
  config = tiny.make_config(objective, num_layers=3, width=128, mlp_dim=512)
  config.phases[0].micro_batches = micro_batches
  config.phases[0].max_predictions = 8
  step = aot.compile_step(aot.lower_step(config, 0, on_fake_devices(1)), "tpu")
  padded = config.copy_and_resolve_references()
  padded.model.vocab_size = config_lib.padded_vocab_size(tiny.VOCAB)
  formula = flops_per_step(padded, padded.phases[0])
  assert step.roofline.matmul_flops == pytest.approx(formula, rel=0.01)


def test_the_work_of_a_step_with_frozen_layers_is_what_was_compiled():
  """The formula counts their backward pass; the MFU would be more than twice as high."""
  config = tiny.make_config(num_layers=3, width=128, mlp_dim=512)
  config.optimizer.freeze = "^(embeddings|encoder)"
  step = aot.compile_step(aot.lower_step(config, 0, on_fake_devices(1)), "tpu")
  work = step.roofline
  assert step.useful_flops(1) == work.matmul_flops + work.hidden_flops
  assert step.useful_flops(1) < 0.6 * step.analytic_flops
  config.optimizer.freeze = ""
  assert step.useful_flops(1) == step.analytic_flops


@pytest.mark.parametrize("freeze, share", [("", 1), ("^encoder", 1 / 3)])
def test_hidden_kernels_have_the_work_of_the_forward_pass_at_least(monkeypatch, freeze, share):
  given, analyze = [], aot.roofline.analyze
  monkeypatch.setattr(aot.roofline, "analyze",
                      lambda text, network, flops, *rest: given.append(flops) or analyze(
                          text, network, flops, *rest))
  config = tiny.make_config()
  config.optimizer.freeze = freeze
  step = aot.compile_step(aot.lower_step(config, 0, on_fake_devices(1)), "tpu")
  assert given == [pytest.approx(share * step.analytic_flops)]


@pytest.mark.parametrize("micro_batches", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_data_parallel_steps_send_the_gradients_once(micro_batches):
  config = tiny.make_config(mesh=(8, 1, 1), width=64, mlp_dim=256)
  config.phases[0].micro_batches = micro_batches
  step = aot.compile_step(aot.lower_step(config, 0, on_fake_devices()), "tpu")
  sent = {(total.kind, total.axes): total.bytes for total in step.roofline.collectives}
  gradients = sent.pop(("all-reduce", "data"))
  assert gradients == pytest.approx(step.state_bytes.parameters, rel=0.02)
  assert sum(sent.values()) < 0.01 * gradients


def test_state_is_split_over_fsdp():
  whole = aot.lower_step(tiny.make_config(mesh=(8, 1, 1)), 0, on_fake_devices()).state_bytes
  split = aot.lower_step(tiny.make_config(mesh=(1, 8, 1)), 0, on_fake_devices()).state_bytes
  assert whole[0] == 4 * sum(x.size for x in jax.tree.leaves(tiny_params()))
  assert whole[0] / 8 < split[0] < whole[0] / 4  # Norms and biases are replicated.
  assert whole[1] == pytest.approx(2 * whole[0], rel=1e-3)


def tiny_params(num_layers=2):
  with tiny.Setup(tiny.make_config(num_layers=num_layers)) as setup:
    return setup.abstract.params


def test_memory_adds_up_to_what_the_compiler_says():
  stats = types.SimpleNamespace(argument_size_in_bytes=1000, output_size_in_bytes=910,
                                alias_size_in_bytes=900, temp_size_in_bytes=70,
                                generated_code_size_in_bytes=5)
  memory = aot.read_memory(stats, aot.StateBytes(300, 600))
  assert memory == (300, 600, 100, 80, 5)
  assert memory.total == 1000 + 70 + 10 + 5  # Arguments, temporaries, new outputs, code.


@pytest.mark.parametrize("message, needed, available", [
    ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
     "(59.90G) exceeds available HBM (15.75G).", 2**30 + 59.90 * 2**30, 15.75 * 2**30),
    ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
     "Used 17.25G of 15.75G hbm. Exceeded hbm capacity by 1.50G.", 17.25 * 2**30, 15.75 * 2**30),
    ("RESOURCE_EXHAUSTED: of another kind", 0, 0)])
def test_messages_of_a_full_memory(message, needed, available):
  overflow = aot.parse_overflow(message, state_bytes=2**30)
  assert (overflow.needed, overflow.available) == (needed, available)


def test_a_kernel_that_does_not_fit_the_fast_memory_is_named():
  def compile(compiler_options):
    raise jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom: Ran out of memory in memory space "
        "vmem while allocating on stack for %flash_attention_backward")

  program = types.SimpleNamespace(compile=compile)
  lowered = aot.LoweredStep(tiny.make_config(), 0, program, None, aot.StateBytes(1, 2))
  with pytest.raises(ConfigError, match="VMEM of this chip. Set model.attention='xla'"):
    aot.compile_step(lowered, "tpu")


def test_equal_phases_share_a_program_and_times_add_up():
  config = tiny.make_config(mesh=(8, 1, 1))
  phase = config.phases[0]
  config.phases = tuple(config_lib.phase(seq_len=phase.seq_len, batch_size=phase.batch_size,
                                         steps=steps) for steps in (10, 30))
  topology = on_fake_devices()
  first, second = aot.make_plan(config, topology, [0, 1])
  assert (first.step.phase_index, second.step.phase_index) == (0, 1)
  assert first.step.roofline is second.step.roofline
  assert second.hours == pytest.approx(3 * first.hours)
  assert first.hours == pytest.approx(10 * first.step_seconds / 3600)
  assert first.chip_hours == pytest.approx(8 * first.hours)
  config.train.skip_steps = ((2, 2), (9, 14))  # 3 of the first 10 steps, and 4 of the others.
  assert [one.hours for one in aot.make_plan(config, topology, [0, 1])] == pytest.approx(
      [0.7 * first.hours, second.hours * 26 / 30])
  tokens = phase.batch_size * phase.seq_len
  assert first.tokens_per_second * first.step_seconds == pytest.approx(tokens)
  assert first.mfu == pytest.approx(flops_per_step(config, phase)
                                    / first.step_seconds / (8 * topology.chip.peak_flops))


def remedies(topology, **config):
  config = tiny.make_config(**config)
  step = aot.CompiledStep(config, 0, aot.StateBytes(12e9, 24e9), 1.0, None, None,
                          aot.Overflow(20e9, 16e9, []))
  return aot.remedies(step, topology)


def test_remedies_are_overrides_that_lower_memory():
  assert remedies(on_fake_devices(), remat="dots", mesh=(-1, 1, 1)) == [
      "--config.mesh.fsdp=8", "--config.phases[0].micro_batches=2", "--config.model.remat=full"]


@pytest.mark.parametrize("chips, num_slices, mesh, remedy", [
    (8, 2, (-1, 1, 1), "--config.mesh.fsdp=4"), (6, 1, (-1, 1, 2), None),
    (8, 1, (4, 1, 2), "--config.mesh.fsdp=4 --config.mesh.data=-1"), (8, 2, (-1, 4, 1), None)])
def test_a_remedy_is_a_mesh_of_the_machine(chips, num_slices, mesh, remedy):
  """Parameters stay in a slice, and all axes together have as many devices as there are."""
  topology = on_fake_devices(chips, num_slices=num_slices)
  found = [flags for flags in remedies(topology, mesh=mesh) if "fsdp" in flags]
  assert found == [remedy] * bool(remedy)
  for flags in found:
    config = override(tiny.make_config(mesh=mesh), flags.split())
    assert not [p for p in config_lib.find_problems(config, chips) if "mesh" in p]


def test_threads_that_compile_are_left_alone_after_a_signal():
  begun, go, done = threading.Semaphore(0), threading.Event(), []

  def compile_slowly(number):
    begun.release()
    go.wait()
    done.append(number)

  timer = threading.Timer(60, go.set)  # Otherwise, waiting for the threads would never end.
  timer.start()
  try:
    with pytest.raises(KeyboardInterrupt), aot.compiler_threads() as pool:
      futures = [pool.submit(compile_slowly, i) for i in range(aot.COMPILER_THREADS + 2)]
      for _ in range(aot.COMPILER_THREADS):
        begun.acquire()
      raise KeyboardInterrupt
    assert not done and all(future.cancelled() for future in futures[aot.COMPILER_THREADS:])
  finally:
    timer.cancel()
    go.set()


# -------------------------------------------------------- the real compiler


@pytest.mark.libtpu
def test_a_step_compiled_for_tpu():
  config = tiny.make_config(mesh=(4, 1, 1), num_layers=3, dtype="bfloat16")
  topology = topologies.open_topology("v5e:2x2")
  (phase,) = aot.make_plan(config, topology, [0])
  step = phase.step
  assert phase.fits and 0 < phase.mfu < 1
  assert step.memory.total < topology.chip.usable_hbm
  assert step.memory.parameters == 4 * sum(x.size for x in jax.tree.leaves(tiny_params(3)))
  assert step.roofline.compiler_seconds > 0
  assert {total.axes for total in step.roofline.collectives} == {"data"}


@pytest.mark.libtpu
def test_attention_that_the_backward_pass_repeats_is_counted_with_splash():
  """All matmuls of the forward pass are repeated but the last one of a layer."""
  config = tiny.make_config("causal", num_layers=3, width=128, num_heads=2, mlp_dim=128,
                            dtype="bfloat16", attention="splash", max_positions=512)
  config.phases[0].update(seq_len=512, batch_size=4)
  work = {}
  for config.model.remat in ("none", "full"):
    (phase,) = aot.make_plan(config, topologies.open_topology("v5e:1x1"), [0])
    work[config.model.remat] = phase.step.roofline
    assert not phase.step.roofline.hidden_flops
  rows, attention = 4 * 512, 2 * 2 * 4 * 512 * 512 * 128
  layer = 2 * rows * (4 * 128 * 128 + 128 * 128)
  repeated = work["full"].matmul_flops - work["none"].matmul_flops
  assert repeated == pytest.approx(3 * (attention + layer), rel=0.01)


@pytest.mark.libtpu
def test_a_step_that_does_not_fit_is_an_answer():
  config = tiny.make_config("causal", num_layers=1)
  config.phases[0].batch_size = 2**22
  (phase,) = aot.make_plan(config, topologies.open_topology("v5e:1x1"), [0])
  assert not phase.fits
  overflow = phase.step.overflow
  assert overflow.needed > overflow.available == pytest.approx(15.75 * 2**30)
