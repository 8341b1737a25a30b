r"""RoBERTa-large with the paper's recipe: 500k steps of 8,192 rows of 512 tokens.

Command    bertgpt train --config configs/roberta_large.py --workdir runs/roberta_large
Data       As for configs/roberta_base.py.
Hardware   1,024 V100 GPUs in the paper. Here 64 GPUs or TPU chips: a micro-batch is then 8 rows
           per device. With other numbers of devices, scale --config.phases[0].micro_batches
           inversely.
Expected   On dev sets, fine-tuned: MNLI 90.2, QNLI 94.7, QQP 92.2, RTE 86.6, SST-2 96.4, MRPC 90.9,
           CoLA 68.0, STS-B 92.4; SQuAD 1.1 EM 88.9, F1 94.6; SQuAD 2.0 EM 86.5, F1 89.4 (Liu et al.
           2019, arXiv:1907.11692, and github.com/facebookresearch/fairseq, examples/roberta).
Status     Not yet run.
"""

from bertgpt.config import presets, recipes


def get_config():
  config = recipes.beside(__file__, "roberta_base")
  config.model.update(presets.ROBERTA["large"])
  config.phases[0].update(learning_rate=4e-4, warmup_steps=30_000, micro_batches=16)
  return config
