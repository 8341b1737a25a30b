"""BERT-small: 4 layers, width 512; everything else as in bert_base.py.

Command    bertgpt train --config configs/bert_small.py --workdir runs/bert_small
Hardware   One GPU or TPU chip.
Expected   GLUE test average 71.2 after fine-tuning (google-research/bert, README; sizes of Turc
           et al. 2019, arXiv:1908.08962).
Status     Not yet run.
"""

from bertgpt.config import presets, recipes


def get_config():
  config = recipes.beside(__file__, "bert_base")
  config.model.update(presets.BERT["small"])
  return config
