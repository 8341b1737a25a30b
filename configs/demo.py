"""A small BERT on the documentation that comes with Python; `make demo` runs it.

Command    bertgpt train --config configs/demo.py --workdir runs/demo
Hardware   Two CPU cores, about 3.5 minutes including tokenizer and corpus.
Expected   After 3,300 steps, on held-out text: NSP accuracy 68.8% (share of the larger class
           51.3%), MLM accuracy 25.3% and perplexity 78 (unigram 5.4%, 705). The text, and with it
           these figures, changes with Python and the installed packages. With other packages, seeds
           0 and 1: NSP 62.0%, 65.4% (54.3%), perplexity 70, 77 (718). With Python 3.12: NSP 73.1%
           (61.3%), perplexity 86 (726).

NSP is the harder half of the objective: words that occur in both texts show that the texts belong
together, and the model has to learn that it should compare them. Measured on held-out text, after
2,200 steps or as much computation, with a vocabulary of 1,024 tokens unless noted:

    rows of 64 only, 40% of the tokens masked       NSP 52.8% (55.3%)  perplexity  55 (unigram 416)
    rows of 16 first, 40% masked                    NSP 52.5% (53.3%)              52 (426)
    rows of 16 first, 20% masked                    NSP 54.1% (53.3%)              29 (430)
    the same, 16% in rows of 64, half the rate      NSP 51.0% (53.3%)              29 (427)
    this recipe, 2,048 tokens, 400 steps of 16      NSP 63.1% (58.6%)              79 (582)
    this recipe, 4,096 tokens, 400 steps of 16      NSP 68.3% (56.5%)             111 (729)

* With 4,096 tokens, most words are one token, which both texts can share. With 1,024, words are
  spelled in pieces, and NSP needs more steps than a demonstration has. A token of the larger
  vocabulary has 4.1 bytes on average and one of the smaller 3.1, so in bits per byte, a perplexity
  of 105 with the larger one equals 33 with the smaller one.
* Rows of 16 tokens come first: an average over 13 neighbors says more about a word than an average
  over 60, so attention becomes useful sooner. With them, the model learns more than the frequencies
  of tokens after 300 to 600 steps; 700 are enough. Their NSP scores mean nothing, because most have
  a single sentence as A, whose B is always random.
* Few tokens are masked: with 1,024 tokens, perplexity is 29 instead of 52, partly because the task
  is easier. All predicted tokens are shown as [MASK], so that none can be copied.
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
