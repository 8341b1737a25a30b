r"""RoBERTa-base with the paper's recipe: 500k steps of 8,192 rows of 512 tokens.

Download   hf download wikimedia/wikipedia --repo-type dataset --include '20231101.en/*' \
             --local-dir wikipedia
Command    bertgpt train --config configs/roberta_base.py --workdir runs/roberta_base
Data       160 GB in the paper: BooksCorpus and Wikipedia, CC-News, OpenWebText, Stories. The
           default source is the English Wikipedia of November 2023 only: 6.4 M articles in 41
           files, 12 GB. docs/data.md has other sources, which can be added with a comma. A
           byte-level BPE of the same size is trained on the source; its ids differ from
           those of the published one.
Hardware   1,024 V100 GPUs and about a day per 100k steps in the paper. Here 64 GPUs or TPU chips: a
           micro-batch is then 16 rows per device. With other numbers of devices, scale
           --config.phases[0].micro_batches inversely: 512 on one device.
Expected   On dev sets, fine-tuned: MNLI 87.6, QNLI 92.8, QQP 91.9, RTE 78.7, SST-2 94.8, MRPC 90.2,
           CoLA 63.6, STS-B 91.2 (github.com/facebookresearch/fairseq, examples/roberta, 2019).
           With BooksCorpus and Wikipedia only, held-out perplexity is 3.68 after 125k steps of
           2,048 rows with a peak of 7e-4 (MNLI 85.2, SST-2 92.9), 3.77 after 31k steps of 8,192
           rows with 1e-3, and 3.99 after 1 M steps of 256 rows with 1e-4 (Liu et al. 2019,
           arXiv:1907.11692, table 3).
Status     Not yet run. A smaller recipe has been run: configs/roberta_mini.py.

What differs from BERT, apart from the amount of text: no next-sentence prediction; rows of whole
sentences across documents; special tokens are predicted too; the number of predicted tokens is
rounded up or down at random; the exact GELU; weight decay on all parameters; no clipping; b2 0.98;
learning-rate decay counted from the end of the warm-up; byte-level BPE. In fairseq every line of
the text ends with </s>; here every document and every row does.

For batches of 2,048 rows, which had the lowest perplexity in table 3:
--config.phases[0].batch_size=2048 --config.phases[0].micro_batches=2
--config.phases[0].steps=125000 --config.phases[0].warmup_steps=10000
--config.phases[0].learning_rate=7e-4
"""

from bertgpt.config import base, phase, presets


def get_config():
  config = base()
  config.data.source = "parquet:wikipedia/20231101.en/*.parquet#text"
  config.data.validation_fraction = 0.001
  config.data.max_unused = 1.0
  config.tokenizer.kind = "bpe"
  config.tokenizer.vocab_size = 50_265
  config.model.update(presets.ROBERTA["base"])
  config.objective.update(name="mlm", mask_rule="fairseq")
  config.optimizer.update(name="fairseq_adamw", b2=0.98, decay_rule="all", clip_norm=0.0)
  config.phases = (
      phase(steps=500_000, seq_len=512, batch_size=8_192, micro_batches=8, learning_rate=6e-4,
            schedule="linear", warmup_steps=24_000, warmup_rule="before"),)
  config.eval.every_steps = 2_000
  config.eval.batch_size = 256
  config.eval.max_rows = 10_240
  config.checkpoint.every_steps = 1_000
  return config
