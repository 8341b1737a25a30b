"""BERT-large, uncased, with the paper's recipe; everything except the size as in bert_base.py.

Command    bertgpt train --config configs/bert_large.py --workdir runs/bert_large
Hardware   64 TPU chips for 4 days in the paper; any number of devices that divides 256 rows. With
           little memory, use --config.phases[1].micro_batches=4 or --config.mesh.fsdp=8.
Expected   Held-out MLM perplexity 3.23 (Devlin et al. 2018, arXiv:1810.04805, table 6); SQuAD
           1.1 fine-tuned 84.1 EM, 90.9 F1 (dev).
Status     Not yet run.
"""

from bertgpt.config import presets, recipes


def get_config():
  config = recipes.beside(__file__, "bert_base")
  config.model.update(presets.BERT["large"])
  return config
