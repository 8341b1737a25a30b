"""bertgpt.planning.hlo_costs: costs of programs against XLA's own counts and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from round_chip import program_text

from bertgpt.planning import hlo, hlo_costs


def compile_text(function, *shapes):
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  compiled = jax.jit(function).lower(*arguments).compile()
  return compiled, hlo.parse(compiled.as_text())


def matmul_flops(module):
  return sum(product.flops * execution.runs for execution in hlo.executions(module)
             for part in execution.instruction.parts()
             if (product := hlo_costs.product_of(part)))


def moved_bytes(module):
  return sum(hlo_costs.hbm_bytes(execution.instruction) * execution.runs
             for execution in hlo.executions(module))


def test_a_loop_counts_as_often_as_it_runs():
  """XLA's own count takes the loop body only once."""
  def run(x, w):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=7)[0]

  compiled, module = compile_text(run, (16, 32), (32, 32))
  assert matmul_flops(module) == 7 * 2 * 16 * 32 * 32
  assert compiled.cost_analysis()["flops"] < 2 * matmul_flops(module) / 7


def test_loops_in_loops_multiply():
  def run(x, w):
    inner = lambda x, _: (jnp.tanh(x @ w), None)
    outer = lambda i, x: jax.lax.scan(inner, x, None, length=3)[0]
    return jax.lax.fori_loop(0, 5, outer, x)

  _, module = compile_text(run, (8, 16), (16, 16))
  assert matmul_flops(module) == 15 * 2 * 8 * 16 * 16


def test_batched_products():
  _, module = compile_text(lambda x, y: jnp.einsum("bnlh,bnsh->bnls", x, y),
                           (3, 4, 10, 6), (3, 4, 11, 6))
  (product,) = [p for execution in hlo.executions(module)
                for part in execution.instruction.parts() if (p := hlo_costs.product_of(part))]
  assert product.flops == 2 * 3 * 4 * 10 * 11 * 6
  assert {product.m, product.n} == {10, 11} and product.k == 6


@pytest.mark.parametrize("window", [
    {"window_strides": (1, 1), "padding": ((0, 0), (0, 0))},
    {"window_strides": (2, 1), "padding": ((1, 2), (3, 0))},
    {"window_strides": (1, 3), "padding": ((2, 2), (1, 1)), "lhs_dilation": (2, 3)},
    {"window_strides": (1, 1), "padding": ((0, 0), (2, 2)), "rhs_dilation": (2, 2)}])
def test_convolutions_are_counted_as_xla_counts_them(window):
  """Only window positions that meet the input count."""
  convolve = lambda x, w: jax.lax.conv_general_dilated(x, w, **window)
  compiled, module = compile_text(convolve, (2, 3, 12, 13), (5, 3, 3, 4))
  assert 0 < matmul_flops(module) == compiled.cost_analysis()["flops"]


def test_groups_of_the_batch_are_counted_as_xla_counts_them():
  """Each group of rows meets its own filters; the result already has fewer rows."""
  convolve = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", batch_group_count=2)
  lowered = jax.jit(convolve).lower(jnp.ones((4, 3, 9, 9)), jnp.ones((6, 3, 3, 3)))
  body = """  %x = f32[4,3,9,9]{3,2,1,0} parameter(0)
  %w = f32[6,3,3,3]{3,2,1,0} parameter(1)
  ROOT %c = f32[2,6,7,7]{3,2,1,0} convolution(%x, %w), window={size=3x3}, \
dim_labels=bf01_oi01->bf01, batch_group_count=2"""
  assert hlo_costs.product_of(kernel_of(body)).flops == lowered.cost_analysis()["flops"]


ATTENTION_ON_TPU = """HloModule m
ENTRY %main (q: bf16[16,128,12,64], k: bf16[16,128,12,64]) -> f32[16,12,128,128] {
  %q = bf16[16,128,12,64]{3,1,2,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[16,128,12,64]{3,1,2,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %c = f32[16,12,128,128]{2,3,1,0:T(8,128)} convolution(%q, %k), \
window={size=16x12 stride=15x11 lhs_dilate=16x12}, dim_labels=0b1f_0o1i->01bf
}
"""


def test_products_that_tpu_writes_as_dilated_windows():
  module = hlo.parse(ATTENTION_ON_TPU)
  convolution = module.computations["main"].root
  assert hlo_costs.product_of(convolution) [:4] == (
      2 * 16 * 12 * 128 * 128 * 64, 128, 128, 64)
  # The keys lie in on-chip memory, and rows of 64 elements fill tiles of 128.
  assert moved_bytes(module) == 16 * 128 * 12 * 128 * 2 + 16 * 12 * 128 * 128 * 4


def test_bytes_of_an_elementwise_operation():
  _, module = compile_text(lambda x, y: jnp.tanh(x) * y + 1, (64, 128), (64, 128))
  assert moved_bytes(module) == 3 * 64 * 128 * 4


ASYNC_COPY = """HloModule m
ENTRY %main (p: f32[100]) -> f32[100] {
  %p = f32[100]{0} parameter(0)
  %s = (f32[100]{0:S(1)}, f32[100]{0}, u32[]{:S(2)}) copy-start(%p)
  ROOT %d = f32[100]{0:S(1)} copy-done(%s)
}
"""


def test_a_copy_into_on_chip_memory_is_read_once_and_not_written():
  assert moved_bytes(hlo.parse(ASYNC_COPY)) == 400
  assert moved_bytes(hlo.parse(ASYNC_COPY.replace("S(1)", "S(0)"))) == 800


UPDATE_IN_PLACE = """HloModule m
%fused (x: f32[1000,8], row: f32[1,8], i: s32[]) -> f32[1000,8] {
  %x = f32[1000,8]{1,0} parameter(0)
  %row = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %u = f32[1000,8]{1,0} dynamic-update-slice(%x, %row, %i, %zero)
}
ENTRY %main (x: f32[1000,8], row: f32[1,8], i: s32[]) -> f32[1000,8] {
  %x = f32[1000,8]{1,0} parameter(0)
  %row = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %f = f32[1000,8]{1,0} fusion(%x, %row, %i), kind=kLoop, calls=%fused
}
"""


def test_a_fused_update_in_place_moves_only_the_row():
  row, index = 8 * 4, 4
  assert moved_bytes(hlo.parse(UPDATE_IN_PLACE)) == row + index + row


PRODUCT_WITH_SCRATCH = """HloModule test, is_scheduled=true

ENTRY %main (x: bf16[64,32], w: bf16[32,16]) -> bf16[64,16] {
  %x = bf16[64,32]{1,0} parameter(0)
  %w = bf16[32,16]{1,0} parameter(1)
  %matmul = (bf16[64,16]{1,0}, s8[33554432]{0}) custom-call(%x, %w), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":\
{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  ROOT %result = bf16[64,16]{1,0} get-tuple-element(%matmul), index=0
}
"""


def test_scratch_memory_of_products_is_not_traffic():
  """Every cuBLAS matmul gets 32 MB of scratch memory; few use it, and none uses all of it."""
  assert moved_bytes(hlo.parse(PRODUCT_WITH_SCRATCH)) == 2 * (64 * 32 + 32 * 16 + 64 * 16)


def test_a_gather_reads_only_its_rows():
  _, module = compile_text(lambda x, i: x[i.astype(jnp.int32)], (10_000, 16), (4,))
  assert moved_bytes(module) < 10 * 4 * 16 * 4


def test_a_scan_writes_its_rows_once():
  """Each step writes one row in place; writing the whole stack would be 100 times as much."""
  rows, width = 100, 512

  def run(x):
    return jax.lax.scan(lambda x, _: (x * 1.5, x + 1), x, None, length=rows)[1]

  _, module = compile_text(run, (width,))
  once = rows * width * 4
  assert 2 * once <= moved_bytes(module) <= 8 * once


def test_vector_operations_are_near_xlas_count():
  def run(x, y):
    return jnp.where(x > 0, x * y, x - y).sum(axis=1) / 2

  compiled, module = compile_text(run, (128, 256), (128, 256))
  counted = sum(hlo_costs.vector_operations(part) * execution.runs
                for execution in hlo.executions(module)
                for part in execution.instruction.parts())
  np.testing.assert_allclose(counted, compiled.cost_analysis()["flops"], rtol=0.35)


# ------------------------------------------------------------------ kernels


CUDNN = """  %q = bf16[8,512,12,64]{3,2,1,0} parameter(0)
  ROOT %a = (bf16[8,12,512,64]{3,1,2,0}, u8[0]{0}) custom-call(%q, %q, %q), \
custom_call_target="__cudnn$fmhaSoftmaxNAME", backend_config={"cudnn_fmha_backend_config": \
{"fmha_scale": 0.125, "intermediate_tensor_shape": {"element_type": "BF16", "dimensions": \
["8", "12", "512", "512"], "tuple_shapes": []}, "mask_type": "MASK"}}"""


def kernel_of(body):
  module = hlo.parse(program_text(body))
  return module.computations[module.entry].root


@pytest.mark.parametrize("name, mask, products", [
    ("", "NO_MASK", 2), ("Backward", "NO_MASK", 5), ("", "CAUSAL", 1),
    ("Backward", "PADDING_CAUSAL", 2.5)])
def test_attention_of_cudnn_is_counted(name, mask, products):
  """A matmul of attention has 2 FLOPs per row, head, query, key and channel."""
  found = hlo_costs.product_of(kernel_of(CUDNN.replace("NAME", name).replace("MASK", mask)))
  assert found.flops == products * 2 * 8 * 12 * 512 * 512 * 64
  assert (found.m, found.n, found.k) == (512, 512, 64) and found.is_attention


SPLASH = """  %q = bf16[2,4,64,1024]{3,2,1,0} parameter(0)
  %m = s8[1,2,2]{2,1,0} parameter(1)
  ROOT %splash_mha_NAME_segmented = SHAPE custom-call(%m, %q, %q, %q), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_qBLOCK\\": 512, \\"q_layout\\": 2}"
}}, metadata={op_name="jit(f)/attention/SCOPEsplash_mha/pallas_call"}"""
KEYS, QUERIES = "bf16[2,4,1024,64]{3,2,1,0}", "bf16[2,2,4,1024,64]{4,3,2,1,0}"


@pytest.mark.parametrize("name, block, shape, products", [
    ("fwd", "", KEYS, 2), ("dkv", "_dkv", f"({QUERIES}, {KEYS}, {KEYS})", 5),
    ("dkv", "_dkv", f"({KEYS}, {KEYS})", 4), ("dq", "_dq", KEYS, 3)])
@pytest.mark.parametrize("scope, share", [("splash_3_of_4_blocks/", 3 / 4), ("", 1)])
def test_splash_attention_is_counted_in_the_blocks_that_it_visits(name, block, shape, products,
                                                                  scope, share):
  kernel = kernel_of(SPLASH.replace("NAME", name).replace("BLOCK", block).replace("SHAPE", shape)
                     .replace("SCOPE", scope))
  found = hlo_costs.product_of(kernel)
  assert found.flops == products * 2 * 2 * 4 * 1024 * 1024 * 64 * share
  assert (found.m, found.n, found.k) == (512, 512, 64) and found.is_attention
  assert not hlo_costs.hides_work(kernel)


def test_the_other_layout_of_splash_attention_is_counted_alike():
  text = SPLASH.replace("NAME", "fwd").replace("BLOCK", "").replace("SHAPE", KEYS)
  other = text.replace("64,1024]", "1024,64]").replace('layout\\": 2', 'layout\\": 1')
  assert hlo_costs.product_of(kernel_of(other)) == hlo_costs.product_of(kernel_of(text))


PALLAS = """  %p = f32[256,256]{1,0} parameter(0)
  ROOT %k = f32[256,256]{1,0} custom-call(%p), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"block": "512"
}}, metadata={op_name="jit(f)/layers/attention"}, backend_config={"custom_call_config":{COST}}"""
COST = ('"cost_estimate":{"flops":"123456","transcendentals":"5","bytes_accessed":"7777777",'
        '"remote_bytes_transferred":"0"}')


def test_a_pallas_kernel_states_its_cost():
  """libtpu writes the kernel's metadata into separate lines."""
  kernel = kernel_of(PALLAS.replace("COST", COST))
  assert hlo_costs.product_of(kernel).flops == 123456
  assert hlo_costs.hbm_bytes(kernel) == 7777777 and hlo_costs.vector_operations(kernel) == 30
  assert not hlo_costs.hides_work(kernel)
  assert kernel.attribute('op_name="([^"]*)"') == "jit(f)/layers/attention"


def test_metadata_of_a_pallas_kernel_may_state_its_vector_operations():
  metadata = '"vector_operations": "99"'
  kernel = kernel_of(PALLAS.replace('"block": "512"', metadata).replace("COST", COST))
  assert hlo_costs.vector_operations(kernel) == 99
  assert hlo_costs.product_of(kernel).flops == 123456


def test_a_pallas_kernel_of_triton_states_its_cost():
  """The metadata follow the code, with quotes escaped by XLA."""
  kernel = kernel_of(PALLAS.replace("tpu_custom_call", "__gpu$xla.gpu.triton").replace(
      'backend_config={"custom_call_config":{COST}}',
      r'backend_config={ir = "ML\EFR\22flops\22", num_warps = 4 : i32, serialized_metadata = '
      r'"{\22flops\22: \221234\22, \22vector_operations\22: \2256\22}"}'))
  assert hlo_costs.product_of(kernel).flops == 1234
  assert hlo_costs.vector_operations(kernel) == 56
  assert not hlo_costs.hides_work(kernel)


def test_a_pallas_kernel_that_states_nothing_hides_its_work():
  kernel = kernel_of(PALLAS.replace("COST", ""))
  assert hlo_costs.hides_work(kernel) and hlo_costs.product_of(kernel) is None
  assert hlo_costs.hbm_bytes(kernel) == 2 * 256 * 256 * 4
  assert not hlo_costs.hides_work(kernel_of(PALLAS.replace("tpu_custom_call", "ConcatBitcast")))


STACK = """HloModule m
%relabel (i: bf16[4,1000]) -> bf16[4,1000] {
  %i = bf16[4,1000]{1,0:T(16,128)(2,1)} parameter(0)
  ROOT %c = bf16[4,1000]{1,0:T(8,128)(2,1)} copy(%i)
}
%update (stack: bf16[4,1000], x: bf16[1,1000], at: s32[]) -> bf16[4,1000] {
  %stack = bf16[4,1000]{1,0:T(16,128)(2,1)} parameter(0)
  %x = bf16[1,1000]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %f = bf16[4,1000]{1,0:T(8,128)(2,1)} fusion(%stack), kind=kLoop, ALIASING calls=%relabel
  ROOT %d = bf16[4,1000]{1,0:T(16,128)(2,1)} dynamic-update-slice(%f, %x, %at, %at)
}
ENTRY %main (stack: bf16[4,1000], x: bf16[1,1000], at: s32[]) -> bf16[4,1000] {
  %stack = bf16[4,1000]{1,0:T(16,128)(2,1)} parameter(0)
  %x = bf16[1,1000]{1,0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %u = bf16[4,1000]{1,0:T(16,128)(2,1)} fusion(%stack, %x, %at), kind=kLoop, calls=%update
}
"""


def test_a_stack_that_only_gets_another_layout_in_place_is_not_read():
  """On TPU7x, libtpu wraps a loop's stack in such a call, which writes one row."""
  aliasing = "output_to_operand_aliasing={{}: (0, {})},"
  assert moved_bytes(hlo.parse(STACK.replace("ALIASING", aliasing))) == 2 * 2000 + 4
  assert moved_bytes(hlo.parse(STACK.replace("ALIASING ", ""))) == (
      2 * 2000 + 4 + 16 * 1024 * 2), "all of its tiles"
