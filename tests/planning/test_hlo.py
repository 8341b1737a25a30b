"""bertgpt.planning.hlo: instructions, the computations they call, and runs per step."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from bertgpt.planning import hlo, topologies

MODULE = """HloModule m, is_scheduled=true
%fused (a: f32[4,8]) -> f32[4] {
  %a = f32[4,8]{1,0} parameter(0)
  %zero = f32[] constant(0)
  %twice = f32[4,8]{1,0} add(%a, %a)
  ROOT %r = f32[4]{0} reduce(%twice, %zero), dimensions={1}, to_apply=%sum
}
%sum (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}
ENTRY %main (p: f32[4,8]) -> (f32[4], /*index=1*/f32[4,8]) {
  %p = f32[4,8]{1,0:S(1)} parameter(0)
  %f = f32[4]{0} fusion(%p), kind=kLoop, calls=%fused
  ROOT %t = (f32[4]{0}, /*index=1*/f32[4,8]{1,0:S(1)}) tuple(%f, %p)
}
"""


def runs_of(module, opcode):
  return [execution.runs for execution in hlo.executions(module)
          if any(part.opcode == opcode for part in execution.instruction.parts())]


def test_a_parsed_module():
  module = hlo.parse(MODULE)
  main = module.computations[module.entry]
  assert list(module.computations) == ["fused", "sum", "main"]
  assert list(main.instructions) == ["p", "f", "t"]
  root = main.root
  assert (root.name, root.opcode, root.operands) == ("t", "tuple", ("f", "p"))
  assert root.shape == (hlo.Array(32, (4,), True), hlo.Array(32, (4, 8), False))
  assert [array.hbm_bytes for array in root.shape] == [16, 0]


@pytest.mark.parametrize("shape, stored", [
    ("f32[3,100]{1,0:T(8,128)}", 4 * 8 * 128), ("f32[100,3]{0,1:T(8,128)}", 4 * 8 * 128),
    ("bf16[5,16,64]{2,1,0:T(8,128)(2,1)}", 2 * 5 * 16 * 128), ("f32[700]{0:T(512)}", 4 * 1024),
    ("f32[7,9]{1,0}", 4 * 63), ("f32[]{:T(128)}", 4)])
def test_arrays_fill_the_tiles_of_their_layout(shape, stored):
  (array,) = hlo.parse_shape(shape)
  assert array.hbm_bytes == stored and array.bytes == array.bits * array.size / 8


@pytest.mark.libtpu
def test_the_compiler_stores_as_many_bytes_as_are_counted():
  (device,) = topologies.open_topology("v5e:1x1").devices
  place = SingleDeviceSharding(device)
  arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape, dtype in (
      ((3, 1000, 64), "bfloat16"), ((5, 7, 200), "float32"), ((4, 12, 100, 64), "float32"),
      ((9000,), "float32"), ((3000, 2), "int8"))]
  program = jax.jit(lambda *arrays: [x + 1 for x in arrays]).lower(*arrays).compile()
  module = hlo.parse(program.as_text())
  entry = module.computations[module.entry].instructions.values()
  counted = sum(array.stored_bytes for i in entry if i.opcode == "parameter" for array in i.shape)
  told = program.memory_analysis().argument_size_in_bytes
  assert counted == pytest.approx(told, rel=0.01)
  assert counted > 1.2 * sum(array.bytes for i in entry for array in i.shape
                             if i.opcode == "parameter")


def test_an_instruction_knows_its_computation():
  main = hlo.parse(MODULE).computations["main"]
  parameter, fusion, root = main.instructions.values()
  assert fusion.operand(0) is parameter and parameter.users == [fusion, root]
  assert fusion.operand_shape(0) == parameter.shape
  assert parameter.operand(0) is None and parameter.operand_shape(0) == ()
  assert fusion.attribute(r"kind=(\w+)") == "kLoop" and fusion.attribute(r"channel=(\d)") is None


def test_parts_of_a_fusion_are_those_inside():
  module = hlo.parse(MODULE)
  fusion = module.computations["main"].instructions["f"]
  assert [part.name for part in fusion.parts()] == ["f", "a", "zero", "twice", "r"]
  assert fusion.fused is module.computations["fused"]
  assert fusion.fused.parameter(0).name == "a" and fusion.fused.parameter(1) is None
  assert [e.instruction.name for e in hlo.executions(module)] == ["p", "f", "t"]


def test_parentheses_that_do_not_match_are_an_error():
  with pytest.raises(ValueError, match="unbalanced parentheses"):
    hlo.parse("ENTRY %main (p: f32[]) -> f32[] {\n  %p = f32[] parameter(0\n")


def test_loops_in_loops_multiply():
  def run(x, w):
    inner = lambda x, _: (jnp.tanh(x @ w), None)
    outer = lambda i, x: jax.lax.scan(inner, x, None, length=3)[0]
    return jax.lax.fori_loop(0, 5, outer, x)

  text = jax.jit(run).lower(jnp.ones((8, 16)), jnp.ones((16, 16))).compile().as_text()
  assert runs_of(hlo.parse(text), "dot") == [15]


def test_every_branch_counts_as_if_it_ran():
  def run(i, x):
    return jax.lax.switch(i, [jnp.sin, jnp.cos, jnp.tanh], x)

  text = jax.jit(run).lower(1, jnp.ones(8)).compile().as_text()
  module = hlo.parse(text)
  assert [runs_of(module, opcode) for opcode in ("sine", "cosine", "tanh")] == [[1.0]] * 3


@pytest.mark.parametrize("start, limit, direction, runs", [
    (0, 12, "LT", 12), (1, 12, "LT", 11), (0, 12, "LE", 13), (12, 0, "GT", 12), (12, 1, "GE", 12),
    (11, -1, "GT", 12), (12, 12, "LT", 1)])
def test_trip_count_from_the_condition(start, limit, direction, runs):
  """TPU programs do not state it, and may have run the first iteration before the loop."""
  module = hlo.parse(f"""HloModule m
%body (b: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %b = (s32[], f32[4]{{0}}) parameter(0)
  %x = f32[4]{{0}} get-tuple-element(%b), index=1
  ROOT %t = (s32[], f32[4]{{0}}) tuple(%b, %x)
}}
%cond (c: (s32[], f32[4])) -> pred[] {{
  %limit = s32[]{{:T(128)}} constant({limit})
  %c = (s32[], f32[4]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction={direction}
}}
ENTRY %main (p: f32[4]) -> (s32[], f32[4]) {{
  %p = f32[4]{{0}} parameter(0)
  %first = s32[]{{:T(128)}} constant({start})
  %start = s32[]{{:T(128)}} copy(%first)
  %carry = (s32[], f32[4]{{0}}) tuple(%start, %p)
  ROOT %w = (s32[], f32[4]{{0}}) while(%carry), condition=%cond, body=%body
}}
""")
  assert {e.instruction.name: e.runs for e in hlo.executions(module)} == {
      "p": 1, "first": 1, "start": 1, "carry": 1, "b": runs, "x": runs, "t": runs}


@pytest.mark.parametrize("text, size", [
    ("f32[2,3]{1,0}", 24), ("pred[5]", 5), ("bf16[]", 2), ("s4[10]", 5), ("f8e4m3fn[3]", 3),
    ("(f32[2]{0:T(128)}, /*index=1*/(s32[3], u8[4]))", 24), ("token[]", 0)])
def test_sizes(text, size):
  assert sum(a.bytes for a in hlo.parse_shape(text)) == size
