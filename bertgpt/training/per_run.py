"""Numbers that differ between the runs of one program: see `mapped`."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.config import ConfigDict
from bertgpt.config.overrides import set_field
from bertgpt.errors import ConfigError


def _combine(operate: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
  """Returns a method that operates on the numbers of every run, or on the array of one run."""

  def method(self, other):
    if isinstance(other, PerRun):
      names = dict.fromkeys((*self.fields, *other.fields))
      return PerRun(tuple(names), list(map(operate, self.values, other.values)), self.number)
    if isinstance(other, (int, float, np.generic)):
      return PerRun(self.fields, [operate(value, other) for value in self.values], self.number)
    return operate(self.__jax_array__(), other)

  return method


def _ask(question: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
  """Returns a method that answers a question which must have one answer for all runs."""
  combine = _combine(question)

  def method(self, other):
    answer = combine(self, other)
    return bool(answer) if isinstance(answer, PerRun) else answer

  return method


class PerRun:
  """One number per run, in the place of one number of a config.

  Arithmetic with Python's numbers is done in Python for each run, in double precision: 1 - b2 is
  rounded to float32 once, as in a program with the numbers of one run. In arithmetic with an array,
  it is the number of the run that the program computes, a scalar of float32 or int32. A question
  that chooses between two programs, such as `rate == 0`, must have the same answer for all runs.

  Attributes:
    fields: names of the config fields that the numbers come from.
    values: Python numbers, one per run.
    number: int32 scalar, index of the run that the program computes; traced.
  """

  __array_ufunc__ = None  # NumPy's scalars leave arithmetic to this class.
  __hash__ = object.__hash__

  def __init__(self, fields: Sequence[str], values: Sequence[Any], number: jax.Array):
    self.fields, self.values, self.number = tuple(fields), tuple(values), number

  def __jax_array__(self) -> jax.Array:
    """Returns the number of the run that the program computes, a scalar."""
    values = np.asarray(self.values)
    kind = np.int32 if np.issubdtype(values.dtype, np.integer) else np.float32
    return jnp.asarray(values.astype(kind))[self.number]

  __add__, __radd__ = _combine(operator.add), _combine(lambda a, b: b + a)
  __sub__, __rsub__ = _combine(operator.sub), _combine(lambda a, b: b - a)
  __mul__, __rmul__ = _combine(operator.mul), _combine(lambda a, b: b * a)
  __truediv__, __rtruediv__ = _combine(operator.truediv), _combine(lambda a, b: b / a)
  __pow__, __rpow__ = _combine(operator.pow), _combine(lambda a, b: b ** a)
  __eq__, __ne__ = _ask(operator.eq), _ask(operator.ne)
  __lt__, __le__ = _ask(operator.lt), _ask(operator.le)
  __gt__, __ge__ = _ask(operator.gt), _ask(operator.ge)

  def __round__(self) -> "PerRun":
    return PerRun(self.fields, list(map(round, self.values)), self.number)

  def __bool__(self) -> bool:
    if len({bool(value) for value in self.values}) > 1:
      raise self._error()
    return bool(self.values[0])

  def __int__(self):
    raise self._error()

  __float__ = __index__ = __int__

  def _error(self) -> ConfigError:
    """Returns the error of a program that cannot be the same for all runs."""
    return ConfigError(f"{' and '.join(self.fields)}: these values need different programs, so "
                       "the runs cannot be mapped into one. Leave out --mapped")


# Functions that are jitted on their own get the number as an argument.
jax.tree_util.register_pytree_node(
    PerRun, lambda numbers: ((numbers.__jax_array__(),), None), lambda _, leaves: leaves[0])


def put(config: ConfigDict, fields: Mapping[str, Sequence[Any]], number: jax.Array) -> ConfigDict:
  """Returns a config with the numbers of all runs in some fields.

  Args:
    config: config of any of the runs.
    fields: field -> its values, Python numbers, one per run.
    number: int32 scalar, index of the run that the program computes.
  """
  config = config.copy_and_resolve_references()
  config.phases = tuple(phase.copy_and_resolve_references() for phase in config.phases)
  with config.unlocked(), config.ignore_type():
    for field, values in fields.items():
      set_field(config, field, PerRun([field], values, number))
  return config
