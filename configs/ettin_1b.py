r"""Ettin with 1 B parameters, encoder or decoder: 1.8 T tokens in three stages.

Command    bertgpt train --config configs/ettin_1b.py --workdir runs/ettin_1b
           The decoder:
             bertgpt train --config configs/ettin_1b.py:causal --workdir runs/ettin_1b_decoder
Hardware   As for configs/ettin_17m.py; the time grows with the number of parameters.
Expected   Not known for this recipe. The paper has tables of scores (Weller et al. 2025,
           arXiv:2507.11412).
Status     Not yet run.

Data and stages are those of configs/ettin_17m.py, but the last two stages have a third of the
tokens, as in the authors' configs.
"""

from bertgpt.config import recipes


def get_config(objective="mlm"):
  ettin = recipes.module_beside(__file__, "ettin_17m")
  return ettin.make_config("ettin_1b", objective, learning_rate=5e-4, weight_decay=5e-5,
                           batch_tokens=3e9, warmup_tokens=2e9, second_tokens=83.333e9,
                           third_tokens=16.667e9)
