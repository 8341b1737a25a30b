"""A small BERT on the documentation that comes with Python; `make demo` runs it.

Command    bertgpt train --config configs/demo.py --workdir runs/demo
Hardware   Two CPU cores, about 3.5 minutes including tokenizer and corpus.
Expected   After 3,300 steps, on held-out text: NSP accuracy 68.8% (share of the larger class
           51.3%), MLM accuracy 25.3% and perplexity 78 (unigram 5.4%, 705). The text, and with it
           these figures, changes with Python and the installed packages. With other packages, seeds
           0 and 1: NSP 62.0%, 65.4% (54.3%), perplexity 70, 77 (718). With Python 3.12: NSP 73.1%
           (61.3%), perplexity 86 (726).

What the recipe owes its scores to; docs/log.md has the measurements of the first three:

* NSP is the harder half of the objective: the model has to learn to compare the words of both
  texts. With 4,096 tokens, most words are one token, which both texts can share.
* Rows of 16 tokens come first: an average over 13 neighbors says more about a word than an average
  over 60, so attention becomes useful sooner. Their NSP scores mean nothing, because most have a
  single sentence as A, whose B is always random.
* Few tokens are masked. All predicted tokens are shown as [MASK], so that none can be copied.
* Muon trains the matrices. With rows of 32 tokens, perplexity is 378 after 600 steps, and 420 with
  AdamW (1e-3).
* Position embeddings are initialized as sinusoids. Perplexity is 250 after 800 steps, and 331 with
  random initialization.
* The output bias is initialized with the frequencies of tokens, and kernels and embeddings with a
  standard deviation of 0.09. The first phase learns more than the frequencies after 240 steps, and
  after 340 with 0.05 (with 128 rows per step). None of these was better: 0.15, positions with 0.25,
  a learning rate of 8e-3, and query and key kernels that are initially equal.
"""

from bertgpt.config import base, phase


def get_config():
  config = base()
  config.data.source = "pydocs"
  config.data.validation_fraction = 0.05
  config.tokenizer.model_type = "bpe"  # Training takes seconds.
  config.tokenizer.vocab_size = 4_096  # Most words of these texts are one token.
  config.tokenizer.train_bytes = 4_000_000
  # No dropout, because a run this short cannot overfit. With this standard deviation,
  # 1 / sqrt(width), attention is not uniform at the start.
  config.model.update(num_layers=2, width=128, num_heads=4, mlp_dim=512, max_positions=64,
                      dropout=0.0, attention_dropout=0.0, dtype="float32", scan_unroll=0,
                      init_std=0.09, position_init="sinusoid", position_init_std=0.1)
  config.objective.update(name="mlm_nsp", mask_prob=0.2, replace_with_mask=1.0,
                          replace_with_random=0.0, bias_init="frequencies")
  config.optimizer.update(name="muon", b2=0.95)
  config.phases = (
      phase(steps=700, seq_len=16, batch_size=64, learning_rate=4e-3, schedule="wsd",
            warmup_steps=50, decay_fraction=0.0),
      # 10 predictions, 16%: with fewer masked words, A and B have more words to compare.
      phase(steps=2_600, seq_len=64, batch_size=32, max_predictions=10, learning_rate=4e-3,
            schedule="wsd", decay_fraction=0.6),)
  config.eval.every_steps = 250
  config.checkpoint.every_steps = 1_000
  config.checkpoint.every_minutes = 1.0
  return config
