r"""Classification of texts or pairs of texts with your own labels, of two classes or more.

Command    bertgpt finetune --config configs/finetune_classes.py --init runs/wiki_mini \
             --config.task.data=reviews
Data       train.tsv and dev.tsv, or train.jsonl and dev.jsonl, with the columns text and label,
           and text2 for pairs. A test set is optional.
Hardware   Any.
Expected   As for `finetune_glue` on data of the same form. The report has the scores of the most
           frequent class, for comparison.
"""

from bertgpt.config.finetuning import base


def get_config():
  config = base()
  config.task.name = "classes"
  config.task.max_length = 128
  config.learning_rates = (5e-5,)
  config.seeds = (0, 1, 2)
  config.batch_size = 32
  config.epochs = 3
  return config
