"""bertgpt.runs.workdir: a run that fails early leaves no files, and runs do not mix."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import types

import pytest
from source_files import write_dataset

from bertgpt import cli, files
from bertgpt import config as config_lib
from bertgpt.config.overrides import override
from bertgpt.config.stored import to_json
from bertgpt.data.corpus.corpus import open_corpus
from bertgpt.data.text import datasets
from bertgpt.data.tokens import tokenizers
from bertgpt.data.tokens.vocabulary import make_vocabulary
from bertgpt.errors import ConfigError, DataError, StorageError
from bertgpt.files import lease
from bertgpt.runs import corpora, folder_kinds, workdir
from bertgpt.runs import trained as trained_lib


@pytest.fixture(scope="module")
def tokenizer(finished_bert):
  return tokenizers.load_tokenizer(finished_bert / "tokenizer")


# ------------------------------------------------------------------ starts


def test_a_start_that_fails_leaves_nothing(tmp_path):
  with pytest.raises(DataError), workdir.make_and_lock(tmp_path / "a/b/w", True):
    assert (tmp_path / "a/b/w").is_dir()
    raise DataError("no text")
  assert list(tmp_path.iterdir()) == []


def test_a_start_that_fails_leaves_what_was_there(tmp_path):
  folder = tmp_path / "w"
  folder.mkdir()
  (folder / "notes.txt").write_text("mine")
  with pytest.raises(KeyboardInterrupt), workdir.make_and_lock(folder, True):
    raise KeyboardInterrupt
  assert [p.name for p in folder.iterdir()] == ["notes.txt"]


def test_a_run_that_has_started_stays(tmp_path, tokenizer):
  with pytest.raises(DataError), workdir.make_and_lock(tmp_path / "w", True):
    workdir.write_run(tmp_path / "w", config_lib.base(), tokenizer)
    raise DataError("damaged")
  assert workdir.read_config(tmp_path / "w") == config_lib.base()


def test_one_run_at_a_time(tmp_path):
  with workdir.make_and_lock(tmp_path / "w", True):
    refused = pytest.raises(ConfigError, match="in use by process")
    with refused, workdir.make_and_lock(tmp_path / "w", True):
      pass
    assert (tmp_path / "w").is_dir()  # The refused run removes nothing.
    with workdir.make_and_lock(tmp_path / "w", False):  # Another process of the same run.
      pass


def test_places_that_cannot_be_written_are_named(tmp_path):
  file = tmp_path / "file"
  file.write_text("")
  for place, error in ((file, ConfigError), (file / "w", ConfigError),
                       (pathlib.Path("/proc/w"), StorageError)):
    with pytest.raises(error, match=f"--workdir {place}: "), workdir.make_and_lock(place, True):
      pass


@pytest.mark.parametrize("name, subject", [("w", ""), ("w/run", "{link} ")])
def test_a_workdir_on_a_disk_that_is_not_mounted_is_called_so(tmp_path, name, subject):
  link = tmp_path / "w"
  link.symlink_to(tmp_path / "none" / "disk")
  subject = subject.format(link=link)
  with pytest.raises(StorageError, match=f"{name}: {subject}is a link to .*/disk, which is not"), \
      workdir.make_and_lock(tmp_path / name, True):
    pass
  assert [path.name for path in tmp_path.iterdir()] == ["w"]


# ------------------------------------------------------------- configs


def test_a_name_that_is_not_utf_8_is_refused_before_anything_is_made(recipe, tmp_path, capfd):
  """TensorStore could not save the first checkpoint there."""
  path = tmp_path / os.fsdecode(b"caf\xe9")
  with pytest.raises(ConfigError, match="is not valid UTF-8"), workdir.make_and_lock(path, True):
    raise AssertionError
  assert cli.main(["train", f"--config={recipe}", f"--workdir={path}/run",
                   f"--config.data.cache_dir={tmp_path}/cache"]) == 2
  (line,) = capfd.readouterr().err.splitlines()
  assert "is not valid UTF-8, so nothing can be written there" in line
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a[b]c", "a*", "a?", "a\\b", "]"])
def test_a_name_in_which_orbax_saves_nothing_is_refused_before_anything_is_made(
    recipe, tmp_path, capfd, name):
  path = tmp_path / name / "run"
  assert cli.main(["train", f"--config={recipe}", f"--workdir={path}",
                   f"--config.data.cache_dir={tmp_path}/cache"]) == 2
  (line,) = capfd.readouterr().err.splitlines()
  assert f"{path}: no checkpoint can be saved in a folder whose path has a " in line
  assert not list(tmp_path.iterdir())


def test_the_id_of_a_run_is_forgotten_even_if_it_is_gone(tmp_path, monkeypatch):
  """Another program may remove it just before."""
  (tmp_path / workdir.ID_FILE).write_text("1234")
  for _ in range(2):
    workdir.forget_id(tmp_path)
  monkeypatch.setattr(pathlib.Path, "is_file", lambda path: True)
  workdir.forget_id(tmp_path)
  assert not list(tmp_path.iterdir())


def test_a_changed_config_is_refused_field_by_field(tmp_path, tokenizer):
  old = config_lib.base()
  workdir.write_run(tmp_path, old, tokenizer)
  new = override(old, ["--config.model.width=96", "--config.optimizer.b1=0.8",
                       "--config.phases[0].steps=9", "--config.log.every_steps=1"])
  with pytest.raises(ConfigError) as e:
    workdir.check_unchanged(tmp_path, new, [])
  assert [line.strip() for line in str(e.value).splitlines()[1:-1]] == [
      "model.width: 768 -> 96", "optimizer.b1: 0.9 -> 0.8"]
  workdir.check_unchanged(tmp_path, new, ["model.width", "optimizer"])
  workdir.check_unchanged(tmp_path / "elsewhere", new, [])


def test_checkpoints_without_their_config_are_not_resumed(finished_bert, tmp_path):
  folder = shutil.copytree(finished_bert, tmp_path / "w")
  (folder / "config.json").unlink()
  with pytest.raises(ConfigError, match="holds checkpoints, but no config.json"):
    workdir.check_unchanged(folder, config_lib.base(), [])


@pytest.mark.parametrize("names, is_refused", [
    ((), False), (("lost+found/",), False), ((".gitignore", "slurm-12.out", "logs/"), False),
    (("recipe.py", "__pycache__/", "train.log", "stderr"), False),
    (("notes.md", "metrics.jsonl"), False), (("history.jsonl", "tokenizer/"), False),
    (("a.md", "index.rst"), True), (("mini/",), True), (("train.log", "part-1.txt"), True)])
def test_a_folder_of_other_files_is_refused(tmp_path, names, is_refused):
  """Launchers and file systems put some files there; a run that was killed has left others."""
  for name in names:
    (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("")
  if not is_refused:
    workdir.check_unchanged(tmp_path, config_lib.base(), [])
    return
  with pytest.raises(ConfigError, match="holds files, but no run") as e:
    workdir.check_unchanged(tmp_path, config_lib.base(), [])
  assert names[-1].rstrip("/") in str(e.value) and "\n" not in str(e.value)


# Starts a run, and is killed before it renames a finished file or folder `name`.
KILLED = """
import os, pathlib, signal, sys
from bertgpt import config
from bertgpt.data.corpus.corpus import open_corpus
from bertgpt.data.tokens import tokenizers
from bertgpt.runs import workdir

def replace(self, target, rename=pathlib.Path.replace):
  if target.name == name:
    os.kill(os.getpid(), signal.SIGKILL)
  return rename(self, target)

folder, tokenizer, name = sys.argv[1:]
pathlib.Path.replace = replace
with workdir.make_and_lock(pathlib.Path(folder), True):
  workdir.write_run(pathlib.Path(folder), config.base(), tokenizers.load_tokenizer(tokenizer))
"""


@pytest.mark.parametrize("name", ["tokenizer", "config.json"])
def test_files_of_a_killed_start_are_replaced(tmp_path, tokenizer, name):
  folder = tmp_path / "w"
  tokenizer.save(tmp_path / "copy")
  command = [sys.executable, "-c", KILLED, folder, tmp_path / "copy", name]
  assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
  (leftover,) = folder.glob("*.unfinished-*")
  assert leftover.name.startswith(name) and not folder_kinds.is_run(folder)
  with workdir.make_and_lock(folder, True):
    workdir.write_run(folder, config_lib.base(), tokenizer)
  assert {p.name for p in folder.iterdir()} == {".lock", "config.json", "tokenizer"}
  again = tokenizers.load_tokenizer(folder / "tokenizer")
  assert again.fingerprint() == tokenizer.fingerprint()


def test_damage_of_the_config_is_named_field_by_field(tmp_path, tokenizer):
  workdir.write_run(tmp_path, config_lib.base(), tokenizer)
  stored = json.loads((tmp_path / "config.json").read_text())
  stored["model"] |= {"width": "wide", "depth": 3}
  (tmp_path / "config.json").write_text(json.dumps(stored))
  with pytest.raises(ConfigError) as e:
    workdir.read_config(tmp_path)
  unknown, wrong = str(e.value).splitlines()
  assert unknown.startswith(f"{tmp_path}/config.json") and "model.depth" in unknown
  assert "model.width: expected int, got 'wide'" in wrong


# -------------------------------------------------------------- tokenizers


def test_the_size_of_the_vocabulary_is_that_of_the_tokenizer(tokenizer):
  config = corpora.resolve(config_lib.base(), tokenizer)
  assert config.model.vocab_size == tokenizer.vocab_size
  assert corpora.resolve(config, tokenizer) == config
  config.model.vocab_size += 1
  with pytest.raises(ConfigError, match=f"the tokenizer has {tokenizer.vocab_size} tokens"):
    corpora.resolve(config, tokenizer)


@pytest.mark.parametrize("objective, lacking", [("mlm", "cls, sep, mask"), ("causal", "eod")])
def test_special_tokens_that_the_objective_needs(objective, lacking):
  bare = types.SimpleNamespace(kind="bpe", vocab_size=9, pad_id=-1, cls_id=-1, sep_id=-1,
                               mask_id=-1, eod_id=-1)
  config = config_lib.base()
  config.objective.name = objective
  with pytest.raises(ConfigError, match=f"special tokens {lacking}, which this one"):
    corpora.resolve(config, bare)


def test_unknown_words_may_be_predicted_and_other_specials_not(tokenizer):
  vocabulary = make_vocabulary(tokenizer)
  assert tokenizer.unk_id not in vocabulary.special_ids
  assert {tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id,
          tokenizer.mask_id} <= set(vocabulary.special_ids)
  assert -1 not in vocabulary.special_ids


def test_a_trained_model_comes_with_its_own_tokenizer(finished_bert, tmp_path):
  trained = trained_lib.load_trained(finished_bert)
  assert trained.step == config_lib.total_steps(trained.config) == 20
  folder = shutil.copytree(finished_bert, tmp_path / "w")
  file = folder / "tokenizer" / "tokenizer.json"
  file.write_text(file.read_text().replace("river", "rivet"))
  with pytest.raises(DataError, match="not the tokenizer of the checkpoint at step 20"):
    trained_lib.load_trained(folder)


# ----------------------------------------------------------------- the corpus


@pytest.fixture
def own_text(finished_bert, tmp_path):
  """Returns a run, its text and its corpus, which a test may change."""
  run = shutil.copytree(finished_bert, tmp_path / "run")
  config = workdir.read_config(run)
  text = shutil.copy(config.data.source.removeprefix("text:"), tmp_path / "text.txt")
  config.data.update(source=f"text:{text}", cache_dir=f"{tmp_path}/cache")
  (run / "config.json").write_text(to_json(config))
  return run, text, corpora.find_corpus(config)


def find_again(run, **changes):
  config = workdir.read_config(run)
  config.data.update(**changes)
  return corpora.find_corpus(config, reports=False, resumes=True,
                             identity=corpora.find_identity(run, config), workdir=run)


def test_a_run_needs_no_text_once_its_corpus_is_prepared(own_text, capsys):
  run, text, prepared = own_text
  assert find_again(run) == prepared
  assert not capsys.readouterr().err
  text.unlink()
  assert find_again(run) == prepared
  (line,) = capsys.readouterr().err.splitlines()
  assert "no file matches" in line and line.endswith(f"original corpus: {prepared}")


def test_a_corpus_that_another_process_is_about_to_rename_is_not_taken(own_text):
  run, text, prepared = own_text
  text.unlink()
  prepared.rename(files.unfinished_path(prepared, "1a2b3c4d"))
  with pytest.raises(DataError, match="no file matches"):
    find_again(run)


@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_run_keeps_its_corpus_when_its_text_grows(own_text, capsys, is_prepared):
  """Another run may have prepared the new text."""
  run, text, prepared = own_text
  text.write_text(text.read_text() + "\n\nA new document about a cat.\n")
  if is_prepared:
    assert corpora.find_corpus(workdir.read_config(run), reports=False) != prepared
  before = sorted(prepared.parent.iterdir())
  assert find_again(run) == prepared
  assert sorted(prepared.parent.iterdir()) == before
  assert "has changed since the run began" in capsys.readouterr().err


def test_a_run_keeps_the_corpus_of_a_dataset_that_an_earlier_version_identified(
    own_text, tmp_path, monkeypatch):
  """Earlier versions did not hash the shards of a dataset."""
  run, text, _ = own_text
  folder = write_dataset(tmp_path / "set", train=text.read_text().split("\n\n"))
  config = workdir.read_config(run)
  config.data.source = f"tfds:{folder}:train"
  (run / "config.json").write_text(to_json(config))
  with monkeypatch.context() as patch:
    patch.setattr(datasets, "list_shards", lambda target, split: [])
    former = corpora.find_corpus(config, reports=False)
  identity = open_corpus(former, "train").identity
  assert corpora.find_corpus(config, reports=False, resumes=True, identity=identity,
                             workdir=run) == former
  assert corpora.find_corpus(config, reports=False) != former


def test_a_config_that_asks_for_another_corpus_gets_it(own_text):
  run, text, prepared = own_text
  assert find_again(run, validation_fraction=0.2) != prepared
  text.unlink()
  with pytest.raises(DataError, match="no file matches"):
    find_again(run, validation_fraction=0.3)


def test_without_the_corpus_of_the_run_the_text_is_prepared_again(own_text):
  run, text, prepared = own_text
  shutil.rmtree(prepared)
  assert find_again(run) == prepared
  shutil.rmtree(prepared)
  text.unlink()
  with pytest.raises(DataError, match="no file matches"):
    find_again(run)


def test_a_missing_corpus_is_prepared_with_the_tokenizer_as_the_run_has_it(own_text, tmp_path):
  """An earlier version never found special tokens in texts; here, `cat` is one."""
  run, _, prepared = own_text
  given = shutil.copytree(run / "tokenizer", tmp_path / "given")
  content = json.loads((given / "tokenizer.json").read_text())
  content["added_tokens"].append({
      "id": content["model"]["vocab"]["cat"], "content": "cat", "special": True,
      "normalized": False, "single_word": False, "lstrip": False, "rstrip": False})
  (given / "tokenizer.json").write_text(json.dumps(content))
  (given / "tokenizer_config.json").write_text(json.dumps({"cls_token": "[CLS]"}))
  former = tokenizers.load_tokenizer(given, is_saved=True)
  former.save(run / "tokenizer")
  config = workdir.read_config(run)
  config.tokenizer.path = str(given)
  (run / "config.json").write_text(to_json(config))
  shutil.rmtree(prepared)
  found = [open_corpus(path, "train").tokenizer.fingerprint()
           for path in (find_again(run), corpora.find_corpus(config))]
  assert found[0] == former.fingerprint() != found[1]


@pytest.mark.parametrize("number, remedy", [
    (errno.ENOSPC, "Free the disk"), (errno.EDQUOT, "Free the disk"),
    (errno.EACCES, "Give a folder that you may write to"),
    (errno.EROFS, "Give a folder that you may write to")])
def test_the_remedy_is_that_of_the_reason(tmp_path, monkeypatch, number, remedy):
  def fail(*arguments, **options):
    raise OSError(number, os.strerror(number))

  with monkeypatch.context() as patch:
    patch.setattr(workdir.tempfile, "TemporaryFile", fail)
    with pytest.raises(StorageError, match=f"{os.strerror(number)}.*{remedy}$"):
      workdir.create(tmp_path)
  monkeypatch.setattr(workdir.jax, "process_count", lambda: 2)
  monkeypatch.setattr(pathlib.Path, "write_text", fail)
  with pytest.raises(StorageError, match=f"{os.strerror(number)}.*{remedy}$"), \
       workdir.mark_shared(tmp_path):
    raise AssertionError


def test_the_mark_of_a_killed_start_is_replaced(tmp_path, monkeypatch):
  """Even if it is another user's, who lets nobody else write to it."""
  (tmp_path / workdir.SHARED).write_text("old")
  before = (tmp_path / workdir.SHARED).stat().st_ino
  other = os.open(tmp_path / workdir.SHARED, os.O_RDONLY)  # Keeps its number in use.
  monkeypatch.setattr(workdir.jax, "process_count", lambda: 2)
  with workdir.mark_shared(tmp_path) as key:
    assert (tmp_path / workdir.SHARED).read_text() == key
    assert (tmp_path / workdir.SHARED).stat().st_ino != before
  os.close(other)


def test_the_tokenizer_of_a_run_may_be_gone(own_text, tmp_path):
  """Its own tokenizer prepares a missing corpus again."""
  run, _, _ = own_text
  config = workdir.read_config(run)
  config.tokenizer.path = str(shutil.copytree(run / "tokenizer", tmp_path / "given"))
  (run / "config.json").write_text(to_json(config))
  prepared = corpora.find_corpus(config, reports=False)
  identity = open_corpus(prepared, "train").identity
  find = lambda: corpora.find_corpus(config, reports=False, resumes=True, identity=identity,
                                     workdir=run)
  shutil.rmtree(tmp_path / "given")
  assert find() == prepared
  shutil.rmtree(prepared)
  assert find() == prepared and open_corpus(prepared, "train").identity == identity


def test_a_new_run_may_not_name_another_tokenizer_than_that_of_its_corpus(own_text, tmp_path):
  run, _, prepared = own_text
  config = workdir.read_config(run)
  config.data.corpus, config.tokenizer.path = str(prepared), str(run / "tokenizer")
  tokenizer = open_corpus(prepared, "train").tokenizer
  corpora.check_tokenizer(config, tokenizer)
  file = run / "tokenizer" / "tokenizer.json"
  file.write_text(file.read_text().replace("river", "rivet"))
  with pytest.raises(ConfigError, match=f"tokenizer.path={run}/tokenizer is not the tokenizer tha"):
    corpora.check_tokenizer(config, tokenizer)


# ------------------------------------------------------------------- the lock


@contextlib.contextmanager
def held(path, holder):
  """Holds the lock of a workdir as a process that calls itself `holder`."""
  with (path / ".lock").open("a+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.truncate(0)
    file.write(holder)
    file.flush()
    yield file


def test_the_lock_of_a_host_that_is_lost_is_waited_for(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(workdir, "LOCK_RETRY_S", 0.01)
  with held(tmp_path, "process 12 on elsewhere\n") as file:
    monkeypatch.setattr(workdir.time, "sleep", lambda seconds: fcntl.flock(file, fcntl.LOCK_UN))
    with workdir.lock(tmp_path):
      assert str(os.getpid()) in (tmp_path / ".lock").read_text()
  (line,) = capsys.readouterr().err.splitlines()
  assert f"{tmp_path} is in use by process 12 on elsewhere. Waiting" in line


def test_a_lost_machine_may_have_had_the_name_of_this_one(tmp_path, monkeypatch):
  monkeypatch.setattr(workdir, "LOST_HOST_S", 0)
  name = f"process 12 on {socket.gethostname()}\n"
  for boot_id, error in (("0-1-2-3", StorageError), (lease.read_boot_id(), ConfigError),
                         ("", ConfigError)):
    with held(tmp_path, f"{name}{boot_id}\n"), pytest.raises(error, match=f"{name[:-1]}. Wait"), \
         workdir.lock(tmp_path):
      pass


def test_a_container_of_this_machine_has_another_name(tmp_path):
  with held(tmp_path, f"process 12 on pod-3\n{lease.read_boot_id()}\n"), \
       pytest.raises(ConfigError, match="in use by process 12 on pod-3. Wait"), \
       workdir.lock(tmp_path):
    pass


def test_the_lock_of_another_host_that_is_not_released_can_be_tried_again(tmp_path, monkeypatch):
  monkeypatch.setattr(workdir, "LOST_HOST_S", 0)
  refused = pytest.raises(StorageError, match=f"in use by process 12 on elsewhere.* delete "
                                              f"{tmp_path}/.lock")
  with held(tmp_path, "process 12 on elsewhere\n"), refused, workdir.lock(tmp_path):
    pass
  with held(tmp_path, ""), pytest.raises(ConfigError, match="in use by"), workdir.lock(tmp_path):
    pass


def test_a_lock_that_was_deleted_is_taken(tmp_path):
  with held(tmp_path, "process 12 on elsewhere\n"):
    (tmp_path / ".lock").unlink()
    with workdir.lock(tmp_path):
      assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_a_second_run_is_refused_while_the_first_lives(tmp_path):
  holder = subprocess.Popen(
      [sys.executable, "-c", "import pathlib, sys, time\nfrom bertgpt.runs import workdir\n"
       "with workdir.lock(pathlib.Path(sys.argv[1])):\n"
       "  print('locked', flush=True)\n  time.sleep(1200)", str(tmp_path)],
      stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
  assert holder.stdout.readline() == "locked\n"
  refused = pytest.raises(ConfigError, match=f"{tmp_path} is in use by process {holder.pid} on ")
  with refused, workdir.lock(tmp_path):
    pass
  holder.kill()
  holder.wait()
  with workdir.lock(tmp_path):  # A killed process holds no lock.
    refused = pytest.raises(ConfigError, match=f"process {os.getpid()} ")
    with refused, workdir.lock(tmp_path):
      pass


def test_a_pre_norm_model_without_its_final_norm_is_refused(finished_gpt, monkeypatch):
  """Version 0.1 made such BERTs with norm='pre'; a GPT without its norm stands for one."""
  from bertgpt.runs import checkpoint
  restore = checkpoint.restore_params

  def without_final_norm(workdir):
    params, metadata = restore(workdir)
    return {name: x for name, x in params.items() if name != "final_norm"}, metadata

  monkeypatch.setattr(checkpoint, "restore_params", without_final_norm)
  with pytest.raises(DataError, match="without a final norm"):
    trained_lib.load_trained(finished_gpt)
