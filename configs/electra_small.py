r"""ELECTRA-small with the paper's recipe: 1 M steps of 128 rows of 128 tokens, on one GPU.

Download   hf download Skylion007/openwebtext --repo-type dataset --local-dir openwebtext
Command    bertgpt train --config configs/electra_small.py --workdir runs/electra_small \
             --config.data.source='parquet:openwebtext/plain_text/*.parquet#text'
Data       English Wikipedia and BooksCorpus in the paper; OpenWebText with the published script
           and in this command. Without --config.data.source, the text is the English Wikipedia of
           November 2023. A lower-case WordPiece tokenizer of 30,522 pieces is trained on the text.
Hardware   One V100 GPU for 4 days in the paper; any number of devices that divides 128.
Expected   On dev sets, fine-tuned, from OpenWebText: CoLA 56.8, SST-2 88.3, MRPC 87.4, STS-B 86.8,
           QQP 88.3, MNLI 78.9, QNLI 87.9, RTE 68.5 (github.com/google-research/electra, 2020). The
           mean is 79.9 in the paper, and that of a BERT of the same size 75.1 (Clark et al. 2020,
           arXiv:2003.10555, table 1).
Status     Not yet run.

The published script draws the masked positions with replacement, so its rows have fewer of them.
"""

from bertgpt.config import base, families, phase


def get_config():
  config = base()
  config.data.source = "parquet:wikipedia/20231101.en/*.parquet#text"
  config.data.validation_fraction = 0.001
  config.data.packing = False
  config.data.short_sequence_prob = 0.05
  config.tokenizer.kind = "wordpiece"
  config.tokenizer.vocab_size = 30_522
  config.model.update(families.FAMILIES["electra"].presets["small"])
  # No random tokens: predicted tokens that are not shown as [MASK] are shown unchanged.
  config.objective.update(name="rtd", mask_prob=0.15, replace_with_mask=0.85,
                          replace_with_random=0.0)
  config.optimizer.name = "bert_adamw"
  config.phases = (
      phase(steps=1_000_000, seq_len=128, batch_size=128, learning_rate=5e-4, schedule="linear",
            warmup_steps=10_000, warmup_rule="multiply"),)
  config.eval.batch_size = 128
  config.eval.every_steps = 10_000
  config.eval.max_rows = 10_240
  config.checkpoint.every_steps = 10_000
  config.log.every_steps = 100
  return config
