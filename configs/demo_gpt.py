"""A small GPT on the documentation that comes with Python; `make demo-gpt` runs it.

Command    bertgpt train --config configs/demo_gpt.py --workdir runs/demo_gpt
Hardware   Two CPU cores, under 4 minutes including tokenizer and corpus.
Expected   After 3,600 steps: held-out perplexity 29.2 (bigram 63.0, unigram 419.2), 1.590 bits per
           byte. The figures change with the installed packages, whose documentation is the text.
"""

from bertgpt.config import base, phase, presets, recipes


def get_config():
  config = recipes.beside(__file__, "demo")
  config.tokenizer.vocab_size = 1_024  # A cheap output layer: every token is predicted.
  config.model.update(presets.GPT2["small"])
  config.model.update(num_layers=2, width=128, num_heads=4, mlp_dim=512, max_positions=128,
                      dropout=0.0, attention_dropout=0.0, position_init="normal",
                      position_init_std=0.02)
  config.objective.update(base().objective)  # Nothing is masked.
  config.objective.name = "causal"
  config.optimizer.update(weight_decay=0.1)
  config.phases = (
      phase(steps=3_600, seq_len=64, batch_size=16, learning_rate=6e-3, schedule="wsd",
            warmup_steps=100, decay_fraction=0.4),)
  config.eval.update(every_steps=500, max_rows=512)
  return config
