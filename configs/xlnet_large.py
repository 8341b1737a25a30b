"""XLNet-large with the paper's recipe, with or without memory, and without reversed rows.

Command    bertgpt train --config configs/xlnet_large.py --workdir runs/xlnet_large
           bertgpt train --config configs/xlnet_large.py:memory --workdir runs/xlnet_large_memory
Data       32.89 B pieces in the paper (Wikipedia, BooksCorpus, Giga5, ClueWeb 2012-B, Common
           Crawl). A cased SentencePiece tokenizer with 32,000 pieces is trained on `data.source`.
Hardware   512 TPU v3 chips for 5.5 days in the paper; any number of devices that divides 512,
           or 8,192 with --config.eval.batch_size=8192. With little memory, use
           --config.phases[0].micro_batches=16.
Expected   On dev sets, fine-tuned: MNLI 90.8, QNLI 94.9, QQP 92.3, RTE 85.9, SST-2 97.0, MRPC 90.8,
           CoLA 69.0, STS-B 92.5; SQuAD 1.1 EM 89.7, 2.0 EM 87.9; RACE 85.4 on its test set (Yang et
           al. 2019, arXiv:1906.08237, version of January 2020, tables 2, 3 and 5). The published
           weights are those of the first version, trained with 2,048 rows: MNLI 89.8, CoLA 63.6.
Status     Not yet run.

The first half of a row is permuted on its own and sees only itself; the second half also sees the
first. With `:memory`, as in the paper, the rows of a step continue those of the previous step by
256 tokens, and see the features of the 384 tokens before them. These are part of the train state
and of every checkpoint: 19 MB per row.
"""

from bertgpt.config import base, families, phase


def get_config(variant=""):
  config = base()
  config.data.source = "jsonl:data/*.jsonl#text"
  config.data.short_sequence_prob = 0.0
  config.tokenizer.update(kind="sentencepiece", vocab_size=32_000, lowercase=False)
  config.model.update(families.FAMILIES["xlnet"].presets["large"])
  config.objective.update(name="plm", mask_prob=1 / 6, whole_words=True, ngram=5,
                          permutation_block=256)
  if variant == "memory":
    config.objective.update(name="plm_memory", memory=384)
  config.phases = (
      phase(steps=500_000, seq_len=512, batch_size=8192, learning_rate=4e-4, schedule="linear",
            warmup_steps=40_000, warmup_rule="before", end_fraction=1e-3),)
  config.eval.batch_size = 512
  return config
