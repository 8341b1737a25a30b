r"""GPT-2 small (124M) with the recipe of its open reproductions: 491,520 tokens per step.

Download   hf download HuggingFaceFW/fineweb --repo-type dataset --include 'sample/10BT/*' \
             --local-dir fineweb
Command    bertgpt train --config configs/gpt2_small.py --workdir runs/gpt2_small \
             --config.data.source='parquet:fineweb/sample/10BT/*.parquet#text' \
             --config.tokenizer.path=gpt2
Data       FineWeb or OpenWebText instead of WebText, which was not published. The default source is
           the English Wikipedia of November 2023, as in bert_base.py. `gpt2` is a folder with
           OpenAI's encoder.json and vocab.bpe; without it, a byte-level BPE of the same size is
           trained.
Hardware   8 GPUs: a micro-batch is then 12 rows per GPU. 480 rows cannot be divided among 64
           devices; use --config.phases[0].batch_size=512 --config.phases[0].micro_batches=1.
Expected   Validation loss 2.85 on OpenWebText (nanoGPT, README, 600k steps), or 3.29 after 10 G
           tokens of FineWeb (llm.c, with 524,288 tokens per step).
Status     Not yet run.
"""

from bertgpt.config import base, phase, presets


def get_config():
  config = base()
  config.data.source = "parquet:wikipedia/20231101.en/*.parquet#text"
  config.data.validation_fraction = 0.001
  config.tokenizer.kind = "bpe"
  config.tokenizer.vocab_size = 50_257
  config.model.update(presets.GPT2["small"], dropout=0.0, attention_dropout=0.0)
  config.objective.name = "causal"
  config.optimizer.update(name="adamw", b1=0.9, b2=0.95, epsilon=1e-8, weight_decay=0.1,
                          clip_norm=1.0)
  config.phases = (
      phase(steps=600_000, seq_len=1_024, batch_size=480, micro_batches=5,
            learning_rate=6e-4, schedule="cosine", warmup_steps=2_000, end_fraction=0.1),)
  config.eval.every_steps = 2_000
  config.eval.batch_size = 256
  config.eval.max_rows = 5_120
  config.checkpoint.every_steps = 2_000
  return config
