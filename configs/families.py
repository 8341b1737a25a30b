r"""Every family of models, with the same text, tokenizer, number of tokens and size.

Command    bertgpt train --config configs/families.py --workdir runs/families \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       As for `wiki_mini`; all runs but ELMo's share its tokenizer, a WordPiece of 8,192
           pieces.
Hardware   Two CPU cores; --config.phases[1].steps sets the duration of every run. With 2,500 steps,
           a run sees 9.2 M tokens.
Expected   docs/comparison.md has the results with 1,200 steps, and the commands that fine-tune.

`bertgpt sweep` trains them all, one after the other; --config families:electra names only one. Each
has its own layers, rows and objective, and 4.7 to 5.2 M parameters besides its embedding tables
(ELECTRA: both models together). They share what such a short run needs (see `wiki_mini`): rows of
16 tokens first, Muon, no dropout, initial values. Most have six layers of width 256. ALBERT applies
one layer of width 640 three times, so that it has as many parameters; its step takes 2.3 times as
long as BERT's. ELMo reads and counts words, not pieces, in streams of 32; it has its own vocabulary
and Adagrad, and its step takes 3.5 times as long.
"""

from bertgpt.config import base, families, recipes, sweeps


def get_config(name="bert"):
  if name not in MODELS:
    raise ValueError(f"no model {name!r}. Choose one of {', '.join(MODELS)}")
  config = recipes.beside(__file__, "wiki_mini")
  config.model.num_layers = 6
  MODELS[name](config)
  return config


def get_sweep():
  """Returns one run per family."""
  return sweeps.of_configs(map(get_config, MODELS), ("model.family", "objective.name"))


def _use_roberta(config):
  config.data.max_unused = 1.0
  config.model.update(layer_norm_epsilon=1e-5, activation="gelu_erf", num_segments=0,
                      truncated_init=False)
  config.objective.update(name="mlm", mask_rule="fairseq")
  config.optimizer.update(b2=0.98, decay_rule="all", clip_norm=0.0)


def _use_albert(config):
  _use_preset(config, "albert", "base", num_layers=3, width=640, num_heads=10, mlp_dim=2304)
  config.objective.update(name="mlm_sop", ngram=3)


def _use_electra(config):
  _use_preset(config, "electra", "small", num_layers=6, width=256, num_heads=4, mlp_dim=1024)
  config.data.update(packing=False, short_sequence_prob=0.05)
  config.objective.update(name="rtd", mask_prob=0.15, replace_with_mask=0.85)


def _use_modernbert(config):
  # Rows of 64 tokens are twice as long as the window.
  _use_preset(config, "modernbert", "ettin_17m", num_layers=6, width=256, num_heads=4, mlp_dim=704,
              window=16, rope_theta=10_000.0, position_init="normal", position_init_std=0.02)
  config.data.isolate_documents = True
  config.objective.update(name="mlm", mask_rule="bernoulli")


def _use_gpt2(config):
  _use_preset(config, "gpt", "gpt2_small", num_layers=6, width=256, num_heads=4, mlp_dim=1024)
  config.objective.update(base().objective)
  config.objective.name = "causal"


def _use_diffusion(config):
  """RoBERTa's layers and rows."""
  _use_roberta(config)
  config.objective.update(base().objective)
  config.objective.update(name="diffusion", bias_init="frequencies")


def _use_xlnet(config):
  _use_preset(config, "xlnet", "base", num_layers=6, width=256, num_heads=4, mlp_dim=1024,
              position_init="normal", position_init_std=0.02)
  config.objective.update(base().objective)
  config.objective.update(name="plm", mask_prob=0.25, whole_words=True, ngram=3,
                          permutation_block=0, bias_init="frequencies")


def _use_elmo(config):
  config.tokenizer.update(kind="words", lowercase=False, vocab_size=32_768)
  config.model.update(base().model)
  config.model.update(families.FAMILIES["elmo"].presets["small"])
  # Words beyond the first 8,192 are read by their characters, and predicted as [UNK].
  config.model.update(filters=((1, 16), (2, 32), (3, 64), (4, 128), (5, 256)), mlp_dim=960,
                      target_words=8_192, dropout=0.0, dtype="float32")
  config.objective.update(base().objective)
  config.objective.name = "bilm"
  config.optimizer.update(base().optimizer)
  config.optimizer.update(name="adagrad", initial_accumulator=1 / 400, clip_norm=0.5,
                          weight_decay=0.0)
  for p in config.phases:
    p.update(seq_len=32, batch_size=64, learning_rate=0.2)


def _use_preset(config, family, size, **changes):
  """Sets the fields of a family's preset, except those that all short runs share."""
  kept = ("init_std", "position_init", "position_init_std", "dropout", "attention_dropout")
  short = {field: config.model[field] for field in kept}
  config.model.update(families.FAMILIES[family].presets[size])
  config.model.update(short | changes)


MODELS = {
    "bert": lambda config: None, "roberta": _use_roberta, "albert": _use_albert,
    "electra": _use_electra, "modernbert": _use_modernbert, "gpt2": _use_gpt2,
    "diffusion": _use_diffusion, "elmo": _use_elmo, "xlnet": _use_xlnet,
}
