r"""An ELECTRA of 4 layers, width 128, whose generator is half as wide, for a small machine.

Command    bertgpt train --config configs/electra_mini.py --workdir runs/electra_mini \
             --config.data.source='jsonl:wiki/train-*.jsonl.xz#text'
Data       As for `wiki_mini`; a WordPiece tokenizer of 4,096 pieces is trained on it.
Hardware   One CPU core, next to other programs; 27 minutes.
Expected   With 7.1 M tokens of Wikipedia, on held-out text:
             step                  500  1000  1500  2000  2500  3000  3500
             tokens per row         16    16    16    64    64    64    64
             MLM perplexity        189  92.4  71.2  74.7  65.6  51.4  44.8
             MLM accuracy, %      21.3  26.0  27.9  27.0  28.1  31.3  32.6
             RTD loss            0.481 0.465 0.447 0.465 0.456 0.444 0.437
             precision, %            -     -  68.2  61.2  62.7  70.0  70.9
             recall, %             0.0   0.0   7.2  10.6  10.5  10.4  10.5
           With two other seeds, the last perplexity was 43.1 and 42.1, precision 70.2 and 70.6%,
           and recall 11.6 and 10.7%.
           A unigram model has a perplexity of 294 in rows of 64. A fifth of the tokens is
           replaced. The discriminator finds none before step 1,000: the generator learns first.

Rows, optimizer and initial values are those of `demo`: rows of 16 tokens first, Muon, a standard
deviation of 1 / sqrt(width). A quarter of the tokens is masked, as in ELECTRA-large. With 15%, a
constant learning rate and 600 steps, perplexity was 278, and no token was called replaced.
"""

from bertgpt.config import families, recipes


def get_config():
  config = recipes.beside(__file__, "wiki_mini")
  config.data.update(packing=False, short_sequence_prob=0.05)
  config.tokenizer.vocab_size = 4_096
  config.model.update(families.FAMILIES["electra"].presets["small"])
  config.model.update(num_layers=4, width=128, num_heads=4, mlp_dim=512, embedding_width=128,
                      generator_width=64, generator_num_heads=2, generator_mlp_dim=256,
                      max_positions=64, dropout=0.0, attention_dropout=0.0, init_std=0.09,
                      position_init="sinusoid", position_init_std=0.1)
  config.objective.update(name="rtd", mask_prob=0.25, replace_with_mask=0.85)
  config.phases[0].learning_rate = config.phases[1].learning_rate = 4e-3
  config.phases[0].update(steps=1_500, warmup_steps=50)
  config.phases[1].steps = 2_000
  config.eval.every_steps = 250
  return config
