r"""A BERT of 4 layers, width 256, on JSONL text: what a small machine learns in 20 minutes.

Command    bertgpt train --config configs/wiki_mini.py --workdir runs/wiki_mini \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text' \
             --config.tokenizer.path=bert-base-uncased-vocab.txt
Data       10 M words or more, a document a line, in the field `text`. Without a vocabulary file a
           WordPiece of 30,522 is trained on the source.
Hardware   Two CPU cores, about 20 minutes.
Expected   Not yet run to its end; 480 ms a step. Masks, positions, first deviations and the
           optimizer are those of `demo.py`, for its reasons.
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
