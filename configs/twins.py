r"""The recipes of the papers on models of 2 to 4 layers: a twin for PyTorch.

Command    bertgpt train --config configs/twins.py --workdir runs/twins \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       As for `wiki_mini`; a WordPiece tokenizer of 8,192 pieces is trained on it, even for the
           models whose papers use another one.
Hardware   Two CPU cores, a minute or two.
Expected   The held-out losses of the same training in PyTorch: docs/twins.md.

`--config configs/twins.py:gpt2` chooses another model, of bert, gpt2, roberta, albert, electra and
modernbert. Objective, masks, optimizer, schedule and dropout are those of its paper's recipe. The
model is smaller (2 layers of width 128; GPT-2: 4 of 256), the rows have 128 tokens, and a run has
1,000 steps of 16 rows, far fewer than in the paper, and a larger learning rate. Every row is one
sequence. `python -m benchmarks.twin` trains such a model here and in PyTorch.
"""

from bertgpt.config import phase, recipes

_SIZE = {"num_layers": 2, "width": 128, "num_heads": 2, "mlp_dim": 512, "max_positions": 128,
         "dtype": "float32", "scan_unroll": 0}
_LARGER = {"num_layers": 4, "width": 256, "num_heads": 4, "mlp_dim": 1_024}
_DROPOUT = {"dropout": 0.1, "attention_dropout": 0.1}
_GENERATOR = {"generator_width": 64, "generator_num_heads": 1, "generator_mlp_dim": 256}

# Name -> (recipe of the paper, fields of the model besides _SIZE, fields of the phase).
MODELS = {
    "bert": ("bert_base", {}, {"max_predictions": 20}),
    "gpt2": ("gpt2_small", _DROPOUT | _LARGER, {}),
    "roberta": ("roberta_base", {}, {}),
    "albert": ("albert_base", {"embedding_width": 64}, {"learning_rate": 2e-3}),
    "electra": ("electra_small", {"embedding_width": 64} | _GENERATOR, {}),
    # Every other layer is local, and rows are eight times as long as the window on each side.
    "modernbert": ("modernbert_base", {"mlp_dim": 256, "window": 16, "global_every": 2,
                                       "rope_theta": 10_000.0}, {}),
}
# Fields of a phase that are taken from the first phase of the recipe.
KEPT = ("schedule", "warmup_rule", "end_fraction")


def get_config(name="bert"):
  if name not in MODELS:
    raise ValueError(f"no model {name!r}. Choose one of {', '.join(MODELS)}")
  recipe, size, changes = MODELS[name]
  config = recipes.beside(__file__, recipe)
  config.data.update(source="jsonl:data/*.jsonl#text", validation_fraction=0.02)
  if config.data.isolate_documents:
    config.data.update(isolate_documents=False, packing=False)
  config.tokenizer.update(kind="wordpiece", vocab_size=8_192)
  config.model.update(_SIZE | size)
  kept = {field: config.phases[0][field] for field in KEPT}
  config.phases = (phase(**{"steps": 1_000, "seq_len": 128, "batch_size": 16, "learning_rate": 1e-3,
                            "warmup_fraction": 0.1, **kept, **changes}),)
  config.eval.update(every_steps=100, batch_size=64, max_rows=512)
  config.checkpoint.update(every_steps=200, keep=1)
  config.log.every_steps = 20
  return config
