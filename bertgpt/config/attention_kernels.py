"""Choice of the kernel of attention, from `config.model.attention` and the machine.

`xla` runs everywhere. The other kernels have limits, which are defined only here, for the checks of
a config and for the choice when a model is compiled. This module does not import JAX.
"""

from typing import NamedTuple

FUSED = ("cudnn", "splash")  # Every kernel except 'xla'.

BEST = {"gpu": "cudnn", "tpu": "splash"}  # Platform -> kernel that 'auto' prefers.

# Tokens per row from which 'auto' takes splash. Compiled for TPU v5e, forward and backward pass of
# a BERT-base attention layer with splash move 0.63 of the bytes of the plain layer in rows of 512
# tokens, 0.80 in rows of 256 and 0.94 in rows of 128. In short rows, a step of its grid has almost
# nothing to compute but still takes a few tenths of a microsecond.
SPLASH_FROM = 256


class Layer(NamedTuple):
  """A layer of attention, as the kernels see it.

  Attributes:
    platform: platform that the program is compiled for: 'cpu', 'gpu' or 'tpu'; '' if it is not
      known yet.
    dtype: dtype of the activations, as 'bfloat16'.
    length: tokens per row.
    head_width: width of one head.
    dropout: share of attention weights dropped; 0: none.
  """

  platform: str
  dtype: str
  length: int
  head_width: int
  dropout: float


def choose(requested: str, layer: Layer) -> tuple[str, str]:
  """Returns the kernel for a program, and the reason in words.

  A requested kernel that cannot run is replaced by `xla`: `config.validate` refuses it for
  training, but later uses of the model, such as generation, have other lengths.

  Args:
    requested: 'auto', 'xla', 'cudnn' or 'splash'.
    layer: the layer.
  """
  name = BEST.get(layer.platform, "xla") if requested == "auto" else requested
  if name in FUSED:
    missing = obstacles(name, layer)
    if missing:
      return "xla", f"{name} needs {'; '.join(missing)}"
  if requested != "auto":
    return name, f"model.attention={requested!r}"
  if name == "splash" and layer.length < SPLASH_FROM:
    return "xla", f"splash pays off from {SPLASH_FROM} tokens per row"
  return name, f"the best on platform {layer.platform!r}"


def obstacles(kernel: str, layer: Layer) -> list[str]:
  """Returns the unmet requirements of a kernel in words; [] if it can run.

  The limits are those of `check_is_flash_attention` (cuDNN) and of splash_attention_kernel.py
  in JAX 0.10 to 0.12. Without a TPU, splash is interpreted on the CPU, for tests.

  Args:
    kernel: one of `FUSED`.
    layer: the layer; without a platform, the checks of the platform are skipped.
  """
  platform, dtype, length, head_width, dropout = layer
  needs = {
      "cudnn": ((platform in ("", "gpu"), f"a GPU, not platform {platform!r}"),
                (dtype in ("bfloat16", "float16"), f"model.dtype='bfloat16', not {dtype!r}"),
                (length % 2 == 0, f"an even number of tokens per row, not {length}"),
                (head_width % 8 == 0 and head_width <= 128,
                 f"a head width that is a multiple of 8 up to 128, not {head_width}")),
      "splash": ((platform in ("", "tpu", "cpu"), f"a TPU, not platform {platform!r}"),
                 (length % 128 == 0, f"a multiple of 128 tokens per row, not {length}")),
  }
  no_dropout = (dropout == 0, f"model.attention_dropout=0.0, not {dropout}")
  return [need for is_met, need in (no_dropout, *needs[kernel]) if not is_met]
