"""Readers of tokenizer files, which return the content that `Tokenizer` stores.

A vocab.txt, or a vocab.json with its merges, becomes the content of a tokenizer.json. The settings
in the files next to it are applied; see `hf_files`.
"""

import functools
import json
import pathlib
import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, processors

from bertgpt import files
from bertgpt.data.tokens import hf_files, pipelines, reach
from bertgpt.data.tokens import merges as merges_lib
from bertgpt.data.tokens.hf_files import CONFIG, HfFiles
from bertgpt.data.tokens.reach import Normalization
from bertgpt.errors import DataError, one_line, without_panics

proto_lib: Any = sentencepiece_model_pb2  # Its classes are made when it is imported.

# Classes of transformers, without 'Fast', whose ids depend only on the files.
_WORDPIECE_CLASSES = frozenset({
    "BertTokenizer", "ConvBertTokenizer", "DPRContextEncoderTokenizer",
    "DPRQuestionEncoderTokenizer", "DPRReaderTokenizer", "DistilBertTokenizer", "ElectraTokenizer",
    "FunnelTokenizer", "LayoutLMTokenizer", "LxmertTokenizer", "MPNetTokenizer",
    "MobileBertTokenizer", "RetriBertTokenizer", "SqueezeBertTokenizer"})
BYTE_BPE_CLASSES = frozenset({
    "BartTokenizer", "CodeGenTokenizer", "DebertaTokenizer", "GPT2Tokenizer", "GPTNeoXTokenizer",
    "LEDTokenizer", "LongformerTokenizer", "RobertaTokenizer"})
# Those of them that put two texts into a row as RoBERTa does.
ROBERTA_CLASSES = frozenset({
    "BartTokenizer", "LEDTokenizer", "LongformerTokenizer", "RobertaTokenizer"})
_ROBERTA_TYPES = frozenset({"bart", "led", "longformer", "roberta"})
# Model types for which transformers 5.23 takes a class of BERT if a folder names none. For other
# model types, it may ignore the class that a folder names.
_WORDPIECE_TYPES = frozenset({
    "bert", "convbert", "distilbert", "electra", "ernie", "layoutlm", "megatron-bert", "mobilebert",
    "mpnet", "nezha", "nomic_bert", "qdqbert", "realm", "retribert", "squeezebert"})
# Model types whose class changes a text before SentencePiece reads it, even if no file names it.
_UNIGRAM_TYPES = ("albert", "xlnet")
_GPT2_BEGINNING = "<|endoftext|>"  # If the folder of a GPT-2 names none.
_SAVE_AGAIN = ("For a tokenizer.json with everything in it, load the folder with AutoTokenizer of "
               "transformers and save it with save_pretrained")
_GPT1_CLASS = "OpenAIGPTTokenizer"
_GPT1_TYPE = "openai-gpt"

# (model, decoder) of a tokenizer.json -> kind.
_JSON_KINDS = {("WordPiece", "WordPiece"): "wordpiece", ("BPE", "ByteLevel"): "bpe",
               ("BPE", "BPEDecoder"): "gpt1_bpe", ("Unigram", "Metaspace"): "unigram",
               ("WordLevel", None): "words"}
_NEEDED = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}  # In a vocab.txt.
# Share of unreachable pieces up to which settings fit, if they are inferred from the pieces.
_TELLING_SHARE = 0.01


class Read(NamedTuple):
  """A tokenizer's file as it was read.

  Attributes:
    file: path of the file.
    kind: a kind in the table of `tokenizers`.
    data: content of the file that `Tokenizer.save` writes.
    hf: files next to it.
    note: what a user should know about the file, or ''.
  """

  file: pathlib.Path
  kind: str
  data: bytes
  hf: HfFiles
  note: str


class _Content(NamedTuple):
  """The part of `Read` that a reader returns."""

  kind: str
  data: bytes
  note: str = ""


def read(path: pathlib.Path, lowercase: bool | None, is_saved: bool = False) -> Read:
  """Reads a tokenizer's file, or the first one in a folder.

  Args:
    path: file or folder.
    lowercase, is_saved: see `tokenizers.load_tokenizer`.
  Raises:
    DataError: there is no tokenizer at `path`, or one that cannot be used; the message names the
      file.
  """
  candidates = [path / name for name in _FILE_NAMES] if path.is_dir() else [path]
  for file in candidates:
    reader = next((read for ending, read in _READERS.items() if file.name.endswith(ending)), None)
    if not files.has_file(file) or not reader:
      continue
    try:
      if re.match(files.LFS_POINTER, file.read_bytes()[:64]):
        raise DataError(f"{file}: is a Git LFS pointer. Fetch the file itself with git lfs pull")
      hf = hf_files.read_hf_files(file.parent, is_saved)
      with without_panics():
        kind, data, note = reader(file, hf, lowercase)
        if reader is _read_json and not is_saved:
          config = file.with_name(CONFIG) if _obeys_settings(hf) else None
          note = reach.check_json(file, kind, files.parse_json(data), config)
    except DataError:
      raise
    except Exception as e:  # Both libraries raise plain Exceptions.
      raise DataError(f"{file}: is not a tokenizer ({one_line(e)}). Give {FORMS}") from e
    return Read(file, kind, data, hf, note)
  if other := next(path.glob("*.model"), None):  # If `path` is a file, `glob` finds nothing.
    raise DataError(f"{path}: {other.name} does not describe the whole tokenizer. {_SAVE_AGAIN}")
  raise DataError(f"{path}: no tokenizer there. Give {FORMS}")


def is_read(name: str) -> bool:
  """Returns whether `read` may read a file of this name in a folder, or next to another file."""
  return (name in {*_FILE_NAMES, *_NAMES_BESIDE}
          or name.endswith((".model", "merges.txt", "vocab.bpe")))


def choose_names(names: dict[str, str], pieces: Collection[str], found: dict[str, str],
                 unknown: str | None) -> dict[str, str]:
  """Returns the special tokens of a folder that the vocabulary alone does not reveal, by role.

  The library knows its own unknown piece. GPT-2's folder also names the end of a document as the
  unknown token, and many other folders also name it as the padding.

  Args:
    names: special tokens according to the folder, by role.
    pieces: the vocabulary.
    found: special tokens that the vocabulary reveals, by role.
    unknown: unknown piece of the library, if there is one.
  """
  known = set(pieces)
  names = {role: name for role, name in names.items() if name in known}
  used = {(found | names).get(role) for role in ("cls", "sep", "mask", "eod")}
  refused = {"pad": used, "unk": known if unknown in known else used}
  return {role: name for role, name in sorted(names.items())
          if name not in refused.get(role, set()) and name != found.get(role)}


def describe_absent(hf: HfFiles, pieces: Collection[str]) -> str:
  """Returns a note on the special tokens of a folder that the vocabulary lacks, or ''.

  Args:
    hf: files of the folder.
    pieces: the vocabulary.
  """
  absent = sorted((hf.roles | hf.extra) - set(pieces))
  if hf.is_saved or not absent:
    return ""
  names = ", ".join(map(repr, absent))
  return (f"{hf.folder}: its vocabulary lacks the special tokens {names}, so they are not used "
          f"(transformers appends them). {_SAVE_AGAIN}")


# --------------------------------------------------------------- tokenizer.json


def _read_json(file: pathlib.Path, hf: HfFiles, lowercase: bool | None) -> _Content:
  del lowercase  # The file has its own normalizer.
  data = file.read_bytes()
  content = files.parse_json(data)
  if is_old := "type" not in content["model"]:  # The library knows the type from the other keys.
    content = files.parse_json(tokenizers.Tokenizer.from_str(data.decode()).to_str())
  model = content["model"]
  inferred = None if content.get("decoder") else _infer_decoder(content)
  if inferred:
    content["decoder"] = json.loads(inferred.__getstate__())
  decoder = _find_decoder(content).get("type")
  kind = _JSON_KINDS.get((model["type"], decoder))
  if not kind:
    raise DataError(f"{file}: a model of type {model['type']} with decoder {decoder} is not "
                    "supported. Give a WordPiece, a byte-level BPE or a unigram model")
  if problem := _find_foreign_part(content, kind):
    raise DataError(f"{file}: {problem} is not supported. Give a WordPiece or a byte-level BPE as "
                    "in GPT-2")
  if model["type"] == "BPE":
    merges_lib.check(model["vocab"], model["merges"], file)
  hf.refuse_other_classes(file)
  changed = _obey_normalizer(content, hf)
  fast = None
  added = {token["content"] for token in content.get("added_tokens") or ()}
  lacking = (hf.added.keys() - _tokens_of(content)) | (hf.extra & _tokens_of(content) - added)
  if changed or lacking or inferred or is_old:
    fast = tokenizers.Tokenizer.from_str(json.dumps(content))
    hf_files.add_tokens(fast, hf, file)
  return _Content(kind, pipelines.serialize(fast) if fast else data)


def _find_decoder(content: dict[str, Any]) -> dict[str, Any]:
  """Returns the decoder of a tokenizer.json, or {}."""
  decoder = content.get("decoder") or {}
  return decoder["decoders"][0] if len(decoder.get("decoders") or ()) == 1 else decoder


def _infer_decoder(content: dict[str, Any]) -> decoders.Decoder | None:
  """Returns the decoder that fits the other parts of a tokenizer.json; None: it needs none."""
  model = content["model"]
  steps = json.dumps([content.get("pre_tokenizer"), content.get("normalizer")])
  if model["type"] == "WordPiece":
    return decoders.WordPiece()
  if model["type"] == "BPE" and '"ByteLevel"' in steps:
    return decoders.ByteLevel()
  if model["type"] == "BPE" and model.get("end_of_word_suffix") == pipelines.END_OF_WORD:
    return decoders.BPEDecoder(suffix=pipelines.END_OF_WORD)
  return decoders.Metaspace() if model["type"] == "Unigram" and '"Metaspace"' in steps else None


def _find_foreign_part(content: dict[str, Any], kind: str) -> str:
  """Returns what makes a tokenizer.json another kind of tokenizer than its model says, or ''."""
  model = content["model"]
  suffix, prefix = (model.get(name) or "" for name in (
      "end_of_word_suffix", "continuing_subword_prefix"))
  steps = json.dumps([content.get("pre_tokenizer"), content.get("normalizer")])
  if kind == "bpe" and (suffix or prefix):
    return "a byte-level BPE that marks the ends of words"
  if kind == "bpe" and '"ByteLevel"' not in steps:
    return "a BPE with the decoder ByteLevel, but without a pre-tokenizer to bytes,"
  if kind == "gpt1_bpe" and (suffix, prefix, _find_decoder(content).get("suffix")) != (
      pipelines.END_OF_WORD, "", pipelines.END_OF_WORD):
    return f"a BPE that does not mark the ends of words with {pipelines.END_OF_WORD}, as in GPT-1,"
  if kind == "wordpiece" and prefix not in ("", "##"):
    return f"a WordPiece whose pieces within words begin with {prefix!r} instead of '##'"
  return ""


def _tokens_of(content: dict[str, Any]) -> set[str]:
  vocabulary = content["model"]["vocab"]  # In a unigram model, a list of [piece, score].
  pieces = (p for p, _ in vocabulary) if isinstance(vocabulary, list) else vocabulary
  return {*pieces, *(t["content"] for t in content.get("added_tokens") or ())}


def _obey_normalizer(content: dict[str, Any], hf: HfFiles) -> bool:
  """Applies tokenizer_config.json to BERT's normalizer; returns whether the normalizer changed.

  A setting that is not there, or null, has the default of the class.
  """
  normalizer = content.get("normalizer") or {}
  if (content["model"]["type"] != "WordPiece" or normalizer.get("type") != "BertNormalizer"
      or not _obeys_settings(hf)):
    return False
  said = {name: hf.setting(setting) for setting, name in reach.SETTINGS.items()}
  is_bert = hf.tokenizer_class or hf.model_type in _WORDPIECE_TYPES
  if is_bert and hf.model_type in {"", *_WORDPIECE_TYPES} and not hf.is_saved:
    defaults = pipelines.bert_pipeline({}, lowercase=True).normalizer
    said = {name: getattr(defaults, name) if value is None else value
            for name, value in said.items()}
  else:
    said = {name: value for name, value in said.items() if value is not None}
  changed = any(normalizer.get(name) != value for name, value in said.items())
  normalizer.update(said)
  return changed


def _obeys_settings(hf: HfFiles) -> bool:
  """Returns whether the class applies the settings of BERT's normalizer to a tokenizer.json.

  The folders of the first BERTs name no class. transformers then takes that of the model. For a
  ModernBERT, it reads tokenizer.json alone, whatever class the folder names.
  """
  is_generic = hf.model_type in hf_files.GENERIC_TYPES and not hf.is_saved
  return hf.tokenizer_class in {"", *_WORDPIECE_CLASSES} and not is_generic


# -------------------------------------------------------------------- *.model


def _read_sentencepiece(file: pathlib.Path, hf: HfFiles, lowercase: bool | None) -> _Content:
  del lowercase  # The file has its own normalizer.
  data = file.read_bytes()
  if not data:  # The library would accept it as a model.
    raise ValueError("the file is empty")
  # If there is a tokenizer.json too, the files of transformers describe that conversion.
  if not files.has_file(file.with_name("tokenizer.json")):
    if not hf.tokenizer_class and hf.model_type in _UNIGRAM_TYPES:
      raise DataError(f"{file}: the model_type in {hf_files.MODEL} is {hf.model_type}, whose "
                      f"{hf.used_class} tokenizes differently. {_SAVE_AGAIN}")
    hf.refuse_other_classes(file, hf_files.GENERIC_CLASSES)
  return _Content("sentencepiece", _append_pieces(data, hf, file))


def _append_pieces(data: bytes, hf: HfFiles, file: pathlib.Path) -> bytes:
  """Returns a SentencePiece model with the added tokens of its folder."""
  if not hf.added:
    return data
  proto = proto_lib.ModelProto.FromString(data)
  ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
  if not hf.added.keys() - ids.keys():
    return data
  types = proto_lib.ModelProto.SentencePiece
  for content, i in sorted(hf.added.items(), key=lambda item: item[1]):
    if i != ids.get(content, len(ids)):
      raise DataError(f"{file}: the id of the added token {content!r} is {i} according to "
                      f"{hf.folder}, which is not its id in the model. Give the files of one "
                      "tokenizer")
    if content not in ids:
      is_special = hf.flags[content].get("special")
      proto.pieces.add(piece=content, score=0.0,
                       type=types.CONTROL if is_special else types.USER_DEFINED)
      ids[content] = i
  return proto.SerializeToString()


# ------------------------------------------------------------------- vocab.txt


def _read_bert_vocabulary(file: pathlib.Path, hf: HfFiles, lowercase: bool | None) -> _Content:
  hf.refuse_other_classes(file, _WORDPIECE_CLASSES)
  # splitlines() would cut at U+2028, which is a piece of some vocabularies.
  lines = file.read_bytes().decode("utf-8-sig").rstrip("\r\n").split("\n")
  pieces = [line.strip(" \t\r") for line in lines]
  needed = _NEEDED | {role: hf.names[role] for role in _NEEDED if role in hf.names}
  if missing := [name for name in needed.values() if name not in pieces]:
    raise DataError(f"{file}: is not a BERT vocabulary. It lacks {', '.join(missing)}. Give a "
                    "file with one piece per line, or name its special tokens in a "
                    f"{hf_files.CONFIG} next to it")
  vocabulary = {piece: i for i, piece in enumerate(pieces)}
  if len(vocabulary) < len(pieces):
    piece = next(piece for i, piece in enumerate(pieces) if vocabulary[piece] != i)
    first = pieces.index(piece) + 1
    raise DataError(f"{file}: is not a BERT vocabulary. It has the piece {piece!r} on lines "
                    f"{first} and {vocabulary[piece] + 1}. transformers uses the last one: give "
                    f"line {first} another name, such as [unused{first}], so that the ids of the "
                    "others stay")
  choice, note = _choose_normalization(vocabulary, hf, lowercase, file)
  tokenizer = pipelines.bert_pipeline(
      vocabulary, choice.lowercase, strip_accents=choice.strip_accents,
      split_chinese=choice.split_chinese, unknown=needed["unk"])
  hf_files.add_tokens(tokenizer, hf, file)
  return _Content("wordpiece", pipelines.serialize(tokenizer), note)


def _choose_normalization(vocabulary: dict[str, int], hf: HfFiles, lowercase: bool | None,
                          file: pathlib.Path) -> tuple[Normalization, str]:
  """Returns the settings of the folder, else of the config, else inferred from the pieces; a note.
  """
  said = hf.setting("do_lower_case")
  strip, chinese = hf.setting("strip_accents"), hf.setting("tokenize_chinese_chars")
  pieces = reach.select(vocabulary, {*hf.names.values(), *hf.added})
  share = functools.cache(lambda choice: choice.share_unreachable(pieces))
  asked = lowercase if said is None else said
  cases = [asked] if asked is not None else [True, False]
  # In a folder of transformers, accents follow the case; otherwise they follow the pieces.
  accents = [strip] if said is not None or strip is not None else [None, False]
  choices = [Normalization(case, accent, chinese is not False) for case in cases
             for accent in accents]
  found = next((choice for choice in choices if share(choice) < _TELLING_SHARE), None)
  found = found or min(choices, key=share)
  is_of_config = said is None and lowercase is not None
  note = reach.check(
      file, share(found),
      reach.MAX_UNREACHABLE if is_of_config else reach.MAX_UNREACHABLE_AS_SAID, found.because(),
      lambda: _remedy(found, found.find_better(pieces), said is not None, file))
  if not note and asked is None and hf.model_type and not hf.is_saved and not found.lowercase:
    note = (f"{file}: its pieces are cased, so texts keep their case. transformers lower-cases "
            f"them until {file.parent / CONFIG} says do_lower_case=false")
  return found, note


def _remedy(found: Normalization, better: Normalization | None, is_said: bool, file: pathlib.Path
            ) -> str:
  """Returns the sentence that names the settings that fit the pieces."""
  if better is None:
    return "Give the vocabulary that the tokenizer was trained with"
  if better.lowercase != found.lowercase and not is_said:
    return f"Set tokenizer.lowercase={better.lowercase}"
  return f"Write {json.dumps(found.changes_to(better))} into {file.parent / CONFIG}"


# --------------------------------------------------- a vocabulary and its merges


def _read_bpe(file: pathlib.Path, hf: HfFiles, lowercase: bool | None, ending: str,
              merges_ending: str) -> _Content:
  del lowercase  # GPT-2 keeps the case, GPT-1 does not.
  merges_file = file.with_name(file.name.removesuffix(ending) + merges_ending)
  if not files.has_file(merges_file):
    raise DataError(f"{file}: the merges are missing. Put {merges_file.name} into the same folder")
  vocabulary = files.read_json(file, f"Give {FORMS}")
  merges = merges_lib.read(merges_file)
  merges_lib.check(vocabulary, merges, file)
  if any(piece.endswith(pipelines.END_OF_WORD) and len(piece) > 4 for piece in vocabulary):
    hf.refuse_other_classes(file, (_GPT1_CLASS,))
    if hf.model_type not in ("", _GPT1_TYPE):
      raise DataError(f"{file}: the ends of words are marked as in GPT-1, but config.json says "
                      f"model_type={hf.model_type}. Give the tokenizer.json of the model")
    kind, unknown = "gpt1_bpe", hf.names.get("unk", "<unk>")
    tokenizer = pipelines.gpt1_pipeline(vocabulary, merges, unknown)
  else:
    hf.refuse_other_classes(file, BYTE_BPE_CLASSES)
    kind, model = "bpe", models.BPE(vocabulary, merges)
    tokenizer = pipelines.byte_bpe_pipeline(model, bool(hf.setting("add_prefix_space")))
  merges_lib.check_reach(vocabulary, merges, {*hf.added, *hf.roles, *hf.extra}, file, merges_file)
  hf_files.add_tokens(tokenizer, hf, file)
  by_type = not hf.tokenizer_class and hf.model_type in _ROBERTA_TYPES and not hf.is_saved
  if hf.tokenizer_class in ROBERTA_CLASSES or by_type:
    add_roberta_template(tokenizer, hf)
  elif hf.setting("add_bos_token") and not hf.is_saved:
    _add_beginning(tokenizer, hf)
  return _Content(kind, pipelines.serialize(tokenizer))


def add_roberta_template(tokenizer: tokenizers.Tokenizer, hf: HfFiles) -> None:
  """Adds RoBERTa's template, with two separators between texts, if its tokens are there.

  Args:
    tokenizer: a byte-level BPE; changed.
    hf: files of the folder.
  """
  names = [hf.names.get("sep", "</s>"), hf.names.get("cls", "<s>")]
  ids = [tokenizer.token_to_id(name) for name in names]
  if None not in ids:
    sep, cls = zip(names, ids, strict=True)
    tokenizer.post_processor = processors.RobertaProcessing(
        sep, cls, add_prefix_space=bool(hf.setting("add_prefix_space")))


def _add_beginning(tokenizer: tokenizers.Tokenizer, hf: HfFiles) -> None:
  """Adds the template of GPT-2's class, which then begins a text with its own token."""
  name = hf.beginning or _GPT2_BEGINNING
  if (i := tokenizer.token_to_id(name)) is not None:
    tokenizer.post_processor = processors.TemplateProcessing(
        [name, "$A"], [name, "$A", name, "$B"], [(name, i)])


_READERS: dict[str, Callable[..., _Content]] = {
    "tokenizer.json": _read_json,
    ".model": _read_sentencepiece,
    ".txt": _read_bert_vocabulary,
    "encoder.json": functools.partial(_read_bpe, ending="encoder.json", merges_ending="vocab.bpe"),
    "vocab.json": functools.partial(_read_bpe, ending="vocab.json", merges_ending="merges.txt"),
}
# A tokenizer.json next to a model of SentencePiece is made from that model.
_FILE_NAMES = ("tokenizer.model", "tokenizer.json", "vocab.txt", "encoder.json", "vocab.json")
_NAMES_BESIDE = (hf_files.CONFIG, hf_files.SPECIALS, hf_files.ADDED, hf_files.MODEL)
FORMS = f"a *.model, or a file or folder with one of {', '.join(_FILE_NAMES)}"
