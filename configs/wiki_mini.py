r"""A BERT of 4 layers, width 256, on JSONL text: 45 minutes of training on a small machine.

Command    bertgpt train --config configs/wiki_mini.py --workdir runs/wiki_mini \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       10 M words or more, one document per line in the field `text`; a WordPiece tokenizer of
           8,192 pieces is trained on it.
Hardware   Two CPU cores, 45 minutes.
Expected   With 14.7 M tokens of Wikipedia and of old books, on held-out text, means of three seeds
           (range over the seeds at step 4500: perplexity 120 to 124, NSP accuracy 75.0 to 76.4%):
             step              1000  2000  3000  4000  4500  no context
             tokens per row      16    16    64    64    64
             MLM perplexity     384   284   188   138   122        1115
             NSP accuracy, %   92.8  92.8  69.0  73.4  75.7        55.8
           Without context, the unigram model predicts tokens, and NSP accuracy is the share of the
           larger class in rows of 64. Most rows of 16 tokens have a single sentence as A, whose B
           is always random.

Such a run sees 9 M tokens. With the paper's recipe, the model is then still on a plateau: it knows
the frequencies of words and the topic of the text, but no grammar. Two things help, by as much as
docs/log.md says:

* Rows of 16 tokens come first. An average over 13 neighbors says more about a word than an average
  over 60, so attention becomes useful sooner: the plateau ends after 200 steps.
* The output bias is initialized with the frequencies of the tokens. With zeros, the run spends most
  of its steps on frequencies, and the vectors of all rare tokens become similar.
"""

from bertgpt.config import base, phase, presets


def get_config():
  config = base()
  config.data.source = "jsonl:data/*.jsonl#text"
  config.data.validation_fraction = 0.02
  config.tokenizer.kind = "wordpiece"
  config.tokenizer.vocab_size = 8_192
  # The run ends before the model has seen its text twice, so dropout would only slow it down.
  config.model.update(presets.BERT["mini"], dropout=0.0, attention_dropout=0.0, dtype="float32",
                      scan_unroll=0, init_std=0.035, position_init="sinusoid",
                      position_init_std=0.07)
  # With 40%, the output layer would cost as much as the encoder.
  config.objective.update(mask_prob=0.3, replace_with_mask=1.0, replace_with_random=0.0,
                          bias_init="frequencies")
  config.optimizer.update(name="muon", b2=0.95)
  config.phases = (
      phase(steps=2_000, seq_len=16, batch_size=128, learning_rate=1.5e-3, schedule="wsd",
            warmup_steps=100, decay_fraction=0.0),
      phase(steps=2_500, seq_len=64, batch_size=32, learning_rate=1.5e-3, schedule="wsd",
            decay_fraction=0.5),)
  config.eval.every_steps = 500
  config.eval.max_rows = 512
  config.checkpoint.every_steps = 500
  config.checkpoint.every_minutes = 5.0
  return config


def get_sweep():
  """Returns runs with different peak learning rates, with two seeds each."""
  return [{"phases[0].learning_rate": rate, "phases[1].learning_rate": rate, "seed": seed}
          for rate in (1.5e-3, 3e-3, 6e-3) for seed in (0, 1)]
