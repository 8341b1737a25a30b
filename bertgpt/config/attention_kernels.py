"""Choice of the kernel of attention, from `config.model.attention` and the machine.

`xla` runs everywhere. The other kernels have limits, which are defined only here, for the checks of
a config and for the choice when a model is compiled. This module does not import JAX.
"""

from typing import NamedTuple

from ml_collections.config_dict import ConfigDict

FUSED = ("cudnn", "splash", "flash")  # Every kernel except 'xla'.

# Platform -> kernels that 'auto' tries in order, until one can run and pays off.
PREFERRED = {"gpu": ("cudnn", "flash"), "tpu": ("splash", "flash")}

# Tokens per row from which 'auto' takes splash. Compiled for TPU v5e, forward and backward pass of
# a BERT-base attention layer with splash move 0.63 of the bytes of the plain layer in rows of 512
# tokens, 0.80 in rows of 256 and 0.94 in rows of 128. In short rows, a grid step of the kernel has
# almost nothing to compute but still takes a few tenths of a microsecond.
SPLASH_FROM = 256

# Compute capability of a GPU from which XLA compiles Triton, in which flash is written, and from
# which cuDNN has flash attention. V100 has 7.0, T4 has 7.5.
CAPABILITY = 8.0

# For flash, rows are padded to a multiple of this number of tokens; see flash_attention.py.
FLASH_TILE = 128

# Tokens per row up to which all queries and keys of a head fit the VMEM of a TPU, in the backward
# pass too; see flash_tpu.py.
FLASH_LONGEST = {"float32": 4096, "bfloat16": 8192, "float16": 8192}


class Layer(NamedTuple):
  """A layer of attention, as the kernels see it.

  Attributes:
    platform: platform that the program is compiled for: 'cpu', 'gpu' or 'tpu'; '' if it is not
      known yet.
    dtype: dtype of the activations, such as 'bfloat16'.
    length: tokens per row.
    head_width: width of one head.
    dropout: share of attention weights dropped; 0: none.
    dropout_rng: generator of their mask, `config.model.dropout_rng`.
    has_window: whether a query sees only the keys within some distance.
    capability: compute capability of the GPU, such as 7.5; 0: not known, or not an NVIDIA GPU.
    is_relative: whether scores also depend on the distance of query and key.
  """

  platform: str
  dtype: str
  length: int
  head_width: int
  dropout: float
  dropout_rng: str = "hash"
  has_window: bool = False
  capability: float = 0.0
  is_relative: bool = False


def layer_of(model: ConfigDict, length: int, platform: str, capability: float = 0.0,
             stack: str = "") -> Layer:
  """Returns the attention of a model in training.

  Args:
    model: `config.model`.
    length: tokens per row.
    platform: platform that the program is compiled for; '' if it is not known yet.
    capability: as in `Layer`.
    stack: one of `Family.stacks`.
  """
  head_width = model[f"{stack}width"] // model[f"{stack}num_heads"]
  return Layer(platform, model.dtype, length, head_width, model.attention_dropout,
               model.dropout_rng, bool(model.window),
               capability=capability, is_relative=model.position == "relative")


def choose(requested: str, layer: Layer) -> tuple[str, str]:
  """Returns the kernel for a program, and the reason in words.

  A requested kernel that cannot run is replaced by `xla`: `config.validate` refuses it for
  training, but later uses of the model, such as generation, have other lengths.

  Args:
    requested: 'auto', 'xla' or one of `FUSED`.
    layer: the layer.
  """
  if requested == "xla":
    return "xla", "model.attention='xla'"
  if requested != "auto":
    missing = obstacles(requested, layer)
    return ("xla", _needs(requested, missing)) if missing else (
        requested, f"model.attention={requested!r}")
  reasons = []
  for name in PREFERRED.get(layer.platform, ()):
    missing = obstacles(name, layer)
    reason = _needs(name, missing) if missing else _drawback(name, layer)
    if not reason:
      best = "the best that can run" if reasons else "the best"
      return name, ". ".join([f"{best} on platform {layer.platform!r}", *reasons])
    reasons.append(reason)
  return "xla", ". ".join(reasons) or f"the best on platform {layer.platform!r}"


def _drawback(name, layer):
  """Returns why a kernel that can run does not pay off; '' if it does."""
  if name == "splash" and layer.length < SPLASH_FROM:
    return f"splash pays off from {SPLASH_FROM} tokens per row"
  if name == "flash" and layer.length < FLASH_TILE:
    return f"flash pads rows to a multiple of {FLASH_TILE} tokens"
  if name == "flash" and not layer.dropout and not layer.has_window:
    return "flash pays off with attention dropout or a window"
  return ""


def _needs(name, missing):
  return f"{name} needs {'; '.join(missing)}"


def explain_window(kernel: str, is_causal: bool) -> str:
  """Returns how a kernel computes layers with a window, in words.

  Args:
    kernel: result of `choose`.
    is_causal: whether a query sees no later key.
  """
  if kernel in ("splash", "flash"):
    return "blocks of keys outside the window are skipped"
  if kernel == "cudnn" and is_causal:
    return ("with cuDNN's sliding window, but in packed rows with a mask, which saves no work. "
            "model.attention='flash' skips the keys outside the window")
  if kernel == "cudnn":
    return ("with a mask, which saves no work: cuDNN's sliding window is causal. "
            "model.attention='flash' skips the keys outside the window")
  return "with a mask, which saves no work"


def obstacles(kernel: str, layer: Layer) -> list[str]:
  """Returns the unmet requirements of a kernel in words; [] if it can run.

  The limits are those of `check_is_flash_attention` (cuDNN), of splash_attention_kernel.py in JAX
  0.10 to 0.12, and of our flash_attention.py. Without a TPU, splash and flash are interpreted on
  the CPU, for tests.

  Args:
    kernel: one of `FUSED`.
    layer: the layer; without a platform, the checks of the platform are skipped.
  """
  platform, dtype, length, head_width, dropout = layer[:5]
  longest = FLASH_LONGEST[dtype]
  no_dropout = (dropout == 0, f"model.attention_dropout=0.0, not {dropout}")
  new_gpu = (platform != "gpu" or not 0 < layer.capability < CAPABILITY,
             f"a GPU of compute capability {CAPABILITY}, not {layer.capability}")
  needs = {
      "cudnn": (no_dropout,
                (platform in ("", "gpu"), f"a GPU, not platform {platform!r}"), new_gpu,
                (dtype in ("bfloat16", "float16"), f"model.dtype='bfloat16', not {dtype!r}"),
                (length % 2 == 0, f"an even number of tokens per row, not {length}"),
                (head_width % 8 == 0 and head_width <= 128,
                 f"a head width that is a multiple of 8 up to 128, not {head_width}")),
      "splash": (no_dropout,
                 (platform in ("", "tpu", "cpu"), f"a TPU, not platform {platform!r}"),
                 (length % 128 == 0, f"a multiple of 128 tokens per row, not {length}")),
      "flash": ((dropout == 0 or layer.dropout_rng == "hash",
                 f"model.dropout_rng='hash', not {layer.dropout_rng!r}"), new_gpu,
                (platform != "gpu" or dtype in ("bfloat16", "float16"),
                 f"model.dtype='bfloat16', not {dtype!r}"),
                (platform == "gpu" or length <= longest,
                 f"at most {longest} tokens per row in {dtype}, not {length}"),
                (head_width in (16, 32, 64, 128),
                 f"a head width of 16, 32, 64 or 128, not {head_width}")),
  }
  no_distances = (not layer.is_relative, "scores without relative positions")
  return [need for is_met, need in (no_distances, *needs[kernel]) if not is_met]
