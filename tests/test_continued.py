"""configs/continued.py and docs/continuing.md: a trained model is trained further on other text."""

import json
import pathlib
import shlex

import pytest
import small_runs
from program import curves
from test_docs import ROOT, commands

from bertgpt import cli
from bertgpt import config as config_lib
from bertgpt.config import recipes, unread
from bertgpt.errors import ConfigError
from bertgpt.runs import workdir

PAGE = (ROOT / "docs/continuing.md").read_text("utf-8")
# Flags that shrink the commands of the page to a test; they follow the flags of the page.
TINY = ["--config.phases[0].steps=2", "--config.phases[0].batch_size=8",
        "--config.phases[0].seq_len=32", "--config.eval.batch_size=8", "--config.eval.max_rows=16",
        "--config.model.dtype=float32", "--config.data.prepare_workers=1",
        "--config.log.tensorboard=False", "--config.system.compilation_cache="]
TINY_TASK = ["--config.task.max_length=32", "--config.epochs=1", "--config.seeds=0,",
             "--config.learning_rates=1e-3,", "--config.batch_size=8",
             "--config.system.compilation_cache="]


def made_tiny(argv: list[str]) -> list[str]:
  """A command of the page with the sizes of a test."""
  if argv[0] == "finetune":
    return [*argv, *TINY_TASK]
  if argv[0] == "evaluate":
    return [*argv, "--config.phases[0].seq_len=32", "--config.eval.batch_size=8"]
  return [*argv, *TINY] if argv[0] in ("prepare", "data", "train") else argv


def scores_of(capsys) -> dict[str, str]:
  return dict(line.split() for line in capsys.readouterr().out.splitlines())


def test_a_model_starts_where_the_run_ended(finished, tmp_path, capsys, monkeypatch):
  """After a step with a learning rate of almost 0, the loss is that of the run on this text."""
  monkeypatch.chdir(tmp_path)
  run = shlex.quote(str(finished))
  text = tmp_path / "text.txt"
  text.write_text(small_runs.make_text(60, seed=5))
  flags = [f"--config.data.source=text:{text}", f"--config.data.cache_dir={tmp_path / 'cache'}",
           "--config.data.validation_fraction=0.2", "--config.eval.batch_size=8"]
  rows = "--config.phases[0].seq_len=32"
  assert cli.main(["train", f"--config=continued:{run}", f"--workdir={tmp_path / 'new'}", *TINY,
                   *flags, rows, "--config.phases[0].steps=1", "--config.eval.max_rows=0",
                   "--config.phases[0].learning_rate=1e-12"]) == 0
  capsys.readouterr()
  assert cli.main(["evaluate", f"--workdir={finished}", *flags, rows]) == 0
  name = next(name for name in ("mlm_loss", "lm_loss") if f"eval/validation/{name}" in
              curves(tmp_path / "new"))
  ((_, loss),) = curves(tmp_path / "new")[f"eval/validation/{name}"]
  assert loss == pytest.approx(float(scores_of(capsys)[name]), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", small_runs.FAMILIES)
def test_every_family_is_continued(family, recipe, tmp_path):
  objective, *fields = small_runs.FAMILIES[family]
  train = lambda name, config, *flags: cli.main(
      ["train", f"--config={config}", f"--workdir={tmp_path / name}", *flags])
  assert train("first", f"{recipe}:{objective}", *fields, "--config.phases[0].steps=2") == 0
  (tmp_path / "text.txt").write_text(small_runs.make_text(60, seed=5))
  config = f"continued:{tmp_path / 'first'}"
  assert train("new", config, *TINY, f"--config.data.source=text:{tmp_path / 'text.txt'}",
               f"--config.data.cache_dir={tmp_path / 'cache'}") == 0
  first, new = (workdir.read_config(tmp_path / name) for name in ("first", "new"))
  assert new.objective == first.objective
  assert {field for field in first.model if first.model[field] != new.model[field]} <= {
      "vocab_size", "target_words", "dtype"}


def test_the_recipe_keeps_the_model_and_not_the_text(finished_gpt):
  trained, config = workdir.read_config(finished_gpt), recipes.load(f"continued:{finished_gpt}")
  assert config.objective == trained.objective
  assert config.data.source != trained.data.source and config.model.vocab_size == 0
  assert config.tokenizer.path == f"{finished_gpt}/tokenizer"
  assert config.phases[0].seq_len == trained.model.max_positions < 512
  assert config_lib.find_problems(config) == unread.find_problems(config) == []


def test_the_last_phase_says_what_the_model_and_the_objective_are(recipe, tmp_path):
  """But not what is held out: the source is another."""
  for name, seed in (("a", 1), ("b", 2)):
    (tmp_path / f"{name}.txt").write_text(small_runs.make_text(30, seed=seed))
  run = tmp_path / "run"
  assert cli.main(["train", f"--config={recipe}:mlm", f"--workdir={run}", *TINY,
                   "--config.phases[0].mask_prob=0.3", "--config.data.validation_fraction=0",
                   f"--config.data.source=text:{tmp_path}/a.txt,validation*text:{tmp_path}/b.txt",
                   f"--config.data.cache_dir={tmp_path / 'cache'}"]) == 0
  config = recipes.load(f"continued:{run}/")  # As a shell completes it.
  assert config.objective.mask_prob == 0.3 != workdir.read_config(run).objective.mask_prob
  assert config.data.validation_fraction > 0 and config.init_from == str(run)


def test_a_run_that_is_missing_or_forgotten_is_one_line(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ConfigError, match="--config continued: .*/none: no such folder. Give the"):
    recipes.load("continued:none")
  pathlib.Path("domain").mkdir()
  pathlib.Path("domain/a.jsonl").write_text('{"text": "a"}\n')
  assert cli.main(["train", "--config=continued", "--workdir=new"]) == 2
  error = capsys.readouterr().err
  assert f"--config.init_from {tmp_path}/RUN: no such folder" in error and error.count("\n") == 1


@pytest.mark.slow
def test_the_commands_of_the_page_work_in_small(finished_bert, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  assert cli.main(["export", f"--workdir={finished_bert}", "--out=bert-base-uncased"]) == 0
  pathlib.Path("domain").mkdir()
  pathlib.Path("domain/a.jsonl").write_text("".join(
      json.dumps({"text": text}) + "\n"
      for text in small_runs.make_text(60, seed=5).split("\n\n")))
  pathlib.Path("general.txt").write_text(small_runs.make_text(9, seed=6))
  pathlib.Path("labeled").mkdir()
  for name in ("train", "dev"):
    pathlib.Path(f"labeled/{name}.tsv").write_text(
        "text\tlabel\n" + "the cat sees the dog\tpet\nthe stone holds a river\tother\n" * 8)
  done, losses = [], {}
  for argv in commands(PAGE):
    if argv[0] == "plan":  # Needs the compiler of TPUs or GPUs.
      continue
    capsys.readouterr()
    assert cli.main(made_tiny(argv)) == 0, shlex.join(argv)
    done.append(argv[0])
    if argv[0] == "evaluate":
      losses[argv[-2].rpartition("/")[2]] = float(scores_of(capsys)["mlm_loss"])
  assert set(done) == {"import", "train", "prepare", "data", "evaluate", "finetune", "export"}
  found = curves(pathlib.Path("runs/adapted"))
  for tag, name in (("validation", "domain"), ("general", "general")):
    assert found[f"eval/{tag}/mlm_loss"][-1][1] == pytest.approx(losses[name], rel=0.05)
