r"""An ELMo as wide as ELMo-small, with a quarter of its filters, for a small machine.

Command    bertgpt train --config configs/elmo_mini.py --workdir runs/elmo_mini \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       As for `wiki_mini`; the 8,192 most frequent words are predicted, with their case.
Hardware   One CPU core, which other programs used more than half of the time; 89 minutes.
Expected   With 2.6 M words of Wikipedia, on held-out text:
             step                  200   400   600   800  1000  1200  1400  1600  1800  2000
             perplexity            343   262   198   169   153   139   131   124   119   120
             words guessed, %     16.0  20.0  22.1  23.1  23.8  24.6  24.7  25.3  25.6  25.5
           A unigram model has a perplexity of 422 and guesses 12.3% right. [UNK], which stands for
           all words beyond the first 8,192, counts as a word. With two other seeds, the last
           perplexity was 110 and 114.
"""

from bertgpt.config import base, families, phase


def get_config():
  config = base()
  config.data.source = "jsonl:data/*.jsonl#text"
  config.data.validation_fraction = 0.02
  config.tokenizer.update(kind="words", lowercase=False, vocab_size=32_768)
  config.model.update(families.FAMILIES["elmo"].presets["small"])
  # All words are read by their characters. Those beyond the first 8,192 are predicted as [UNK].
  config.model.update(filters=((1, 16), (2, 32), (3, 64), (4, 128), (5, 256)), mlp_dim=512,
                      target_words=8_192, dropout=0.0, dtype="float32")
  config.objective.name = "bilm"
  config.optimizer.update(name="adagrad", initial_accumulator=1 / 400, clip_norm=0.5,
                          weight_decay=0.0)
  config.phases = (
      phase(steps=2_000, seq_len=20, batch_size=64, learning_rate=0.2, schedule="constant"),)
  config.eval.every_steps = 200
  config.eval.max_rows = 1_024
  config.checkpoint.every_steps = 500
  config.checkpoint.every_minutes = 5.0
  return config
