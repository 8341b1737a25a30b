r"""Named entity recognition on CoNLL files, with a label per word.

Command    bertgpt finetune --config configs/finetune_ner.py --init runs/wiki_mini \
             --config.task.data=wnut17
Data       WNUT 2017 or CoNLL 2003 under their official file names; other files with
           --config.task.train=FILE, task.dev and task.test.
Hardware   Any.
Expected   BERT-base, CoNLL 2003: dev F1 96.4, test 92.4 (Devlin et al. 2018, cased, with the
           whole document as context, which is not available here).
"""

from bertgpt.config.finetuning import base


def get_config():
  config = base()
  config.task.name = "ner"
  config.task.max_length = 128
  config.learning_rates = (5e-5,)
  config.seeds = (0, 1, 2)
  config.batch_size = 16
  config.epochs = 4
  return config
