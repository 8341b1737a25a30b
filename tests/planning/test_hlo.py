"""bertgpt.planning.hlo: work read from programs, against XLA's own count and against closed
forms.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.planning import hlo


def compile_text(function, *shapes):
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  compiled = jax.jit(function).lower(*arguments).compile()
  return compiled, hlo.parse(compiled.as_text())


def matmul_flops(program):
  return sum(product.flops * kernel.times for kernel in hlo.walk(program)
             for part in hlo.parts(program, kernel.instruction, kernel.computation)
             if (product := hlo.product_of(*part)))


def moved_bytes(program):
  return sum(hlo.hbm_bytes(program, kernel.instruction, kernel.computation) * kernel.times
             for kernel in hlo.walk(program))


def test_a_loop_counts_as_often_as_it_runs():
  """XLA's own count takes the body of the loop once."""
  def run(x, w):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=7)[0]

  compiled, program = compile_text(run, (16, 32), (32, 32))
  assert matmul_flops(program) == 7 * 2 * 16 * 32 * 32
  assert compiled.cost_analysis()["flops"] < 2 * matmul_flops(program) / 7


def test_loops_in_loops_multiply():
  def run(x, w):
    inner = lambda x, _: (jnp.tanh(x @ w), None)
    outer = lambda i, x: jax.lax.scan(inner, x, None, length=3)[0]
    return jax.lax.fori_loop(0, 5, outer, x)

  _, program = compile_text(run, (8, 16), (16, 16))
  assert matmul_flops(program) == 15 * 2 * 8 * 16 * 16


def test_batched_products():
  _, program = compile_text(lambda x, y: jnp.einsum("bnlh,bnsh->bnls", x, y),
                            (3, 4, 10, 6), (3, 4, 11, 6))
  (product,) = [p for kernel in hlo.walk(program) for part in
                hlo.parts(program, kernel.instruction, kernel.computation)
                if (p := hlo.product_of(*part))]
  assert product.flops == 2 * 3 * 4 * 10 * 11 * 6
  assert {product.m, product.n} == {10, 11} and product.k == 6


@pytest.mark.parametrize("window", [
    {"window_strides": (1, 1), "padding": ((0, 0), (0, 0))},
    {"window_strides": (2, 1), "padding": ((1, 2), (3, 0))},
    {"window_strides": (1, 3), "padding": ((2, 2), (1, 1)), "lhs_dilation": (2, 3)},
    {"window_strides": (1, 1), "padding": ((0, 0), (2, 2)), "rhs_dilation": (2, 2)}])
def test_convolutions_are_counted_as_xla_counts_them(window):
  """Only positions of the window that meet the input."""
  convolve = lambda x, w: jax.lax.conv_general_dilated(x, w, **window)
  compiled, program = compile_text(convolve, (2, 3, 12, 13), (5, 3, 3, 4))
  assert 0 < matmul_flops(program) == compiled.cost_analysis()["flops"]


ATTENTION_ON_TPU = """HloModule m
ENTRY %main (q: bf16[16,128,12,64], k: bf16[16,128,12,64]) -> f32[16,12,128,128] {
  %q = bf16[16,128,12,64]{3,1,2,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[16,128,12,64]{3,1,2,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %c = f32[16,12,128,128]{2,3,1,0:T(8,128)} convolution(%q, %k), \
window={size=16x12 stride=15x11 lhs_dilate=16x12}, dim_labels=0b1f_0o1i->01bf
}
"""


def test_products_that_tpu_writes_as_dilated_windows():
  program = hlo.parse(ATTENTION_ON_TPU)
  (kernel,) = [k for k in hlo.walk(program) if k.instruction.opcode == "convolution"]
  product = hlo.product_of(kernel.instruction, kernel.computation)
  assert product == (2 * 16 * 12 * 128 * 128 * 64, 128, 128, 64)
  # The keys lie in on-chip memory.
  assert moved_bytes(program) == 16 * 128 * 12 * 64 * 2 + 16 * 12 * 128 * 128 * 4


def test_trip_count_from_the_condition():
  """TPU programs do not state it."""
  program = hlo.parse("""HloModule m
%body (b: (s32[], f32[4])) -> (s32[], f32[4]) {
  %b = (s32[], f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%b), index=1
  ROOT %t = (s32[], f32[4]{0}) tuple(%b, %x)
}
%cond (c: (s32[], f32[4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %c = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}
ENTRY %main (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  ROOT %w = (s32[], f32[4]{0}) while(%p), condition=%cond, body=%body
}
""")
  assert {k.instruction.name: k.times for k in hlo.walk(program)} == {
      "p": 1, "b": 12, "x": 12, "t": 12}


def test_bytes_of_an_elementwise_kernel():
  _, program = compile_text(lambda x, y: jnp.tanh(x) * y + 1, (64, 128), (64, 128))
  assert moved_bytes(program) == 3 * 64 * 128 * 4


def test_a_scan_writes_its_rows_once():
  """A row is written in place; the whole stack at every step would be 100 times as much."""
  rows, width = 100, 512

  def run(x):
    return jax.lax.scan(lambda x, _: (x * 1.5, x + 1), x, None, length=rows)[1]

  _, program = compile_text(run, (width,))
  once = rows * width * 4
  assert 2 * once <= moved_bytes(program) <= 8 * once


@pytest.mark.parametrize("text, size", [
    ("f32[2,3]{1,0}", 24), ("pred[5]", 5), ("bf16[]", 2), ("s4[10]", 5), ("f8e4m3fn[3]", 3),
    ("(f32[2]{0:T(128)}, /*index=1*/(s32[3], u8[4]))", 24), ("token[]", 0)])
def test_sizes(text, size):
  assert sum(a.bytes for a in hlo.parse_shape(text)) == size


def test_vector_operations_are_near_xlas_count():
  def run(x, y):
    return jnp.where(x > 0, x * y, x - y).sum(axis=1) / 2

  compiled, program = compile_text(run, (128, 256), (128, 256))
  counted = sum(hlo.vector_operations(*part) * kernel.times for kernel in hlo.walk(program)
                for part in hlo.parts(program, kernel.instruction, kernel.computation))
  np.testing.assert_allclose(counted, compiled.cost_analysis()["flops"], rtol=0.35)
