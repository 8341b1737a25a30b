r"""Ettin with 17 M parameters, encoder or decoder: 2 T tokens in three stages.

Download   hf download wikimedia/wikipedia --repo-type dataset --include '20231101.en/*' \
             --local-dir wikipedia
Command    bertgpt train --config configs/ettin_17m.py --workdir runs/ettin_17m
           The decoder:
             bertgpt train --config configs/ettin_17m.py:causal --workdir runs/ettin_17m_decoder
Data       In the paper, 2 T tokens of open data (jhu-clsp/ettin-pretraining-data and others on
           Hugging Face). The default source is the English Wikipedia of November 2023. A byte-level
           BPE of the same size is trained on it; the published models use ModernBERT's.
Hardware   4 H100 GPUs for 141 hours in the paper. Here 8 GPUs, with 96 rows of 1,024 tokens per GPU
           in a micro-batch.
Expected   Not known for this recipe. The paper has tables of scores (Weller et al. 2025,
           arXiv:2507.11412).
Status     Not yet run. A smaller recipe has been run: configs/modernbert_mini.py.

The encoder and the decoder differ only in mask and objective. The encoder predicts 30% of the
tokens in the first two stages, 15% in the last one and in evaluation. Learning rates, weight decay,
dropout, rotary bases and token counts are those of JHU-CLSP/ettin-encoder-vs-decoder,
pretraining/configs (2025). Three things differ: long rows have 8,192 tokens instead of 7,999;
documents are packed into full rows, in which they do not see each other; and a batch of long rows
has as many tokens as one of short rows, instead of 4,608 documents.
"""

from bertgpt.config import base, families, phase
from bertgpt.config.token_budgets import count_steps, warm_up_batches

FAMILIES = {"mlm": "modernbert", "causal": "modernbert_decoder"}


def get_config(objective="mlm"):
  return make_config("ettin_17m", objective, learning_rate=3e-3, weight_decay=3e-4,
                     batch_tokens=125e9, warmup_tokens=4e9, second_rope_theta_local=10_000.0)


def make_config(size, objective, learning_rate, weight_decay, batch_tokens, warmup_tokens,
                second_rope_theta_local=160_000.0, second_tokens=250e9, third_tokens=50e9):
  """Returns the config of a size; the recipes of the other sizes call this, too.

  Args:
    size: name of the preset.
    objective: 'mlm' or 'causal'.
    learning_rate: peak of the first stage.
    weight_decay: weight decay.
    batch_tokens, warmup_tokens: tokens of the warm-up of the batch, and of that of the learning
      rate.
    second_rope_theta_local: rotary base of the local layers in the second stage.
    second_tokens, third_tokens: tokens of these stages.
  """
  config = base()
  config.data.source = "parquet:wikipedia/20231101.en/*.parquet#text"
  config.data.validation_fraction = 0.001
  config.data.isolate_documents = True
  config.tokenizer.kind = "bpe"
  config.tokenizer.vocab_size = 50_368
  config.model.update(families.FAMILIES[FAMILIES[objective]].presets[size], dropout=0.1)
  config.objective.name = objective
  config.optimizer.update(name="stable_adamw", b1=0.9, b2=0.98, epsilon=1e-6, clip_norm=0.0,
                          weight_decay=weight_decay)
  short = warm_up_batches(768, 4_608, batch_tokens, warmup_tokens, 1_024, schedule="constant",
                          learning_rate=learning_rate)
  short.append(phase(steps=count_steps(1.7e12 - batch_tokens, 4_608, 1_024), seq_len=1_024,
                     batch_size=4_608, learning_rate_rule="continuous"))
  for p in short:
    p.micro_batches, p.rope_theta = p.batch_size // 768, 10_000.0
  long = dict(seq_len=8_192, batch_size=576, micro_batches=6, schedule="wsd", decay_fraction=1.0,
              power=0.5)
  config.phases = (
      *short,
      phase(steps=count_steps(second_tokens, 576, 8_192), learning_rate=learning_rate,
            end_fraction=0.5, rope_theta_local=second_rope_theta_local, **long),
      phase(steps=count_steps(third_tokens, 576, 8_192), learning_rate=learning_rate / 2,
            end_fraction=0.04, rope_theta_local=160_000.0, **long))
  if objective == "mlm":
    config.objective.update(mask_prob=0.3, mask_rule="bernoulli")
    config.phases[-1].mask_prob = config.eval.mask_prob = 0.15
  config.eval.update(every_steps=5_000, batch_size=96, max_rows=4_608)
  config.checkpoint.every_steps = 2_000
  return config
