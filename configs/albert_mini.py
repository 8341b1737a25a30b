r"""ALBERT with one shared layer at the size of `wiki_mini`.

Command    bertgpt train --config configs/albert_mini.py --workdir runs/albert_mini \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       As for `wiki_mini`.
Hardware   One CPU core, which other programs used half of the time; 39 minutes.
Expected   With 5.1 M tokens of Wikipedia, on held-out text:
             step                500  1000  1500  2000  2500
             tokens per row       16    16    64    64    64
             MLM perplexity      847   448   282   219   182
             MLM accuracy, %     8.7  12.7  15.0  17.0  18.9
             SOP accuracy, %    49.7  49.7  54.3  54.5  56.2
           Without context, perplexity is 1,101 and MLM accuracy 4.7% in rows of 64 tokens. The
           order of sentences is hardly learned yet: the larger class is 52.0%. With two other
           seeds, the last perplexity was 211 and 176.

For the first 400 steps, the loss is that of predicting token frequencies; with a BERT of this size,
this phase is half as long. With rows of 16 tokens for only 300 steps, perplexity was still 994
after 800 steps.
"""

from bertgpt.config import recipes


def get_config():
  config = recipes.beside(__file__, "wiki_mini")
  config.model.update(family="albert", embedding_width=128, layer_groups=1)
  config.objective.name = "mlm_sop"
  config.phases[0].steps, config.phases[1].steps = 1_000, 1_500
  config.eval.every_steps = 250
  return config
