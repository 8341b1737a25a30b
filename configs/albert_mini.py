r"""ALBERT with one shared layer at the size of `wiki_mini`.

Command    bertgpt train --config configs/albert_mini.py --workdir runs/albert_mini \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       As for `wiki_mini`.
Hardware   Two CPU cores; 28 minutes for 1,400 steps while other programs took most of the CPU time.
Expected   With 4.6 M tokens of Wikipedia, on held-out text, as far as the run went:
             step                500   750  1000  1250
             tokens per row       16    16    16    64
             MLM perplexity      762   519   439   346
             MLM accuracy, %     9.3  11.1  11.8  14.5
             SOP accuracy, %    51.0  52.2  52.2  52.2
           Without context, perplexity is 1,171 and MLM accuracy 5.1%. The order of sentences is not
           learned yet: the larger class is 50.3%.

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
