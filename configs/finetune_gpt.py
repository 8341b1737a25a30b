r"""A GPT on a task of GLUE, with the recipe of GPT-1's paper.

Command    bertgpt finetune --config configs/finetune_gpt.py --init runs/gpt1 --task sst2 \
             --config.task.data=glue
Data       As for finetune_glue.py. Pairs are read only in the given order; the paper reads both
           orders if the order has no meaning.
Hardware   Any.
Expected   GPT-1: SST-2 91.3, CoLA 45.4, RTE 56.0, on the test sets (Radford et al. 2018).
"""

from bertgpt.config.finetuning import base


def get_config():
  config = base()
  config.task.name = "sst2"
  config.task.max_length = 128
  config.task.lm_weight = 0.5  # Weight of the auxiliary language-model loss: GPT-1, section 3.2.
  config.learning_rates = (6.25e-5,)
  config.seeds = (0, 1, 2)
  config.batch_size = 32
  config.epochs = 3
  config.warmup_fraction = 0.002
  config.optimizer.update(name="adamw", b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.01,
                          clip_norm=1.0)
  return config
