"""ALBERT-base, version 1, with the paper's recipe.

Command    bertgpt train --config configs/albert_base.py --workdir runs/albert_base
Data       BooksCorpus and Wikipedia in the paper, 16 GB of text. A lower-case SentencePiece
           tokenizer with 30,000 pieces is trained on `data.source`.
Hardware   64 to 512 TPU v3 chips in the paper; any number of devices that divides 512, or 4,096
           with --config.eval.batch_size=4096. With little memory, use
           --config.phases[0].micro_batches=16.
Expected   Masked-LM accuracy on held-out text about 54%; fine-tuned: SQuAD 1.1 F1 89.3, EM 82.3;
           MNLI 81.6; SST-2 90.3 (Lan et al. 2019, arXiv:1909.11942, tables 5 and 2).
Status     Not yet run.

Like the published script, the recipe predicts at most 20 tokens per row, which is 4% of 512 tokens.
For 15%, use --config.phases[0].max_predictions=77.
"""

from bertgpt.config import base, families, phase


def get_config():
  config = base()
  config.data.source = "jsonl:data/*.jsonl#text"
  config.data.packing = False  # As in the paper: one pair per row.
  config.tokenizer.kind = "sentencepiece"
  config.tokenizer.vocab_size = 30_000
  config.model.update(families.FAMILIES["albert"].presets["base"])
  config.objective.update(name="mlm_sop", whole_words=True, ngram=3)
  config.optimizer.name = "albert_lamb"
  config.phases = (
      phase(steps=125_000, seq_len=512, batch_size=4096, max_predictions=20,
            learning_rate=1.76e-3, schedule="linear", warmup_steps=3_125),)
  config.eval.batch_size = 512
  return config
