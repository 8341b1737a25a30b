"""What several test files need."""

import os
import pathlib

import pytest

_BESIDE = pathlib.Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
  """Folder of real text: $BERTGPT_TEST_DATA, or `shared/data` beside the repository."""
  folder = pathlib.Path(os.environ.get("BERTGPT_TEST_DATA", _BESIDE))
  if not folder.is_dir():
    pytest.skip(f"no test data in {folder}; set BERTGPT_TEST_DATA")
  return folder
