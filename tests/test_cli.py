"""bertgpt.cli: a user's mistakes end in one clear line and the documented exit code."""

import contextlib
import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import small_runs

from bertgpt import cli, errors
from bertgpt import config as config_lib
from bertgpt.commands import prepare
from bertgpt.commands.parser import Parser
from bertgpt.config import finetuning
from bertgpt.config.overrides import override
from bertgpt.config.stored import to_json
from bertgpt.data.corpus import corpus as corpus_lib
from bertgpt.training import evaluate_run

ROOT = pathlib.Path(__file__).parents[1]
CONFIG, DATA, STORAGE = (error.exit_code for error in
                         (errors.ConfigError, errors.DataError, errors.StorageError))


def run(capsys, *argv) -> tuple[int, list[str]]:
  """Returns (exit code, lines on stderr) of a command that must not raise."""
  capsys.readouterr()
  code = cli.main([str(a) for a in argv])
  return code, capsys.readouterr().err.splitlines()


def files_under(path: pathlib.Path) -> set[str]:
  return {str(p.relative_to(path)) for p in path.rglob("*")}


# ------------------------------------------------------------------- flags


def test_a_field_whose_value_has_a_space_is_not_the_value_of_another_flag():
  """argparse takes an unknown flag with a space in it for a value."""
  parser = Parser()
  parser.add_argument("--compare", nargs="+")
  parser.add_argument("text", nargs="*")
  field = "--config.data.source=jsonl:my data/a.jsonl"
  found, rest = parser.parse_known_args(["--compare", "a=1", field, "b=2", "--", "--config.x y"])
  assert (found.compare, found.text, rest) == (["a=1", "b=2"], ["--config.x y"], [field])


@pytest.mark.parametrize("argv, fragment", [
    ([], "the following arguments are required: command"),
    (["trian"], "invalid choice: 'trian'"),
    (["train", "--workdir=w"], "required: --config"),
    (["train", "--config=c.py"], "required: --workdir"),
    (["train", "--config=c.py", "--wrokdir=w"], "--wrokdir=w. Did you mean --workdir?"),
    (["train", "--config=c.py", "--workdir=w", "--wrokdir=w"], "Did you mean --workdir?"),
    (["train", "--config=c.py", "--workdir=w", "--config.seed", "3"], "unknown argument 3"),
    (["train", "--config=nothing.py", "--workdir=w"], "--config nothing.py: no such file"),
    (["evaluate"], "required: --workdir"),
    (["--config=c.py", "--workdir=w"], "the following arguments are required: command"),
    (["generate", "--workdir=w", "--promtp=x"], "--promtp=x. Did you mean --prompt? See"),
    (["generate", "workdir=w", "--prompt=x"], "workdir=w. Did you mean --workdir? See"),
    (["import", "--from=f", "--workdir=w", "--sauce=1"],
     "unknown argument --sauce=1. See"),
    (["train", "--config=c.py", "--workdir=w", "--steps", "30"],
     "--steps. Did you mean --config.phases[0].steps=30"),
    (["train", "--config=c.py", "--workdir=w", "--batch-size=8"],
     "Did you mean --config.eval.batch_size=8 or --config.phases[0].batch_size=8?"),
    (["train", "--config=c.py", "--workdir=w", "--model.width=8", "--seed=1"],
     "Did you mean --config.model.width=8?"),
    (["train", "--seed", "--config=c.py"], "--seed. Did you mean --config.seed=VALUE?"),
    (["finetune", "--config=c.py", "--init=i", "--epochs=2"], "Did you mean --config.epochs=2?"),
    (["fill", "--workdir=w", "hello", "--width=3"], "unknown argument --width=3. See"),
    (["fill", "--workdir=w", "the", "[MASK]"], "[MASK]. Put a value with spaces in quotes. See"),
    (["fill", "--workdir=w", "hello", "--tpo=3"], "Did you mean --top?"),
    (["fill", "--", "the [MASK]"], "required: --workdir"),
    (["generate", "--prompt", "-- hello"], "required: --workdir"),
    (["train", "--config=c.py", "--config.seed=3"], "required: --workdir"),
    (["fill", "--workdir=w", "hello", "--tpo=3"], "See bertgpt fill --help"),
    (["fill", "--workdir=w", "hello", "--config.seed=3"],
     "--config.seed=3: fill takes no config fields"),
    (["generate", "--workdir=w", "--prompt=a", "--input=b"], "not allowed with argument --prompt"),
    (["fill", "--wrokdir=w", "--top=0", "a"], "argument --top: 0: give a whole number"),
    (["fill", "--wrokdir=required", "a"], "--wrokdir=required. Did you mean --workdir?"),
    (["evaluate", "--workdir=s3://bucket/run"], "s3://bucket/run: s3:// is not read or written"),
])
def test_wrong_flags_are_one_line(capsys, tmp_path, monkeypatch, argv, fragment):
  monkeypatch.chdir(tmp_path)
  code, lines = run(capsys, *argv)
  assert (code, len(lines)) == (CONFIG, 1)
  assert fragment in lines[0]
  assert files_under(tmp_path) == set()


@pytest.mark.parametrize("argv", [
    ["train", "--config", "help"], ["data", "--config=help"], ["prepare", "--config=help"],
    ["plan", "--config", "help"], ["sweep", "--config", "help"], ["finetune", "--config", "help"],
    ["train", "--config.seed=1", "--workdir=w", "--config", "help"]])
def test_help_for_config_lists_the_recipes(capsys, argv):
  with pytest.raises(SystemExit) as e:
    cli.main(argv)
  assert not e.value.code
  out, err = capsys.readouterr()
  lines = out.splitlines()
  # Those that the command takes: the others are refused.
  is_tuning = lambda path: path.stem.startswith("finetune_")
  files = [path for path in sorted((ROOT / "configs").glob("*.py"))
           if is_tuning(path) == (argv[0] == "finetune")]
  assert [line.split()[0] for line in lines] == [path.stem for path in files] and not err
  for line, path in zip(lines, files, strict=True):
    begins = path.read_text().partition('"""')[2].partition("\n")[0]
    assert line.split(maxsplit=1)[1] == begins


@pytest.mark.parametrize("command", ["train", "prepare", "data", "plan", "sweep"])
def test_a_recipe_of_the_other_kind_names_its_command(capsys, tmp_path, command):
  needed = {"train": [f"--workdir={tmp_path / 'w'}"], "sweep": [f"--workdir={tmp_path / 'w'}"],
            "plan": ["--topology=v5e:1x1"]}
  recipe = "finetune_ner" if command != "sweep" else tmp_path / "recipe.py"
  if command == "sweep":
    recipe.write_text("from bertgpt.config import finetuning\nget_config = finetuning.base\n"
                      "def get_sweep():\n  return [{'seed': 1}]")
  code, lines = run(capsys, command, f"--config={recipe}", *needed.get(command, ()))
  assert (code, len(lines)) == (CONFIG, 1)
  assert f"{recipe}: is a recipe for `bertgpt finetune`" in lines[0]


@pytest.mark.parametrize("command, make_base", [
    ("train", config_lib.base), ("prepare", config_lib.base), ("plan", config_lib.base),
    ("evaluate", config_lib.base), ("finetune", finetuning.base)])
def test_the_example_of_a_field_is_one_of_the_command(capsys, command, make_base):
  with pytest.raises(SystemExit):
    cli.main([command, "--help"])
  text = " ".join(capsys.readouterr().out.split())
  example = text.rpartition("for example ")[2].removesuffix(".")
  changed = override(make_base(), [example])
  assert to_json(changed) != to_json(make_base())
  if command == "evaluate":
    evaluate_run.check_same_model(make_base(), changed, 0)


@pytest.mark.parametrize("spec", ["nonsense", "localhost,2,0", "localhost:x,2,0", "h:1,2,2",
                                  "localhost:99999,2,0", "h:1,0,0"])
def test_wrong_cluster_is_one_line(capsys, tmp_path, recipe, spec):
  code, lines = run(capsys, "train", f"--config={recipe}", f"--workdir={tmp_path / 'w'}",
                    f"--distributed={spec}")
  assert (code, len(lines)) == (CONFIG, 1)
  assert f"--distributed={spec}: " in lines[0]
  assert files_under(tmp_path) == set()


@pytest.mark.parametrize("steps, fragment", [
    ("x", "give numbers"), ("1,x", "give numbers"), ("-1", "has steps 0 to 19, not -1"),
    ("0,20", "has steps 0 to 19, not 20")])
def test_wrong_steps_are_one_line(capsys, recipe, steps, fragment):
  code, lines = run(capsys, "data", f"--config={recipe}", f"--steps={steps}")
  assert (code, len(lines)) == (CONFIG, 1)
  assert f"--steps={steps}" in lines[0] and fragment in lines[0]


def test_data_prints_the_corpus_once_when_it_prepares(capsys, recipe, tmp_path):
  wanted = [f"--config={recipe}", f"--config.data.cache_dir={tmp_path / 'cache'}", "--steps=0"]
  printed = []
  for _ in range(2):
    assert cli.main(["data", *wanted]) == 0
    printed.append(capsys.readouterr().out)
  assert printed[0] == printed[1]


@pytest.mark.slow
def test_init_from_another_family_is_refused_before_the_text_is_read(capsys, recipe, tmp_path,
                                                                     finished_bert):
  code, lines = run(capsys, "train", f"--config={recipe}:causal", f"--workdir={tmp_path / 'run'}",
                    f"--config.data.cache_dir={tmp_path / 'cache'}",
                    f"--config.init_from={finished_bert}")
  assert code == CONFIG and not (tmp_path / "cache").exists()
  assert "holds a BERT, but the config makes a GPT. Choose" in lines[-1]


@pytest.mark.parametrize("field", ["tokenizer.vocab_size=300", "data.source=text:{}/other.txt"])
def test_init_from_without_its_tokenizer_is_refused_before_the_text_is_read(capsys, recipe,
                                                                            tmp_path,
                                                                            finished_bert, field):
  """It would be trained again, with other sizes or on another text."""
  arguments = ["train", f"--config={recipe}", f"--workdir={tmp_path / 'run'}",
               f"--config.init_from={finished_bert}", f"--config.{field.format(tmp_path)}",
               f"--config.data.cache_dir={tmp_path / 'cache'}"]
  code, lines = run(capsys, *arguments)
  assert code == CONFIG and not (tmp_path / "cache").exists()
  assert lines[-1].endswith("trained with another tokenizer. Set "
                            f"--config.tokenizer.path={finished_bert}/tokenizer")


@pytest.mark.parametrize("field, fragment", [
    ("model.num_layers=2", "model.num_layers=1, not 2"),
    ("model.width=32", "model.width=16, not 32"),
    ("model.max_positions=128", "model.max_positions=64, not 128")])
def test_init_from_another_size_is_refused_before_the_text_is_read(capsys, recipe, tmp_path,
                                                                   finished_bert, field, fragment):
  code, lines = run(capsys, "train", f"--config={recipe}", f"--workdir={tmp_path / 'run'}",
                    f"--config.init_from={finished_bert}", f"--config.{field}",
                    f"--config.tokenizer.path={finished_bert}/tokenizer",
                    f"--config.data.cache_dir={tmp_path / 'cache'}")
  assert code == CONFIG and not (tmp_path / "cache").exists()
  assert "its parameters do not fit this model (" in lines[0] and len(lines) == 2
  assert lines[1] == f"  {fragment}"
  assert not (tmp_path / "run").exists()


def test_init_from_with_another_tokenizer_is_refused_before_the_text_is_read(
    capsys, recipe, tmp_path, finished_bert):
  vocabulary = tmp_path / "vocab.txt"
  vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat"]))
  code, lines = run(capsys, "train", f"--config={recipe}", f"--workdir={tmp_path / 'run'}",
                    f"--config.init_from={finished_bert}",
                    f"--config.tokenizer.path={vocabulary}",
                    f"--config.data.cache_dir={tmp_path / 'cache'}")
  assert code == CONFIG and not (tmp_path / "cache").exists()
  assert lines[-1].endswith("trained with another tokenizer. Set "
                            f"--config.tokenizer.path={finished_bert}/tokenizer")


def test_init_from_with_the_corpus_of_another_tokenizer_names_the_corpus(
    capsys, recipe, tmp_path, finished_bert):
  """The tokenizer may be named already: only the corpus is wrong."""
  other = tmp_path / "other"
  assert cli.main(["prepare", f"--config={recipe}", f"--out={other}",
                   "--config.tokenizer.vocab_size=80"]) == 0
  code, lines = run(capsys, "train", f"--config={recipe}", f"--workdir={tmp_path / 'run'}",
                    f"--config.init_from={finished_bert}", f"--config.data.corpus={other}",
                    f"--config.tokenizer.path={finished_bert}/tokenizer")
  assert code == CONFIG and not (tmp_path / "run").exists()
  assert lines[-1].endswith(
      f"data.corpus={other}: was prepared with another tokenizer than that of "
      f"init_from={finished_bert}. Leave data.corpus empty and name data.source, with "
      f"--config.tokenizer.path={finished_bert}/tokenizer")


def test_init_from_without_a_checkpoint_is_refused_before_the_text_is_read(capsys, recipe, tmp_path,
                                                                           finished_bert):
  """A run has none before its first save."""
  source = tmp_path / "source"
  shutil.copytree(finished_bert, source, ignore=shutil.ignore_patterns("checkpoints"))
  code, lines = run(capsys, "train", f"--config={recipe}", f"--workdir={tmp_path / 'run'}",
                    f"--config.init_from={source}", f"--config.tokenizer.path={source}/tokenizer",
                    f"--config.data.cache_dir={tmp_path / 'cache'}")
  assert code == errors.DataError.exit_code and not (tmp_path / "cache").exists()
  assert "no checkpoint was saved yet" in lines[-1]


# ------------------------------------------------------------------ config


@pytest.mark.parametrize("argument, fragment", [
    ("--config.model.widht=3", "no such field. Did you mean --config.model.width?"),
    ("--config.model.width=wide", "--config.model.width: expected int, got 'wide'"),
    ("--config.model.num_heads=3", "model.num_heads=3 does not divide model.width=16"),
    ("--config.phases[0].seq_len=128", "is longer than model.max_positions=64"),
    ("--config.phases[0].learning_rate=-1", "phases[0].learning_rate=-1.0: must be at least 0"),
    ("--config.mesh.axes.mlp=('model',)", "mesh.axes.mlp names 'model'"),
    ("--config.mesh.tensor=3", "devices"),
    ("--config.mesh.data=5000", "devices, but there are"),
    ("--config.data.source=books:b.txt", "data.source: 'books:b.txt' is not a valid source"),
    ("--allow_change=modle", "no field or group 'modle'"),
    ("--workdir=hdfs://b/run", "--workdir: hdfs://b/run: only local paths and gs:// are read"),
    ("--config.data.source=text:s3://b/*.txt", "data.source=s3://b/*.txt: s3:// is not read or"),
    ("--config.data.cache_dir=gs://", "data.cache_dir=gs://: names no bucket. Write gs://BUCKET"),
    ("--config.system.compilation_cache=hdfs://b/x", "only local paths and gs:// are read"),
])
def test_wrong_config_is_one_line_and_makes_nothing(capsys, tmp_path, recipe, argument, fragment):
  code, lines = run(capsys, "train", f"--config={recipe}", f"--workdir={tmp_path / 'w'}", argument)
  assert (code, len(lines)) == (CONFIG, 1)
  assert fragment in lines[0]
  assert files_under(tmp_path) == set()


def test_all_problems_of_a_config_are_listed_at_once(capsys, tmp_path, recipe):
  """Lists problems of overrides, values, source and mesh."""
  code, lines = run(
      capsys, "train", f"--config={recipe}", f"--workdir={tmp_path / 'w'}", "--config.sead=1",
      "--config.model.width=x", "--config.model.num_heads=3", "--config.data.source=books",
      "--config.phases[0].learning_rate=nan", "--config.mesh.data=5000")
  assert code == CONFIG
  for name in ("--config.sead", "--config.model.width", "model.num_heads=3", "data.source",
               "learning_rate=nan", "mesh data=5000"):
    assert sum(name in line for line in lines) == 1, name
  assert len(lines) == 6


@pytest.mark.parametrize("text, fragment", [
    ("def get_config(:", "invalid syntax"),
    ("import nothing_of_this_name", "line 1: ModuleNotFoundError"),
    ("x = 1", "defines no get_config()"),
    ("def get_config():\n  return None", "must return a config made by bertgpt.config.base()"),
    ("def get_config():\n  x = 1\n  return x / 0", "line 3: ZeroDivisionError"),
    ("from bertgpt.config import base\ndef get_config():\n  c = base()\n  c.sead = 1\n  return c",
     "line 4: AttributeError"),
    ("from bertgpt.config import base\ndef get_config():\n  c = base()\n  c.seed = 'a'\n  return c",
     "line 4: TypeError"),
    ("from bertgpt.config import base\ndef get_config():\n  c = base()\n  c.phases = (1,)\n"
     "  return c", "phases must be a tuple of bertgpt.config.phase(...)"),
])
def test_broken_recipe_is_one_line_that_names_file_and_line(capsys, tmp_path, text, fragment):
  path = tmp_path / "broken.py"
  path.write_text(text)
  code, lines = run(capsys, "train", f"--config={path}", f"--workdir={tmp_path / 'w'}")
  assert (code, len(lines)) == (CONFIG, 1)
  assert str(path) in lines[0] and fragment in lines[0]
  assert not (tmp_path / "w").exists()


# ------------------------------------------------------------- data, files


def wrong_file(folder: pathlib.Path, name: str, content: bytes) -> pathlib.Path:
  path = folder / name
  path.write_bytes(content)
  return path


NO_UTF8 = b"a b c." * 9 + bytes([255])

# Name -> (exit code, function of a folder for files that returns the arguments, part of the line).
BAD_INPUTS = {
    "missing text": (
        DATA, lambda t: [f"--config.data.source=text:{t}/none.txt"], "no file matches"),
    "empty text": (
        DATA, lambda t: [f"--config.data.source=text:{wrong_file(t, 'empty.txt', b'')}"],
        "no text"),
    "invalid text": (
        DATA, lambda t: [f"--config.data.source=text:{wrong_file(t, 'bad.txt', NO_UTF8)}"],
        "bad.txt: invalid UTF-8 at byte 54"),
    "smaller than a batch": (
        DATA, lambda t: ["--config.phases[0].batch_size=8192"],
        "fewer than phases[0].batch_size=8192"),
    "no tokenizer": (
        DATA, lambda t: [f"--config.tokenizer.path={wrong_file(t, 'a.model', b'x' * 99)}"],
        "a.model: is not a tokenizer"),
    "missing tokenizer": (
        DATA, lambda t: [f"--config.tokenizer.path={t}/none.model"], "no tokenizer there"),
    "no corpus": (DATA, lambda t: [f"--config.data.corpus={t}"], "not a prepared corpus"),
    "cache is a file": (
        STORAGE, lambda t: [f"--config.data.cache_dir={wrong_file(t, 'cache', b'')}"], "cache"),
    "compilation cache is a file": (
        STORAGE, lambda t: [f"--config.system.compilation_cache={wrong_file(t, 'xla', b'')}/x"],
        "system.compilation_cache="),
    "vocabulary": (CONFIG, lambda t: ["--config.model.vocab_size=7"],
                   "model.vocab_size=7, but the tokenizer has 90 tokens"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_one_line_and_makes_nothing(capsys, tmp_path, recipe, name):
  expected, arguments, fragment = BAD_INPUTS[name]
  arguments = arguments(tmp_path)
  before = files_under(tmp_path)
  code, lines = run(capsys, "train", f"--config={recipe}", f"--workdir={tmp_path / 'a/w'}",
                    *arguments)
  assert (code, len(lines)) == (expected, 1), lines
  assert fragment in lines[0]
  assert files_under(tmp_path) == before


def test_tokenizer_of_another_corpus_is_refused(capsys, tmp_path, recipe):
  corpus, folder = tmp_path / "corpus", tmp_path / "w"
  assert run(capsys, "prepare", f"--config={recipe}", f"--out={corpus}")[0] == 0
  assert run(capsys, "prepare", f"--config={recipe}", f"--out={tmp_path / 'other'}",
             "--config.tokenizer.vocab_size=80")[0] == 0
  code, lines = run(capsys, "train", f"--config={recipe}", f"--workdir={folder}",
                    f"--config.data.corpus={corpus}",
                    f"--config.tokenizer.path={tmp_path / 'other/tokenizer'}")
  assert (code, len(lines)) == (CONFIG, 1)
  assert "is not the tokenizer that data.corpus=" in lines[0]
  assert not folder.exists()


def test_workdir_that_is_a_file_is_left_as_it_is(capsys, tmp_path, recipe):
  path = wrong_file(tmp_path, "w", b"precious")
  for place in (path, path / "below"):
    code, lines = run(capsys, "train", f"--config={recipe}", f"--workdir={place}")
    assert (code, len(lines)) == (CONFIG, 1)
    assert f"--workdir {place}" in lines[0]
  assert path.read_bytes() == b"precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_workdir_without_permission_is_one_line(capsys, tmp_path, recipe):
  tmp_path.chmod(0o500)
  code, lines = run(capsys, "train", f"--config={recipe}", f"--workdir={tmp_path / 'w'}")
  assert (code, len(lines)) == (STORAGE, 1)
  assert "cannot be written (Permission denied)" in lines[0]


@pytest.mark.parametrize("content, fragment", [
    (None, "holds no run"), (b"{", "not the config of a run"), (b"{}", "not the config of a run"),
    (b"\xff", "is not valid JSON")])
def test_folder_that_holds_no_run_is_not_evaluated(capsys, tmp_path, recipe, content, fragment):
  if content is not None:
    wrong_file(tmp_path, "config.json", content)
  before = files_under(tmp_path)
  commands = [["evaluate"]] + [["train", f"--config={recipe}"]] * (content is not None)
  for command in commands:
    code, lines = run(capsys, *command, f"--workdir={tmp_path}")
    assert (code, len(lines)) == (CONFIG, 1), lines
    assert str(tmp_path) in lines[0] and fragment in lines[0]
  assert files_under(tmp_path) - {".lock"} == before


# ------------------------------------------------- storage, interrupts, bugs


def main_that_raises(monkeypatch, error: BaseException) -> None:
  def fail(arguments):
    raise error
  monkeypatch.setattr(prepare, "check", lambda arguments: None)
  monkeypatch.setattr(prepare, "run", fail)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_storage_that_fails_anywhere_is_one_line(capsys, monkeypatch, number):
  main_that_raises(monkeypatch, OSError(number, os.strerror(number), "/disk/file"))
  code, (line,) = run(capsys, "prepare", "--config=c.py")
  assert code == STORAGE
  assert f"/disk/file: {os.strerror(number)}" in line


def test_interrupt_is_one_line(capsys, monkeypatch):
  main_that_raises(monkeypatch, KeyboardInterrupt())
  code, (line,) = run(capsys, "prepare", "--config=c.py")
  assert code == 130
  assert "interrupted" in line
  assert f"| {code} " in errors.__doc__


@pytest.mark.parametrize("argv, is_kept", [
    (["train", "--config=c.py", "--workdir=w"], True),
    (["sweep", "--config=c.py", "--workdir=w"], True),
    (["finetune", "--init=w", "--config=c.py"], True),
    (["embed", "--workdir=w", "--input=a", "--out=b"], True),
    (["evaluate", "--workdir=w", "--suite=text=a", "--out=b"], True),
    (["evaluate", "--workdir=w", "--suite=text=a"], False), (["evaluate", "--workdir=w"], False),
    (["predict", "--workdir=w", "--input=a", "--out=b"], False),
    (["generate", "--workdir=w"], False), (["fill", "--workdir=w", "a"], False),
    (["prepare", "--config=c.py"], False), (["export", "--workdir=w", "--out=b"], False)])
def test_an_interrupt_says_whether_the_work_is_kept(capsys, monkeypatch, argv, is_kept):
  def interrupt(arguments):
    if argv[0] == "evaluate":  # Whether it resumes depends on its flags.
      arguments.module.check(arguments)
    raise KeyboardInterrupt

  monkeypatch.setattr(cli, "dispatch", interrupt)
  code, (line,) = run(capsys, *argv)
  assert code == 130
  assert line == f"bertgpt {argv[0]}: interrupted. The same command " + (
      "continues where it stopped" if is_kept else "starts over")


@pytest.mark.parametrize("before", [True, False])
def test_an_interrupt_waits_for_the_imports_and_for_nothing_else(capsys, monkeypatch, tmp_path,
                                                                 before):
  reached = []

  def prepare_corpus(arguments):
    reached.append("started")
    signal.raise_signal(signal.SIGINT)
    reached.append("prepared")

  (tmp_path / "slow_import.py").write_text(
      f"import signal\n{'signal.raise_signal(signal.SIGINT)' if before else ''}\nis_whole = True")
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(prepare, "check", lambda arguments: None)
  monkeypatch.setattr(prepare, "USES", ("slow_import",))
  monkeypatch.setattr(prepare, "run", prepare_corpus)
  try:
    assert run(capsys, "prepare", "--config=c.py")[0] == 130
    assert sys.modules["slow_import"].is_whole
  finally:
    sys.modules.pop("slow_import", None)
  assert reached == ([] if before else ["started"])
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("bug", [ZeroDivisionError(), KeyError("x"), FileNotFoundError(2, "gone")])
def test_a_bug_keeps_its_traceback(capsys, monkeypatch, bug):
  main_that_raises(monkeypatch, bug)
  with pytest.raises(type(bug)):
    cli.main(["prepare", "--config=c.py"])


# --------------------------------------------------------- real processes


def start(*argv, **options) -> subprocess.Popen:
  environment = options.pop("env", os.environ) | {"PYTHONPATH": str(ROOT)}
  return subprocess.Popen([sys.executable, "-m", "bertgpt", *map(str, argv)], text=True,
                          env=environment, cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, **options)


def test_a_process_ends_with_the_exit_code_and_without_traceback(tmp_path):
  process = start("train", "--config=configs/demo.py", f"--workdir={tmp_path / 'w'}",
                  "--config.model.widht=3")
  out, err = process.communicate(timeout=1200)
  assert (process.returncode, out) == (CONFIG, "")
  assert err == ("bertgpt train: --config.model.widht: no such field. "
                 "Did you mean --config.model.width?\n")


def test_devices_that_cannot_be_opened_are_one_line(finished_gpt):
  process = start("generate", f"--workdir={finished_gpt}", "--prompt=The",
                  env=os.environ | {"JAX_PLATFORMS": "abacus"})
  out, err = process.communicate(timeout=1200)
  assert (process.returncode, out) == (errors.DeviceError.exit_code, "")
  (line,) = err.splitlines()
  assert line.startswith("bertgpt generate: JAX cannot use the devices (")
  assert "abacus" in line and "Check JAX_PLATFORMS" in line


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_a_program_that_is_started_without_streams_writes_into_no_file(tmp_path, recipe, closed):
  """Otherwise, a file would get the number of a stream, and what C++ code writes to it."""
  close = "".join(f" {number}>&-" for number in closed)
  command = (f"exec {sys.executable} -m bertgpt prepare --config={recipe} "
             f"--out={tmp_path / 'corpus'}{close}")
  result = subprocess.run(["sh", "-c", command], env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=1200)
  assert result.returncode == 0, result.stderr
  assert corpus_lib.is_corpus(tmp_path / "corpus")


def test_text_beyond_the_encoding_of_stdout_is_escaped():
  """In a locale of Latin-1, for example; Python's default is an error in the middle of a line."""
  code = ("from bertgpt import cli\ncli.main = lambda **_: print('\\u00e9 costs 3 \\u20ac') or 0\n"
          "raise SystemExit(cli.run_program())")
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=1200,
                          env=os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(ROOT)})
  assert (result.returncode, result.stdout) == (0, b"\xe9 costs 3 \\u20ac\n"), result.stderr


def test_a_closed_pipe_gives_no_traceback(recipe):
  process = start("data", f"--config={recipe}")
  process.stdout.close()
  err = process.stderr.read()
  assert process.wait(timeout=1200) != 0
  assert "Traceback" not in err


def test_ctrl_c_while_preparing_is_one_line_and_leaves_no_corpus(tmp_path, recipe):
  text = tmp_path / "long.txt"
  text.write_text(small_runs.make_text(60_000))
  process = start("prepare", f"--config={recipe}", f"--out={tmp_path / 'corpus'}",
                  f"--config.data.source=text:{text}", start_new_session=True)
  try:
    while not list(tmp_path.glob("corpus.unfinished-*")):
      assert process.poll() is None, process.stderr.read()
      time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=1200)
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
  assert process.returncode == 130
  assert "Traceback" not in err
  assert "interrupted" in err.splitlines()[-1]
  assert {p.name for p in tmp_path.iterdir()} <= {"long.txt", ".corpus.lock"}


STORIES = '''
import sys
import tensorflow_datasets as tfds


class Stories(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(
        {"text": tfds.features.Text()}))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i, text in enumerate(open(sys.argv[1]).read().split("\\n\\n")):
      yield i, {"text": text}


def main():
  Stories(file_format="array_record").download_and_prepare()
'''


def test_a_dataset_is_read_by_the_name_that_tfds_knows_it_by(tmp_path, recipe, story):
  """TFDS prepares the dataset in its own folder, without TensorFlow."""
  package = tmp_path / "stories"
  package.mkdir()
  (package / "__init__.py").write_text(STORIES)  # TFDS finds metadata in the folder of the class.
  environment = os.environ | {"TFDS_DATA_DIR": str(tmp_path / "datasets")}
  subprocess.run([sys.executable, "-c", "import stories; stories.main()", story], check=True,
                 env=environment | {"PYTHONPATH": str(tmp_path)}, capture_output=True, timeout=1200)
  assert (tmp_path / "datasets" / "stories" / "1.0.0").is_dir()
  process = start("prepare", f"--config={recipe}", f"--out={tmp_path / 'corpus'}",
                  "--config.data.source=tfds:stories:train#text", env=environment)
  out, err = process.communicate(timeout=1200)
  assert process.returncode == 0, err
  found = [corpus_lib.open_corpus(tmp_path / "corpus", split) for split in corpus_lib.SPLITS]
  texts = story.read_text().split("\n\n")
  assert sum(map(len, found)) == len(texts)
  expected = sum(len(found[0].tokenizer.encode([text])[0]) for text in texts)
  assert sum(corpus.num_tokens for corpus in found) == expected
