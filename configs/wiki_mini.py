r"""A BERT of 4 layers, width 256, on JSONL text: what a small machine learns in 20 minutes.

Command    bertgpt train --config configs/wiki_mini.py --workdir runs/wiki_mini \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text' \
             --config.tokenizer.path=bert-base-uncased-vocab.txt
Data       10 M words or more, a document a line, in the field `text`. Without a vocabulary file a
           WordPiece of 30,522 is trained on the source.
Hardware   Two CPU cores, about 20 minutes.
Expected   On 12.8 M tokens of Wikipedia and Gutenberg, after 800 steps: held-out MLM accuracy
           11.3% (unigram 5.2%), perplexity 888 (unigram 1412), NSP accuracy 57%.
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
  config.model.update(presets.BERT["mini"], dropout=0.0, attention_dropout=0.0, dtype="float32")
  config.optimizer.update(name="adamw", b2=0.98)
  config.phases = (
      phase(steps=800, seq_len=128, batch_size=32, learning_rate=1e-3, schedule="linear",
            warmup_fraction=0.1),)
  config.eval.every_steps = 200
  config.eval.max_rows = 512
  config.checkpoint.every_steps = 200
  config.checkpoint.every_minutes = 5.0
  return config


def get_sweep():
  """Peak learning rates, with two seeds each."""
  return [{"phases[0].learning_rate": rate, "seed": seed}
          for rate in (3e-4, 1e-3, 2e-3) for seed in (0, 1)]
