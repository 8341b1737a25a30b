"""bertgpt.files.limits: the limit of open files is raised as far as the system lets a process."""

import resource
import sys

import pytest

from bertgpt import files


@pytest.mark.parametrize(("limit", "wanted", "raised", "expected"), [
    ((1024, 4096), 600, 1024, 1024), ((1024, 4096), 3000, 3000, 3000),
    ((1024, 2048), 3000, 2048, 2048), ((1024, -1), 3000, 3000, 3000),
    ((-1, -1), 9, -1, sys.maxsize)])
def test_the_limit_is_raised_and_never_lowered(monkeypatch, limit, wanted, raised, expected):
  now = [limit]
  monkeypatch.setattr(resource, "getrlimit", lambda kind: now[0])
  monkeypatch.setattr(resource, "setrlimit", lambda kind, to: now.__setitem__(0, to))
  assert resource.RLIM_INFINITY == -1
  assert files.raise_open_limit(wanted) == expected
  assert now[0] == (raised, limit[1])


def test_a_system_that_refuses_is_believed(monkeypatch):
  def refuse(kind, to):
    raise ValueError

  monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, -1))
  monkeypatch.setattr(resource, "setrlimit", refuse)
  assert files.raise_open_limit(10_000) == 256
