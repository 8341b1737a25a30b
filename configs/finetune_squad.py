r"""SQuAD 1.1 or 2.0: answers to questions as spans of a text.

Command    bertgpt finetune --config configs/finetune_squad.py --init runs/wiki_mini \
             --config.task.data=squad
Data       train-v1.1.json and dev-v1.1.json; for `--task squad2` those of v2.0. Other files with
           --config.task.train=FILE,FILE and task.dev.
Hardware   Any; the rows of the paper are 384 tokens long.
Expected   BERT-base, 1.1, dev: EM 80.8, F1 88.5 (Devlin et al. 2018).
"""

from bertgpt.config.finetuning import base


def get_config():
  config = base()
  config.task.name = "squad"
  config.task.max_length = 384
  config.task.stride = 128
  config.learning_rates = (5e-5,)
  config.seeds = (0, 1, 2)
  config.batch_size = 32
  config.epochs = 3
  config.eval.every_epoch = False
  return config
