r"""An ELECTRA of 4 layers, width 128, whose generator is half as wide, for a small machine.

Command    bertgpt train --config configs/electra_mini.py --workdir runs/electra_mini \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       As for `wiki_mini`; a WordPiece tokenizer of 4,096 pieces is trained on it.
Hardware   Two CPU cores, 5 minutes while other programs took most of the CPU time.
Expected   With Wikipedia, on held-out text, as far as the run went:
             step                   100   200   300   400
             MLM perplexity         547   389   343   321
             MLM accuracy, %       10.7  15.0  16.1  16.8
             RTD loss            0.3425 0.3367 0.3313 0.3264
           The generator learns more than the frequencies of tokens. The loss of the discriminator
           falls with it, but the discriminator calls no token replaced yet, although 12% are.

As in `demo`: rows of 16 tokens, Muon, and initial values with standard deviation 1 / sqrt(width).
"""

from bertgpt.config import families, phase, recipes


def get_config():
  config = recipes.beside(__file__, "wiki_mini")
  config.data.update(packing=False, short_sequence_prob=0.05)
  config.tokenizer.vocab_size = 4_096
  config.model.update(families.FAMILIES["electra"].presets["small"])
  config.model.update(num_layers=4, width=128, num_heads=4, mlp_dim=512, embedding_width=128,
                      generator_width=64, generator_num_heads=2, generator_mlp_dim=256,
                      max_positions=64, dropout=0.0, attention_dropout=0.0, init_std=0.09,
                      position_init="sinusoid", position_init_std=0.1)
  config.objective.update(name="rtd", mask_prob=0.15, replace_with_mask=0.85)
  config.phases = (
      phase(steps=600, seq_len=16, batch_size=128, learning_rate=4e-3, schedule="constant",
            warmup_steps=50),)
  config.eval.every_steps = 100
  return config
