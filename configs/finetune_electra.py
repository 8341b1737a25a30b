r"""A task of GLUE, with the recipe of ELECTRA's paper.

Command    bertgpt finetune --config configs/finetune_electra.py --init runs/electra_small \
             --task cola --config.task.data=glue
Data       As for `finetune_glue`.
Hardware   Any.
Expected   Dev: CoLA 57.0, SST-2 91.2, MRPC 88.0, STS-B 87.5, QQP 89.0, MNLI 81.3, QNLI 88.4,
           RTE 66.7 for the published small model (github.com/google-research/electra, 2020).

Layers closer to the input have smaller learning rates. The rate is that of a small model; base
models have 1e-4 (Clark et al. 2020, arXiv:2003.10555, table 7), and large ones
--config.learning_rates=5e-5, and --config.optimizer.layer_decay=0.9. RTE and STS-B are trained for
--config.epochs=10. The weight decay, 0.01, is that of the published script.
"""

from bertgpt.config import finetuning, recipes


def get_config():
  config = recipes.beside(__file__, "finetune_glue", finetuning.base)
  config.learning_rates = (3e-4,)
  config.optimizer.layer_decay = 0.8
  return config
