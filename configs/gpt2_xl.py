"""GPT-2 xl (1.56B): 48 layers, width 1600; all but the learning rate as in gpt2_small.py.

Command    bertgpt train --config configs/gpt2_xl.py --workdir runs/gpt2_xl
Hardware   8 GPUs of 80 GB with --config.mesh.fsdp=8: a micro-batch is then 2 rows per GPU. With
           more devices, lower --config.phases[0].micro_batches.
Expected   No published figure for this recipe. The peak rate is that of GPT-3 XL
           (Brown et al. 2020, arXiv:2005.14165, table 2.1).
Status     Not yet run.
"""

from bertgpt.config import presets, recipes


def get_config():
  config = recipes.beside(__file__, "gpt2_small")
  config.model.update(presets.size(presets.GPT2["xl"]))
  config.phases[0].update(learning_rate=2e-4, micro_batches=30)
  return config
