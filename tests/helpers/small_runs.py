"""Text, recipe and runs that take only seconds; the fixtures are in conftest.py."""

import random

NOUNS = ("cat", "dog", "tree", "house", "river", "stone", "bird", "cloud", "road", "field", "light")
VERBS = ("sees", "likes", "finds", "holds", "leaves", "takes", "knows")

RECIPE = """
from bertgpt.config import base, phase


def get_config(objective="mlm_nsp"):
  config = base()
  config.data.source = "text:{text}"
  config.data.cache_dir = "{cache}"
  config.data.prepare_workers = 1
  config.data.validation_fraction = 0.1
  config.tokenizer.kind = "wordpiece"
  config.tokenizer.vocab_size = 90
  config.model.update(num_layers=1, width=16, num_heads=2, mlp_dim=32, max_positions=64,
                      dtype="float32", dropout=0.0, attention_dropout=0.0)
  config.objective.name = objective
  if objective == "causal":
    config.model.update(family="gpt", norm="pre", num_segments=0)
  config.optimizer.name = "adamw"
  config.phases = (phase(steps={steps}, seq_len=32, batch_size=8, learning_rate=2e-2),)
  config.eval.batch_size = 8
  config.log.every_steps = 2
  config.log.tensorboard = False
  config.system.compilation_cache = ""
  return config


def get_sweep():
  return [{{"phases[0].learning_rate": rate}} for rate in (1e-2, 1e-3)]
"""

_MODERN = ("--config.model.position=rope", "--config.model.norm=pre",
           "--config.model.skip_first_norm=True", "--config.optimizer.name=stable_adamw",
           "--config.model.mlp=gated", "--config.model.window=4", "--config.model.num_layers=4",
           "--config.model.use_bias=False", "--config.model.norm_bias=False",
           "--config.model.activation=gelu_erf")
_XLNET = ("--config.model.family=xlnet", "--config.model.position=relative",
          "--config.objective.whole_words=True", "--config.objective.ngram=3",
          "--config.objective.permutation_block=16")

# Name -> objective and overrides of RECIPE.
FAMILIES = {
    "albert": ("mlm_sop", "--config.model.family=albert", "--config.model.embedding_width=8",
               "--config.model.layer_groups=1"),
    "bert": ("mlm_nsp",),
    "diffusion": ("diffusion",),
    "electra": ("rtd", "--config.model.family=electra", "--config.model.generator_width=8",
                "--config.model.generator_num_heads=2", "--config.model.generator_mlp_dim=16",
                "--config.model.activation=gelu_erf"),
    "elmo": ("bilm", "--config.model.family=elmo", "--config.model.num_highways=1",
             "--config.model.filters=((1, 8), (2, 8), (3, 16))", "--config.model.num_layers=2",
             "--config.model.attention_dropout=0.1", "--config.model.pooling=mean",
             "--config.tokenizer.kind=words", "--config.tokenizer.lowercase=False",
             "--config.tokenizer.vocab_size=29", "--config.optimizer.name=adagrad",
             "--config.optimizer.initial_accumulator=0.0025", "--config.optimizer.weight_decay=0.0",
             "--config.phases[0].learning_rate=0.2"),
    "gpt": ("causal",),
    "modernbert": ("mlm", "--config.model.family=modernbert", "--config.model.num_segments=0",
                   "--config.objective.mask_rule=bernoulli", *_MODERN),
    "modernbert_decoder": ("causal", "--config.model.family=modernbert_decoder", *_MODERN),
    "xlnet": ("plm", *_XLNET),
    "xlnet_memory": ("plm_memory", "--config.objective.memory=24", *_XLNET),
}

TUNING = """
from bertgpt.config.finetuning import base


def get_config():
  config = base()
  config.task.update(name="sst2", data="{data}", max_length=32)
  config.learning_rates = (1e-2,)
  config.batch_size = 16
  config.epochs = 90
  config.optimizer.name = "adamw"
  config.eval.every_epoch = False
  config.log.every_steps = 10
  config.system.compilation_cache = ""
  return config
"""


def make_text(num_documents: int, seed: int = 0) -> str:
  """Returns documents with one short sentence per line, separated by blank lines."""
  rng = random.Random(seed)

  def sentence():
    a, b, c = rng.sample(NOUNS, 3)
    return f"The {a} {rng.choice(VERBS)} the {b} near a {c}."

  documents = ("\n".join(sentence() for _ in range(rng.randint(3, 8)))
               for _ in range(num_documents))
  return "\n\n".join(documents) + "\n"
