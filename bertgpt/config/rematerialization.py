"""Values that a layer saves for its backward pass, from `config.model.remat` and the platform.

This module does not import JAX.
"""

CHOICES = ("auto", "none", "products", "dots", "full")


def choose(requested: str, platform: str) -> tuple[str, str]:
  """Returns the name of the choice, which is not 'auto', and the reason in words.

  Args:
    requested: `config.model.remat`.
    platform: platform that the program is compiled for: 'cpu', 'gpu' or 'tpu'.
  """
  if requested != "auto":
    return requested, f"model.remat={requested!r}"
  if platform == "tpu":
    return "products", ("on a TPU, matmuls recompute activations, norms and masks while they read "
                        "their inputs")
  return "none", f"nothing else is known to be faster on platform {platform!r}"
