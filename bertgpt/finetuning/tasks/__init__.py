"""Tasks that a pretrained model is fine-tuned on: data, features, official metrics; no JAX."""

from collections.abc import Callable
from typing import Any, NamedTuple

from bertgpt.errors import ConfigError
from bertgpt.finetuning.tasks import glue, ner, squad
from bertgpt.finetuning.tasks.rows import Format, Task


class Entry(NamedTuple):
  """Args: open: (config.task, format) -> task; families: that can do it."""

  open: Callable[[Any, Format], Task]
  families: tuple[str, ...]


TASKS = {
    **{name: Entry(glue.open_task, ("bert", "gpt")) for name in glue.TASKS},
    "ner": Entry(ner.open_task, ("bert",)),
    **{name: Entry(squad.open_task, ("bert",)) for name in squad.VERSIONS},
}


def open_task(config, form: Format) -> Task:
  """The task that `config.task` names, with its data.

  Raises:
    DataError: the data is missing, or not as the task has it.
  """
  return TASKS[config.name].open(config, form)


def name_problems(name: str) -> list[str]:
  return [] if name in TASKS else [f"--task {name}: choose one of {', '.join(TASKS)}"]


def check_family(name: str, family: str) -> None:
  """Raises ConfigError where models of the family cannot do the task."""
  if family not in TASKS[name].families:
    raise ConfigError(f"--task {name} needs a {' or '.join(TASKS[name].families)}, but the run of "
                      f"--init is a {family}; give another --init, or one of the tasks "
                      f"{', '.join(n for n, entry in TASKS.items() if family in entry.families)}")
