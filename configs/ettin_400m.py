r"""Ettin with 400 M parameters, encoder or decoder: 2 T tokens in three stages.

Command    bertgpt train --config configs/ettin_400m.py --workdir runs/ettin_400m
           The decoder:
             bertgpt train --config configs/ettin_400m.py:causal --workdir runs/ettin_400m_decoder
Hardware   As for configs/ettin_17m.py; the time grows with the number of parameters.
Expected   Not known for this recipe. The paper has tables of scores (Weller et al. 2025,
           arXiv:2507.11412).
Status     Not yet run.

Data and stages are those of configs/ettin_17m.py.
"""

from bertgpt.config import recipes


def get_config(objective="mlm"):
  ettin = recipes.module_beside(__file__, "ettin_17m")
  return ettin.make_config("ettin_400m", objective, learning_rate=5e-4, weight_decay=1e-5,
                           batch_tokens=10e9, warmup_tokens=2e9)
