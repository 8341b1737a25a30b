r"""GPT-1: 12 layers, width 768, post-LayerNorm, 512 tokens of context.

Download   hf download wikimedia/wikipedia --repo-type dataset --include '20231101.en/*' \
             --local-dir wikipedia
Command    bertgpt train --config configs/gpt1.py --workdir runs/gpt1
Data       BooksCorpus, read 100 times, in the paper: about 3 M steps with 1 G tokens per epoch. It
           was withdrawn; docs/data.md has a copy, in lower case. The default source is the English
           Wikipedia of November 2023: 6.4 M articles in 41 files, 12 GB. The tokenizer is a
           byte-level BPE of the same size as the original, which splits words with spaCy first.
Hardware   8 GPUs; any number of devices that divides 64 rows.
Expected   Perplexity per token 18.4 on BooksCorpus (Radford et al. 2018); depends on the tokenizer.
Status     Not yet run.
"""

from bertgpt.config import base, phase, presets


def get_config():
  config = base()
  config.data.source = "parquet:wikipedia/20231101.en/*.parquet#text"
  config.data.validation_fraction = 0.001
  config.tokenizer.kind = "bpe"
  config.tokenizer.vocab_size = 40_478
  config.model.update(presets.GPT1)
  config.objective.name = "causal"
  config.optimizer.update(name="adamw", b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.01,
                          clip_norm=1.0)
  config.phases = (
      phase(steps=3_000_000, seq_len=512, batch_size=64, learning_rate=2.5e-4, schedule="cosine",
            warmup_steps=2_000),)
  config.eval.every_steps = 10_000
  config.eval.max_rows = 2_048
  config.checkpoint.every_steps = 10_000
  config.log.every_steps = 100
  return config
