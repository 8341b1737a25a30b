"""BERT-large with large batches, with NVIDIA's two-phase LAMB recipe.

Command    bertgpt train --config configs/bert_large_lamb.py --workdir runs/bert_large_lamb
Hardware   64 GPUs or TPU chips: a micro-batch is then 64 rows of 128 tokens, or 8 rows of 512, per
           device. With other numbers of devices, scale the micro_batches of both phases inversely.
Expected   Training loss (MLM + NSP) 1.24 to 1.30 at the end, SQuAD 1.1 F1 90.7 (NVIDIA
           DeepLearningExamples, PyTorch BERT; LAMB: You et al. 2019, arXiv:1904.00962).
Status     Not yet run.
"""

from bertgpt.config import phase, recipes


def get_config():
  config = recipes.beside(__file__, "bert_large")
  config.optimizer.name = "nvlamb"
  # The learning rate and the step count restart in the second phase; NVIDIA's curve is (1 - t)^0.5.
  config.phases = (
      phase(steps=7_038, seq_len=128, batch_size=65_536, micro_batches=16, max_predictions=20,
            learning_rate_rule="restart", learning_rate=6e-3, schedule="polynomial", power=0.5,
            warmup_fraction=0.2843),
      phase(steps=1_563, seq_len=512, batch_size=32_768, micro_batches=64, max_predictions=80,
            learning_rate_rule="restart", learning_rate=4e-3, schedule="polynomial", power=0.5,
            warmup_fraction=0.128))
  config.eval.every_steps = 500
  config.checkpoint.every_steps = 200
  config.log.every_steps = 10
  return config
