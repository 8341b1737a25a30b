"""bertgpt.runs.metadata: one form for all checkpoints; older forms can still be read."""

import json
import shutil

import pytest

from bertgpt import config as config_lib
from bertgpt.config.stored import from_json
from bertgpt.data.batches.rows import ORDER_VERSION
from bertgpt.data.tokens import tokenizers
from bertgpt.runs import checkpoint
from bertgpt.runs import manifest as manifest_lib
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.metadata import make_metadata


@pytest.fixture(scope="module")
def best(tuned):
  """Returns the folder of the fine-tuning run whose weights were saved."""
  (checkpoints,) = tuned.glob("*/checkpoints")
  return checkpoints.parent


def metadata_of(workdir):
  return checkpoint.restore_params(workdir)[1]


def test_metadata_are_json_and_rebuild_the_config(finished_bert):
  tokenizer = tokenizers.load_tokenizer(finished_bert / "tokenizer")
  config = config_lib.base()
  config.seed = 7
  metadata = make_metadata(config, tokenizer, corpus="c", task={"name": "sst2"})
  assert json.loads(json.dumps(metadata)) == metadata
  assert from_json(metadata["config"]) == config
  optional = {"task", "fresh", "bos_id", "beginning_id"}
  assert not optional & make_metadata(config, tokenizer, corpus="").keys()
  metadata = make_metadata(config, tokenizer, corpus="", bos_id=0, beginning_id=1)
  assert (metadata["bos_id"], metadata["beginning_id"]) == (0, 1)


def test_pretraining_and_fine_tuning_write_the_same_entries(finished_bert, best):
  before, after = metadata_of(finished_bert), metadata_of(best)
  assert set(after) - {"task"} == set(before) == {"config", "corpus", "tokenizer", "data_order",
                                                  "step"}
  assert before["data_order"] == after["data_order"] == ORDER_VERSION
  assert (after["corpus"], after["tokenizer"]) == (before["corpus"], before["tokenizer"])


def test_a_fine_tuned_checkpoint_without_an_order_still_opens(best, tmp_path):
  """Fine-tuning by version 0.1.0 wrote no `data_order`."""
  folder = shutil.copytree(best, tmp_path / "run")
  (manifest,) = folder.glob(f"checkpoints/*/{manifest_lib.MANIFEST}")
  content = json.loads(manifest.read_text())["content"]
  del content["metadata"]["data_order"]
  manifest.write_text(manifest_lib.encode(content))
  assert trained_lib.load_any(folder).task["name"] == "sst2"
