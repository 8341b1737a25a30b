"""Export of a trained model to a folder that `transformers` reads.

The folder appears completely or not at all: it is written next to its final place, read again,
compared, and then renamed.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers as fast_tokenizers

from bertgpt import console, files, trees
from bertgpt.config import ConfigDict, families
from bertgpt.data.tokens import marks, tokenizers
from bertgpt.data.tokens.marks import Marks
from bertgpt.errors import ConfigError, DataError, StorageError
from bertgpt.hub import conversion, model_card, same_ids, tokenizer_files, weights
from bertgpt.hub.architecture import Architecture
from bertgpt.hub.family_tables import find_table
from bertgpt.runs import folder_kinds
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.trained import Trained


def export(source: pathlib.Path, out: pathlib.Path) -> str:
  """Writes the newest checkpoint of a run as a model of `transformers`.

  Args:
    source: workdir of the run, which may be a fine-tuning run; in a fine-tuning workdir, the best
      run is taken.
    out: new folder.
  Returns:
    One line that says what was written.
  Raises:
    ConfigError: `out` exists, there is no run in `source`, or `transformers` has no such model.
    DataError: no checkpoint is usable, or a weight is not finite.
    StorageError: a file cannot be written, or does not hold what was written.
  """
  files.refuse_existing(out, "--out")
  files.require_utf8(out)
  source = folder_kinds.find_best_run(source)
  trained = trained_lib.load_any(source)
  config, tokenizer = trained.config, trained.tokenizer
  kind = trained.task["kind"] if trained.task else ""
  own_format = find_table(config.model.family).own_format
  if own_format and not kind:
    check_finite(trained, source)
    with files.new_folder(out, "--out") as folder:
      return f"{out}: {own_format.write(trained, folder)}, from step {trained.step} of {source}"
  try:
    architecture = conversion.find_architecture(config, kind, pad_id=tokenizer.pad_id)
  except ConfigError as e:
    raise ConfigError(f"--workdir {source}: {e}") from e
  check_finite(trained, source)
  with files.new_folder(out, "--out") as folder:
    title = write_model(folder, trained, source, out)
    if not kind and families.find(config).can("fill"):
      note_masks(folder, tokenizer, source)
    if tokenizer.shown and isinstance(tokenizer, tokenizers.SentencePiece):
      console.say(f"note: --workdir {source}: {', '.join(tokenizer.shown)} are not special in "
                  "transformers, because SentencePiece finds them in texts")
    if find_truncation(trained) == "head_tail":
      console.say(f"note: --workdir {source}: longer texts keep their head and tail, of which "
                  "transformers keeps only the head. Cut them before the model gets them")
    for part in architecture.parts if not kind else ():
      (folder / part).mkdir()
      write_model(folder / part, trained, source, out, part)
  return f"{out}: {title}, from step {trained.step} of {source}"


def write_model(folder: pathlib.Path, trained: Trained, source: pathlib.Path, out: pathlib.Path,
                part: str = "") -> str:
  """Writes the files of one model and reads them again.

  Args:
    folder: existing folder.
    trained: the run's model.
    source: workdir of the run, for the model card.
    out: final place of the whole export, for the model card.
    part: see `conversion.find_architecture`.
  Returns:
    The name of the architecture and the number of parameters.
  Raises:
    DataError: the tokenizer cannot be exported.
    StorageError: a file cannot be written, or does not hold what was written.
  """
  config, tokenizer = trained.config, trained.tokenizer
  kind, labels = (trained.task["kind"], trained.task["labels"]) if trained.task else ("", ())
  pad_id = tokenizer.pad_id
  architecture = conversion.find_architecture(config, kind, part, pad_id)
  tensors = conversion.to_hugging_face(trained.params, config, pad_id, kind, part)
  settings = (conversion.to_hugging_face_config(config, pad_id, kind, labels, part)
              | special_ids(trained))
  settings |= {key: settings[other] for key, other in architecture.copied_ids.items()
               if other in settings}
  family = families.find(config)
  if family.kind == "encoder":  # Else the class has its default, which may be beyond the table.
    settings.setdefault("pad_token_id", None)
  if others := describe_dropout(config.model, architecture, settings):
    console.say(f"note: --workdir {source}: transformers' {architecture.name} has fewer fields of "
                f"dropout, so there, {', '.join(others)}. This matters only if it is trained")
  files.write_json(folder / "config.json", settings, sort_keys=True)
  weights.write(folder, tensors)
  around = marks.of_family(family, tokenizer, is_tuned=bool(kind), bos_id=trained.bos_id)
  specials = tokenizer_files.special_tokens(tokenizer, family.kind == "encoder", trained.start_id)
  tokenizer_files.write(tokenizer, folder, around, specials,
                        max_length=config.model.max_positions,
                        has_segments=("num_segments" in family.reads
                                      and config.model.num_segments >= 2),
                        # The classifiers of transformers read the last token of a row. Its pipeline
                        # for questions puts the context first if rows are padded on the left.
                        pads_left=family.cls_last and kind != "spans",
                        cuts_left=find_truncation(trained) == "tail")
  if trained.can("generate") and not kind:
    files.write_json(folder / "generation_config.json", special_ids(trained), sort_keys=True)
  title = f"{architecture.name} with {sum(x.size for x in tensors.values()):,} parameters"
  card = model_card.write(trained, architecture, source, out, title, part)
  files.write_atomically(folder / "README.md", card)
  check_written(folder, settings, tensors, tokenizer, around)
  return title


def find_truncation(trained: Trained) -> str:
  """Returns the part of longer texts that the task's rows keep: see `rows.TextFormat`.

  Args:
    trained: the model; one that was not fine-tuned on texts keeps the 'head'.
  """
  if not trained.task or trained.task["kind"] not in ("classes", "values"):
    return "head"
  return model_card.read_tuning(trained.task).task.truncation


def check_finite(trained: Trained, source: pathlib.Path) -> None:
  """Checks that all parameters are finite.

  Args:
    trained: the model.
    source: workdir of its run, for the error message.
  Raises:
    DataError: a parameter is not finite; names it.
  """
  for name, x in trees.named_leaves(trained.params).items():
    if not np.isfinite(x).all():
      raise DataError(f"--workdir {source}: the parameter {name} at step {trained.step} is not "
                      "finite. Export an earlier checkpoint")


def note_masks(folder: pathlib.Path, tokenizer: tokenizers.Tokenizer, source: pathlib.Path) -> None:
  """Prints a note if the exported tokenizer gives other ids for a text with masks than `fill`.

  Args:
    folder: folder of the exported model.
    tokenizer: our tokenizer.
    source: workdir of the run.
  """
  fast = fast_tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  if difference := same_ids.find_mask_difference(fast, tokenizer):
    console.say(f"note: --workdir {source}: {difference}, which `bertgpt fill` reads")


def describe_dropout(model: ConfigDict, architecture: Architecture,
                     settings: Mapping[str, Any]) -> list[str]:
  """Returns 'model.FIELD is VALUE, not VALUE' for dropout that config.json cannot express.

  Args:
    model: `config.model`.
    architecture: architecture of the exported model.
    settings: content of its config.json.
  """
  there = {ours: settings[theirs] for theirs, ours, _ in architecture.fields}
  there |= architecture.read(settings)
  fields = ["dropout", "attention_dropout", *["dropout_at"] * bool(model.dropout)]
  return [f"model.{name} is {there[name]!r}, not {model[name]!r}" for name in fields
          if there.get(name, model[name]) != model[name]]


def special_ids(trained: Trained) -> dict[str, int]:
  """Returns the special ids by the names of config.json and generation_config.json.

  Args:
    trained: the model.
  """
  tokenizer = trained.tokenizer
  if families.find(trained.config).kind == "encoder":
    ids = (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)
  else:
    pad = tokenizer.pad_id if tokenizer.pad_id >= 0 else tokenizer.eod_id
    if trained.task and pad < 0:  # The classifier looks for the last token that is not padding.
      pad = tokenizer.vocab_size
    ids = (trained.start_id, tokenizer.eod_id, pad)
  names = ("bos_token_id", "eos_token_id", "pad_token_id")
  return {name: i for name, i in zip(names, ids, strict=True) if i >= 0}


def check_written(folder: pathlib.Path, settings: Mapping[str, Any],
                  tensors: Mapping[str, np.ndarray], tokenizer: tokenizers.Tokenizer, around: Marks
                  ) -> None:
  """Reads the files of an exported model again and compares them.

  Args:
    folder: folder of the exported model.
    settings: content of config.json.
    tensors: content of the weights.
    tokenizer: our tokenizer.
    around: marks that the training puts around texts.
  Raises:
    StorageError: a file does not hold what was written.
    DataError: the tokenizer that was written gives different ids.
  """
  def refuse(name):
    raise StorageError(f"{folder / name}: does not hold what was written. Check the disk, or "
                       "export to another one")

  found = weights.find(folder)
  if found.keys() != tensors.keys():
    refuse(weights.WEIGHTS)
  for name, x in found.items():
    if x.dtype != tensors[name].dtype or not np.array_equal(x, tensors[name]):
      refuse(found.path_of(name).name)
  if files.read_json(folder / "config.json", weights.REMEDY) != json.loads(json.dumps(settings)):
    refuse("config.json")
  fast = fast_tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  pieces = (*tokenizer.pieces, *tokenizer_files.mark_names(tokenizer, around))
  if fast.get_vocab() != {piece: i for i, piece in enumerate(pieces)}:
    refuse("tokenizer.json")
  if difference := same_ids.find_difference(fast, tokenizer, around):
    raise DataError(f"the tokenizer cannot be exported: {difference}. Use the model with "
                    "bertgpt, or train one with another tokenizer")
