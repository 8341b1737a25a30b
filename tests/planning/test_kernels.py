"""bertgpt.planning.kernels: the kernels that take longest, from the text of a program."""

import jax
import jax.numpy as jnp
import pytest
from round_chip import CHIP, DOT, SHARE, analyze, program_text

from bertgpt.planning import hlo, kernels


def test_a_product_is_one_kernel_with_its_bound():
  (kernel,) = analyze(DOT).kernels
  assert kernel.name == "d" and kernel.runs == 1 and kernel.source == ""
  assert kernel.work.matmul_flops == 2e9 and kernel.work.hbm_bytes == 12e6
  memory, matmul = 12e6 / (1e9 * SHARE["memory"]), 2e9 / (1e12 * SHARE["matmul"])
  assert kernel.bound == "memory" and kernel.seconds == pytest.approx(memory)
  assert kernel.use("memory") == 1 and kernel.use("matmul") == pytest.approx(matmul / memory)


def test_equal_kernels_are_one_and_the_longest_comes_first():
  lines = ["  %p = f32[1000,1000]{1,0} parameter(0)", "  %s = f32[10]{0} iota(), iota_dimension=0"]
  lines += [f"  %negate.{i} = f32[1000,1000]{{1,0}} negate(%p), metadata="
            '{op_name="jit(f)/while/body/layers/neg"}' for i in range(3)]
  lines += ["  ROOT %n = f32[10]{0} negate(%s)"]
  found = analyze(program_text("\n".join(lines))).kernels
  assert found[0].runs == 3 and found[0].source == "layers/neg" and found[0].name == "negate"
  assert len(found) == 3
  assert found == sorted(found, key=lambda kernel: -kernel.seconds)


def test_the_kernels_take_the_time_on_the_chip():
  """The sum over all kernels is the sum over all resources."""

  def step(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), ()), x, w)[0].sum()

  shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((64, 128), (5, 128, 128))]
  text = jax.jit(jax.grad(step)).lower(*shapes).compile().as_text()
  roofline = analyze(text)
  on_chip = roofline.seconds - roofline.seconds_by["network"]
  assert sum(k.seconds for k in roofline.kernels) == pytest.approx(on_chip, rel=0.1)
  assert sum(k.runs * k.work.matmul_flops for k in roofline.kernels) == pytest.approx(
      roofline.matmul_flops)
  assert sum(k.runs for k in roofline.kernels) == pytest.approx(roofline.operations)


@pytest.mark.parametrize("path, source", [
    ("jit(train_step)/jvp(Bert.predict)/Bert.features/while/body/closed_call/layers/mlp/up/dot",
     "Bert.predict/Bert.features/layers/mlp/up/dot"),
    ("jit(train_step)/transpose(jvp(Bert.predict))/layers/add", "backward/Bert.predict/layers/add"),
    ("jit(train_step)/vmap()/vmap(jit(_uniform))/add", "add"), ("", "")])
def test_sources_are_paths_of_the_model(path, source):
  line = f'  ROOT %n = f32[10]{{0}} iota(), iota_dimension=0, metadata={{op_name="{path}"}}'
  module = hlo.parse(program_text(line))
  assert kernels.source_of(module.computations[module.entry].root) == source


def test_the_distance_from_the_peak():
  """On tiles of 128, a matmul with sides of 1,000 takes as long as one with 1,024."""
  text = DOT.replace("f32", "bf16")
  (kernel,) = analyze(text, chip=CHIP._replace(tile=128, hbm_bandwidth=1e15)).kernels
  assert kernel.bound == "matmul"
  assert kernel.of_peak == pytest.approx(SHARE["matmul"] * (1000 / 1024) ** 2)
  (kernel,) = analyze(DOT).kernels
  assert kernel.of_peak == SHARE["memory"]
  (kernel,) = analyze(DOT.replace("1000", "5")).kernels  # Most of its time is the launch.
  assert 0 < kernel.of_peak < 0.8


def test_the_compilers_estimate_is_a_column_if_there_is_one():
  text = DOT.replace("rhs_contracting_dims={0}",
                     'rhs_contracting_dims={0}, backend_config={"estimated_cycles":"500"}')
  found = analyze(text).kernels
  assert kernels.show(found, 1)[-1].split()[1] == "0.500"
  assert kernels.to_json(found[0])["compiler_seconds"] == 500 / CHIP.clock
  assert "compiler" not in kernels.show(analyze(DOT).kernels, 1)[1]


def test_a_kernel_that_hides_its_work_is_said():
  text = DOT.replace("  ROOT", """  %k = f32[1000,1000]{1,0} custom-call(%p), """
                     """custom_call_target="tpu_custom_call"\n  ROOT""")
  lines = kernels.show(analyze(text).kernels, 5)
  assert "1 runs are of kernels whose FLOPs" in lines[1]
  assert [line.split()[3] for line in lines[3:]] == ["2.0", "hidden"]


def test_the_table_names_the_longest_and_their_share():
  lines = kernels.show(analyze(DOT).kernels, 5)
  assert "the 1 that take longest of 1 kinds: 100%" in lines[0]
  assert len(lines) == 3 and lines[2].endswith("d, source unknown")
  assert CHIP.tile == 1  # These figures do not pad the sides of matmuls.
