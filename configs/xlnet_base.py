"""XLNet-base with the recipe of the large model; the paper has none for the base model.

Command    bertgpt train --config configs/xlnet_base.py --workdir runs/xlnet_base
Data       As for configs/xlnet_large.py.
Hardware   Any number of devices that divides 512, or 2,048 (the rows of a batch in the published
           script) with --config.eval.batch_size=2048. With little memory, use
           --config.phases[0].micro_batches=8.
Expected   On dev sets, fine-tuned: MNLI 86.8, QNLI 91.7, QQP 91.4, RTE 74.0, SST-2 94.7, MRPC 88.2,
           CoLA 60.2, STS-B 89.5 (Song et al. 2020, arXiv:2004.09297, table 3).
Status     Not yet run.
"""

from bertgpt.config import families, recipes


def get_config(variant=""):
  config = recipes.beside(__file__, "xlnet_large", argument=variant)
  config.model.update(families.FAMILIES["xlnet"].presets["base"])
  config.phases[0].batch_size = 2048
  return config
