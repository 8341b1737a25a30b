r"""What is shown instead of a predicted token: the six rules that BERT's paper compares.

Command    bertgpt train --config configs/ablation_masking.py --workdir runs/ablation_masking \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       As for `wiki_mini`, whose tokenizer it shares.
Hardware   One CPU core, about five minutes per run; `bertgpt sweep` trains six runs.
Expected   After fine-tuning a BERT-base, MNLI dev accuracy and CoNLL 2003 dev F1 (Devlin et al.
           2018, arXiv:1810.04805, table 8):
             [MASK] / same / random, %   80/10/10  100/0/0  80/0/20  80/20/0  0/20/80  0/0/100
             MNLI                            84.2     84.3     84.1     84.4     83.7     83.6
             NER, fine-tuned                 95.4     94.9     95.2     95.2     94.8     94.9
             NER, features                   94.9     94.0     94.6     94.7     94.6     94.6
           docs/ablations.md has the commands for all ablations, and the results of this recipe.

The recipe is that of `wiki_mini` with two layers of width 128, 15% of the tokens predicted, as in
the paper, and a third of the steps. The held-out loss is measured with the masks of the training,
so it cannot be compared between the runs of the sweep: a token that is shown unchanged is easy to
predict. Only the scores of tasks can.
"""

from bertgpt.config import recipes, sweeps


def get_config():
  config = recipes.beside(__file__, "wiki_mini")
  config.model.update(num_layers=2, width=128, num_heads=2, mlp_dim=512)
  config.objective.update(mask_prob=0.15, replace_with_mask=0.8, replace_with_random=0.1)
  config.phases[0].steps = 1_200
  config.phases[1].steps = 400
  config.eval.every_steps = 200
  config.checkpoint.every_steps = 200
  config.checkpoint.keep = 1
  return config


def get_sweep():
  """Returns the rows of the paper's table 8, in their order."""
  return sweeps.zip({"objective.replace_with_mask": (0.8, 1.0, 0.8, 0.8, 0.0, 0.0),
                     "objective.replace_with_random": (0.1, 0.0, 0.2, 0.0, 0.8, 1.0)})
