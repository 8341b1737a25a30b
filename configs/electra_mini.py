r"""An ELECTRA of the size of `wiki_mini`, whose generator is a quarter as wide.

Command    bertgpt train --config configs/electra_mini.py --workdir runs/electra_mini \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       As for `wiki_mini`.
Hardware   Two CPU cores.
Expected   Not yet known.
Status     Not yet run.
"""

from bertgpt.config import families, phase, recipes


def get_config():
  config = recipes.beside(__file__, "wiki_mini")
  config.data.packing = False
  config.data.short_sequence_prob = 0.05
  size = {name: config.model[name] for name in ("num_layers", "width", "num_heads", "mlp_dim")}
  # As in `wiki_mini`: without these, a short run learns only the frequencies of tokens.
  start = {name: config.model[name] for name in ("init_std", "position_init", "position_init_std")}
  config.model.update(families.FAMILIES["electra"].presets["small"])
  config.model.update(size, dropout=0.0, attention_dropout=0.0, **start)
  config.objective.update(name="rtd", mask_prob=0.15, replace_with_mask=0.85)
  config.phases = (
      phase(steps=1_000, seq_len=32, batch_size=64, learning_rate=1.5e-3, schedule="linear",
            warmup_steps=100, warmup_rule="multiply"),)
  config.eval.every_steps = 100
  return config
