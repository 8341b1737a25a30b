r"""ELMo as published: 10 epochs of the One Billion Word Benchmark, two weeks on three GTX 1080.

Command    bertgpt train --config configs/elmo_original.py --workdir runs/elmo_original
Data       The One Billion Word Benchmark, 768,648,884 words, from TensorFlow Datasets. The
           vocabulary is its 793,471 most frequent words. Counting the words needs all of the text
           in memory. With `--config.tokenizer.vocab_size=100_000`, the output layer has an eighth
           of its size.
Hardware   Three GTX 1080 for two weeks in the published run; any number of devices dividing 384.
Expected   The mean of the perplexities of both directions is 39.7 (Peters et al. 2018,
           arXiv:1802.05365, 3.4). Tasks, without and with ELMo: SQuAD 81.1 -> 85.8, SNLI 88.0 ->
           88.7, SRL 81.4 -> 84.6, coreference 67.2 -> 70.4, NER 90.15 -> 92.22, SST-5 51.4 -> 54.7
           (table 1).
Status     Not yet run.

The hyperparameters are those of allenai/bilm-tf, bin/train_elmo.py (2018): batches of 128 rows of
20 words on each of three GPUs, Adagrad with a rate of 0.2. The script's loss is the sum over the 20
words of a row. Here it is their mean, so the initial accumulator of 1 becomes 1 / 400 and the clip
norm of 10 becomes 0.5, which gives the same updates. The softmax is over the whole vocabulary; the
script samples 8,192 words. The script keeps the words of the benchmark as they are; here, words are
split at punctuation inside them ("n't" is three words).
"""

from bertgpt.config import base, families, phase

EPOCH = 100_084  # Steps, of 7,680 words.


def get_config():
  config = base()
  config.data.source = "tfds:lm1b:train#text"
  config.data.validation_fraction = 0.0005
  config.tokenizer.kind = "words"
  config.tokenizer.lowercase = False
  config.tokenizer.vocab_size = 793_471
  config.tokenizer.train_bytes = 5_000_000_000
  config.model.update(families.FAMILIES["elmo"].presets["original"])
  config.objective.name = "bilm"
  config.optimizer.update(name="adagrad", initial_accumulator=1 / 400, clip_norm=0.5,
                          weight_decay=0.0)
  config.phases = (
      phase(steps=10 * EPOCH, seq_len=20, batch_size=384, learning_rate=0.2,
            schedule="constant"),)
  config.eval.batch_size = 384
  config.eval.every_steps = 10_000
  config.checkpoint.every_steps = 10_000
  config.log.every_steps = 100
  return config
