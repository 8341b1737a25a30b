r"""A BERT of 4 layers, width 256, on JSONL text: what a small machine learns in 45 minutes.

Command    bertgpt train --config configs/wiki_mini.py --workdir runs/wiki_mini \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       10 M words or more, a document a line, in the field `text`; a WordPiece of 8,192 is
           trained on it.
Hardware   Two CPU cores, 45 minutes.
Expected   On 14.7 M tokens of Wikipedia and of old books, held out:
             step              1000  2000  3000  4000  4500  no context
             tokens a row        16    16    64    64    64
             MLM perplexity     369   283   200   150   133        1145
             NSP accuracy, %   93.9  93.6  66.2  70.5  74.3        61.8
           The unigram model needs no context. 61.8 is the share of the larger class for rows of
           64; of rows of 16 tokens most hold a single sentence, whose next one is a random one.

Such a run sees 9 M tokens, and the paper's recipe is then still on the plateau where a model knows
how frequent words are and what the text is about, and no grammar. Measured, held-out perplexity:

* Rows of 16 tokens come first. With rows of 64 from the start it is 966 after 1,000 steps of as
  many tokens, and falls slowly; with rows of 16 the plateau ends after 200 steps. An average over
  13 neighbours says more about a word than one over 60, so attention has a reason to look.
* The output bias starts at the tokens' frequencies. From zeros, and with rows by 16, the run was at
  1,405 after as many tokens as here make 1,264 (with 30,522 tokens, rows of 64): most of it went
  into learning frequencies, for which all rare tokens' vectors became alike.
"""

from bertgpt.config import base, phase, presets


def get_config():
  config = base()
  config.data.source = "jsonl:data/*.jsonl#text"
  config.data.validation_fraction = 0.02
  config.tokenizer.kind = "wordpiece"
  config.tokenizer.vocab_size = 8_192
  # The run is over before the model has seen its text twice: dropout would only slow it down.
  config.model.update(presets.BERT["mini"], dropout=0.0, attention_dropout=0.0, dtype="float32",
                      scan_unroll=0, init_std=0.035, position_init="sinusoid",
                      position_init_std=0.07)
  # At 40%, the output layer would cost as much as the encoder.
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
  """Peak learning rates, with two seeds each."""
  return [{"phases[0].learning_rate": rate, "phases[1].learning_rate": rate, "seed": seed}
          for rate in (1.5e-3, 3e-3, 6e-3) for seed in (0, 1)]
