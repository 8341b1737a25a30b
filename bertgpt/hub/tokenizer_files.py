"""Tokenizers as files that `transformers` reads.

    tokenizer.json            the whole tokenizer, even for SentencePiece
    tokenizer_config.json     class, longest text, special tokens by role
    special_tokens_map.json   special tokens by role
    vocab.txt                 WordPiece
    vocab.json, merges.txt    byte-level BPE
    tokenizer.model           SentencePiece

In `transformers`, the name of a special token in a text is read as that token; `Tokenizer.encode`
reads it as text.
"""

import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from bertgpt import files
from bertgpt.data.tokens import reach
from bertgpt.data.tokens.marks import Marks
from bertgpt.data.tokens.tokenizers import (
    ByteBPE,
    SentencePiece,
    Tokenizer,
    Unigram,
    WordPiece,
)
from bertgpt.errors import DataError, StorageError, one_line
from bertgpt.hub import precompiled
from bertgpt.hub.precompiled import SPACE

proto_lib: Any = sentencepiece_model_pb2  # Its classes are made when it is imported.

# Role in `transformers` -> attribute of `Tokenizer`. GPT has one token for the beginning and the
# end of a document.
ENCODER_ROLES = {"pad_token": "pad_id", "unk_token": "unk_id", "cls_token": "cls_id",
                 "sep_token": "sep_id", "mask_token": "mask_id"}
DECODER_ROLES = {"pad_token": "pad_id", "unk_token": "unk_id", "bos_token": "eod_id",
                 "eos_token": "eod_id"}
# Names of the tokens that fine-tuning puts around the texts of a decoder, in the order of their
# ids (`marks.of_tuned_decoder`).
DECODER_MARKS = ("<|start|>", "<|delimiter|>", "<|extract|>")
BEGINNINGS = ("<s>",)  # The [CLS] of RoBERTa and similar models, which begins a text.


def write(tokenizer: Tokenizer, folder: pathlib.Path, around: Marks, specials: dict[str, str], *,
          max_length: int, has_segments: bool, pads_left: bool = False, cuts_left: bool = False
          ) -> None:
  """Writes the files of the table into `folder`.

  Args:
    tokenizer: tokenizer to write.
    folder: existing folder.
    around: marks that the model expects around texts.
    specials: result of `special_tokens`.
    max_length: most tokens per text.
    has_segments: whether the model has several segments; otherwise `token_type_ids` are not among
      its inputs.
    pads_left: whether rows are padded on the left.
    cuts_left: whether longer texts keep their end.
  Raises:
    DataError: the library `tokenizers` has no equivalent tokenizer.
    OSError, StorageError: a file cannot be written.
  """
  fast = to_fast(tokenizer, around, specials, has_segments)
  files.write_atomically(folder / "tokenizer.json", fast.to_str(pretty=True))
  if isinstance(tokenizer, SentencePiece):
    tokenizer.save(folder)
  elif not isinstance(tokenizer, Unigram):  # Nothing reads a unigram.json.
    try:
      fast.model.save(str(folder))
    except Exception as e:  # The library raises no other type, for a full disk either.
      raise StorageError(f"{folder}: the vocabulary cannot be written ({one_line(e)})") from e
  if added := mark_names(tokenizer, around):  # transformers pads the texts of its classifiers.
    specials = {"pad_token": specials.get("eos_token", added[0])} | specials
  inputs = ["input_ids", "token_type_ids", "attention_mask"]
  if not has_segments:
    inputs.remove("token_type_ids")
  settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length,
              "model_input_names": inputs, "clean_up_tokenization_spaces": False, **specials}
  if tokenizer.shown and not isinstance(tokenizer, SentencePiece):  # Else other ids around them.
    settings["additional_special_tokens"] = [*tokenizer.shown]
  if pads_left:
    settings["padding_side"] = "left"
  if cuts_left:
    settings["truncation_side"] = "left"
  pre_tokenizer = json.loads(fast.to_str())["pre_tokenizer"] or {}
  if pre_tokenizer.get("add_prefix_space"):  # Else transformers 4 turns it off in tokenizer.json.
    settings["add_prefix_space"] = True
  if isinstance(tokenizer, WordPiece):
    normalizer = json.loads(fast.to_str())["normalizer"] or {}
    # In transformers, `BertTokenizer` builds its normalizer from them, or from its defaults.
    defaults = {"strip_accents": None, "tokenize_chinese_chars": True}
    settings |= {"do_lower_case": bool(normalizer.get("lowercase"))} | {
        name: normalizer[ours] for name, ours in reach.SETTINGS.items()
        if ours in normalizer and name in defaults and normalizer[ours] != defaults[name]}
  for name, content in (("tokenizer_config.json", settings), ("special_tokens_map.json", specials)):
    files.write_json(folder / name, content, ensure_ascii=False)


def special_tokens(tokenizer: Tokenizer, is_encoder: bool, start_id: int = -1) -> dict[str, str]:
  """Returns role in `transformers` -> token, for the roles that the tokenizer has.

  Args:
    tokenizer: our tokenizer.
    is_encoder: whether the roles are those of an encoder.
    start_id: token that begins a document of a decoder; -1: the end of another one.
  """
  roles = ENCODER_ROLES if is_encoder else DECODER_ROLES
  if is_encoder and tokenizer.cls_id >= 0 and tokenizer.pieces[tokenizer.cls_id] in BEGINNINGS:
    roles = roles | {"bos_token": "cls_id", "eos_token": "sep_id"}
  ids = {role: getattr(tokenizer, name) for role, name in roles.items()}
  if start_id >= 0 and not is_encoder:
    ids["bos_token"] = start_id
  return {role: tokenizer.pieces[i] for role, i in ids.items() if i >= 0}


def mark_names(tokenizer: Tokenizer, around: Marks) -> list[str]:
  """Returns names of the tokens around texts that the tokenizer does not have, by id.

  Args:
    tokenizer: our tokenizer.
    around: marks that the model expects around texts.
  """
  if around.last is None or around.last < tokenizer.vocab_size:
    return []
  names = list(DECODER_MARKS)
  while set(names) & set(tokenizer.pieces):
    names = [f"<{name}>" for name in names]
  return names


def to_fast(tokenizer: Tokenizer, around: Marks, specials: dict[str, str], has_segments: bool
            ) -> tokenizers.Tokenizer:
  """Returns the tokenizer of the library `tokenizers` that gives the same ids.

  Args:
    tokenizer, around, specials: see `write`.
    has_segments: whether the second of two texts has segment 1.
  Raises:
    DataError: the library has no such tokenizer.
  """
  if isinstance(tokenizer, SentencePiece):
    fast = from_sentencepiece(tokenizer.safe_data, specials.get("mask_token"))
  else:
    fast = _without_settings_of_its_source(tokenizer, specials)
  marked = {token.content for token in fast.get_added_tokens_decoder().values() if token.special}
  fast.add_special_tokens([AddedToken(name, normalized=False,
                                      lstrip=_takes_space(tokenizer, specials, name))
                           for name in dict.fromkeys(specials.values()) if name not in marked])
  added = mark_names(tokenizer, around)
  fast.add_special_tokens([AddedToken(name, normalized=False) for name in added])
  is_bytes = isinstance(tokenizer, ByteBPE)
  if around.count():
    template = _make_template(around, [*tokenizer.pieces, *added], has_segments)
    # With byte-level BPE, an answer that is cut out of its text does not include spaces.
    fast.post_processor = (processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
                           if is_bytes else template)
  elif fast.encode("").ids:  # The template of its source, which the training did not use.
    fast.post_processor = processors.ByteLevel(trim_offsets=False) if is_bytes else None
  return fast


def _make_template(around: Marks, pieces: Sequence[str], has_segments: bool
                   ) -> processors.TemplateProcessing:
  """Returns the post-processor that puts marks around texts.

  Args:
    around: the marks.
    pieces: token by id.
    has_segments: whether the second text and the mark at its end have segment 1, and the mark
      after it has segment 2.
  """
  def write_marks(*ids, segment=0):
    return [f"{pieces[i]}:{segment * has_segments}" for i in ids if i is not None]

  first, end = write_marks(around.first), write_marks(around.end, segment=2)
  ids = {around.first, *around.between, around.last, around.end} - {None}
  return processors.TemplateProcessing(
      single=[*first, "$A", *write_marks(around.last), *end],
      pair=[*first, "$A", *write_marks(*around.between), f"$B:{int(has_segments)}",
            *write_marks(around.last, segment=1), *end],
      special_tokens=[(pieces[i], i) for i in sorted(ids)])


def _takes_space(tokenizer: Tokenizer, specials: dict[str, str], name: str) -> bool:
  """Returns whether a token is a mask that includes the space before it.

  The other tokens include the space before a word, and the mask hides whole tokens.
  """
  return isinstance(tokenizer, ByteBPE | SentencePiece) and name == specials.get("mask_token")


def _without_settings_of_its_source(tokenizer: Tokenizer,
                                    specials: dict[str, str]) -> tokenizers.Tokenizer:
  """Returns a tokenizer of `tokenizers` without truncation, padding and dropout.

  Its special tokens are marked as such, so that their names in a text are read as them. So are
  those without a role that its source has; they are parts of texts in any case.

  Args:
    tokenizer: our tokenizer.
    specials: role in `transformers` -> special token.
  """
  content = json.loads(tokenizer.data) | {"truncation": None, "padding": None}
  if "dropout" in content["model"]:
    content["model"]["dropout"] = None
  added = content.get("added_tokens") or ()
  for token in added:
    token["special"] |= token["content"] in {*specials.values(), *tokenizer.shown}
    if _takes_space(tokenizer, specials, token["content"]):
      token |= {"lstrip": True, "rstrip": False, "single_word": False}
  return tokenizers.Tokenizer.from_str(json.dumps(content | {"added_tokens": list(added)}))


def from_sentencepiece(data: bytes, mask: str | None = None) -> tokenizers.Tokenizer:
  """Returns the equivalent of a unigram or BPE model of SentencePiece.

  Args:
    data: content of its file.
    mask: the piece that is the mask, if any. It includes the space before it.
  Raises:
    DataError: `tokenizers` cannot do the same as the model.
  """
  proto = proto_lib.ModelProto.FromString(data)
  trainer, rules = proto.trainer_spec, proto.normalizer_spec
  builders = {proto_lib.TrainerSpec.UNIGRAM: _unigram, proto_lib.TrainerSpec.BPE: _bpe}
  if (trainer.model_type not in builders or trainer.treat_whitespace_as_suffix
      or not rules.escape_whitespaces):
    raise DataError("tokenizer.model: only unigram and BPE models of SentencePiece that mark the "
                    "beginnings of words can be exported")
  kind = proto_lib.ModelProto.SentencePiece
  symbols = [p.piece for p in proto.pieces if p.type == kind.USER_DEFINED]
  fast = tokenizers.Tokenizer(builders[trainer.model_type](proto))
  fast.normalizer = precompiled.make_normalizer(rules, symbols, _normalizer(data))
  steps = precompiled.make_pre_tokenizers(rules)
  if symbols:  # As added tokens, they would be cut out first, with the spaces around them.
    pattern = "|".join(map(re.escape, sorted(symbols, key=len, reverse=True)))
    steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
  if trainer.byte_fallback and trainer.model_type == proto_lib.TrainerSpec.UNIGRAM:
    # In SentencePiece, no text becomes the piece of a byte by looking like its name, <0x41>.
    steps.append(pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>)"), "merged_with_previous"))
  fast.pre_tokenizer = pre_tokenizers.Sequence(steps)
  scheme = "always" if rules.add_dummy_prefix else "never"
  fast.decoder = decoders.Sequence([decoders.ByteFallback(),
                                    decoders.Metaspace(SPACE, prepend_scheme=scheme)])
  fast.add_tokens([AddedToken(p.piece, normalized=False, special=True, lstrip=p.piece == mask)
                   for p in proto.pieces if p.type == kind.CONTROL])
  return fast


def _normalizer(data: bytes) -> Callable[[str], str]:
  """Returns the normalizer of a SentencePiece model, for text without spaces at its ends."""
  processor = sentencepiece.SentencePieceProcessor(model_proto=data)
  return lambda text: processor.normalize(text).strip(SPACE)


def _unigram(proto) -> models.Model:
  # For a text that is a user-defined symbol, no other pieces may be likelier.
  symbol = proto_lib.ModelProto.SentencePiece.USER_DEFINED
  return models.Unigram([(p.piece, 0.0 if p.type == symbol else p.score) for p in proto.pieces],
                        proto.trainer_spec.unk_id,
                        proto.trainer_spec.byte_fallback)


def _bpe(proto) -> models.Model:
  """Returns a BPE with a list of merges: SentencePiece merges the pair with the best piece."""
  kind = proto_lib.ModelProto.SentencePiece
  ids = {p.piece: i for i, p in enumerate(proto.pieces)}
  score = {p.piece: p.score for p in proto.pieces if p.type == kind.NORMAL}
  merges = []
  for piece in sorted(score, key=lambda piece: (-score[piece], ids[piece])):
    pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
    merges += sorted((pair for pair in pairs if score.keys() >= set(pair)),
                     key=lambda pair: (ids[pair[0]], ids[pair[1]]))
  # Without merges, a user-defined symbol is found as a whole.
  return models.BPE(ids, merges, unk_token=proto.trainer_spec.unk_piece, fuse_unk=True,
                    byte_fallback=proto.trainer_spec.byte_fallback,
                    ignore_merges=any(p.type == kind.USER_DEFINED for p in proto.pieces))
