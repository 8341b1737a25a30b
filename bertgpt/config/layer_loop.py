"""Unrolling of the loop over layers, from `config.model.scan_unroll` and the platform.

This module does not import JAX.
"""

AUTO = -1

# Largest number of layers per iteration: a program with 12 takes about a minute and a half to
# compile on two cores.
MAX_UNROLLED = 24


def choose(requested: int, platform: str, num_layers: int, *,
           is_initializing: bool = False) -> tuple[int, str]:
  """Returns the number of layers per iteration of the loop, and the reason in words.

  Args:
    requested: `config.model.scan_unroll`.
    platform: platform that the program is compiled for: 'cpu', 'gpu' or 'tpu'.
    num_layers: layers of the model; with this many per iteration, there is no loop.
    is_initializing: whether the program only makes initial parameters. On a GPU, that is always a
      loop: XLA compiles the random generators of all layers one by one, which takes 40 s for 12
      layers. Elsewhere it is not, because unrolled layers have other initial values, in the last
      bit.
  """
  if is_initializing and platform == "gpu":
    return 1, "the random generators of one layer compile faster"
  if requested != AUTO:
    return min(requested or num_layers, num_layers), f"model.scan_unroll={requested}"
  if platform != "gpu":
    return 1, "a loop compiles several times faster"
  unrolled = next(n for n in range(min(MAX_UNROLLED, num_layers), 0, -1) if num_layers % n == 0)
  return unrolled, ("on a GPU, a loop copies every value that the backward pass needs into a "
                    "stack, and reads it back")
