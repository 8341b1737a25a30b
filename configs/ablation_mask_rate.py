r"""How many tokens are predicted: 15%, 30% and 40%.

Command    bertgpt train --config configs/ablation_mask_rate.py --workdir runs/ablation_mask_rate \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       As for `wiki_mini`, whose tokenizer it shares.
Hardware   One CPU core, about five minutes per run; `bertgpt sweep` trains three runs.
Expected   MNLI accuracy of a BERT-large with layer norms before the blocks and an efficient recipe:
           84.2 with 15% and 84.5 with 40%, or 83.7 and 84.3 with 80/10/10 (Wettig et al. 2022,
           arXiv:2202.08005; github.com/princeton-nlp/DinkyTrain). docs/ablations.md has the
           commands for all ablations, and the results of this recipe.

Every predicted token is shown as [MASK], as in that paper. The held-out loss is measured with 15%
for all runs, so it can be compared. A higher share costs more time per step.
"""

from bertgpt.config import recipes, sweeps


def get_config():
  config = recipes.beside(__file__, "ablation_masking")
  config.objective.update(replace_with_mask=1.0, replace_with_random=0.0)
  config.eval.mask_prob = 0.15
  return config


def get_sweep():
  """Returns one run per share."""
  return sweeps.product({"objective.mask_prob": (0.15, 0.3, 0.4)})
