"""Trained models shared by the tests of inference."""

import pytest

from bertgpt.runs import trained as trained_lib
from bertgpt.runs.trained import Trained


@pytest.fixture(scope="session")
def gpt(finished_gpt) -> Trained:
  return trained_lib.load_trained(finished_gpt)


@pytest.fixture(scope="session")
def bert(finished_bert) -> Trained:
  return trained_lib.load_trained(finished_bert)


@pytest.fixture(scope="session")
def diffuser(finished_diffusion) -> Trained:
  return trained_lib.load_trained(finished_diffusion)
