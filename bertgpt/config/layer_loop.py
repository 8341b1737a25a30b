"""How far the loop over layers is unrolled, from `config.model.scan_unroll` and the platform.

This module does not import JAX.
"""

AUTO = -1

# Layers in one program text, at most: a program of 12 takes about a minute and a half to compile
# on two cores.
MOST_UNROLLED = 24


def choose(requested: int, platform: str, num_layers: int) -> tuple[int, str]:
  """Returns the number of layers per iteration of the loop, and the reason in words.

  Args:
    requested: `config.model.scan_unroll`.
    platform: platform that the program is compiled for: 'cpu', 'gpu' or 'tpu'.
    num_layers: layers of the loop; it does not exist if there are as many per iteration.
  """
  if requested != AUTO:
    return min(requested or num_layers, num_layers), f"model.scan_unroll={requested}"
  if platform != "gpu":
    return 1, "a loop compiles several times faster"
  unrolled = next(n for n in range(min(MOST_UNROLLED, num_layers), 0, -1) if num_layers % n == 0)
  return unrolled, ("on a GPU, a loop writes every value that the backward pass needs once more, "
                    "to stack it, and reads it back")
