r"""BERT-base on the text of `wiki_mini`, in bfloat16 on one GPU: minutes instead of days.

Command    bertgpt train --config configs/wiki_base.py --workdir runs/wiki_base \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       As for `wiki_mini`; 14.7 M tokens are read 17 times.
Hardware   One GPU with 24 GB (planned: 12 GiB). On an H100 that ran other programs too, a step took
           68 ms in rows of 64 tokens.
Expected   After 300 steps, in rows of 16, a loss of 5.7 (measured on an H100). The frequencies of
           the tokens alone give 7.3.
Status     Not yet run to its end.

As in `wiki_mini`, rows of 16 tokens come first. The text is read many times, so there is dropout,
but not on the weights of attention: cuDNN has none, and `flash` pads rows to 128 tokens.
"""

from bertgpt.config import phase, presets, recipes


def get_config():
  config = recipes.beside(__file__, "wiki_mini")
  config.model.update(presets.BERT["base"], dropout=0.1, attention_dropout=0.0, dtype="bfloat16",
                      scan_unroll=-1, init_std=0.02, position_init_std=0.04)
  config.phases = (
      phase(steps=800, seq_len=16, batch_size=2_048, learning_rate=1e-3, schedule="wsd",
            warmup_steps=200, decay_fraction=0.0),
      phase(steps=6_700, seq_len=64, batch_size=512, learning_rate=1e-3, schedule="wsd",
            decay_fraction=0.5),)
  config.eval.every_steps = 1_000
  config.eval.max_rows = 2_048
  config.checkpoint.every_steps = 1_000
  return config
