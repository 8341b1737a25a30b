"""Makes the archive and the expected values in this folder with the package's first version.

The archive holds what users of version 0.1.0 have on their disks: corpora, stopped runs, exports, a
fine-tuning workdir and recipes. `tests/test_legacy.py` checks that the current program still uses
them. So this script must be run with the package of commit 03a198c, never with a later one:

    git worktree add /tmp/bertgpt-0.1.0 03a198c
    PYTHONPATH=/tmp/bertgpt-0.1.0 python tests/legacy/make.py /tmp/legacy

The script creates the given folder and works in it, so paths in recipes and configs are relative;
only fine-tuning configs name the folder of the pretrained run in full. Devices and optimization
level are those of `tests/conftest.py`, because later losses are compared with those recorded.

It writes here:

    artifacts.tar.xz  the folder, without what only this script needs
    expected.json     what that version computed from it

The recipes are in `recipes/*.txt`. They have no `.py` names, so that no tool changes their imports.
"""

import contextlib
import hashlib
import io
import json
import lzma
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tarfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"

try:
  from bertgpt import cli, finetune_config, recipes, step_log
except ImportError:
  sys.exit("make.py: the package is not that of commit 03a198c; see the docstring")

HERE = pathlib.Path(__file__).resolve().parent
OPTIMIZERS = ("adamw", "lamb", "nvlamb", "adafactor")
# Runs: recipe, step after which the first start is stopped, steps whose batches are hashed.
RUNS = {
    "bert": ("bert.py", 260, "0,259,261,262,269"),
    "gpt": ("gpt.py", 55, "0,54,61"),
    **{name: (f"optimizers.py:{name}", 4, "0,5,8") for name in OPTIMIZERS},
}
TEMPLATE = "The [MASK] sees the [MASK] near a house."
PROMPTS = ("The cat sees the", "A bird")
PAIRS = (("The cat sees the dog.", "The dog cat the sees."),
         ("Two birds sleep.", "Two sleep birds ."))

STARTS = "b d f g k l m n p r s t v z br st tr gl".split()
VOWELS = "a e i o u ai ou".split()
VERBS = ("sees", "likes", "finds", "holds", "leaves", "takes", "knows", "wants", "follows")


def main(folder: str) -> None:
  pathlib.Path(folder).mkdir(parents=True)
  os.chdir(folder)
  write_inputs(pathlib.Path())
  expected = {"recipes": {}, "runs": {}}
  for recipe in sorted((HERE / "recipes").glob("*.txt")):
    shutil.copy(recipe, recipe.with_suffix(".py").name)
    expected["recipes"][recipe.name] = hashlib.sha256(recipe.read_bytes()).hexdigest()
  for name, (recipe, last_step, steps) in RUNS.items():
    print(f"== {name}", flush=True)
    expected["runs"][name] = make_run(name, recipe, last_step, steps)
  print("== use", flush=True)
  expected["fill"] = call("fill", "--workdir=bert", TEMPLATE)
  expected["embed"] = embed()
  expected["greedy"] = generate("--temperature=0", "--max_tokens=12")
  expected["sampled"] = generate("--temperature=0.8", "--top_k=40", "--num_samples=2", "--seed=3",
                                 "--max_tokens=12")
  expected["suites"] = {"bert": call("evaluate", "--workdir=bert", "--suite=pairs=pairs.tsv"),
                        "gpt": call("evaluate", "--workdir=gpt",
                                    "--suite=text=story.txt,pairs=pairs.tsv", "--limit=20")}
  print("== finetune", flush=True)
  expected["tuned"] = finetune()
  expected["exports"] = {name: export(workdir, f"{name}-export") for name, workdir in (
      ("bert", "bert"), ("gpt", "gpt"), ("tuned", f"tuned/{expected['tuned']['best_run']}"))}
  expected["configs"] = resolve_configs(pathlib.Path(cli.__file__).parents[1] / "configs")
  (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
  shutil.rmtree("cache/digests", ignore_errors=True)
  for path in pathlib.Path().rglob(".*lock"):  # Locks contain the name of this machine.
    path.unlink()
  pack(HERE / "artifacts.tar.xz",
       ["cache", "configs", "glue", "pairs.tsv", "story.txt", *RUNS, "tuned",
        "bert-export", "gpt-export"])


def call(*arguments: str) -> str:
  """Returns what a command prints on stdout; it must succeed."""
  with contextlib.redirect_stdout(io.StringIO()) as out:
    code = cli.main(arguments)
  if code:
    sys.exit(f"make.py: bertgpt {' '.join(arguments)} ended with {code}")
  return out.getvalue()


# ------------------------------------------------------------------ inputs


def write_inputs(folder: pathlib.Path) -> None:
  """Writes a text, pairs of sentences, and SST-2 with 16 sentences."""
  rng = random.Random(0)
  nouns = [make_word(rng) for _ in range(80)] + ["cat", "dog", "house", "café", "Zürich", "naïve"]

  def sentences():
    """Returns one sentence of each kind."""
    a, b, c = rng.sample(nouns, 3)
    return (
        f"The {a} {rng.choice(VERBS)} the {b} near a {c}.",
        f"{a.capitalize()}, {b} and {rng.randint(2, 99)} {c}s are here!",
        f"Who {rng.choice(VERBS)} \"{a}\"? It's the {b} (or a {c}).",
        f"日本 {a} {b}-{c}; 100% {rng.choice(VERBS)} €{rng.randint(1, 9)}.50.")

  documents = ("\n".join(rng.choice(sentences()) for _ in range(rng.randint(2, 9)))
               for _ in range(120))
  (folder / "story.txt").write_text("\n\n".join(documents) + "\n", "utf-8")
  (folder / "pairs.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in [("good", "bad"), *PAIRS]))
  (folder / "glue" / "SST-2").mkdir(parents=True)
  # The label is the kind of the sentence.
  examples = [(sentences()[label], label) for label in [0, 1] * 8]
  for name in ("train", "dev"):
    (folder / "glue" / "SST-2" / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(
        f"{text}\t{label}\n" for text, label in examples), "utf-8")
  (folder / "glue" / "SST-2" / "test.tsv").write_text("index\tsentence\n" + "".join(
      f"{i}\t{text}\n" for i, (text, _) in enumerate(examples)), "utf-8")


def make_word(rng: random.Random) -> str:
  return "".join(rng.choice(STARTS) + rng.choice(VOWELS) for _ in range(rng.randint(1, 3)))


# -------------------------------------------------------------------- runs


def make_run(name: str, recipe: str, last_step: int, steps: str) -> dict:
  """Leaves a run that was stopped after `last_step`; returns the log of an uninterrupted one."""
  hashes = re.findall(r"step (\d+): sha256 (\w+)",
                      call("data", f"--config={recipe}", f"--steps={steps}"))
  train = ["train", f"--config={recipe}"]
  call(*train, f"--workdir={name}-whole")
  with stop_after(last_step):
    code = cli.main([*train, f"--workdir={name}"])
  found = [p.name for p in pathlib.Path(name, "checkpoints").iterdir() if p.name.isdecimal()]
  if (code, found) != (75, [str(last_step)]):
    sys.exit(f"make.py: {name} ended with {code} and the checkpoints {found}")
  metrics = [line for line in read_metrics(f"{name}-whole") if line["step"] >= last_step]
  return {"recipe": recipe, "stopped": last_step, "metrics": metrics,
          "hashes": dict(hashes), "evaluate": call("evaluate", f"--workdir={name}")}


@contextlib.contextmanager
def stop_after(last_step: int):
  """Sends this process SIGTERM when the step has been started."""
  add = step_log.StepLog.add

  def add_and_send(self, step, step_metrics):
    add(self, step, step_metrics)
    if step == last_step:
      signal.raise_signal(signal.SIGTERM)

  step_log.StepLog.add = add_and_send
  yield
  step_log.StepLog.add = add


def read_metrics(workdir: str) -> list[dict]:
  """Returns the lines of metrics.jsonl without values that depend on the time."""
  lines = map(json.loads, pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines())
  return [{tag: x for tag, x in line.items() if not tag.startswith("perf/")} for line in lines]


# --------------------------------------------------------------------- use


def embed() -> list[list[float]]:
  import numpy as np
  pathlib.Path("lines.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
  call("embed", "--workdir=bert", "--input=lines.txt", "--out=features.npy")
  return np.load("features.npy").astype(float).tolist()


def generate(*flags: str) -> str:
  return call("generate", "--workdir=gpt", *(f"--prompt={prompt}" for prompt in PROMPTS), *flags)


def finetune() -> dict:
  """Leaves a workdir fine-tuned with two seeds; returns the results of a third one."""
  command = ["finetune", "--config=tuning.py", "--init=bert"]
  call(*command, "--workdir=tuned")
  shutil.copytree("tuned", "tuned-whole")
  call(*command, "--workdir=tuned-whole", "--config.seeds=0,1,2")
  results = json.loads(pathlib.Path("tuned-whole", "results.json").read_text())
  third, = [run for run in results["runs"] if run["seed"] == 2]
  return {"third": third, "third_metrics": read_metrics(f"tuned-whole/{third['folder']}"),
          "best_run": json.loads(pathlib.Path("tuned", "results.json").read_text())["best_run"]}


def export(workdir: str, out: str) -> dict:
  """Leaves an export; returns the SHA-256 of every tensor and file, and config.json."""
  from safetensors import numpy as safetensors_numpy
  call("export", f"--workdir={workdir}", f"--out={out}")
  tensors = safetensors_numpy.load_file(f"{out}/model.safetensors")
  return {
      "tensors": {name: f"{x.dtype} {list(x.shape)} {hashlib.sha256(x.tobytes()).hexdigest()}"
                  for name, x in sorted(tensors.items())},
      "config": json.loads(pathlib.Path(out, "config.json").read_text()),
      "files": {p.name: hashlib.sha256(p.read_bytes()).hexdigest()
                for p in sorted(pathlib.Path(out).iterdir())
                if p.name not in ("README.md", "config.json", "model.safetensors")}}


def resolve_configs(source: pathlib.Path) -> list[str]:
  """Leaves the recipes of that version with the fields that they set; returns their names."""
  shutil.copytree(source, "configs", ignore=shutil.ignore_patterns("__pycache__"))
  for path in sorted(pathlib.Path("configs").glob("*.py")):
    is_tuning = "finetune_config" in path.read_text()
    config = recipes.load(str(path), finetune_config.base if is_tuning else recipes.base)
    path.with_suffix(".json").write_text(recipes.to_json(config) + "\n")
  return [path.name for path in sorted(pathlib.Path("configs").glob("*.py"))]


def pack(archive: pathlib.Path, paths) -> None:
  def strip(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.mtime = info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mode = 0o755 if info.isdir() else 0o644
    return info

  # Most of the content is float32 arrays, where the likely values of a byte depend on its place.
  filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 2}]
  with (lzma.open(archive, "w", filters=filters) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar):
    for path in paths:
      tar.add(path, filter=strip)  # Adds the files of a folder by name, since Python 3.7.


if __name__ == "__main__":
  if len(sys.argv) != 2:
    sys.exit("usage: PYTHONPATH=PACKAGE_AT_03a198c python make.py NEW_FOLDER")
  main(sys.argv[1])
