r"""Masked LM with and without next sentences, and left-to-right: the objectives of BERT's paper.

Command    bertgpt train --config configs/ablation_objective.py --workdir runs/ablation_objective \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       As for `wiki_mini`, whose tokenizer it shares.
Hardware   One CPU core, about five minutes per run; `bertgpt sweep` trains three runs.
Expected   Dev scores of a BERT-base (Devlin et al. 2018, arXiv:1810.04805, table 5):
                                      MNLI-m  QNLI  MRPC  SST-2  SQuAD F1
             masked LM and NSP          84.4  88.4  86.7   92.7      88.5
             masked LM                  83.9  84.9  86.5   92.6      87.9
             left-to-right              82.1  84.3  77.5   92.1      77.8
           docs/ablations.md has the commands for all ablations, and the results of this recipe.

--config configs/ablation_objective.py:left_to_right trains only one of them; the names are
mlm_nsp, mlm and left_to_right. Left-to-right is a GPT with BERT's layers: norms after the blocks,
and no segments. It predicts every token of a row instead of 15%, so its loss cannot be compared
with the others. It does not label words, so it has no score on WNUT17.
"""

from bertgpt.config import base, recipes, sweeps


def get_config(name="mlm_nsp"):
  if name not in OBJECTIVES:
    raise ValueError(f"no objective {name!r}. Choose one of {', '.join(OBJECTIVES)}")
  config = recipes.beside(__file__, "ablation_masking")
  OBJECTIVES[name](config)
  return config


def get_sweep():
  """Returns one run per objective."""
  return sweeps.of_configs(map(get_config, OBJECTIVES), ("objective.name",))


def _use_mlm(config):
  config.objective.name = "mlm"


def _use_left_to_right(config):
  config.model.update(family="gpt", num_segments=0)
  config.objective.update(base().objective)
  config.objective.name = "causal"


OBJECTIVES = {"mlm_nsp": lambda config: None, "mlm": _use_mlm,
              "left_to_right": _use_left_to_right}
