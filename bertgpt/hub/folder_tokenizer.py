"""The tokenizer in the folder of a model of `transformers`, as the model expects it.

The ids are those of the tokenizer's files. What the model's own files say about them is applied, or
described in a line for the user.
"""

import base64
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tokenizers as fast_tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from bertgpt import files
from bertgpt.config import ConfigDict, families
from bertgpt.data.tokens import hf_files, marks, pipelines, reading, tokenizers
from bertgpt.errors import DataError, one_line, without_panics
from bertgpt.hub import same_ids

# Classes that put no marks of their own around a text, only those of tokenizer.json.
_WITHOUT_MARKS = frozenset({
    *hf_files.GENERIC_CLASSES, "BarthezTokenizer", "GPT2Tokenizer", "OpenAIGPTTokenizer"})
# Classes of transformers 5 that put bos A eos into a row, or bos A eos eos B eos.
_LIKE_XLM_ROBERTA = ("CamembertTokenizer", "XLMRobertaTokenizer")
# Classes of transformers 5 that do everything that tokenizer.json says.
LIKE_THE_FILE = frozenset({
    "", *hf_files.GENERIC_CLASSES, "ConvBertTokenizer", "FNetTokenizer"})
# Settings of a model in tokenizer.json that are the file's own in every class.
_OF_THE_FILE = ("type", "vocab", "merges", "unk_token")
_TEXT = "a"  # The marks around it are those around any text.


def load_tokenizer(hf: hf_files.HfFiles, num_rows: int, flag: str = "--from"
                   ) -> tokenizers.Tokenizer:
  """Returns the tokenizer in the folder of a model.

  Args:
    hf: files of the folder.
    num_rows: rows of the token table.
    flag: flag that named the folder, for messages.
  Raises:
    DataError: there is no tokenizer, or it has more tokens than the table has rows.
  """
  tokenizer = obey_prefix_space(tokenizers.load_tokenizer(hf.folder), hf)
  tokenizer = obey_template(tokenizer, hf)
  if tokenizer.vocab_size > num_rows:
    raise DataError(f"{flag} {hf.folder}: its tokenizer has {tokenizer.vocab_size} tokens, but "
                    f"config.json says vocab_size={num_rows}. Put the tokenizer that the model was "
                    "trained with into the folder")
  return tokenizer


def obey_prefix_space(tokenizer: tokenizers.Tokenizer, hf: hf_files.HfFiles
                      ) -> tokenizers.Tokenizer:
  """Returns a byte-level BPE that puts a space before a text if tokenizer_config.json says so.

  In the classes of GPT-2 and RoBERTa, `add_prefix_space` of tokenizer_config.json has priority over
  tokenizer.json, even if it is not there, which means false. Other classes do not read it.
  `tokenizer.path` does not either, so that runs with such a folder keep their ids.

  Args:
    tokenizer: tokenizer in the folder.
    hf: files of the folder.
  """
  is_read = hf.used_class in reading.BYTE_BPE_CLASSES
  if not is_read or not isinstance(tokenizer, tokenizers.ByteBPE):
    return tokenizer
  content = json.loads(tokenizer.data)
  step, value = content.get("pre_tokenizer") or {}, bool(hf.setting("add_prefix_space"))
  if step.get("type") != "ByteLevel" or step["add_prefix_space"] == value:
    return tokenizer
  step["add_prefix_space"] = value
  return tokenizer.replaced(json.dumps(content, ensure_ascii=False).encode(), tokenizer.names)


def obey_template(tokenizer: tokenizers.Tokenizer, hf: hf_files.HfFiles) -> tokenizers.Tokenizer:
  """Returns a byte-level BPE with the template of RoBERTa if that is its class.

  In transformers 5, the class has this template, whatever tokenizer.json says; in transformers 4,
  it had none if the file had none. `tokenizer.path` does not add it; see `obey_prefix_space`.

  Args:
    tokenizer: tokenizer in the folder.
    hf: files of the folder.
  """
  if (hf.used_class not in reading.ROBERTA_CLASSES
      or not isinstance(tokenizer, tokenizers.ByteBPE)):
    return tokenizer
  template = json.loads(tokenizer.data).get("post_processor") or {}
  if template.get("type") == "RobertaProcessing":
    return tokenizer
  library = fast_tokenizers.Tokenizer.from_buffer(tokenizer.data)
  had_marks = bool(library.encode("").ids)
  reading.add_roberta_template(library, hf)
  changed = tokenizer.replaced(pipelines.serialize(library), tokenizer.names)
  note = (f"as in transformers 5, rows have the marks of {hf.used_class}, not those of the "
          "template in tokenizer.json" if had_marks else "")
  changed.note = ". ".join(filter(None, (tokenizer.note, note)))
  return changed


def check_padding(tokenizer: tokenizers.Tokenizer, pad_id: int) -> None:
  """Checks that no text of a RoBERTa has the token that its config takes for padding.

  transformers gives this token no position of its own; here, every token of a text has one.

  Args:
    tokenizer: tokenizer of the model.
    pad_id: `pad_token_id` in config.json.
  Raises:
    DataError: a text or the marks around it can have the token.
  """
  if pad_id == tokenizer.pad_id or not 0 <= pad_id < tokenizer.vocab_size:
    return
  piece = tokenizer.pieces[pad_id]
  (ids,) = tokenizer.encode([tokenizer.decode([pad_id])])
  others = [i for role, i in tokenizer.roles.items() if role != "pad"]
  if pad_id in (*others, *ids) or piece.startswith("##"):
    found = f", whose padding is {tokenizer.pad_id}" if tokenizer.pad_id >= 0 else ""
    raise DataError(f"pad_token_id={pad_id} in config.json is the token {piece!r} of the "
                    f"tokenizer{found}. If it is the padding, name it as pad_token in "
                    f"{hf_files.CONFIG}. Otherwise, put the tokenizer that the model was trained "
                    "with into the folder, or correct config.json")


def apply_template(folder: pathlib.Path, tokenizer: tokenizers.Tokenizer) -> list[int]:
  """Returns the ids of `_TEXT` with the marks that transformers puts around it; []: not known.

  A model of SentencePiece has no template. The tokenizer.json made from it has one.

  Args:
    folder: local folder of the model.
    tokenizer: tokenizer of the model.
  """
  if not isinstance(tokenizer, tokenizers.SentencePiece):
    return tokenizer.apply_template(_TEXT)
  try:
    with without_panics():
      fast = fast_tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
      fast.no_padding()
      fast.no_truncation()
      ids, whole = (fast.encode(_TEXT, add_special_tokens=has_marks).ids
                    for has_marks in (False, True))
  except Exception:  # The library raises plain Exceptions, also if there is no such file.
    return []
  is_same = ids == tokenizer.encode([_TEXT])[0].tolist() and max(whole) < tokenizer.vocab_size
  return whole if is_same else []


def template_numbers_segments(folder: pathlib.Path) -> bool:
  """Returns whether tokenizer.json gives a second text another segment than 0, or is not there.

  Args:
    folder: local folder of the model.
  """
  try:
    with without_panics():
      pair = fast_tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(
          _TEXT, _TEXT)
  except Exception:  # The library raises plain Exceptions, also if there is no such file.
    return True
  return any(segment for segment, text in zip(pair.type_ids, pair.sequence_ids, strict=True)
             if text == 1)


def find_beginning(template: list[int], config: ConfigDict, tokenizer: tokenizers.Tokenizer) -> int:
  """Returns the token that the template of the tokenizer puts before a decoder's text; -1: none.

  A template that also puts a token after the text is made for encoders.

  Args:
    template: result of `apply_template`.
    config: config of a run that holds the model.
    tokenizer: tokenizer of the model.
  """
  (ids,) = tokenizer.encode([_TEXT])
  is_encoder = families.find(config).kind == "encoder"
  is_beginning = bool(template) and template[1:] == ids.tolist()
  return template[0] if is_beginning and not is_encoder else -1


def describe_template(template: list[int], hf: hf_files.HfFiles, config: ConfigDict,
                      tokenizer: tokenizers.Tokenizer, bos_id: int) -> str:
  """Returns a line if transformers puts other marks around a text than bertgpt does, or ''.

  Args:
    template: result of `apply_template`.
    hf: files of the model's folder.
    config: config of a run that holds the model.
    tokenizer: tokenizer of the model.
    bos_id: result of `find_beginning`.
  """
  family, (ids,) = families.find(config), tokenizer.encode([_TEXT])
  ours = marks.of_family(family, tokenizer, bos_id=bos_id)
  if family.kind == "encoder":
    if hf.used_class in _LIKE_XLM_ROBERTA:
      return _compare_with_xlm_roberta(hf, ours, tokenizer)
    if hf.model_type not in hf_files.GENERIC_TYPES and hf.used_class not in _WITHOUT_MARKS:
      return ""
  return _describe_rows(f"text {_TEXT!r}", template, ours.enclose(ids), tokenizer)


def _compare_with_xlm_roberta(hf: hf_files.HfFiles, ours: marks.Marks,
                              tokenizer: tokenizers.Tokenizer) -> str:
  """Returns a line if the classes `_LIKE_XLM_ROBERTA` put other marks into a row, or ''."""
  bos, eos = hf.beginning or "<s>", hf.names.get("eod", "</s>")
  if not {bos, eos} <= {*tokenizer.pieces}:
    return ""
  first, last = map(tokenizer.pieces.index, (bos, eos))
  theirs, (ids,) = marks.Marks(first, (last, last), last), tokenizer.encode([_TEXT])
  return (_describe_rows(f"text {_TEXT!r}", theirs.enclose(ids), ours.enclose(ids), tokenizer)
          or _describe_rows(f"texts {_TEXT!r} and {_TEXT!r}", theirs.enclose(ids, ids),
                            ours.enclose(ids, ids), tokenizer))


def _describe_rows(texts: str, theirs: Sequence[int] | np.ndarray, ours: np.ndarray,
                   tokenizer: tokenizers.Tokenizer) -> str:
  """Returns a line if two rows differ, or ''; `theirs` is empty if it is not known."""
  shown = [" ".join(tokenizer.pieces[i] for i in row) for row in (theirs, ours)]
  return "" if not len(theirs) or shown[0] == shown[1] else (
      f"for the {texts}, transformers gives the model {shown[0]}, bertgpt {shown[1]}")


def describe_chat(hf: hf_files.HfFiles) -> str:
  """Returns a line if the folder has a template of dialogues, which is not used here, or ''.

  Args:
    hf: files of the model's folder.
  """
  if not hf.settings.get("chat_template") and not files.has_file(
      hf.folder / "chat_template.jinja"):
    return ""
  return ("its chat template is not used, and an export of an imported run does not have it. Give "
          "prompts as the template writes them")


def describe_conversion(folder: pathlib.Path, tokenizer: tokenizers.Tokenizer) -> str:
  """Returns a line if a folder has two tokenizers that give different tokens, or ''.

  Args:
    folder: local folder of the model.
    tokenizer: tokenizer of the model.
  """
  path = folder / "tokenizer.json"
  if not isinstance(tokenizer, tokenizers.SentencePiece) or not path.exists():
    return ""
  try:
    with without_panics():
      fast = fast_tokenizers.Tokenizer.from_file(str(path))
      fast.no_padding()  # transformers does the same.
      fast.no_truncation()
      line = same_ids.compare_texts(fast, tokenizer)
  except Exception as e:  # The library raises plain Exceptions.
    line = one_line(e)
  return f"tokenizer.json differs from tokenizer.model, which is used here: {line}" if line else ""


def describe_class(hf: hf_files.HfFiles, tokenizer: tokenizers.Tokenizer) -> str:
  """Returns a line if transformers 5 gives other tokens than the folder's tokenizer.json, or ''.

  Its classes for the models of some families take the pieces of the file, but prepare a text in
  their own way. transformers 4 does what the file says, except for the settings of BERT's
  normalizer and `add_prefix_space`. So does this program, because a model was most probably trained
  like this. A class that is not in `_PIPELINES` is not compared; the line says so.

  Args:
    hf: files of the model's folder.
    tokenizer: tokenizer of the model.
  """
  if (isinstance(tokenizer, tokenizers.SentencePiece)
      or not (hf.folder / "tokenizer.json").exists()):
    return ""
  name, content = hf.used_class, json.loads(tokenizer.data)
  found = content["model"]["type"]
  # The class of Llama is not used for a byte-level BPE: transformers does what the file says.
  is_llama3 = name == "LlamaTokenizer" and isinstance(tokenizer, tokenizers.ByteBPE)
  if name in LIKE_THE_FILE or is_llama3:
    return ""
  if name not in _PIPELINES:
    return (f"tokenizer.json is used as it is. {name} of transformers 5 may give other tokens and "
            "marks")
  kind, make_pipeline = _PIPELINES[name]
  if found != kind:
    return (f"tokenizer.json, which is used here, holds a {found}, which {name} of transformers 5 "
            "does not read")
  try:
    with without_panics():
      like = json.loads(make_pipeline(hf, content).to_str())
      steps = {step: like[step] for step in ("normalizer", "pre_tokenizer")}
      model = content["model"] | {
          key: value for key, value in like["model"].items() if key not in _OF_THE_FILE}
      fast = fast_tokenizers.Tokenizer.from_str(json.dumps(content | steps | {"model": model}))
      line = same_ids.compare_texts(pipelines.make_deterministic(fast), tokenizer)
  except Exception as e:  # The library raises plain Exceptions.
    line = one_line(e)
  return (f"tokenizer.json, which is used here, differs from {name} of transformers 5: {line}"
          if line else "")


def _like_bert(hf: hf_files.HfFiles, content: dict[str, Any]) -> fast_tokenizers.Tokenizer:
  del content
  return pipelines.bert_pipeline(
      {}, hf.setting("do_lower_case") is not False, strip_accents=hf.setting("strip_accents"),
      split_chinese=hf.setting("tokenize_chinese_chars") is not False)


def _like_gpt1(hf: hf_files.HfFiles, content: dict[str, Any]) -> fast_tokenizers.Tokenizer:
  del hf, content
  return pipelines.gpt1_pipeline({}, [])


def _like_gpt2(hf: hf_files.HfFiles, content: dict[str, Any]) -> fast_tokenizers.Tokenizer:
  del content
  return pipelines.byte_bpe_pipeline(models.BPE(), bool(hf.setting("add_prefix_space")))


def _like_albert(hf: hf_files.HfFiles, content: dict[str, Any]) -> fast_tokenizers.Tokenizer:
  get = hf.settings.get  # null is false here.
  return _like_unigram(
      content, _simplify(get("do_lower_case", True), get("keep_accents", False)), unk_id=1,
      has_prefix=get("add_prefix_space", True))


def _like_camembert(hf: hf_files.HfFiles, content: dict[str, Any]) -> fast_tokenizers.Tokenizer:
  unknown = hf.names.get("unk", "<unk>")
  unk_id = next((i for i, (piece, _) in enumerate(content["model"]["vocab"]) if piece == unknown),
                0)
  return _like_unigram(content, unk_id=unk_id, has_prefix=hf.settings.get("add_prefix_space", True))


def _like_xlm_roberta(hf: hf_files.HfFiles, content: dict[str, Any]) -> fast_tokenizers.Tokenizer:
  return _like_unigram(content, unk_id=3, has_prefix=hf.settings.get("add_prefix_space", True))


def _like_xlnet(hf: hf_files.HfFiles, content: dict[str, Any]) -> fast_tokenizers.Tokenizer:
  return _like_unigram(
      content, _simplify(hf.settings.get("do_lower_case", False), keep_accents=False),
      unk_id=hf.settings.get("unk_id", 0), has_prefix=True)


def _simplify(lowercase: bool, keep_accents: bool) -> list[normalizers.Normalizer]:
  """Returns the first steps of ALBERT and XLNet."""
  steps: list[normalizers.Normalizer] = [normalizers.Replace("``", '"'),
                                         normalizers.Replace("''", '"')]
  if not keep_accents:
    steps += [normalizers.NFKD(), normalizers.StripAccents()]
  return [*steps, normalizers.Lowercase()] if lowercase else steps


def _like_unigram(content: dict[str, Any], first: Sequence[normalizers.Normalizer] = (), *,
                  unk_id: int, has_prefix: bool) -> fast_tokenizers.Tokenizer:
  """Returns the steps of ALBERT, XLNet and XLM-RoBERTa.

  Args:
    content: content of tokenizer.json, whose pieces and table of characters the classes take.
    first: steps before the table of characters.
    unk_id: id of the unknown piece.
    has_prefix: whether a space is put before a word at the start of a text.
  """
  normalizer = content.get("normalizer") or {}
  steps = [*first]
  steps += [normalizers.Precompiled(base64.b64decode(step["precompiled_charsmap"]))
            for step in normalizer.get("normalizers", [normalizer])
            if step.get("type") == "Precompiled"]
  pieces = [(piece, score) for piece, score in content["model"]["vocab"]]
  like = fast_tokenizers.Tokenizer(models.Unigram(pieces, unk_id, byte_fallback=False))
  like.normalizer = normalizers.Sequence(steps)
  like.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.WhitespaceSplit(),
      pre_tokenizers.Metaspace(prepend_scheme="always" if has_prefix else "never")])
  return like


# Class -> function that returns its steps before the model, from the files and tokenizer.json.
_Maker = Callable[[hf_files.HfFiles, dict[str, Any]], fast_tokenizers.Tokenizer]
_PIPELINES: dict[str, tuple[str, _Maker]] = {
    "AlbertTokenizer": ("Unigram", _like_albert),
    "CamembertTokenizer": ("Unigram", _like_camembert),
    **dict.fromkeys((
        "BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "LayoutLMTokenizer",
        "LxmertTokenizer", "MPNetTokenizer", "MobileBertTokenizer", "SqueezeBertTokenizer"),
        ("WordPiece", _like_bert)),
    **dict.fromkeys(("GPT2Tokenizer", *reading.ROBERTA_CLASSES), ("BPE", _like_gpt2)),
    "OpenAIGPTTokenizer": ("BPE", _like_gpt1),
    "XLMRobertaTokenizer": ("Unigram", _like_xlm_roberta),
    "XLNetTokenizer": ("Unigram", _like_xlnet),
}
