"""A run neither depends on its surroundings nor leaks: network, environment, locale, clock."""

import os
import random
import shutil
import subprocess
import sys

import pytest
from program import ROOT, curves, fingerprints

SECRETS = {"AWS_SECRET_ACCESS_KEY": "secret-4f1e7d", "HF_TOKEN": "secret-90ab3c",
           "WANDB_API_KEY": "secret-77e0d2", "SOME_PASSWORD": "secret-c3b8a6"}

# The kernel's counters in a network namespace: connections, packets, and packets without a route.
COUNTERS = ("ActiveOpens", "OutRequests", "OutNoRoutes", "OutDatagrams", "Ip6OutRequests",
            "Ip6OutNoRoutes", "Udp6OutDatagrams")
ISOLATE = ("unshare", "--user", "--map-root-user", "--net")
COUNT = 'report="$1"; shift; "$@"; code=$?; cat /proc/self/net/snmp* >"$report"; exit $code'


def can_isolate():
  try:
    return subprocess.run([*ISOLATE, "true"], stderr=subprocess.DEVNULL).returncode == 0
  except OSError:
    return False


def run_isolated(report, command, env):
  """Runs a command without a network, if the system allows that; the counters go to a file."""
  isolate = (*ISOLATE, "sh", "-c", COUNT, "sh", str(report)) if can_isolate() else ()
  return subprocess.run([*isolate, *command], env=env, capture_output=True, timeout=1200)


def count_attempts(report):
  """Returns the sum of the counters of attempts to reach a network."""
  found, names = {}, {}
  for line in report.read_text().splitlines():
    key, *values = line.split()
    if key.endswith(":"):  # A line of names, then one of numbers.
      if key in names:
        found |= dict(zip(names[key], map(int, values), strict=True))
      names[key] = values
    else:
      found[key] = int(values[0])
  return sum(found[name] for name in COUNTERS)


@pytest.fixture(scope="module")
def isolated(program, finished_run, tmp_path_factory):
  """Returns a run without network, locale and environment, but with secrets, and its output."""
  folder = tmp_path_factory.mktemp("isolated") / "L\u00e4ufe \u4eca\u5929"
  folder.mkdir()
  path, text = folder / "run", folder / "\u00d6l.txt"
  shutil.copy(program.folder / "text.txt", text)
  env = program.variables(path) | SECRETS | {
      "LC_ALL": "C", "TZ": "Pacific/Kiritimati", "XLA_FLAGS": os.environ["XLA_FLAGS"]}
  command = program.command(path, f"--config.data.source=text:{text}",
                            f"--config.data.cache_dir={folder}/cache")
  return folder, run_isolated(folder / "counters", command, env)


def test_a_run_needs_no_network_and_no_environment(isolated, finished_run):
  folder, result = isolated
  assert result.returncode == 0, result.stderr
  assert fingerprints(folder / "run") == fingerprints(finished_run)
  assert curves(folder / "run") == curves(finished_run)


@pytest.mark.skipif(not can_isolate(), reason="the system allows no network namespaces")
def test_a_run_does_not_try_to_reach_a_network(isolated, tmp_path):
  folder, _ = isolated
  assert count_attempts(folder / "counters") == 0
  code = ("import socket\nfor kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n"
          "  try: socket.socket(socket.AF_INET, kind).connect(('192.0.2.1', 443))\n"
          "  except OSError: pass\n")
  run_isolated(tmp_path / "counters", [sys.executable, "-c", code], dict(os.environ))
  assert count_attempts(tmp_path / "counters") == 2


def test_secrets_of_the_environment_are_in_nothing_that_a_run_leaves(isolated):
  folder, result = isolated
  files = [path for path in folder.rglob("*") if path.is_file()]
  assert any(path.name == "config.json" for path in files)
  for content in (result.stdout, result.stderr, *(path.read_bytes() for path in files)):
    assert not any(secret.encode() in content for secret in SECRETS.values())


def test_the_locale_does_not_change_a_corpus(recipe, tmp_path):
  """File names do not change a corpus, only its place in the cache."""
  text = tmp_path / "\u00d6l.txt"
  text.write_text("Na\u00efve \u00c4pfel.\nIt is so.\n\n\u4eca\u5929\u5929\u6c14\u5f88\u597d\n\n"
                  "\u0395\u03bb\u03bb\u03ac\u03b4\u03b1.\n\nOne more.\n", "utf-8")
  found = []
  for locale in ("C", "C.UTF-8"):
    out = tmp_path / locale
    result = subprocess.run(
        [sys.executable, "-m", "bertgpt", "prepare", f"--config={recipe}", f"--out={out}",
         f"--config.data.source=text:{text}", "--config.tokenizer.kind=bpe",
         "--config.tokenizer.vocab_size=300"], capture_output=True,
        env={"PYTHONPATH": str(ROOT), "LC_ALL": locale})
    assert result.returncode == 0, result.stderr
    found.append({path.name: path.read_bytes() for path in out.rglob("*")
                  if path.is_file()})
  assert found[0] == found[1]


JUMPING_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

static long shift(void) {  // A year ahead in every other block of 50 calls.
  static long calls;
  return __sync_fetch_and_add(&calls, 1) / 50 % 2 ? 365L * 86400 : 0;
}
int clock_gettime(clockid_t id, struct timespec *t) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(id, t);
  if (id == CLOCK_REALTIME) t->tv_sec += shift();
  return result;
}
int gettimeofday(struct timeval *t, void *zone) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  t->tv_sec = now.tv_sec, t->tv_usec = now.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *t) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (t) *t = now.tv_sec;
  return now.tv_sec;
}
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
def test_a_clock_that_jumps_a_year_to_and_fro_changes_nothing(program, finished_run, tmp_path):
  source, library = tmp_path / "clock.c", tmp_path / "clock.so"
  source.write_text(JUMPING_CLOCK)
  subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
  env = os.environ | program.variables(tmp_path / "run") | {"LD_PRELOAD": str(library)}
  times = subprocess.run([sys.executable, "-c", "import time\nprint(max(abs(time.time() - "
                          "time.time()) for _ in range(200)))"], env=env, capture_output=True)
  assert float(times.stdout) > 1e7, times.stderr
  result = subprocess.run(program.command(tmp_path / "run", "--config.log.tensorboard=True"),
                          env=env, capture_output=True, text=True, timeout=1200)
  assert result.returncode == 0, result.stderr
  assert fingerprints(tmp_path / "run") == fingerprints(finished_run)
  assert curves(tmp_path / "run") == curves(finished_run)


@pytest.mark.slow
def test_a_damaged_compilation_cache_changes_nothing(program, finished_run, tmp_path):
  cache, rng = tmp_path / "xla", random.Random(0)
  shutil.copytree(program.folder / "xla", cache)
  programs = [path for path in cache.iterdir() if path.is_file() and path.stat().st_size]
  assert programs
  for i, path in enumerate(programs):
    content = path.read_bytes()
    path.write_bytes([content[:len(content) // 2], rng.randbytes(len(content)), b"",
                      content[:20] + rng.randbytes(8) + content[28:]][i % 4])
  result = program.train(tmp_path / "run", f"--config.system.compilation_cache={cache}")
  assert result.returncode == 0, result.stderr
  assert fingerprints(tmp_path / "run") == fingerprints(finished_run)
