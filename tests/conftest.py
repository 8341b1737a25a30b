"""Fixtures that several test files share."""

import ctypes
import functools
import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import signal

import numpy as np
import pytest

# JAX reads these when it is imported, so they come first. Sharding is tested on simulated devices,
# and programs are not optimized, because hundreds of them are compiled to run once. LLVM gets each
# as one module, because no core is left for its threads; this saves a fifth of the compiler's time.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
_FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if importlib.metadata.version("jax").startswith("0.10."):  # Later versions have one emitter only.
  _FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # A third less time in files of training.
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])

import bucket_server  # noqa: E402
import program as program_lib  # noqa: E402
import small_runs  # noqa: E402

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
HAS_CUDA = importlib.util.find_spec("jax_cuda12_plugin") is not None
_THIS = pathlib.Path(__file__).resolve()
_BESIDE = _THIS.parent.parent.parent / "shared" / "data"


# Shells make programs that they start in the background ignore Ctrl-C, and `nohup` makes programs
# ignore SIGHUP; tests send both signals.
for number, handler in ((signal.SIGINT, signal.default_int_handler),
                        (signal.SIGHUP, signal.SIG_DFL)):
  if signal.getsignal(number) == signal.SIG_IGN:
    signal.signal(number, handler)


# Tracing makes so many objects that the usual thresholds take a tenth of the suite's time.
gc.set_threshold(50_000, 20, 50)


# Fixtures that train a run take as long as all tests of many files, so files that use the same ones
# are tested by the same worker. {group: pattern that the text of a file, or of the conftest.py next
# to it, matches}.
_GROUPS = {"trained": re.compile(r"\bfinished_(bert|gpt|diffusion)\b|[(,] *(finished|tuned)\b"),
           "processes": re.compile(r"\bfinished_run\b")}


@pytest.hookimpl(optionalhook=True)  # Without xdist, there is no such hook.
def pytest_xdist_make_scheduler(config: pytest.Config, log):
  from xdist import scheduler

  @functools.cache
  def group_of(file: str) -> str:
    path = (config.rootpath / file).resolve()
    files = [path, *(p for p in [path.with_name("conftest.py")] if p.exists() and p != _THIS)]
    text = "\n".join(p.read_text() for p in files)
    return next((name for name, uses in _GROUPS.items() if uses.search(text)), file)

  class Groups(scheduler.LoadFileScheduling):

    def _split_scope(self, nodeid: str) -> str:
      return group_of(super()._split_scope(nodeid))

  return Groups(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_runtest_setup(item: pytest.Item) -> None:
  if item.get_closest_marker("libtpu") and not HAS_LIBTPU:
    pytest.skip("libtpu, the compiler for TPUs, is not installed: make test-tpu")
  if item.get_closest_marker("cuda") and not HAS_CUDA:
    pytest.skip("JAX for CUDA is not installed: make test-gpu")


@pytest.fixture(scope="session", autouse=True)
def programs(tmp_path_factory) -> None:
  """Keeps compiled programs until the tests end: many tests compile what others have compiled."""
  import jax
  jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(scope="module", autouse=True)
def release_memory():
  """Gives back what the programs of test files took: 5 GB per worker by the end, otherwise.

  It takes a second, which is a tenth of the suite's time if every file does it.
  """
  yield
  if _resident_bytes() < 1.5e9:
    return
  import jax
  jax.clear_caches()
  gc.collect()
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps what is freed.
  if trim:
    trim(0)


def _resident_bytes() -> float:
  """Returns the memory of this process; infinity where Linux's /proc is missing."""
  try:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  except OSError:
    return float("inf")
  return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
  """Folder of real text: $BERTGPT_TEST_DATA, or `shared/data` next to the repository."""
  folder = pathlib.Path(os.environ.get("BERTGPT_TEST_DATA", _BESIDE))
  if not folder.is_dir():
    pytest.skip(f"no test data in {folder}; set BERTGPT_TEST_DATA")
  return folder


@pytest.fixture(scope="session")
def storage(tmp_path_factory):
  """A running `bucket_server`, whose variables are set for this process and its children."""
  with bucket_server.start(tmp_path_factory.mktemp("server") / "root") as server:
    os.environ.update(server.env)
    yield server
    for name in server.env:
      del os.environ[name]


@pytest.fixture
def bucket(storage, request, monkeypatch):
  """An empty folder in a bucket, as a path; unanswered requests are repeated for long."""
  from bertgpt import files
  storage.clear()
  monkeypatch.setenv("BERTGPT_BUCKET_SECONDS", "600")
  yield files.make_path(f"{bucket_server.ROOT}/{abs(hash(request.node.nodeid)):x}")
  storage.clear()


@pytest.fixture(scope="session")
def story(tmp_path_factory) -> pathlib.Path:
  """A file for `text:` with 150 small documents."""
  path = tmp_path_factory.mktemp("story") / "story.txt"
  path.write_text(small_runs.make_text(150))
  return path


@pytest.fixture(scope="session")
def recipe(story) -> pathlib.Path:
  """A recipe of a run that takes seconds: a BERT, or with `recipe:causal` a GPT."""
  path = story.with_name("recipe.py")
  path.write_text(small_runs.RECIPE.format(text=story, cache=story.parent / "cache", steps=20))
  return path


@pytest.fixture(scope="session", params=["mlm_nsp", "causal"])
def finished(request, recipe) -> pathlib.Path:
  """The workdir of a finished run with its report; once for a BERT and once for a GPT."""
  return _train(recipe, request.param)


@pytest.fixture(scope="session")
def finished_bert(recipe) -> pathlib.Path:
  return _train(recipe, "mlm_nsp")


@pytest.fixture(scope="session")
def finished_gpt(recipe) -> pathlib.Path:
  return _train(recipe, "causal")


@pytest.fixture(scope="session")
def finished_diffusion(recipe) -> pathlib.Path:
  return _train(recipe, "diffusion")


@pytest.fixture(scope="session")
def glue(tmp_path_factory) -> pathlib.Path:
  """SST-2 files of 16 sentences with random labels; dev is the same, test has no labels."""
  folder = tmp_path_factory.mktemp("glue")
  sentences = [line for line in small_runs.make_text(20).splitlines() if line][:16]
  labels = np.random.default_rng(0).permutation([0, 1] * 8)
  (folder / "SST-2").mkdir()
  for name in ("train", "dev"):
    (folder / "SST-2" / f"{name}.tsv").write_text("".join(
        f"{a}\t{b}\n" for a, b in [("sentence", "label"), *zip(sentences, labels, strict=True)]))
  (folder / "SST-2" / "test.tsv").write_text("".join(
      f"{a}\t{b}\n" for a, b in [("index", "sentence"), *enumerate(sentences)]))
  return folder


@pytest.fixture(scope="session")
def tuning(glue) -> pathlib.Path:
  """A recipe that learns 16 examples by heart."""
  path = glue / "recipe.py"
  path.write_text(small_runs.TUNING.format(data=glue))
  return path


@pytest.fixture(scope="session")
def labeled(tmp_path_factory) -> pathlib.Path:
  """A recipe that learns the animals in 16 sentences; all three CoNLL files are equal."""
  folder = tmp_path_factory.mktemp("conll")
  sentences = [line for line in small_runs.make_text(20).splitlines() if line][:16]
  words = [sentence.removesuffix(".").split() + ["."] for sentence in sentences]
  label = lambda word: "B-animal" if word in ("cat", "dog", "bird") else "O"
  for name in ("train", "dev", "test"):
    (folder / f"{name}.txt").write_text("\n\n".join(
        "\n".join(f"{word} {label(word)}" for word in line) for line in words) + "\n")
  (folder / "recipe.py").write_text(small_runs.TUNING.format(data=folder).replace(
      'name="sst2"', 'name="ner"'))
  return folder / "recipe.py"


@pytest.fixture(scope="session")
def tuned(tuning, finished_bert, tmp_path_factory) -> pathlib.Path:
  """A fine-tuning workdir with two seeds."""
  from bertgpt import cli
  out = tmp_path_factory.mktemp("tuned") / "out"
  assert cli.main(["finetune", f"--config={tuning}", f"--init={finished_bert}",
                   f"--workdir={out}", "--config.seeds=0,1"]) == 0
  return out


@pytest.fixture(scope="session")
def program(tmp_path_factory) -> program_lib.Program:
  """The program with a recipe of 40 steps, to be run in processes of its own."""
  return program_lib.make_program(tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="session")
def finished_run(program) -> pathlib.Path:
  """The workdir of an undisturbed run of `program`; not to be changed.

  It shows every warning about a deprecated call; its stderr is in `finished.stderr` next to it.
  """
  workdir = program.folder / "finished"
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("PYTHONWARNINGS", "always::DeprecationWarning")
    result = program.train(workdir)
  assert result.returncode == 0, result.stderr
  workdir.with_suffix(".stderr").write_text(result.stderr)
  return workdir


def _train(recipe: pathlib.Path, objective: str) -> pathlib.Path:
  from bertgpt import cli  # Imported here, because other tests need not wait for it.
  path = recipe.parent / objective
  if not path.exists():
    assert cli.main(["train", f"--config={recipe}:{objective}", f"--workdir={path}"]) == 0
  return path
