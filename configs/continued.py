"""Continues the training of a model on other text: an imported one, or one that was trained here.

Command    bertgpt train --config configs/continued.py:runs/imported --workdir runs/continued \\
             --config.data.source='jsonl:domain/*.jsonl#text'
Data       Your own. The 12,500 steps read 1.6 G tokens: set `phases[0].steps` to a few epochs.
Hardware   As for the model, see `bertgpt plan`. On CPUs, add --config.model.dtype=float32.
Expected   At first, the loss of `bertgpt evaluate --workdir runs/imported` on the same text, and
           then a lower one: docs/continuing.md.

The argument is the workdir of a run, such as that of `bertgpt import --from bert-base-uncased
--workdir runs/imported`, which must stay until the new run has ended. Its model and objective, as
in its last phase, and its tokenizer are kept, and computed in bfloat16. (An ELMo learns the words
of the other text.) The optimizer is new, so the learning rate is warmed up again, to a peak below
that of most published trainings. Gururangan et al. 2020 (arXiv:2004.10964)
continue RoBERTa in a domain for 12,500 steps.
"""

from bertgpt import files
from bertgpt.config import config_of_phase, families, phase, recipes


def get_config(run=""):
  config = recipes.beside(__file__, "bert_base")
  fraction = config.data.validation_fraction
  run = run.rstrip("/") or run
  config.init_from = run or "RUN"  # There is no such run, so a forgotten argument is noticed.
  if run:
    from bertgpt.runs import workdir  # It loads JAX, for which an error should not wait.
    trained = workdir.read_config(files.make_path(run), "--config continued:")
    last = config_of_phase(trained, len(trained.phases) - 1)
    config.update(data=last.data, model=last.model, objective=last.objective,
                  tokenizer=last.tokenizer)
    config.model.update(vocab_size=0, dtype="bfloat16")
    config.tokenizer.path = f"{run}/tokenizer"
    if families.find(trained).reads_words:
      config.tokenizer.update(path="", kind="words", lowercase=False)
  config.data.update(source="jsonl:domain/*.jsonl#text", corpus="", corpora="",
                     validation_fraction=fraction)
  config.optimizer.update(name="adamw", b2=0.98)
  seq_len = min(512, config.model.max_positions or trained.phases[-1].seq_len)
  config.phases = (
      phase(steps=12_500, seq_len=seq_len, batch_size=256, learning_rate=1e-4, schedule="linear",
            warmup_fraction=0.06),)
  config.eval.update(every_steps=500, max_rows=10_240)
  config.checkpoint.every_steps = 500
  return config
