"""GPT-2 large (774M): 36 layers, width 1280; all but the learning rate as in gpt2_small.py.

Command    bertgpt train --config configs/gpt2_large.py --workdir runs/gpt2_large
Hardware   8 GPUs of 80 GB: a micro-batch is then 4 rows per GPU. With more devices,
           lower --config.phases[0].micro_batches.
Expected   No published figure for this recipe. The peak rate is that of GPT-3 Large
           (Brown et al. 2020, arXiv:2005.14165, table 2.1).
Status     Not yet run.
"""

from bertgpt.config import presets, recipes


def get_config():
  config = recipes.beside(__file__, "gpt2_small")
  config.model.update(presets.size(presets.GPT2["large"]))
  config.phases[0].update(learning_rate=2.5e-4, micro_batches=15)
  return config
