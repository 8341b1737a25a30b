r"""A BERT of 4 layers, width 256, on JSONL text: what a small machine learns in 20 minutes.

Command    bertgpt train --config configs/wiki_mini.py --workdir runs/wiki_mini \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text' \
             --config.tokenizer.path=bert-base-uncased-vocab.txt
Data       10 M words or more, a document a line, in the field `text`. Without a vocabulary file a
           WordPiece of 30,522 is trained on the source.
Hardware   Two CPU cores, 22 minutes.
Expected   On 7.9 M tokens of Wikipedia and of old books, with BERT's vocabulary, held out:
             step                 125   250   500   750  1000  1250  1500  no context
             MLM perplexity      1547  1520  1374  1314  1243  1197  1166        1437
             NSP accuracy, %     60.2  60.2  62.2  63.1  67.2  68.0  68.3        60.2
           It knows what a text is about, and hardly any grammar: 3 M tokens are few. The
           unigram model needs no context; 60.2 is the share of the larger class.

What such a short run needs, besides the recipe of `demo.py`: the output bias starts at the tokens'
frequencies. From zeros, and with rows by 16, the run was at 1,405 after as many tokens as here make
1,264: most of it went into learning frequencies, for which all rare tokens' vectors became alike.
"""

from bertgpt import presets
from bertgpt.config import base, phase


def get_config():
  config = base()
  config.data.source = "jsonl:data/*.jsonl#text"
  config.data.validation_fraction = 0.02
  config.tokenizer.kind = "wordpiece"
  config.tokenizer.vocab_size = 30_522
  # The run is over before the model has seen its text twice: dropout would only slow it down.
  config.model.update(presets.BERT["mini"], dropout=0.0, attention_dropout=0.0, dtype="float32",
                      scan_unroll=0, init_std=0.035, position_init="sinusoid",
                      position_init_std=0.07)
  # At the 40% of the demo, the output layer would cost as much as the encoder.
  config.objective.update(mask_prob=0.3, replace_with_mask=1.0, replace_with_random=0.0,
                          bias_init="frequencies")
  config.optimizer.update(name="muon", b2=0.95)
  config.phases = (
      phase(steps=1_500, seq_len=64, batch_size=32, learning_rate=1.5e-3, schedule="wsd",
            warmup_steps=100, decay_fraction=0.4),)
  config.eval.every_steps = 500
  config.eval.max_rows = 512
  config.checkpoint.every_steps = 500
  config.checkpoint.every_minutes = 5.0
  return config


def get_sweep():
  """Peak learning rates, with two seeds each."""
  return [{"phases[0].learning_rate": rate, "seed": seed}
          for rate in (1.5e-3, 3e-3, 6e-3) for seed in (0, 1)]
