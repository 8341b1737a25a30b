r"""A task of GLUE, with the recipe of BERT's paper.

Command    bertgpt finetune --config configs/finetune_glue.py --init runs/wiki_mini --task sst2 \
             --config.task.data=glue
Data       cola sst2 mrpc stsb qqp mnli qnli rte wnli: the official folders, or tfds:glue/NAME.
Hardware   Any.
Expected   BERT-base, dev: MNLI 84.4, QNLI 88.4, MRPC 86.7, SST-2 92.7 (Devlin et al. 2018).
"""

from bertgpt.config.finetuning import base


def get_config():
  config = base()
  config.task.name = "sst2"
  config.task.max_length = 128
  # The paper chooses, on the dev set, among rates of 2e-5 to 5e-5, 2 to 4 epochs, and batches of 16
  # or 32 examples.
  config.learning_rates = (5e-5,)
  config.seeds = (0, 1, 2)
  config.batch_size = 32
  config.epochs = 3
  return config
