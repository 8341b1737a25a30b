"""Which kernel computes attention, and why: `config.model.attention` meets the machine.

`xla` runs everywhere. The others have limits, which are here once, for the checks of a config
and for the choice when a model is compiled; this module needs no JAX.
"""

LIMITED = ("cudnn", "splash")  # Every kernel but 'xla'.

BEST = {"gpu": "cudnn", "tpu": "splash"}  # What 'auto' prefers on a platform.

# Tokens a row from which 'auto' takes splash. Compiled for TPU v5e, forward and backward of a
# BERT-base attention layer with splash move 0.63 of the bytes of the plain one in rows of 512,
# 0.80 in rows of 256 and 0.94 in rows of 128, where a step of its grid has next to nothing
# to compute and still takes a few tenths of a microsecond.
SPLASH_FROM = 256


def choose(requested: str, platform: str, dtype: str, length: int, head_width: int,
           dropout: float) -> tuple[str, str]:
  """The kernel for a program, and the reason in words.

  One that was asked for by name and cannot run gives way to `xla`: `config.validate` refuses
  it for training, and what comes after (generation, say) has lengths of its own.

  Args:
    requested: 'auto', 'xla', 'cudnn' or 'splash'.
    platform: 'cpu', 'gpu' or 'tpu', that the program is compiled for.
    dtype: of the activations.
    length: tokens a row.
    head_width: width of one head.
    dropout: share of attention weights dropped; 0 when it is off.
  """
  name = BEST.get(platform, "xla") if requested == "auto" else requested
  if name in LIMITED:
    missing = obstacles(name, platform, dtype, length, head_width, dropout)
    if missing:
      return "xla", f"{name} needs {'; '.join(missing)}"
  if requested != "auto":
    return name, f"model.attention={requested!r}"
  if name == "splash" and length < SPLASH_FROM:
    return "xla", f"splash pays off from {SPLASH_FROM} tokens a row"
  return name, f"the best on platform {platform!r}"


def obstacles(kernel: str, platform: str, dtype: str, length: int, head_width: int,
              dropout: float) -> list[str]:
  """What one of `LIMITED` needs and does not get; [] if it can run. Arguments as of `choose`.

  The limits are those of `check_is_flash_attention` (cuDNN) and of splash_attention_kernel.py
  in JAX 0.10 to 0.12. Without a TPU, splash is interpreted on the CPU, for tests.

  Args:
    platform: '' if it is not known yet.
  """
  needs = {
      "cudnn": ((platform in ("", "gpu"), f"a GPU, this is platform {platform!r}"),
                (dtype in ("bfloat16", "float16"), f"model.dtype='bfloat16', not {dtype!r}"),
                (length % 2 == 0, f"an even number of tokens a row, not {length}"),
                (head_width % 8 == 0 and head_width <= 128,
                 f"heads of a multiple of 8 up to 128, not {head_width}")),
      "splash": ((platform in ("", "tpu", "cpu"), f"a TPU, this is platform {platform!r}"),
                 (length % 128 == 0, f"a multiple of 128 tokens a row, not {length}")),
  }
  no_dropout = (dropout == 0, f"model.attention_dropout=0.0, not {dropout}")
  return [need for is_met, need in (no_dropout, *needs[kernel]) if not is_met]
