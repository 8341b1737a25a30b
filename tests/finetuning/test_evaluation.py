"""bertgpt.finetuning.evaluation: models compute in the dtype that their config names."""

import types

import jax
import numpy as np
import pytest

from bertgpt import config as config_lib
from bertgpt.config import finetuning as finetune_config
from bertgpt.devices import sharding
from bertgpt.finetuning import evaluation
from bertgpt.finetuning.tasks.rows import Rows
from bertgpt.finetuning.tuning import Outputs


@pytest.mark.parametrize("dtype, precision", [("float32", "highest"), ("bfloat16", None)])
def test_a_float32_model_is_evaluated_with_exact_matmuls(dtype, precision):
  """A call outside of the context of its compilation would be traced again."""
  config, run, traced = finetune_config.base(), config_lib.base(), []
  config.eval.batch_size, run.model.dtype = 2, dtype

  def predict(model, params, batch):
    traced.append(jax.config.jax_default_matmul_precision)
    return params * batch["tokens"].sum(1)

  mesh = sharding.make_mesh(run, jax.devices()[:1])
  head = types.SimpleNamespace(make_model=lambda model, num_labels: None, predict=predict)
  tuning = types.SimpleNamespace(config=config, eval_lengths=(16,), mesh=mesh,
                                 outputs=Outputs(head, run, mesh, num_labels=1))
  tokens = [np.full(n, n, np.int32) for n in (3, 7, 5)]
  rows = Rows(tokens, [np.zeros_like(x) for x in tokens], np.zeros(3, np.int32))
  assert evaluation.predict(tuning, 1.0, rows).tolist() == [9, 49, 25]
  assert traced == [precision]
