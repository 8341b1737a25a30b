"""A small GPT on the documentation that Python carries; `make demo-gpt` runs it.

Command    bertgpt train --config configs/demo_gpt.py --workdir runs/demo_gpt
Hardware   Two CPU cores, about 5 minutes with the tokenizer and the corpus.
Expected   After 1,400 steps: held-out perplexity 57.9 (bigram 59.4, unigram 422.5), 1.885 bits
           per byte.
"""

import pathlib

from bertgpt import presets
from bertgpt.config import phase
from bertgpt.recipes import load


def get_config():
  # Few tokens make a cheap output layer, and each of them is seen often.
  config = load(str(pathlib.Path(__file__).with_name("demo.py")))
  config.tokenizer.vocab_size = 1_024
  config.model.update(presets.GPT2["small"])
  config.model.update(num_layers=4, width=128, num_heads=4, mlp_dim=512, max_positions=128,
                      dropout=0.0, attention_dropout=0.0)
  config.objective.name = "causal"
  config.optimizer.update(b2=0.95, weight_decay=0.1)
  config.phases = (
      phase(steps=1_400, seq_len=128, batch_size=8, learning_rate=4e-3, schedule="cosine",
            warmup_fraction=0.1, end_fraction=0.1),)
  return config
