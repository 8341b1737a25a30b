"""What the name of a metric, or the tag of its curve, says about it."""

LOSS = "_loss"
PERPLEXITY = "_perplexity"
SHARES = ("_accuracy", "_precision", "_recall", "_f1")


def is_loss(tag: str) -> bool:
  """Returns whether a metric, or a curve, is a loss: in nats, and better if it is low."""
  return tag.endswith(LOSS)


def is_share(tag: str) -> bool:
  """Returns whether a metric, or a curve, is a share: from 0 to 1, and better if it is high."""
  return tag.endswith(SHARES)


def has_direction(tag: str) -> bool:
  """Returns whether it is known if a metric should be high, as a share, or low, as a loss."""
  return tag.endswith((LOSS, PERPLEXITY, *SHARES))
