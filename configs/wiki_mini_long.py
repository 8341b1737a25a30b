r"""`wiki_mini` for two hours: six times as many tokens, in larger batches.

Command    bertgpt train --config configs/wiki_mini_long.py --workdir runs/wiki_mini_long \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       As for `wiki_mini`.
Hardware   Two CPU cores, two hours.
Expected   With 14.7 M tokens of Wikipedia and of old books (read four times), on held-out text:
             step             2000   4000   8000  11000  12000  14000  15600  no context
             tokens per row     16     64     64     64    128    128    128         128
             MLM perplexity    269    126    101     92    253    198     81        1077
             NSP accuracy, %  92.6   72.6   76.9   80.0   82.4   83.7   86.8        52.7
           docs/finetuning.md has the scores on tasks.

In rows of 128 tokens, half of the positions are new. In the first 1,000 steps of them, at the full
learning rate, the loss hardly falls; it falls fast as soon as the rate does.
"""

from bertgpt.config import phase, recipes


def get_config():
  config = recipes.beside(__file__, "wiki_mini")
  # Muon's products do not depend on the batch, so a larger one spends less on them per token.
  config.phases = (
      phase(steps=2_000, seq_len=16, batch_size=128, learning_rate=1.5e-3, schedule="wsd",
            warmup_steps=100, decay_fraction=0.0),
      phase(steps=9_600, seq_len=64, batch_size=64, learning_rate=1.5e-3, schedule="wsd",
            decay_fraction=0.0),
      phase(steps=4_000, seq_len=128, batch_size=32, learning_rate=1.5e-3, schedule="wsd",
            decay_fraction=0.75),)
  config.eval.every_steps = 1_000
  config.checkpoint.every_steps = 1_000
  return config
