"""Tasks that a pretrained model is fine-tuned on: data, rows, official metrics. No JAX."""

from collections.abc import Callable
from typing import Any, NamedTuple

from bertgpt.config import ConfigDict, families
from bertgpt.errors import ConfigError
from bertgpt.finetuning.tasks import classes, glue, ner, squad
from bertgpt.finetuning.tasks.rows import Remarks, Task, TextFormat
from bertgpt.finetuning.tasks.scores import check_metrics


class Entry(NamedTuple):
  """A task that --task can name.

  Attributes:
    open: (config.task, format) -> task. It encodes the training set first, and sets without labels
      last: an ELMo learns the words that it lacks in the order in which they are encoded.
    kind: kind of its outputs, one of `families.ABILITIES`.
    reads: fields of a fine-tuning's config that this task reads, but some other task does not.
    columns: for tasks of texts, the columns and keys from which `bertgpt predict` reads them.
  """

  open: Callable[[Any, TextFormat], Task]
  kind: str
  reads: frozenset[str]
  columns: glue.Glue | None = None


_OF_TEXTS = frozenset({"pooling", "task.lm_weight", "task.truncation"})
_OF_SPANS = frozenset({"task.stride", "task.max_question", "task.max_answer", "task.n_best"})

TASKS = {
    **{name: Entry(glue.open_task, "classes" if task.labels else "values", _OF_TEXTS, task)
       for name, task in glue.TASKS.items()},
    "classes": Entry(classes.open_task, "classes", _OF_TEXTS | {"task.labels"}, classes.COLUMNS),
    "ner": Entry(ner.open_task, "tokens", frozenset()),
    "squad": Entry(squad.open_task, "spans", _OF_SPANS),
    "squad2": Entry(squad.open_task, "spans", _OF_SPANS | {"task.null_threshold"}),
}
for _name, _entry in TASKS.items():
  if _entry.columns:
    check_metrics(_name, _entry.columns.metrics, len(_entry.columns.labels))


def open_task(config: ConfigDict, text_format: TextFormat) -> Task:
  """Returns the task that `config.name` names, with its data.

  Args:
    config: group `task` of the fine-tuning config.
    text_format: format of the rows.
  Raises:
    ConfigError: fields of the config do not fit the task.
    DataError: files are missing, or are not in the official format.
  """
  task = TASKS[config.name].open(config, text_format)
  notes = list(task.notes)
  for name, rows in (("train", task.train), *((s.name, s.rows) for s in task.evals)):
    remarks = Remarks(text_format)
    remarks.add(rows)
    notes += remarks.lines(f"the {name} set")
  return task._replace(notes=tuple(notes))


def name_problems(name: str) -> list[str]:
  """Returns the problems with the name of a task, one line each."""
  return [] if name in TASKS else [f"--task {name}: choose one of {', '.join(TASKS)}"]


def check_family(name: str, config: ConfigDict) -> None:
  """Checks that a pretrained model's family can do a task.

  Args:
    name: key of `TASKS`.
    config: config of the pretrained run.
  Raises:
    ConfigError: the family cannot.
  """
  family = families.find(config)
  if not family.can(TASKS[name].kind):
    able = [f for f, record in families.FAMILIES.items() if record.can(TASKS[name].kind)]
    others = ", ".join(n for n, entry in TASKS.items() if family.can(entry.kind))
    raise ConfigError(f"--task {name} needs a model of {' or '.join(able)}, but the run of --init "
                      f"is a {config.model.family}. Give another --init"
                      + (f", or one of the tasks {others}" if others else ""))
