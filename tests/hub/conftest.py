"""Folders that `bertgpt export` has written."""

import pytest

from bertgpt import cli


@pytest.fixture(scope="session")
def exported_bert(finished_bert, tmp_path_factory):
  return _export(finished_bert, tmp_path_factory)


@pytest.fixture(scope="session")
def exported_gpt(finished_gpt, tmp_path_factory):
  return _export(finished_gpt, tmp_path_factory)


def _export(finished, tmp_path_factory):
  out = tmp_path_factory.mktemp("exported") / "model"
  assert cli.main(["export", f"--workdir={finished}", f"--out={out}"]) == 0
  return out


@pytest.fixture(params=["bert", "gpt"])
def both(request, finished_bert, finished_gpt, exported_bert, exported_gpt):
  """Returns a run and its exported folder."""
  return {"bert": (finished_bert, exported_bert), "gpt": (finished_gpt, exported_gpt)}[
      request.param]
