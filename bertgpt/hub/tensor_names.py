"""Names of the tensors in a file, and those of the same tensors in the tables of `architecture`.

Programs put additional names before or into the names of `transformers`, and save several models in
one file.
"""

import re
from collections.abc import Collection, Iterable, Sequence

from bertgpt.errors import DataError
from bertgpt.hub.architecture import Architecture

_TOKEN_TABLE = "embeddings/token/embedding"
# Ends of the names of tensors that are not parameters, which some `transformers` versions stored.
_BUFFERS = (".position_ids", ".token_type_ids", ".attn.bias", ".attn.masked_bias")
# What PyTorch's wrappers of a layer add to the names: torch.compile, FSDP, checkpoint_wrapper.
_WRAPPERS = re.compile(
    r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def rename(own_names: Iterable[str], candidates: Sequence[Architecture], heads: Collection[str]
           ) -> tuple[dict[str, str], tuple[str, ...]]:
  """Returns name in the tables -> name in the file, and the beginnings of names that are left out.

  The name of the token table reveals the prefix of a file.

  Args:
    own_names: names of the tensors in the file.
    candidates: architectures that the model may be.
    heads: names of the tensors of all their heads.
  Raises:
    DataError: two tensors are the same parameter, under its old and its new name; or there are
      several models, and none of them has the names of `transformers`.
  """
  prefix, other_heads = candidates[0].prefix, candidates[0].other_heads
  known = {*heads, *(name for a in candidates for name in a.tied)}
  plain = {own_name: _WRAPPERS.sub("", own_name) for own_name in own_names}
  own_prefix, outer, others = _find_prefixes(plain.values(), candidates[0])
  names: dict[str, str] = {}
  for own_name, name in plain.items():
    if name.startswith(others):
      continue
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):  # Names in the published BERT.
      name = name.removesuffix(old) + new if name.endswith(old) else name
    if own_prefix and name.startswith(own_prefix):
      name = prefix + name.removeprefix(own_prefix)
    else:
      name = name.removeprefix(outer)
      if not (own_prefix or name in known or name.startswith(other_heads)):
        name = prefix + name  # As in the published GPT-2.
    if name.endswith(_BUFFERS):
      continue
    if (other := names.setdefault(name, own_name)) != own_name:
      raise DataError(f"the tensors {other} and {own_name} are the same parameter. Remove one of "
                      "them, or choose another copy of the model")
  return names, others


def _find_prefixes(names: Iterable[str], architecture: Architecture
                   ) -> tuple[str, str, tuple[str, ...]]:
  """Returns the prefixes of names of features and of heads in a file, and those of other models.

  Some programs put an additional name before all names, as in 'module.bert.embeddings'. Of several
  models, such as a model and its moving average, the one without an additional name is taken.
  """
  (table,) = {rule.theirs for rule in architecture.rules if rule.ours.endswith(_TOKEN_TABLE)}
  prefix, end = architecture.prefix, table.removeprefix(architecture.prefix)
  found = list(dict.fromkeys(
      name.removesuffix(end) for name in names if f".{name}".endswith(f".{end}")))
  if len(found) < 2:
    own_prefix = found[0] if found else prefix
    return own_prefix, own_prefix.removesuffix(prefix) if own_prefix.endswith(prefix) else "", ()
  plain = [own_prefix for own_prefix in found if own_prefix in ("", prefix)]
  if not plain:
    shown = " and ".join(f"{own_prefix}*" for own_prefix in found[:3])
    raise DataError(f"the tensors are those of {len(found)} models, {shown}. Load the one that you "
                    "need with transformers, and save it alone with save_pretrained()")
  # If both are there, the error about a tensor without a place names one of them.
  own_prefix = plain[0] if len(plain) == 1 else prefix
  others = (other for other in found if other not in plain)
  return own_prefix, "", tuple(_additional_name(other, prefix) for other in others)


def _additional_name(own_prefix: str, prefix: str) -> str:
  """Returns 'ema.' for 'ema.bert.': the heads of another model have it too.

  A prefix such as 'cbert.' or 'bert.bert.' is returned as it is.
  """
  name = own_prefix.removesuffix(prefix)
  return name if name.endswith(".") and name != prefix else own_prefix
