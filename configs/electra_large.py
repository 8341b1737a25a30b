"""ELECTRA-large with the paper's recipe: 1.75 M steps of 2,048 rows of 512 tokens.

Command    bertgpt train --config configs/electra_large.py --workdir runs/electra_large
Data       In the paper, the text of XLNet: BooksCorpus, Wikipedia, Gigaword, ClueWeb and Common
           Crawl, 33 B tokens. Otherwise as for configs/electra_small.py.
Hardware   64 GPUs or TPU chips: a micro-batch is then 8 rows per device. With other numbers of
           devices, scale --config.phases[0].micro_batches inversely. With more than 128, raise
           --config.eval.batch_size too.
Expected   On dev sets, fine-tuned: CoLA 69.1, SST-2 96.9, MRPC 90.8, STS-B 92.6, QQP 92.4, MNLI
           90.9, QNLI 95.0, RTE 88.0; SQuAD 1.1 EM 89.7, 2.0 EM 88.1
           (github.com/google-research/electra, 2020). The mean is 89.0 after 400k steps, and 89.5
           after 1.75 M (Clark et al. 2020, arXiv:2003.10555, table 2).
Status     Not yet run.

A quarter of the tokens are masked, not 15% as in the smaller models.
"""

from bertgpt.config import families, recipes


def get_config():
  config = recipes.beside(__file__, "electra_small")
  config.model.update(families.FAMILIES["electra"].presets["large"])
  config.objective.mask_prob = 0.25
  config.phases[0].update(steps=1_750_000, seq_len=512, batch_size=2_048, micro_batches=4,
                          learning_rate=2e-4)
  return config
