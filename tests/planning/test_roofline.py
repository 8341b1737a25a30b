"""bertgpt.planning.roofline: times against closed forms, on a chip with round figures."""

import re

import jax
import jax.numpy as jnp
import pytest
from round_chip import CHIP, DOT, NETWORK, SHARE, analyze, program_text

from bertgpt.devices import hardware
from bertgpt.planning import roofline
from bertgpt.planning.collectives import Place


def test_a_product_takes_its_flops_or_its_bytes():
  flops, size = 2e9, 3 * 4e6
  roof = analyze(DOT)
  assert roof.matmul_flops == flops and roof.hbm_bytes == size and roof.operations == 1
  assert roof.bound == "memory"
  assert roof.seconds == pytest.approx(size / 1e9 / SHARE["memory"])
  slow = analyze(DOT, chip=CHIP._replace(peak_flops=1e10))
  assert slow.bound == "matmul"
  assert slow.seconds == pytest.approx(flops / 1e10 / SHARE["matmul"])


def test_elementwise_work_takes_the_vector_unit():
  def run(x):
    for _ in range(20):
      x = x * 1.5 + x
    return x

  text = jax.jit(run).lower(jnp.ones((1000, 1000))).compile().as_text()
  roof = analyze(text)
  assert roof.bound == "vector" and roof.matmul_flops == 0
  assert roof.seconds == pytest.approx(40 * 1e6 / 1e9 / SHARE["vector"], rel=0.1)


def test_small_operations_take_the_time_to_start():
  text = DOT.replace("1000", "2")
  assert analyze(text).seconds == hardware.TPU.kernel_seconds


REDUCE = """  %p = f32[1000,1000]{1,0} parameter(0)
  %q = f32[1000,1000]{1,0} parameter(1)
"""
START = ("  %s = f32[1000,1000]{1,0} all-reduce-start(%p), replica_groups={{0,1,2,3}}, "
         "to_apply=%add\n")
WORK = ("  %w = f32[1000,1000]{1,0} dot(%q, %q), lhs_contracting_dims={1}, "
        "rhs_contracting_dims={0}\n")
DONE = "  ROOT %r = f32[1000,1000]{1,0} all-reduce-done(%s)"


def test_a_collective_hides_behind_what_runs_meanwhile():
  wire = 2 * 4e6 * 3 / 4 / 1e6 / SHARE["network"]
  work = 3 * 4e6 / 1e9 / SHARE["memory"]
  exposed = analyze(program_text(REDUCE + START + DONE + "\n" + WORK))
  hidden = analyze(program_text(REDUCE + START + WORK + DONE))
  sync = analyze(program_text(REDUCE + WORK + DONE.replace("all-reduce-done(%s)", "copy(%w)")
                              + "\n" + START.replace("-start", "")))
  assert exposed.seconds_by["network"] == pytest.approx(wire)
  assert sync.seconds_by["network"] == pytest.approx(wire)
  assert hidden.seconds_by["network"] == pytest.approx(wire - work)
  fast = analyze(program_text(REDUCE + START + WORK + DONE),
                 chip=CHIP._replace(link_bandwidth=1e12))
  assert fast.seconds_by["network"] == 0
  assert [(r.kind, r.axes, r.count, r.bytes) for r in hidden.collectives] == [
      ("all-reduce", "data", 1, 4e6)]


def test_reserving_memory_takes_no_time():
  reserve = '  %b = f32[1000,1000]{1,0} custom-call(), custom_call_target="AllocateBuffer"\n'
  alone, both = (analyze(program_text(REDUCE + text + WORK)) for text in ("", reserve))
  assert alone == both and alone.operations == 1


CALLED = """%called (a: f32[1000,1000], t: token[]) -> f32[1000,1000] {
  %t = token[] parameter(1)
  %a = f32[1000,1000]{1,0} parameter(0)
  ROOT %sum = f32[1000,1000]{1,0} all-reduce(%a), channel_id=4, replica_groups={{0,1,2,3}}
}, execution_thread="sparsecore"

"""
CALL = ('  %s = ((f32[1000,1000]{1,0}, token[]), f32[1000,1000]{1,0}) OPCODE(%p, %q), '
        'async_execution_thread="sparsecore", ATTRIBUTE=%called\n')


@pytest.mark.parametrize("opcode, attribute", [("call", "to_apply"), ("async", "calls")])
def test_a_collective_in_an_asynchronous_call_hides_behind_what_runs_meanwhile(opcode, attribute):
  """libtpu leaves the collectives of TPU7x to its SparseCores in this way."""
  call = CALL.replace("OPCODE", f"{opcode}-start").replace("ATTRIBUTE", attribute)
  done = DONE.replace("all-reduce", opcode)
  of_call, of_start = (
      analyze("HloModule m\n" + CALLED + program_text(REDUCE + start + WORK + done)[12:])
      for start, done in ((call, done), (START, DONE)))
  assert of_call == of_start and of_call.seconds_by["network"] > 0


@pytest.mark.parametrize("work_share", [0.0, 0.5, 1.5, 3.0])
def test_the_slow_network_costs_what_nothing_hides(work_share):
  """With two slices of two chips: the cost is the step time minus that with a free slow network."""
  places = [Place(i // 2, (i % 2, 0)) for i in range(4)]
  slow_wire = 2 * 4e6 / 2 / 2 / 2e6 / SHARE["network"]  # Half the array, halved between two slices.
  work = 3 * 4e6 / SHARE["memory"] / (work_share * slow_wire) if work_share else 1e30
  chip = CHIP._replace(dcn_bandwidth=2e6, hbm_bandwidth=work)
  run = lambda chip: analyze(program_text(REDUCE + START + WORK + DONE), places=places, chip=chip)
  slow, fast = run(chip), run(chip._replace(dcn_bandwidth=1e30))
  (total,) = slow.collectives
  assert total.slow_bytes == 2e6 and total.slow_seconds == pytest.approx(slow_wire)
  assert total.slow_exposed_seconds == pytest.approx(slow.seconds - fast.seconds, abs=1e-9)


HANDLED = ('is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name='
           '"xla_megascale_runtime",_xla_host_transfer_rendezvous="sum_0",'
           '_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:1}",'
           '_xla_megascale_transfer_type="ALL_REDUCE"}\n')


def test_a_sum_over_slices_is_sent_by_the_hosts():
  """libtpu 0.0.42 writes a send and a recv, and work between them hides the transfer."""
  places = [Place(i // 2, (i % 2, 0)) for i in range(4)]
  body = ("  %t = token[] after-all()\n"
          "  %s = (f32[1000,1000]{1,0}, u32[], token[]) send(%p, %t), channel_id=1, " + HANDLED
          + "  %r = (f32[1000,1000]{1,0}, u32[], token[]) recv(%t), channel_id=2, " + HANDLED + WORK
          + "  %sd = token[] send-done(%s), channel_id=1\n"
          "  %rd = (f32[1000,1000]{1,0}, token[]) recv-done(%r), channel_id=2\n"
          "  ROOT %x = f32[1000,1000]{1,0} get-tuple-element(%rd), index=0")
  chip = CHIP._replace(dcn_bandwidth=2e6)
  roof = analyze(program_text(REDUCE + body), places=places, chip=chip)
  (total,) = roof.collectives
  assert (total.kind, total.axes, total.count, total.bytes) == ("all-reduce", "data", 1, 4e6)
  assert (total.fast_bytes, total.slow_bytes) == (0, 2 * 4e6 / 2)
  wire, work = 4e6 / 2e6 / SHARE["network"], 3 * 4e6 / 1e9 / SHARE["memory"]
  assert roof.operations == 1 and total.slow_seconds == pytest.approx(wire)
  assert roof.seconds_by["network"] == total.slow_exposed_seconds == pytest.approx(wire - work)


def test_a_collective_in_several_fusions_is_one():
  """On TPUs, several fusions may contain one collective; its channel id identifies it."""
  fused = """%part{n} (a: f32[1000,1000]) -> f32[1000,1000] {{
  %a = f32[1000,1000]{{1,0}} parameter(0)
  ROOT %g{n} = f32[1000,1000]{{1,0}} all-reduce(%a), channel_id={n}7, replica_groups={{{{0,1,2,3}}}}
}}
"""
  calls = "  %p = f32[1000,1000]{1,0} parameter(0)\n" + "".join(
      f"  {'ROOT ' if i == 2 else ''}%f{i} = f32[1000,1000]{{1,0}} fusion(%p), kind=kCustom, "
      f"calls=%part{part}\n" for i, part in enumerate((1, 1, 2)))
  text = "HloModule m\n" + fused.format(n=1) + fused.format(n=2) + program_text(calls)[12:]
  (total,) = analyze(text).collectives
  assert (total.count, total.bytes) == (2, 2 * 4e6)


def test_a_collective_that_runs_during_a_loop_is_one():
  """The compiler gives operations of a loop a part of the transfer, which their chain shows."""
  fused = """%part{n} (a: f32[1000,1000]) -> f32[1000,1000] {{
  %a = f32[1000,1000]{{1,0}} parameter(0)
  ROOT %g{n} = f32[1000,1000] all-reduce(%a), channel_id=7, frontend_attributes={{chain_id="1"}}
}}
"""
  loop = """%body (b: (s32[], f32[1000,1000])) -> (s32[], f32[1000,1000]) {
  %b = (s32[], f32[1000,1000]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %x = f32[1000,1000]{1,0} get-tuple-element(%b), index=1
  %f = f32[1000,1000]{1,0} fusion(%x), kind=kCustom, calls=%part2
  ROOT %t = (s32[], f32[1000,1000]{1,0}) tuple(%i, %f)
}
%condition (c: (s32[], f32[1000,1000])) -> pred[] {
  %limit = s32[] constant(3)
  %c = (s32[], f32[1000,1000]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}
"""
  calls = """  %p = f32[1000,1000]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = f32[1000,1000]{1,0} fusion(%p), kind=kCustom, calls=%part1
  %carry = (s32[], f32[1000,1000]{1,0}) tuple(%zero, %start)
  %w = (s32[], f32[1000,1000]{1,0}) while(%carry), condition=%condition, body=%body
  %sum = f32[1000,1000]{1,0} get-tuple-element(%w), index=1
  ROOT %done = f32[1000,1000]{1,0} fusion(%sum), kind=kCustom, calls=%part3
"""
  text = ("HloModule m\n" + "".join(fused.format(n=n) for n in (1, 2, 3)) + loop
          + program_text(calls)[12:])
  (total,) = analyze(text).collectives
  assert (total.count, total.bytes) == (1, 4e6)


def test_work_that_the_text_does_not_show_is_added():
  text = DOT.replace("  ROOT", """  %k = f32[1000,1000]{1,0} custom-call(%p), """
                     """custom_call_target="tpu_custom_call"\n  ROOT""")
  roof = roofline.analyze(text, NETWORK, analytic_flops=5e9)
  assert roof.hidden_flops == 3e9
  assert roof.seconds == pytest.approx(analyze(text).seconds + 3e9 / 1e12 / SHARE["matmul"])
  assert roofline.analyze(text, NETWORK, analytic_flops=1e9).hidden_flops == 0


def test_nothing_is_added_if_the_text_shows_everything():
  """The formula counts blocks of causal attention that a kernel skips."""
  assert roofline.analyze(DOT, NETWORK, analytic_flops=5e9).hidden_flops == 0


ATTENTION = program_text("""  %q = bf16[8,512,12,64]{3,2,1,0} parameter(0)
  ROOT %a = (bf16[8,12,512,64]{3,1,2,0}, u8[0]{0}) custom-call(%q, %q, %q), \
custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config": \
{"intermediate_tensor_shape": {"dimensions": ["8", "12", "512", "512"]}, \
"mask_type": "NO_MASK"}}""")


@pytest.mark.parametrize("text, field", [(ATTENTION, "attention"), (DOT, "matmul")])
def test_kernels_of_attention_reach_another_share_of_the_peak(text, field):
  chip = CHIP._replace(peak_flops=1e9)
  usual = chip.efficiency
  half = usual._replace(**{field: getattr(usual, field) / 2})
  slow = analyze(text, chip=chip._replace(efficiency=half))
  assert slow.bound == "matmul"
  assert slow.seconds == pytest.approx(2 * analyze(text, chip=chip).seconds)
  (kernel,) = slow.kernels
  assert kernel.of_peak == pytest.approx(getattr(half, field))


def test_float8_runs_at_its_own_peak_and_share():
  text, chip = DOT.replace("%p = f32", "%p = f8e4m3fn"), CHIP._replace(peak_flops=1e9)
  chip = chip._replace(efficiency=chip.efficiency._replace(matmul=0.7, fp8=0.5))
  slow = analyze(text, chip=chip._replace(fp8_flops=0))
  fast = analyze(text, chip=chip._replace(fp8_flops=4e9))
  assert slow.seconds_by["matmul"] == pytest.approx(2e9 / 1e9 / 0.7)
  assert fast.seconds_by["matmul"] == pytest.approx(2e9 / 4e9 / 0.5)
  assert fast.kernels[0].of_peak == pytest.approx(0.5)
  plain = analyze(DOT, chip=chip._replace(fp8_flops=4e9))
  assert plain.seconds_by["matmul"] == pytest.approx(slow.seconds_by["matmul"])


@pytest.mark.parametrize("cycles, counted", [(500, 500), (2**63 - 1, 0)])
def test_the_compilers_own_estimates_are_summed(cycles, counted):
  """libtpu writes the largest integer for operations of which it makes no estimate."""
  estimate = f', backend_config={{"estimated_cycles":"{cycles}"}}'
  text = DOT.replace("rhs_contracting_dims={0}", "rhs_contracting_dims={0}" + estimate)
  assert analyze(text).compiler_seconds == counted / CHIP.clock


@pytest.mark.parametrize("share, dots", [(1 / 3, 8), (None, 18)])
def test_the_branches_of_a_conditional_count_by_their_share(share, dots):
  """Every third of six layers has two products, the others have one."""
  def layers(x, w):
    body = lambda i, x: jax.lax.cond(i % 3 == 0, lambda x: x @ w @ w, lambda x: x @ w, x)
    return jax.lax.fori_loop(0, 6, body, x)

  x = jnp.ones((64, 64))
  text = jax.jit(layers).lower(x, x).compile().as_text()
  assert " conditional(" in text
  assert analyze(text, true_share=share).matmul_flops == pytest.approx(dots * 2 * 64**3)
  of_gpus, count = re.subn(r"branch_computations=\{(\S+), (\S+)\}",
                           r"true_computation=\2, false_computation=\1", text)
  assert count
  assert analyze(of_gpus, true_share=share).matmul_flops == pytest.approx(dots * 2 * 64**3)
