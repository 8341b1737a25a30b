"""Medians, the best run and the table of invented runs."""

import json
import types

import numpy as np
import pytest

from bertgpt.config import finetuning as finetune_config
from bertgpt.config.stored import to_json
from bertgpt.errors import ConfigError, DataError
from bertgpt.finetuning.results import (
  flatten,
  identify,
  read_results,
  report,
  run_name,
  runs_of,
  summarize,
)
from bertgpt.finetuning.tasks import rows as rows_lib


def make_config(rates, seeds=(0, 1, 2)):
  config = finetune_config.base()
  config.learning_rates, config.seeds = rates, seeds
  return config


def make_runs(values):
  """Returns rows of results.json from {rate: dev F1 by seed}; None stands for a diverged run."""
  return [{"learning_rate": rate, "seed": seed, "folder": f"{rate}-{seed}", **(
      {"diverged": True} if value is None else
      {"seconds": 1.0, "dev": {"f1": value, "accuracy": value / 2}})}
          for rate, of_seeds in values.items() for seed, value in enumerate(of_seeds)]


def test_what_scores_compare_with_is_part_of_the_identity(tmp_path):
  """A question has only one label, but several right answers."""
  tokenizer = types.SimpleNamespace(fingerprint=lambda: "")
  model = types.SimpleNamespace(params={}, step=1, corpus_identity="", tokenizer=tokenizer)
  rows = rows_lib.Rows([], [], np.zeros(0, np.int32))

  def make(gold):
    sets = (rows_lib.EvalSet("dev", rows, dict, print, gold=gold),
            rows_lib.EvalSet("test", rows, None, print))
    return identify(tmp_path, model, rows_lib.Task("squad", "spans", (), rows, sets, {}))

  one, two = make([["Bob"]]), make([["Bob", "Bob Smith"]])
  assert one["rows"] == two["rows"] and one["gold"].keys() == {"dev"}
  config = make_config((1e-5,))
  (tmp_path / "config.json").write_text(to_json(config))
  (tmp_path / "results.json").write_text(json.dumps({"runs": [], **one}))
  assert read_results(tmp_path, config, one)["gold"] == one["gold"]
  with pytest.raises(ConfigError, match="task.data: different from the earlier start: dev\n"):
    read_results(tmp_path, config, two)
  del one["gold"]  # An earlier version wrote it.
  (tmp_path / "results.json").write_text(json.dumps({"runs": [], **one}))
  assert read_results(tmp_path, config, two)["gold"] == two["gold"]


def test_medians_and_the_best_run():
  runs = make_runs({1e-5: (0.5, 0.9, 0.6), 2e-5: (0.7, 0.7, 0.1)})
  results = summarize({"runs": runs}, make_config((1e-5, 2e-5)))
  assert [m["dev"]["f1"] for m in results["medians"]] == [0.6, 0.7]
  assert (results["best_rate"], results["best_run"]) == (2e-5, "1e-05-1")
  assert flatten(results["medians"][0]) == {"dev f1": "60.0%", "dev accuracy": "30.0%"}


def test_runs_that_diverged_do_not_count():
  config = make_config((1e-5, 2e-5))
  runs = make_runs({1e-5: (None, 0.9, 0.6), 2e-5: (None, None, None)})
  results = summarize({"runs": runs}, config)
  assert results["medians"] == [
      {"learning_rate": 1e-5, "seeds": 2, "dev": {"f1": 0.75, "accuracy": 0.375}}]
  task = types.SimpleNamespace(baseline={"dev": {"f1": 0.5, "accuracy": 0.25}})
  lines = [line.split() for line in report(results, config, task)]
  assert lines[0] == ["learning", "rate", "seed", "dev", "f1", "dev", "accuracy", "seconds"]
  assert lines[1] == ["1e-05", "0", "diverged", "diverged"]
  results = summarize({"runs": runs[3:]}, make_config((2e-5,)))
  assert (results["medians"], results["best_rate"], results["best_run"]) == ([], None, None)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"runs": [', b"\xff", b"[" * 100_000])
def test_damaged_results_are_named(tmp_path, content):
  config = make_config((1e-5,))
  (tmp_path / "config.json").write_text(to_json(config))
  (tmp_path / "results.json").write_bytes(content)
  with pytest.raises(DataError, match="results.json: .*. Restore it from a backup, or delete it"):
    read_results(tmp_path, config, {"init": {}, "rows": {}})


def test_every_run_has_a_folder_of_its_own():
  """Learning rates that agree in six digits have different folders."""
  config = make_config((1e-5, 1.0000001e-5, 3e-4))
  names = [run_name(*run) for run in runs_of(config)]
  assert len(set(names)) == 9 and names[0] == "lr1e-05-seed0"


def test_a_folder_of_other_files_is_refused(tmp_path):
  (tmp_path / "a.md").write_text("")
  with pytest.raises(ConfigError, match="holds files, but no run"):
    read_results(tmp_path, make_config((1e-5,)), {})
