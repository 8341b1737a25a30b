"""Every fault of the matrix has a test that exists."""

import ast
import importlib.util
import pathlib

import pytest

TESTS = pathlib.Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location(
    "matrix", pathlib.Path(__file__).with_name("matrix.py"))
matrix = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(matrix)


def functions_of(path):
  return {node.name for node in ast.parse(path.read_text()).body
          if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("fault", matrix.MATRIX, ids=lambda fault: fault.what)
def test_a_fault_has_tests_that_exist(fault):
  assert fault.promise and fault.tests
  for name in fault.tests:
    file, function = name.split("::")
    assert function in functions_of(TESTS / file), name


def test_every_line_of_the_second_table_belongs_to_a_fault():
  assert matrix.MORE.keys() <= {fault.what for fault in matrix.FAULTS}
  assert len({fault.what for fault in matrix.FAULTS}) == len(matrix.FAULTS)
