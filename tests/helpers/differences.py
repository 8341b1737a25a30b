"""Comparisons with an oracle that print the largest difference: `pytest -rP` shows it.

docs/families.md has the differences of all families.
"""

from collections.abc import Mapping

import numpy as np


def check_close(what: str, found, expected, atol: float = 1e-4) -> None:
  """Fails if two arrays differ anywhere by more than `atol`."""
  found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
  assert found.shape == expected.shape, what
  print(f"largest difference of {what}: {np.abs(found - expected).max():.1e}, "
        f"of values up to {np.abs(expected).max():.2g}")
  np.testing.assert_allclose(found, expected, rtol=0, atol=atol, err_msg=what)


def check_gradients(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray],
                    rtol: float = 1e-3) -> None:
  """Fails if the gradient of a parameter differs by more than `rtol`, in the Euclidean norm.

  The difference is divided by the norm of the parameter's gradient plus a thousandth of that of
  all: some gradients are zero in exact arithmetic, like that of the bias of keys.
  """
  assert found.keys() == expected.keys()
  whole = np.sqrt(sum(np.sum(np.square(x)) for x in expected.values()))
  differences = {name: np.linalg.norm(found[name] - x) / (np.linalg.norm(x) + 1e-3 * whole)
                 for name, x in expected.items()}
  name = max(differences, key=differences.get)
  print(f"largest difference of gradients: {differences[name]:.1e}, relative, of {name}")
  assert differences[name] < rtol, name
