r"""Ettin with 150 M parameters, encoder or decoder: 2 T tokens in three stages.

Command    bertgpt train --config configs/ettin_150m.py --workdir runs/ettin_150m
           The decoder:
             bertgpt train --config configs/ettin_150m.py:causal --workdir runs/ettin_150m_decoder
Hardware   4 H100 GPUs for 470 hours in the paper; here as for configs/ettin_17m.py.
Expected   Not known for this recipe. The paper has tables of scores (Weller et al. 2025,
           arXiv:2507.11412).
Status     Not yet run.

Data and stages are those of configs/ettin_17m.py.
"""

from bertgpt.config import recipes


def get_config(objective="mlm"):
  ettin = recipes.module_beside(__file__, "ettin_17m")
  return ettin.make_config("ettin_150m", objective, learning_rate=8e-4, weight_decay=1e-5,
                           batch_tokens=50e9, warmup_tokens=3e9)
