r"""ModernBERT's layers, masks, phases and optimizer at a size for a small machine.

Command    bertgpt train --config configs/modernbert_mini.py --workdir runs/modernbert_mini \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       As for `wiki_mini`; a byte-level BPE of 4,096 pieces is trained on it.
Hardware   Two CPU cores: 50 minutes, while other programs took 90% of the CPU time.
Expected   With Wikipedia, on held-out text with 15% of its tokens masked:
             step               200   400   600   800  1000  no context
             tokens per row      32    32    32   128   128         128
             MLM perplexity     683   621   554   668   670         676
             MLM accuracy, %    8.5  10.3  12.0  10.3  11.3        12.5
           "No context" is a unigram model, which predicts tokens from their frequencies.

The run shows that every part works, not what the architecture can do: after its 1.9 M tokens
the model knows little more than the frequencies of tokens. `wiki_mini` describes this plateau, and
what shortens it.
"""

from bertgpt.config import base, families, phase


def get_config():
  config = base()
  config.data.source = "jsonl:data/*.jsonl#text"
  config.data.validation_fraction = 0.02
  config.data.isolate_documents = True
  config.tokenizer.kind = "bpe"
  config.tokenizer.vocab_size = 4_096
  config.model.update(families.FAMILIES["modernbert"].presets["ettin_17m"])
  # Rows of the last phases are several times as long as the window.
  config.model.update(num_layers=4, width=128, mlp_dim=192, num_heads=2, window=16,
                      rope_theta=10_000.0, dtype="float32", scan_unroll=0, init_std=0.06)
  config.objective.update(name="mlm", mask_prob=0.3, mask_rule="bernoulli",
                          bias_init="frequencies")
  config.optimizer.update(name="stable_adamw", b2=0.98, weight_decay=3e-4, clip_norm=0.0)
  # Batch warm-up, longer rows with a larger rotary base in global layers, and a decay with half
  # as many masks.
  config.phases = (
      phase(steps=150, seq_len=32, batch_size=32, learning_rate=6e-3, schedule="constant",
            warmup_steps=50),
      phase(steps=500, seq_len=32, batch_size=64, learning_rate_rule="continuous"),
      phase(steps=150, seq_len=128, batch_size=16, learning_rate=6e-3, schedule="constant",
            rope_theta=160_000.0),
      phase(steps=200, seq_len=128, batch_size=16, learning_rate=6e-3, schedule="wsd",
            decay_fraction=1.0, power=0.5, mask_prob=0.15, rope_theta=160_000.0))
  config.eval.update(every_steps=200, max_rows=256, mask_prob=0.15)
  config.checkpoint.every_steps = 200
  return config
