"""Results of a fine-tuning workdir: results.json, the medians, the table.

    {"task", "init": what the runs start from, "rows": what they are trained and scored on,
     "gold": what scores compare with, if the labels of the rows are not all of it,
     "runs": [{"learning_rate", "seed", "folder", "steps", "seconds", "dev": {"f1": 0.9}},
              {"learning_rate", "seed", "folder", "diverged": true}],
     "predicted": {folder of a run: {"test": fingerprint of its rows}}, of sets without labels,
     "medians": [{"learning_rate", "seeds", "dev": {...}}], "best_rate", "best_run"}
"""

import hashlib
import json
import pathlib
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from bertgpt import console, files, trees
from bertgpt.config import ConfigDict, resuming
from bertgpt.config import finetuning as finetune_config
from bertgpt.config.stored import from_json
from bertgpt.errors import ConfigError
from bertgpt.finetuning import resume
from bertgpt.finetuning.tasks.rows import Task
from bertgpt.runs import checkpoint, folder_kinds
from bertgpt.runs.trained import Trained


def runs_of(config: ConfigDict) -> list[tuple[float, int]]:
  """Returns (learning rate, seed) of every run of a config, in order."""
  return [(rate, seed) for rate in config.learning_rates for seed in config.seeds]


def run_name(rate: float, seed: int) -> str:
  """Returns the name of a run's folder, 'lr5e-05-seed0'.

  Args:
    rate: peak learning rate; the name has all of its digits.
    seed: seed of the run.
  """
  return f"lr{rate!r}-seed{seed}"


def identify(init: pathlib.Path, pretrained: Trained, task: Task) -> dict[str, Any]:
  """Returns `init`, `rows` and `gold` of results.json: the start and the data of every run.

  Only `init.workdir` depends on where files are.

  Args:
    init: folder of the pretrained run.
    pretrained: model in that folder, before it has learned words of the task.
    task: task with its rows.
  """
  digest = hashlib.sha256()
  for name, x in trees.named_leaves(pretrained.params).items():
    digest.update(f"{name} {x.dtype} {x.shape}".encode())
    digest.update(x.tobytes())
  scored = {s.name: s.rows.fingerprint() for s in task.evals if s.score}
  gold = {s.name: hashlib.sha256(json.dumps(s.gold).encode()).hexdigest()
          for s in task.evals if s.score and s.gold is not None}
  return {"init": {"workdir": str(init), "step": pretrained.step,
                   "corpus": pretrained.corpus_identity,
                   "tokenizer": pretrained.tokenizer.fingerprint(), "params": digest.hexdigest()},
          "rows": {"train": task.train.fingerprint(), **scored}, "gold": gold}


def fingerprint_unlabeled(task: Task) -> dict[str, str]:
  """Returns set -> fingerprint of its rows, for the sets that are predicted and not scored.

  They may change between starts, because no result depends on them.

  Args:
    task: task with its rows.
  """
  return {s.name: s.rows.fingerprint() for s in task.evals if not s.score}


def read_results(path: pathlib.Path, config: ConfigDict, identity: dict[str, Any]
                 ) -> dict[str, Any]:
  """Returns the results of earlier starts in the same fine-tuning workdir.

  Args:
    path: fine-tuning workdir.
    config: config of this start.
    identity: result of `identify` in this start.
  Returns:
    The content of results.json; without earlier starts, it has no runs.
  Raises:
    ConfigError: the workdir holds something else, or results of another config.
    DataError: results.json is damaged.
  """
  results = {"task": config.task.name, **identity, "runs": [], "predicted": {}}
  stored = path / "config.json"
  if not stored.exists():
    folder_kinds.check_unused(path)
    return results
  try:
    old = from_json(stored.read_bytes(), finetune_config.base)
  except ConfigError:
    raise ConfigError(f"--workdir {path}: is not a fine-tuning workdir of this version. "
                      "Give another folder") from None
  lines = resuming.differences(old, config, finetune_config.RESUMABLE) if has_work(path) else []
  if (path / "results.json").exists():
    results = files.read_json(path / "results.json", "Restore it from a backup, or delete it to "
                              "repeat its runs")
    # Earlier versions did not write these.
    results = {"predicted": {}, "gold": identity["gold"]} | results
    init, rows, gold = (_changed_names(results.get(field, {}), identity[field])
                        for field in ("init", "rows", "gold"))
    lines += [f"{flag}: different from the earlier start: {', '.join(dict.fromkeys(names))}"
              for flag, names in (("--init", init), ("task.data", rows + gold)) if names]
  if lines:
    raise ConfigError(f"--workdir {path} holds different fine-tuning runs:\n  " + "\n  ".join(lines)
                      + "\nUse another --workdir")
  return results


def _changed_names(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  """Returns the names whose values differ, without `workdir`: folders may have moved."""
  return [name for name in new | old if name != "workdir" and new.get(name) != old.get(name)]


def has_work(path: pathlib.Path) -> bool:
  """Returns whether a fine-tuning workdir holds a completed run, or the state of another one.

  Args:
    path: fine-tuning workdir.
  """
  return (path / "results.json").exists() or any(
      folder_kinds.is_run(folder) or checkpoint.committed_steps(folder / resume.FOLDER)
      for folder in path.glob("lr*"))


def find_run(runs: Sequence[dict], rate: float, seed: int) -> dict[str, Any] | None:
  """Returns the row of a run, or None if the run is not completed.

  Args:
    runs: rows of completed runs, `runs` of results.json.
    rate: peak learning rate.
    seed: seed of the run.
  """
  return next((run for run in runs if (run["learning_rate"], run["seed"]) == (rate, seed)), None)


def describe_unpredicted(results: dict[str, Any], task: Task, path: pathlib.Path) -> Iterator[str]:
  """Yields a line for every set without labels that completed runs did not predict as it is now.

  Args:
    results: content of results.json. Runs of versions that wrote no `predicted` do not count.
    task: task with its rows.
    path: fine-tuning workdir.
  """
  for name, fingerprint in fingerprint_unlabeled(task).items():
    count = sum(sets.get(name) != fingerprint for sets in results["predicted"].values())
    if count:
      # `bertgpt predict` reads only local folders.
      place = "COPY_ON_A_DISK" if files.is_remote(path) else path
      yield (f"{count} of {len(results['predicted'])} completed runs did not predict {name}, which "
             f"is new or has changed. `bertgpt predict --workdir {place} --input FILE` predicts "
             "it, if weights were saved")


def write_results(path: pathlib.Path, results: dict[str, Any]) -> None:
  """Writes results.json, completely or not at all.

  Args:
    path: fine-tuning workdir.
    results: content of the file.
  """
  files.write_json(path / "results.json", results)


def summarize(results: dict[str, Any], config: ConfigDict) -> dict[str, Any]:
  """Returns the results with the medians over the seeds, the best learning rate and the best run.

  Only runs of the config that did not diverge count. The best learning rate is the one with the
  best median on dev. If no run counts, both are None.

  Args:
    results: content of results.json.
    config: fine-tuning config.
  """
  runs = [run for rate, seed in runs_of(config)
          if (run := find_run(results["runs"], rate, seed)) and "diverged" not in run]
  medians = []
  for rate in config.learning_rates:
    of_rate = [run for run in runs if run["learning_rate"] == rate]
    if of_rate:
      medians.append({"learning_rate": rate, "seeds": len(of_rate), **{
          name: {metric: statistics.median(run[name][metric] for run in of_rate)
                 for metric in of_rate[0][name]}
          for name in sets_of(of_rate[0])}})
  best = {"best_rate": max(medians, key=dev_score)["learning_rate"],
          "best_run": max(runs, key=dev_score)["folder"]} if runs else {
              "best_rate": None, "best_run": None}
  return results | {"medians": medians} | best


def sets_of(run: dict[str, Any]) -> list[str]:
  """Returns the names of the evaluation sets that a row of results.json has metrics for."""
  return [name for name, value in run.items() if isinstance(value, dict)]


def dev_score(run: dict[str, Any]) -> float:
  """Returns the mean of the task's metrics on the dev set, as in GLUE (Wang et al. 2018)."""
  return statistics.fmean(run["dev"].values())


def report(results: dict[str, Any], config: ConfigDict, task: Task) -> list[str]:
  """Returns the lines of a table with every run, the medians and the baseline.

  Args:
    results: summarized results.
    config: fine-tuning config.
    task: task, for its baseline: the scores of the answer that is most frequent in training.
  """
  table = []
  for rate, seed in runs_of(config):
    run = find_run(results["runs"], rate, seed)
    scores = flatten(run) or dict.fromkeys(flatten(task.baseline), "diverged")
    table.append({"learning rate": repr(rate), "seed": seed, **scores,
                  "seconds": run.get("seconds", "")})
  for median in results["medians"]:
    table.append({"learning rate": repr(median["learning_rate"]), "seed": "median",
                  **flatten(median)})
  table.append({"learning rate": "", "seed": "baseline", **flatten(task.baseline)})
  lines = ["  " + line for line in console.format_table(table)]
  return [*lines, "", f"Best on dev: {results['best_run']}; best median: learning rate "
          f"{results['best_rate']!r}. Baseline: the same answer to all examples."]


def flatten(run: dict[str, Any]) -> dict[str, str]:
  """Returns metrics as columns of a table, {'dev f1': '90.0%'}.

  Args:
    run: row of a run or a median in results.json, or {name of a set: metrics by name}.
  """
  return {f"{name} {metric}": f"{value:.1%}" for name in sets_of(run)
          for metric, value in run[name].items()}
