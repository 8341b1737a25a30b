"""BERT-medium: 8 layers, width 512; everything else as in bert_base.py.

Command    bertgpt train --config configs/bert_medium.py --workdir runs/bert_medium
Hardware   One GPU or TPU chip, or a few.
Expected   GLUE test average 73.5 after fine-tuning (google-research/bert, README; sizes of Turc
           et al. 2019, arXiv:1908.08962).
Status     Not yet run.
"""

from bertgpt.config import presets, recipes


def get_config():
  config = recipes.beside(__file__, "bert_base")
  config.model.update(presets.BERT["medium"])
  return config
