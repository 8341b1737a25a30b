r"""BERT-base, uncased, with the paper's recipe: 900k steps of 128 tokens, then 100k of 512.

Download   hf download wikimedia/wikipedia --repo-type dataset --include '20231101.en/*' \
             --local-dir wikipedia
Command    bertgpt train --config configs/bert_base.py --workdir runs/bert_base \
             --config.tokenizer.path=vocab.txt
Data       In the paper, BooksCorpus (800 M words) and the English Wikipedia of 2018 (2,500 M words,
           without lists, tables and headings). The default source is the English Wikipedia of
           November 2023 only: 6.4 M articles in 41 files, 12 GB. It lacks BooksCorpus, which was
           withdrawn, and keeps headings and lists; docs/data.md has a copy of BooksCorpus that can
           be added. Without a vocabulary file, a WordPiece tokenizer of the same size is trained on
           the source.
Hardware   16 TPU chips for 4 days in the paper; any number of devices that divides 256 rows.
Expected   Held-out MLM perplexity 3.99 (Devlin et al. 2018, arXiv:1810.04805, table 6), NSP
           accuracy 97-98%; fine-tuned: MNLI-m 84.4, SST-2 92.7, SQuAD 1.1 F1 88.5 (dev).
Status     Not yet run.

The paper does not pack rows. With --config.data.packing=True, rows hold more text, so the same
number of steps reads more of it.
"""

from bertgpt.config import base, phase, presets


def get_config():
  config = base()
  config.data.source = "parquet:wikipedia/20231101.en/*.parquet#text"
  config.data.validation_fraction = 0.001
  config.data.packing = False
  config.tokenizer.kind = "wordpiece"
  config.tokenizer.vocab_size = 30_522
  config.model.update(presets.BERT["base"])
  config.objective.name = "mlm_nsp"
  config.optimizer.name = "bert_adamw"
  config.phases = (
      phase(steps=900_000, seq_len=128, batch_size=256, max_predictions=20,
            learning_rate=1e-4, schedule="linear", warmup_steps=10_000),
      phase(steps=100_000, seq_len=512, batch_size=256, max_predictions=77,
            learning_rate_rule="continuous"))
  config.eval.every_steps = 10_000
  config.eval.batch_size = 256
  config.eval.max_rows = 10_240
  config.checkpoint.every_steps = 10_000
  config.log.every_steps = 100
  return config


def get_sweep():
  """Returns runs with peak learning rates around that of the paper, with two seeds each."""
  return [{"phases[0].learning_rate": rate, "seed": seed}
          for rate in (5e-5, 1e-4, 2e-4) for seed in (0, 1)]
