r"""ModernBERT's layers, masks and phases at a size for a small machine.

Command    bertgpt train --config configs/modernbert_mini.py --workdir runs/modernbert_mini \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       As for `wiki_mini`; a byte-level BPE of 4,096 pieces is trained on it.
Hardware   One CPU core, next to other programs: 5 minutes.
Expected   With 1.4 M tokens of Wikipedia, on held-out text with 15% of its tokens masked:
             step               100   200   300   400   500   600   700
             tokens per row      16    16    16    16    64    64    64
             MLM perplexity     510   328   202   155   190   159   143
             MLM accuracy, %   16.1  18.2  20.4  21.6  16.3  17.2  18.4
           With two other seeds, the last perplexity was 143 and 136.
           A unigram model, which knows only the frequencies of tokens, has a perplexity of 707 in
           rows of 16 tokens and 989 in rows of 64, and an accuracy of 6.1% and 3.3%. Special tokens
           are predicted too, which is easy: they are an eighth of the targets in rows of 16.

The first rows, the optimizer and the initial values are those of `demo`. With the optimizer of the
paper (`stable_adamw`, a rate of 6e-3), two heads, rows of 32 tokens, initial values with a
standard deviation of 0.06 and BERT's replacement of masked tokens, perplexity was 554 after 600
steps and 670 after 1,000, when the unigram model had 676. `wiki_mini` describes this plateau, and
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
  config.model.update(num_layers=4, width=128, mlp_dim=192, num_heads=4, window=16,
                      rope_theta=10_000.0, dtype="float32", scan_unroll=0, init_std=0.09)
  config.objective.update(name="mlm", mask_prob=0.3, mask_rule="bernoulli",
                          replace_with_mask=1.0, replace_with_random=0.0, bias_init="frequencies")
  config.optimizer.update(name="muon", b2=0.95)
  # Longer rows with a larger rotary base in global layers, and a decay with half as many masks.
  longer = {"seq_len": 64, "batch_size": 32, "learning_rate": 4e-3, "rope_theta": 160_000.0}
  config.phases = (
      phase(steps=400, seq_len=16, batch_size=128, learning_rate=4e-3, schedule="constant",
            warmup_steps=50),
      phase(steps=150, schedule="constant", **longer),
      phase(steps=150, schedule="wsd", decay_fraction=1.0, power=0.5, mask_prob=0.15, **longer))
  config.eval.update(every_steps=100, max_rows=1024, mask_prob=0.15)
  config.checkpoint.every_steps = 100
  return config
