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
from bertgpt.finetuning.tuning import Program


@pytest.mark.parametrize("dtype, precision", [("float32", "highest"), ("bfloat16", None)])
def test_a_float32_model_is_evaluated_with_exact_matmuls(dtype, precision):
  """A call outside of the context of its compilation would be traced again."""
  config, run, traced = finetune_config.base(), config_lib.base(), []
  config.eval.batch_size, run.model.dtype = 2, dtype
  tuning = types.SimpleNamespace(config=config, eval_lengths=(16,),
                                 mesh=sharding.make_mesh(run, jax.devices()[:1]))

  @jax.jit
  def predict(params, batch):
    traced.append(jax.config.jax_default_matmul_precision)
    return params * batch["tokens"].sum(1)

  program = Program(0.0, types.SimpleNamespace(config=run), None, None, predict, set())
  tokens = [np.full(n, n, np.int32) for n in (3, 7, 5)]
  rows = Rows(tokens, [np.zeros_like(x) for x in tokens], np.zeros(3, np.int32))
  assert evaluation.predict(tuning, program, 1.0, rows).tolist() == [9, 49, 25]
  assert traced == [precision]
