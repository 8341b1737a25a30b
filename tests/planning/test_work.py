"""bertgpt.planning.work: matmuls, vector operations and bytes of one instruction."""

import pytest
from round_chip import DOT, program_text

from bertgpt.planning import hlo, hlo_costs, work


def root_of(text):
  module = hlo.parse(text)
  return module.computations[module.entry].root


def test_the_work_of_a_product():
  found = work.work_of(root_of(DOT), tile=1)
  assert found.matmul_flops == found.padded_flops == 2e9 and found.hbm_bytes == 12e6
  assert found.vector_operations == found.compiler_cycles == 0


def test_the_work_of_an_elementwise_operation():
  found = work.work_of(root_of(program_text("""  %p = f32[1000,1000]{1,0} parameter(0)
  ROOT %n = f32[1000,1000]{1,0} negate(%p)""")), tile=1)
  assert found.vector_operations == 1e6 and found.hbm_bytes == 8e6 and found.matmul_flops == 0


@pytest.mark.parametrize("m, n, k, tile, factor", [
    (128, 128, 128, 128, 1), (128, 128, 64, 128, 2), (1, 1024, 128, 128, 1),
    (64, 64, 64, 128, 4), (192, 192, 128, 128, 4 / 3), (256, 8, 100, 1, 1)])
def test_matrix_units_are_filled_by_whole_tiles(m, n, k, tile, factor):
  product = hlo_costs.Product(1.0, m, n, k)
  assert work.padded_flops(product, tile) == pytest.approx(factor)
