"""Fields that a config sets although none of its choices reads them.

A new run with such a config is refused, because the author of the config expects an effect. A run
that an earlier version started with such a field can continue, since the field changes nothing.

Two fields replace others, whatever these are set to, so that a recipe can be used with another text
or tokenizer: `data.corpus` replaces the fields that prepare a corpus (`data.source`, `tokenizer`,
...), and `tokenizer.path` those that train a tokenizer.

    Irrelevant     (field that is a choice, the choice, fields that only other choices read)
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bertgpt.config import choices, families, mixtures
from bertgpt.config.derived import PHASE_OF_MODEL
from bertgpt.config.pretraining import ConfigDict, base, leaves, phase
from bertgpt.errors import refuse

Irrelevant = tuple[str, Any, list[str]]

MAX_KEY_SEED = 2**32 - 1  # JAX makes its keys from 32 bits.


def check(config: ConfigDict, begun: ConfigDict | None = None) -> None:
  """Refuses a config with a field that its choices do not read.

  Args:
    config, begun: see `find_problems`.
  Raises:
    ConfigError: there are such fields; the message has one line per field.
  """
  refuse(find_problems(config, begun))


def find_problems(config: ConfigDict, begun: ConfigDict | None = None) -> list[str]:
  """Returns one line per field that the config sets and nothing reads.

  Args:
    config: whole config, without problems according to `config.find_problems`.
    begun: config of the run that continues, whose fields may stay as they are; None: a new run.
  """
  values, old = dict(leaves(config)), {} if begun is None else dict(leaves(begun))
  return [line for field, line in _find(config)
          if field not in old or old[field] != values[field]]


def unset_fields(config: ConfigDict) -> set[str]:
  """Returns the fields 'a.b' that nothing reads and the config does not set.

  Args:
    config: config of a start that resumes a run. If an earlier version, which accepted such fields,
      started the run, the stored config may set them.
  """
  unread = {field for _, _, fields in _irrelevant(config) for field in fields}
  return unread - {field for field, _ in _find_in_groups(config)}


def _find(config) -> Iterator[tuple[str, str]]:
  """Yields (field, line that says what is wrong with it)."""
  yield from _find_in_groups(config)
  yield from mixtures.find_unread(config)
  if config.seed > MAX_KEY_SEED:
    yield "seed", (f"seed={config.seed}: initial values and masks read only its last 32 bits. "
                   f"Choose a number up to {MAX_KEY_SEED}")
  curve = None  # Phase that defines the current curve of learning rates.
  for i, p in enumerate(config.phases):
    is_continued = curve is not None and p.learning_rate_rule == "continuous"
    for field, reason in _find_in_phase(config, p, curve if is_continued else None):
      yield f"phases[{i}].{field}", f"phases[{i}].{field}={p[field]!r}: {reason}"
    curve = curve if is_continued else p


def of_others(choice: str, name: Any, readers: Mapping[Any, Iterable[str]]) -> Irrelevant:
  """Returns the fields that a choice does not read, but others do.

  Args:
    choice: field that is the choice.
    name: its value.
    readers: value -> fields that it reads, but some other value does not.
  """
  return choice, name, sorted(set().union(*readers.values()) - set(readers[name]))


def irrelevant_in_all(values: Mapping[str, Any]) -> Iterator[Irrelevant]:
  """Yields the fields that are not read, of the groups that fine-tuning configs have too.

  Args:
    values: field -> value, of a pretraining or a fine-tuning config.
  """
  yield of_others("optimizer.name", values["optimizer.name"], choices.OPTIMIZERS)
  if not choices.names_of_trackers(values["log.trackers"]):
    yield "log.trackers", values["log.trackers"], ["log.group", "log.project"]


def _irrelevant(config) -> Iterator[Irrelevant]:
  values = dict(leaves(config))
  for choice, readers in (
      ("model.family", {name: {f"model.{field}" for field in family.reads}
                        for name, family in families.FAMILIES.items()}),
      ("objective.name", {name: objective.reads
                          for name, objective in choices.OBJECTIVES.items()}),
      ("data.packing", choices.PACKING), ("train.spike_guard", choices.SPIKE_GUARDS),
      ("model.norm", choices.NORMS), ("model.norm_kind", choices.NORM_KINDS),
      ("model.position", choices.POSITIONS)):
    yield of_others(choice, values[choice], readers)
  yield "model.family", values["model.family"], sorted(
      f"model.{field}" for field in families.find(config).ignores)
  yield from irrelevant_in_all(values)
  kind = values["tokenizer.kind"]
  if not values["tokenizer.path"] and not values["data.corpus"] and kind in choices.TOKENIZERS:
    yield of_others("tokenizer.kind", kind, choices.TOKENIZERS)
  if not values["model.window"]:
    yield "model.window", 0, ["model.global_every", "model.rope_theta_local"]
  elif values["model.global_every"] == 0:  # Every layer has the window.
    yield "model.global_every", 0, ["model.rope_theta"]
  elif values["model.global_every"] == 1:  # No layer has the window.
    yield "model.global_every", 1, ["model.window", "model.rope_theta_local"]


def _find_in_groups(config):
  return find_set(dict(leaves(config)), dict(leaves(base())), _irrelevant(config))


def find_set(values: Mapping[str, Any], defaults: Mapping[str, Any],
             irrelevant: Iterable[Irrelevant]) -> Iterator[tuple[str, str]]:
  """Yields (field, line that names it) for the fields that are set although nothing reads them.

  Args:
    values: field -> value.
    defaults: field -> default.
    irrelevant: the fields that nothing reads.
  """
  found = set()  # One reason per field is enough.
  for choice, name, fields in irrelevant:
    for field in fields:
      unused = (defaults[field], choices.UNUSED.get(field, defaults[field]))
      if field not in found and values[field] not in unused:
        found.add(field)
        yield field, (f"{field}={values[field]!r}: {choice}={name!r} does not read it. Leave it "
                      f"at {defaults[field]!r}")


def _find_in_phase(config, p, continued):
  """Yields (field of the phase, reason).

  Args:
    config: config of the run.
    p: the phase.
    continued: the phase whose curve `p` continues, or None.
  """
  default = phase()
  if choices.OBJECTIVES[config.objective.name].predicts_all:
    for field in ("max_predictions", "mask_prob"):
      if p[field]:
        yield field, (f"objective.name={config.objective.name!r} predicts every token. Leave it "
                      f"at {default[field]!r}")
  unset = unset_fields(config)
  for field in PHASE_OF_MODEL:
    if p[field] and f"model.{field}" in unset:
      yield field, f"the model does not read model.{field}. Leave it at {default[field]!r}"
  if continued is not None:
    for field in choices.CURVE:
      if p[field] not in (default[field], continued[field]):
        yield field, ("learning_rate_rule='continuous' continues the curve of the previous phase, "
                      f"whose {field} is {continued[field]!r}. Leave it out, or set "
                      "learning_rate_rule='restart'")
    return
  unread = set().union(*choices.SCHEDULES.values()) - choices.SCHEDULES[p.schedule]
  for field in sorted(unread):
    if p[field] != default[field]:
      yield field, (f"schedule={p.schedule!r} does not read it. Leave it at {default[field]!r}")
  if p.schedule == "wsd" and p.decay_fraction == 0:
    for field in ("end_fraction", "power"):
      if p[field] != default[field]:
        yield field, (f"decay_fraction=0.0 never lowers the learning rate. Leave it at "
                      f"{default[field]!r}")
  if not (p.warmup_steps or p.warmup_fraction):
    for field in choices.WARMUP_FIELDS:
      if field not in unread and p[field] != default[field]:
        yield field, ("the phase has no warm-up. Set warmup_steps or warmup_fraction, or leave it "
                      f"at {default[field]!r}")
