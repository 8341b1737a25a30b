"""Malicious files: each is read in a separate process, because it might crash the process."""

import gzip
import os
import subprocess
import sys

import pytest
from program import ROOT

from bertgpt import config as config_lib
from bertgpt.data.tokens import training

MUTATE = r"""
import pathlib, random, sys
from bertgpt.data.tokens import tokenizers
from bertgpt.errors import UserError
original, path, rng = *map(pathlib.Path, sys.argv[1:3]), random.Random(0)
data, outcomes = original.read_bytes(), {"refused": 0, "loaded": 0}
for _ in range(int(sys.argv[3])):
  mutated = bytearray(data)
  for _ in range(rng.randint(1, 4)):
    way, place = rng.randrange(4), rng.randrange(len(mutated))
    if way == 0:
      mutated[place] ^= 1 << rng.randrange(8)
    elif way == 1:
      mutated[place:place + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
    elif way == 2:
      mutated[place:place] = mutated[place:place + rng.randrange(200)]
    else:
      del mutated[place + 1:place + rng.randrange(200)]
  path.write_bytes(mutated)
  try:
    tokenizer = tokenizers.load_tokenizer(path.parent)
    for ids in tokenizer.encode(["The cat sees the dog.", "\u4eca\u5929 [MASK] \x00", "a" * 2000]):
      tokenizer.decode(ids)
    outcomes["loaded"] += 1
  except UserError as e:
    assert len(str(e).splitlines()) == 1, e
    outcomes["refused"] += 1
print(outcomes["refused"], outcomes["loaded"])
"""


@pytest.mark.parametrize("model_type, count", [
    ("unigram", 200), ("bpe", 200), pytest.param("unigram", 2000, marks=pytest.mark.slow)])
def test_mutations_of_a_sentencepiece_model_are_loaded_or_refused(story, tmp_path, model_type,
                                                                  count):
  config = config_lib.base().tokenizer
  config.update(kind="sentencepiece", model_type=model_type,
                vocab_size=45 if model_type == "unigram" else 70)
  tokenizer = training.train_tokenizer(config, story.read_text().splitlines())
  (tmp_path / "original").write_bytes(tokenizer.data)
  (tmp_path / "mutated").mkdir()
  result = subprocess.run(
      [sys.executable, "-c", MUTATE, tmp_path / "original",
       tmp_path / "mutated" / tokenizer.file_name, str(count)],
      capture_output=True, text=True, cwd=ROOT)
  assert result.returncode == 0, result.stderr[-2000:]
  refused, loaded = map(int, result.stdout.split())
  assert refused and loaded and refused + loaded == count


MEMORY = r"""
import re, sys
from bertgpt.cli import main
code = main(sys.argv[1:])
# Not ru_maxrss: that of a new process begins with the peak of the process that started it.
print("MiB", int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) / 1024)
sys.exit(code)
"""
BOMB_MEBIBYTES = 1024


def test_a_small_archive_of_a_huge_text_is_refused_in_little_memory(recipe, tmp_path):
  bomb = tmp_path / "bomb.gz"
  bomb.write_bytes(gzip.compress(bytes(2**20)) * BOMB_MEBIBYTES)
  assert bomb.stat().st_size < 2 * 2**20
  result = subprocess.run(
      [sys.executable, "-c", MEMORY, "prepare", f"--config={recipe}", f"--out={tmp_path}/out",
       f"--config.data.source=text:{bomb}"], capture_output=True, text=True,
      env=os.environ | {"PYTHONPATH": str(ROOT)})
  assert result.returncode == 65, result.stderr
  assert len(result.stderr.splitlines()) == 1 and "bomb.gz" in result.stderr
  assert float(result.stdout.split("MiB")[1]) < BOMB_MEBIBYTES / 2
