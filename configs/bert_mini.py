"""BERT-mini: 4 layers, width 256; everything else as in bert_base.py.

Command    bertgpt train --config configs/bert_mini.py --workdir runs/bert_mini
Hardware   One GPU or TPU chip.
Expected   GLUE test average 65.8 after fine-tuning (google-research/bert, README; sizes of Turc
           et al. 2019, arXiv:1908.08962).
Status     Not yet run.
"""

from bertgpt.config import presets, recipes


def get_config():
  config = recipes.beside(__file__, "bert_base")
  config.model.update(presets.BERT["mini"])
  return config
