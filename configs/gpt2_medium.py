"""GPT-2 medium (355M): 24 layers, width 1024; all but the learning rate as in gpt2_small.py.

Command    bertgpt train --config configs/gpt2_medium.py --workdir runs/gpt2_medium
Hardware   8 GPUs of 80 GB: a micro-batch is then 6 rows per GPU. With more devices,
           lower --config.phases[0].micro_batches.
Expected   No published figure for this recipe. The peak rate is that of GPT-3 Medium
           (Brown et al. 2020, arXiv:2005.14165, table 2.1).
Status     Not yet run.
"""

from bertgpt.config import presets, recipes


def get_config():
  config = recipes.beside(__file__, "gpt2_small")
  config.model.update(presets.size(presets.GPT2["medium"]))
  config.phases[0].update(learning_rate=3e-4, micro_batches=10)
  return config
