"""ELECTRA-base with the paper's recipe: 766k steps of 256 rows of 512 tokens.

Command    bertgpt train --config configs/electra_base.py --workdir runs/electra_base
Data       As for configs/electra_small.py.
Hardware   16 TPU v3 chips for 4 days in the paper; any number of devices that divides 256. On 8
           devices of 16 GB, use --config.phases[0].micro_batches=2.
Expected   On dev sets, fine-tuned: CoLA 67.7, SST-2 95.1, MRPC 89.5, STS-B 91.2, QQP 91.5, MNLI
           88.8, QNLI 93.2, RTE 82.7; SQuAD 1.1 EM 86.8, 2.0 EM 80.5
           (github.com/google-research/electra, 2020).
Status     Not yet run.
"""

from bertgpt.config import families, recipes


def get_config():
  config = recipes.beside(__file__, "electra_small")
  config.model.update(families.FAMILIES["electra"].presets["base"])
  config.phases[0].update(steps=766_000, seq_len=512, batch_size=256, learning_rate=2e-4)
  config.eval.batch_size = 256
  return config
