r"""Ettin with 68 M parameters, encoder or decoder: 2 T tokens in three stages.

Command    bertgpt train --config configs/ettin_68m.py --workdir runs/ettin_68m
           The decoder:
             bertgpt train --config configs/ettin_68m.py:causal --workdir runs/ettin_68m_decoder
Hardware   As for configs/ettin_17m.py; the time grows with the number of parameters.
Expected   Not known for this recipe. The paper has tables of scores (Weller et al. 2025,
           arXiv:2507.11412).
Status     Not yet run.

Data and stages are those of configs/ettin_17m.py.
"""

from bertgpt.config import recipes


def get_config(objective="mlm"):
  ettin = recipes.module_beside(__file__, "ettin_17m")
  return ettin.make_config("ettin_68m", objective, learning_rate=3e-3, weight_decay=3e-4,
                           batch_tokens=75e9, warmup_tokens=3e9)
