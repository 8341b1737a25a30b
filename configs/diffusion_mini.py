r"""Masked diffusion at the size of `wiki_mini`: an encoder that writes texts.

Command    bertgpt train --config configs/diffusion_mini.py --workdir runs/diffusion_mini \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       As for `wiki_mini`.
Hardware   One CPU core, next to other programs; 49 minutes.
Expected   With 3.0 M tokens of Wikipedia, on held-out text:
             step                  200   400   600   800  1000  1200  1400  1600  1800
             tokens per row         16    16    16    16    64    64    64    64    64
             perplexity, bound     612   540   395   328   540   453   412   388   376
             accuracy, %          15.1  16.2  18.4  19.0  12.3  13.1  14.1  14.5  15.1
           With two other seeds, the last bound was 376 and 372. Without context, it is 1,111, and
           accuracy is 4.7%, in rows of 64 tokens. The values of rows of 16 and of 64 tokens cannot
           be compared.

Rows, layers and optimizer are those of `roberta_mini`. The papers' small models have 12 layers of
width 768 and rows of 1,024 tokens; after 1 M steps of 512 rows of OpenWebText, the bound is a
perplexity of 23, and that of a GPT of this size 17.5 (Sahoo et al. 2024, arXiv:2406.07524).
"""

from bertgpt.config import base, recipes


def get_config():
  config = recipes.beside(__file__, "roberta_mini")
  config.tokenizer.kind = "wordpiece"
  config.objective.update(base().objective)
  config.objective.update(name="diffusion", bias_init="frequencies")
  return config
