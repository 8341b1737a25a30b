"""Mixtures: which corpora the rows of a phase come from, and in which shares.

`data.corpora` names prepared corpora, 'NAME=PATH,NAME=PATH'. `phases[].mixture` gives weights to
them, 'NAME=WEIGHT,NAME=WEIGHT'. The corpus of the run itself, `data.corpus`, has the name MAIN. A
phase without a mixture reads only this corpus. With `eval.corpora`, all named corpora are scored,
also those that no phase reads.

Names keep the weights, which all hosts share, apart from the paths, which may differ between hosts
and between starts of a run.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction

from bertgpt import files
from bertgpt.config import choices
from bertgpt.config.pretraining import ConfigDict

MAIN = "main"
# Names that other corpora cannot have. Their scores are named eval/NAME/mlm_loss.
RESERVED = {MAIN: "data.corpus", "validation": "the held-out documents of data.corpus"}
# The order of corpora repeats after this many rows at most: it is kept as a table.
MAX_PERIOD = 100_000

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
# A comma within a path does not end it, unless NAME= follows.
_NEXT_PATH = re.compile(rf",(?=\s*{_NAME.pattern}=)")
_WEIGHT = re.compile(r"([0-9]{1,18}(\.[0-9]{0,18})?|\.[0-9]{1,18})(e[+-]?[0-9]{1,2})?", re.I)


def find_paths(config: ConfigDict) -> dict[str, str]:
  """Returns name -> path of the corpora that `data.corpora` names; empty if there are none.

  Args:
    config: whole config.
  Raises:
    ValueError: the field is wrong; the message says how, without its name.
  """
  return _parse(_NEXT_PATH.split(config.data.corpora), "PATH") if config.data.corpora else {}


def describe_paths(config: ConfigDict, names: Iterable[str]) -> str:
  """Returns the paths of some corpora as in `data.corpora`; '' if there are none.

  Args:
    config: whole config.
    names: their names.
  """
  paths = find_paths(config)
  return ",".join(f"{name}={paths[name]}" for name in names)


def find_shares(p: ConfigDict) -> dict[str, Fraction]:
  """Returns name -> share of the rows of a phase, above 0; the shares add up to 1.

  Args:
    p: one of the phases.
  Raises:
    ValueError: `mixture` is wrong; the message says how, without its name.
  """
  if not p.mixture:
    return {MAIN: Fraction(1)}
  weights = {}
  for name, text in _parse(p.mixture.split(","), "WEIGHT").items():
    weights[name] = Fraction(text) if _WEIGHT.fullmatch(text) else Fraction(0)
    if not weights[name]:
      raise ValueError(f"the weight of {name} must be a number above 0, not {text!r}")
  total = sum(weights.values())
  return {name: weight / total for name, weight in weights.items()}


def period(shares: Mapping[str, Fraction]) -> int:
  """Returns the smallest number of rows in which every share is a whole number of rows."""
  return math.lcm(*(share.denominator for share in shares.values()))


def find_others(config: ConfigDict) -> list[str]:
  """Returns the sorted names of all corpora but MAIN that some phase reads."""
  return sorted({name for p in config.phases for name in find_shares(p)} - {MAIN})


def find_scored(config: ConfigDict) -> list[str]:
  """Returns the sorted names of all corpora but MAIN whose held-out documents are scored."""
  return sorted(find_paths(config)) if config.eval.corpora else []


def _parse(pieces: list[str], what: str) -> dict[str, str]:
  """Returns name -> value of pieces 'NAME=VALUE', in their order."""
  found: dict[str, str] = {}
  for piece in pieces:
    name, _, value = (part.strip() for part in piece.partition("="))
    if not _NAME.fullmatch(name) or not value:
      raise ValueError(f"give NAME={what}, or several separated by commas, not {piece.strip()!r}")
    if name in found:
      raise ValueError(f"has the name {name} twice")
    found[name] = value
  return found


def find_problems(config: ConfigDict) -> Iterator[str]:
  """Yields what is wrong with `data.corpora` and the mixtures, one line each.

  Args:
    config: whole config, whose names are among their choices.
  """
  corpora = f"data.corpora={config.data.corpora!r}"
  try:
    paths = find_paths(config)
  except ValueError as e:
    yield f"{corpora}: {e}"
    return
  for name in paths.keys() & RESERVED.keys():
    yield f"{corpora}: {name} is the name of {RESERVED[name]}. Choose another name"
  for path in paths.values():
    if problem := files.find_problem(path):
      yield f"data.corpora={problem}"
  if paths and not config.data.corpus:
    yield (f"{corpora}: set data.corpus too, to the prepared corpus with the tokenizer and the "
           "held-out documents of the run")
  for i, p in enumerate(config.phases):
    if problem := _find_in_mixture(config, p, (MAIN, *paths)):
      yield f"phases[{i}].mixture={p.mixture!r}: {problem}"


def _find_in_mixture(config, p, names):
  """Returns what is wrong with the mixture of a phase, or ''."""
  try:
    shares = find_shares(p)
  except ValueError as e:
    return str(e)
  if unknown := [name for name in shares if name not in names]:
    return (f"data.corpora has no {unknown[0]}. Choose among {', '.join(names)}, or add "
            f"{unknown[0]}=PATH to data.corpora")
  if (rows := period(shares)) > MAX_PERIOD:
    return (f"its shares are whole numbers of rows only in every {rows:,} rows, and at most "
            f"{MAX_PERIOD:,} are possible. Give weights with fewer digits, such as "
            + ",".join(f"{name}={max(float(share), 1e-3):.3f}" for name, share in shares.items()))
  if len(shares) > 1 and choices.OBJECTIVES[config.objective.name].continues_rows:
    return (f"with objective {config.objective.name}, a row continues the same row of the previous "
            "step, so all rows of a phase come from one corpus. Name only one")
  return ""


def find_unread(config: ConfigDict) -> Iterator[tuple[str, str]]:
  """Yields (field, line) if a corpus of `data.corpora` is not used, or none is to be scored."""
  paths = find_paths(config)
  if config.eval.corpora and not paths:
    yield "eval.corpora", ("eval.corpora=True: data.corpora names no corpus. Name those to score "
                           "in it, or leave eval.corpora at False")
  for name in sorted(paths.keys() - {*find_others(config), *find_scored(config)}):
    yield "data.corpora", (f"data.corpora={config.data.corpora!r}: no phases[].mixture names "
                           f"{name}. Leave it out, or score it with eval.corpora=True")
