r"""Masks of single pieces, and of all pieces of a word together.

Command    bertgpt train --config configs/ablation_whole_words.py \
             --workdir runs/ablation_whole_words \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       As for `wiki_mini`, whose tokenizer it shares.
Hardware   One CPU core, about five minutes per run; `bertgpt sweep` trains two runs.
Expected   BERT-large, uncased: with masks of single pieces, SQuAD 1.1 F1 91.0 and MNLI 86.05; with
           whole words 92.8 and 87.07 (google-research/bert, README, 2019). docs/ablations.md has
           the commands for all ablations, and the results of this recipe.

The rule is 80/10/10, drawn for every piece, as in the published code. With whole words the held-out
masks are of whole words too, which are harder to predict, so the losses of both runs cannot be
compared. Only the scores of tasks can.
"""

from bertgpt.config import recipes, sweeps


def get_config():
  return recipes.beside(__file__, "ablation_masking")


def get_sweep():
  """Returns both runs."""
  return sweeps.product({"objective.whole_words": (False, True)})
