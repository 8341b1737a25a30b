r"""Masked diffusion at the size of `wiki_mini`: an encoder that writes texts.

Command    bertgpt train --config configs/diffusion_mini.py --workdir runs/diffusion_mini \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       As for `wiki_mini`.
Hardware   Two CPU cores.
Expected   Not yet known.
Status     Not yet run.

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
