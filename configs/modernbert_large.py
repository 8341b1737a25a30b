"""ModernBERT-large with the paper's recipe.

Command    bertgpt train --config configs/modernbert_large.py --workdir runs/modernbert_large
Data       As for configs/modernbert_base.py.
Hardware   8 H100 GPUs for 425 hours in the paper. Here 8 GPUs, with 56 rows of 1,024 tokens per GPU
           in a micro-batch.
Expected   Fine-tuned: GLUE 90.4 on average (CoLA 71.4, SST-2 97.1, MRPC 91.7, STS-B 92.8, QQP 92.7,
           MNLI 90.8, QNLI 95.2, RTE 92.1); BEIR 44.0 with one vector per text and 52.4 with one per
           token (Warner et al. 2024, arXiv:2412.13663, table 1 and appendix).
Status     Not yet run.

The paper does three things differently: it initializes the weights by tiling those of the base
model, weight decay falls to 1e-6 with the learning rate, and a batch of long rows has first 616 and
then 624 rows (the authors' yamls/modernbert, 2024). Here it has 624, a multiple of 16 devices.
"""

from bertgpt.config import families, phase, recipes
from bertgpt.config.token_budgets import count_steps, warm_up_batches


def get_config():
  config = recipes.beside(__file__, "modernbert_base")
  config.model.update(families.FAMILIES["modernbert"].presets["large"], dropout=0.1)
  short = warm_up_batches(448, 4_928, 10e9, 2e9, 1_024, learning_rate=5e-4, schedule="constant")
  rows = dict(seq_len=1_024, batch_size=4_928)
  short += [
      phase(steps=count_steps(890e9, 4_928, 1_024), learning_rate_rule="continuous", **rows),
      phase(steps=count_steps(819e9, 4_928, 1_024), learning_rate=5e-5, schedule="constant",
            **rows)]
  for p in short:
    p.micro_batches, p.rope_theta = p.batch_size // 448, 10_000.0
  base = recipes.module_beside(__file__, "modernbert_base")
  config.phases = (*short, *base.long_rows(624, micro_batches=13, learning_rate=5e-5))
  return config
