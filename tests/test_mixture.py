"""A run on a mixture of corpora: other data in a later phase, resumed exactly, and told apart."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import small_runs
from program import curves, fingerprints

from bertgpt import cli
from bertgpt.data.batches import loader
from bertgpt.data.batches.mixture import PhaseRows
from bertgpt.data.corpus.corpus import open_corpus
from bertgpt.runs import checkpoint, workdir

FIRST = {"steps": 4}
SECOND = {"steps": 8, "mixture": "main=0.25,books=0.75"}
RECIPE = """
from bertgpt.config import phase, recipes


def get_config():
  config = recipes.load("{recipe}")
  config.data.update({data})
  config.phases = tuple(phase(seq_len=32, batch_size=8, learning_rate=2e-2, schedule="constant",
                              **fields) for fields in {phases})
  config.log.every_steps = 1
  return config
"""


def prepare(recipe, folder, name, *arguments):
  assert cli.main(["prepare", f"--config={recipe}", f"--out={folder / name}", *arguments]) == 0
  return folder / name


@pytest.fixture(scope="module")
def folder(recipe, tmp_path_factory) -> pathlib.Path:
  """Holds main and books, with one tokenizer, and others, with a tokenizer of its own."""
  folder = tmp_path_factory.mktemp("corpora")
  (folder / "books.txt").write_text(small_runs.make_text(90, seed=7))
  books = f"--config.data.source=text:{folder}/books.txt"
  main = prepare(recipe, folder, "main")
  prepare(recipe, folder, "books", books, f"--config.tokenizer.path={main}/tokenizer")
  prepare(recipe, folder, "others", books, "--config.tokenizer.vocab_size=60")
  return folder


@pytest.fixture
def train(recipe, folder, tmp_path, capsys):
  """Trains a run with some phases; returns its workdir, or the error."""
  def train(name, *phases, data=None, flags=(), code=0):
    data = {"corpus": str(folder / "main"), "corpora": f"books={folder / 'books'}"} | (data or {})
    if not any(p.get("mixture") for p in phases):
      data["corpora"] = ""
    file = tmp_path / "mixed.py"
    file.write_text(RECIPE.format(recipe=recipe, data=data, phases=phases))
    capsys.readouterr()
    assert cli.main(["train", f"--config={file}", f"--workdir={tmp_path / name}", *flags]) == code
    return capsys.readouterr().err if code else tmp_path / name

  return train


def test_a_phase_on_other_data_may_be_added_and_continued_bit_for_bit(train, folder):
  """The state of the optimizer is kept, and the rows are those of a run without a stop."""
  whole = train("whole", FIRST, SECOND)
  parts = train("parts", FIRST)
  assert "corpora" not in checkpoint.restore_params(parts)[1]
  assert "phases[1]: no such phase -> 3 steps of 8 rows of 32 tokens from main=0.25,books=0.75" in (
      train("parts", FIRST, SECOND | {"steps": 3}, code=2))
  train("parts", FIRST, SECOND | {"steps": 3}, flags=["--allow_change=phases[1]"])
  train("parts", FIRST, SECOND)
  assert fingerprints(parts) == fingerprints(whole)
  assert curves(parts)["train/loss"] == curves(whole)["train/loss"]
  report = (whole / "report.md").read_text()
  assert report == (parts / "report.md").read_text().replace(str(parts), str(whole))
  assert ("  phase 0: main 100.00% of 32 rows\n"
          "  phase 1: main 25.00%, books 75.00% of 64 rows\n") in report
  _, metadata = checkpoint.restore_params(whole)
  assert metadata["corpora"] == {"books": open_corpus(folder / "books", "train").identity}


def test_the_held_out_documents_of_every_corpus_are_scored(train, folder, capsys, tmp_path):
  """The scores are those of `bertgpt evaluate` on each corpus, in the dtype of the training."""
  run = train("run", SECOND, flags=["--config.eval.corpora=True", "--config.eval.every_steps=4"])
  found = curves(run)
  assert [step for step, _ in found["eval/books/mlm_loss"]] == [4, 8]
  report = (run / "report.md").read_text()
  for name, tag in (("main", "validation"), ("books", "books")):
    capsys.readouterr()
    assert cli.main(["evaluate", f"--workdir={run}",
                     f"--config.data.corpus={folder / name}"]) == 0
    scores = dict(line.split() for line in capsys.readouterr().out.splitlines())
    for metric in ("mlm_loss", "mlm_accuracy", "nsp_loss"):
      logged = found[f"eval/{tag}/{metric}"][-1][1]
      assert logged == pytest.approx(float(scores[metric]), rel=1e-4)
    assert f"\n  {name} {found[f'eval/{tag}/mlm_loss'][-1][1]:.4g}\n" in report
  capsys.readouterr()  # The mixture of the training does not stand in the way of another text.
  assert cli.main(["evaluate", f"--workdir={run}", "--config.data.corpus=",
                   f"--config.data.source=text:{folder}/books.txt"]) == 0
  assert "mlm_loss" in capsys.readouterr().out
  books, main = (dict(found[f"eval/{tag}/mlm_loss"])[8] for tag in ("books", "validation"))
  assert books != main
  assert cli.main(["export", f"--workdir={run}", f"--out={tmp_path / 'out'}"]) == 0
  card = (tmp_path / "out" / "README.md").read_text()
  for line in ("- More data: `books=books`; `main` is the first.",
               "- Rows of phase 0: main 25.00%, books 75.00% of 64 rows.",
               "  config.data.corpora = 'books=books'"):
    assert f"{line}\n" in card
  assert str(folder) not in card


def test_a_corpus_may_be_only_scored_and_changes_nothing(train, folder, capsys, tmp_path, recipe):
  """All documents of a corpus with validation_fraction=1 are scored, and none is trained on."""
  (tmp_path / "own.txt").write_text(small_runs.make_text(7, seed=11))
  own = prepare(recipe, tmp_path, "own", f"--config.data.source=text:{tmp_path}/own.txt",
                f"--config.tokenizer.path={folder}/main/tokenizer",
                "--config.data.validation_fraction=1")
  plain = train("plain", FIRST)
  flags = [f"--config.data.corpora=own={own}", "--config.eval.corpora=True"]
  run = train("run", FIRST, flags=flags)
  assert fingerprints(run) == fingerprints(plain)
  found = curves(run)
  assert found["train/loss"] == curves(plain)["train/loss"]
  assert found["eval/validation/mlm_loss"] == curves(plain)["eval/validation/mlm_loss"]
  capsys.readouterr()
  assert cli.main(["evaluate", f"--workdir={run}", f"--config.data.corpus={own}"]) == 0
  printed = capsys.readouterr()
  scores = dict(line.split() for line in printed.out.splitlines())
  ((_, loss),) = found["eval/own/mlm_loss"]
  assert loss == pytest.approx(float(scores["mlm_loss"]), rel=1e-4)
  num_documents = len(open_corpus(own, "validation"))
  assert num_documents > 1 and f"from {num_documents} held-out documents" in printed.err
  assert cli.main(["export", f"--workdir={run}", f"--out={tmp_path / 'out'}"]) == 0
  assert "- More data" not in (tmp_path / "out" / "README.md").read_text()
  error = train("other", FIRST, data={"corpus": str(own)}, code=65)
  assert f"{own}: has no documents to train on" in error and error.count("\n") == 1


def test_an_official_validation_file_is_the_validation_split_of_a_run(train, capsys, tmp_path,
                                                                      recipe):
  """Its scores are those of this text, prepared on its own."""
  for name, size in (("train", 90), ("valid", 12)):
    (tmp_path / f"{name}.txt").write_text(small_runs.make_text(size, seed=size))
  valid = f"text:{tmp_path}/valid.txt"
  data = {"corpus": "", "source": f"text:{tmp_path}/train.txt,validation*{valid}",
          "validation_fraction": 0.0}
  train("run", FIRST, data=data)
  run = train("run", FIRST | {"steps": 6}, data=data)
  own = prepare(recipe, tmp_path, "own", f"--config.data.source={valid}",
                f"--config.tokenizer.path={run}/tokenizer", "--config.data.validation_fraction=1")
  assert len(open_corpus(own, "validation")) == 12
  for flags in ([], [f"--config.data.corpus={own}"]):
    capsys.readouterr()
    assert cli.main(["evaluate", f"--workdir={run}", *flags]) == 0
    printed = capsys.readouterr()
    scores = dict(line.split() for line in printed.out.splitlines())
    logged = dict(curves(run)["eval/validation/mlm_loss"])[6]
    assert logged == pytest.approx(float(scores["mlm_loss"]), rel=1e-4)
    assert "from 12 held-out documents" in printed.err
  assert cli.main(["export", f"--workdir={run}", f"--out={tmp_path / 'out'}"]) == 0
  assert ("- Data: `text:train.txt,validation*text:valid.txt`, of which the sources after "
          "`validation*` are held out;") in (tmp_path / "out" / "README.md").read_text()


def test_a_skipped_step_names_the_documents_of_every_corpus(train, folder):
  run = train("run", SECOND, flags=["--config.train.spike_guard=skip", "--config.train.spike_factor"
                                    "=1.0", "--config.train.spike_window=4"])
  line = json.loads((run / "skipped.jsonl").read_text().splitlines()[0])
  main, books = (open_corpus(folder / name, "train") for name in ("main", "books"))
  rows = PhaseRows(main, workdir.read_config(run), 0, {"books": books})
  batch = rows.read(np.arange(*line["rows"]))
  assert line["sha256"] == loader.batch_sha256(batch)
  assert line["documents"].keys() == {"main", "books"}
  for corpus, documents in ((main, line["documents"]["main"]), (books, line["documents"]["books"])):
    known = set(np.concatenate(corpus.tokens(documents)).tolist())
    assert documents == sorted(set(documents)) and known


@pytest.mark.parametrize("data, code, parts", [
    ({"corpora": "books={}/others"}, 65,
     ("data.corpora: books={}/others: was prepared with another tokenizer than data.corpus={}/main",
      "with --config.tokenizer.path={}/main/tokenizer")),
    ({"corpora": "books={}/main"}, 65, ("is the same corpus as main. Give one name",)),
    ({"corpora": "books={}"}, 65, ("{}: not a prepared corpus",)),
])
def test_corpora_that_cannot_be_mixed_are_one_line(train, folder, data, code, parts):
  data = {name: value.format(folder) for name, value in data.items()}
  error = train("run", SECOND, data=data, code=code)
  assert error.count("\n") == 1
  for part in parts:
    assert part.replace("{}", str(folder)) in error


def test_a_run_continues_with_a_moved_corpus_but_not_with_another(train, folder, tmp_path, recipe):
  run = train("run", SECOND | {"steps": 2})
  moved = {"corpora": f"books={shutil.copytree(folder / 'books', tmp_path / 'moved')}"}
  train("run", SECOND | {"steps": 3}, data=moved)
  (tmp_path / "new.txt").write_text(small_runs.make_text(60, seed=9))
  new = prepare(recipe, tmp_path, "new", f"--config.data.source=text:{tmp_path}/new.txt",
                f"--config.tokenizer.path={folder}/main/tokenizer")
  error = train("run", SECOND | {"steps": 4}, data={"corpora": f"books={new}"}, code=65)
  assert re.search(f"{run}: its checkpoints were made with another corpus books. .*"
                   "--config.data.corpora=books=PATH", error)
  error = train("run", SECOND | {"steps": 4, "mixture": "main=0.5,books=0.5"}, code=2)
  assert "phases[0].mixture: 'main=0.25,books=0.75' -> 'main=0.5,books=0.5'" in error


def test_bertgpt_data_shows_every_corpus(recipe, folder, capsys):
  assert cli.main(["data", f"--config={recipe}", f"--config.data.corpus={folder}/main",
                   f"--config.data.corpora=books={folder}/books",
                   "--config.phases[0].mixture=main=1,books=3"]) == 0
  out = capsys.readouterr().out
  assert f"corpus     {folder}/main\n" in out and f"corpus     books={folder}/books\n" in out
  assert "share of the rows  75.00%, 120 rows" in out
