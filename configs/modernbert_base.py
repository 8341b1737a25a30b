r"""ModernBERT-base with the paper's recipe: 1.7 T tokens in rows of 1,024, 0.3 T in rows of 8,192.

Download   hf download wikimedia/wikipedia --repo-type dataset --include '20231101.en/*' \
             --local-dir wikipedia
Command    bertgpt train --config configs/modernbert_base.py --workdir runs/modernbert_base
Data       In the paper, 2 T tokens of web text, code and scientific papers, not published. The
           default source is the English Wikipedia of November 2023, which is far too little;
           docs/data.md has others, which can be added with a comma. A byte-level BPE of the same
           size is trained on the source.
Hardware   8 H100 GPUs for 194 hours in the paper. Here 8 GPUs, with 96 rows of 1,024 tokens per GPU
           in a micro-batch. If the devices have less memory, use 16, 32, 48 or 96 of
           them.
Expected   Fine-tuned: GLUE 88.4 on average (CoLA 65.1, SST-2 96.0, MRPC 92.2, STS-B 91.8, QQP 92.1,
           MNLI 89.1, QNLI 93.9, RTE 87.4); BEIR 41.6 with one vector per text and 51.3 with one per
           token (Warner et al. 2024, arXiv:2412.13663, table 1 and appendix).
Status     Not yet run. A smaller recipe has been run: configs/modernbert_mini.py.

The batch grows over the first 50 B tokens. Every token, special tokens included, is predicted with
a probability of 30%, or 15% in evaluation. Every document of a row is a sequence of its own. The
rotary base of global layers is 10,000 at first, and 160,000 in long rows. A batch of long rows has
as many tokens as one of short rows: 576 rows (the authors' yamls/modernbert, 2024). The paper's
72 rows are those of each of 8 GPUs. The paper averages its final weights with those of three
earlier checkpoints, which is not done here.
"""

from bertgpt.config import base, families, phase
from bertgpt.config.token_budgets import count_steps, warm_up_batches


def get_config():
  config = base()
  config.data.source = "parquet:wikipedia/20231101.en/*.parquet#text"
  config.data.validation_fraction = 0.001
  config.data.isolate_documents = True
  config.tokenizer.kind = "bpe"
  config.tokenizer.vocab_size = 50_368
  config.model.update(families.FAMILIES["modernbert"].presets["base"], dropout=0.1)
  config.objective.update(name="mlm", mask_prob=0.3, mask_rule="bernoulli")
  config.optimizer.update(name="stable_adamw", b1=0.9, b2=0.98, epsilon=1e-6, weight_decay=1e-5,
                          clip_norm=0.0)
  short = warm_up_batches(768, 4_608, 50e9, 3e9, 1_024, learning_rate=8e-4, schedule="constant")
  short.append(phase(steps=count_steps(1.719e12 - 50e9, 4_608, 1_024), seq_len=1_024,
                     batch_size=4_608, learning_rate_rule="continuous"))
  for p in short:
    p.micro_batches, p.rope_theta = p.batch_size // 768, 10_000.0
  config.phases = (*short, *long_rows(576, micro_batches=6, learning_rate=3e-4))
  config.eval.update(every_steps=5_000, batch_size=96, max_rows=4_800, mask_prob=0.15)
  config.checkpoint.every_steps = 2_000
  return config


def long_rows(batch_size, **fields):
  """Returns the two phases with rows of 8,192 tokens, of 250 and 50 B tokens.

  Args:
    batch_size: rows per step.
    **fields: other fields of both phases.
  """
  fields |= dict(seq_len=8_192, batch_size=batch_size)
  return (phase(steps=count_steps(250e9, batch_size, 8_192), schedule="constant", **fields),
          phase(steps=count_steps(50e9, batch_size, 8_192), schedule="wsd", decay_fraction=1.0,
                power=0.5, end_fraction=0.001, **fields))
