r"""An XLNet of the size of `wiki_mini`.

Command    bertgpt train --config configs/xlnet_mini.py --workdir runs/xlnet_mini \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       As for `wiki_mini`.
Hardware   Two CPU cores, 25 minutes.
Expected   With 14.7 M tokens of Wikipedia and of old books, on held-out text:
             step              500  1000  1500  2000  2500  3000  3500  no context
             tokens per row     16    16    16    16    64    64    64          64
             PLM perplexity    401   273   247   218   168   140   113        1108
           A quarter of the tokens is predicted, in random order. With two other seeds, the last
           perplexity was 114. Fine-tuned on WNUT17 (1e-4, four epochs, seeds 0 to 2), F1 on dev is
           26.0 (24.3 to 27.2); from random weights 11.4 (10.2 to 12.3). docs/log.md has SST-2.

A step costs about twice as much as that of a masked LM with as many predicted tokens, because the
predicted tokens are a second stream, and each stream has one more matmul, of queries and distances.
"""

from bertgpt.config import families, presets, recipes


def get_config():
  config = recipes.beside(__file__, "wiki_mini")
  size = presets.size(config.model)
  config.model.update(families.FAMILIES["xlnet"].presets["base"])
  config.model.update(size, dropout=0.0, attention_dropout=0.0, init_std=0.035)
  config.objective.update(name="plm", mask_prob=0.25, whole_words=True, ngram=3,
                          permutation_block=0, replace_with_mask=0.8, replace_with_random=0.1)
  config.phases[1].steps = 1_500
  return config
