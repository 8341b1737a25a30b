"""Hugging Face files next to a tokenizer's file that configure it.

| file                    | what is read                                                         |
|-------------------------|----------------------------------------------------------------------|
| tokenizer_config.json   | class, treatment of case, accents and Chinese, special and added     |
|                         | tokens                                                               |
| special_tokens_map.json | special tokens by role                                               |
| added_tokens.json       | tokens after those of the vocabulary, with their ids                 |
| config.json             | `tokenizer_class` and `model_type`                                   |
"""

import pathlib
from collections.abc import Collection
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken

from bertgpt import files
from bertgpt.errors import DataError

CONFIG, SPECIALS, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
MODEL = "config.json"
_REMEDY = "Copy it again from where the tokenizer comes from"
# Key in the files -> role in `SPECIAL_PIECES`.
ROLES = {"pad_token": "pad", "unk_token": "unk", "cls_token": "cls", "sep_token": "sep",
         "mask_token": "mask", "eos_token": "eod"}
_BEGINNING = "bos_token"
_LISTS = ("additional_special_tokens", "extra_special_tokens")
SHOWN = "shown_special_tokens"  # Only in files of `Tokenizer.save`, see `Tokenizer.shown`.
_FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")
# Classes that add nothing to the settings in the files.
GENERIC_CLASSES = frozenset({"PreTrainedTokenizer", "TokenizersBackend"})
# Model types for which transformers takes the generic class, whatever class the folder names.
GENERIC_TYPES = frozenset({"modernbert", "modernbert-decoder"})
# Model type -> class that transformers 5.23 takes if a folder names none.
_CLASSES = {"albert": "AlbertTokenizer", "bert": "BertTokenizer", "electra": "BertTokenizer",
            "gpt2": "GPT2Tokenizer", "openai-gpt": "OpenAIGPTTokenizer",
            "roberta": "RobertaTokenizer", "xlnet": "XLNetTokenizer"}
# Tokenizer classes written in Python, which do not read the tokenizer.json that some folders hold.
_PYTHON_CLASSES = frozenset({
    "BertJapaneseTokenizer", "BertweetTokenizer", "BioGptTokenizer", "CTRLTokenizer",
    "CpmAntTokenizer", "CpmTokenizer", "EsmTokenizer", "FSMTTokenizer", "FlaubertTokenizer",
    "GPTNeoXJapaneseTokenizer", "JumanppTokenizer", "PhobertTokenizer", "ProphetNetTokenizer",
    "XLMTokenizer"})


class HfFiles(NamedTuple):
  """Contents of the files next to a tokenizer's file.

  Attributes:
    folder: folder of the files.
    settings: content of tokenizer_config.json.
    names: role in `SPECIAL_PIECES` -> special token.
    beginning: token that begins a text in transformers; '': none is named.
    roles: all special tokens with a role in transformers.
    extra: special tokens without a role; none if `is_saved`.
    added: added token -> its id, or -1 if only its name is known.
    flags: added token -> arguments of `AddedToken`.
    tokenizer_class: name without 'Fast'; '': unknown.
    model_type: `model_type` in config.json; '': unknown.
    is_saved: see `tokenizers.load_tokenizer`.
    shown: see `Tokenizer.shown`; only if `Tokenizer.save` wrote the files.
  """

  folder: pathlib.Path
  settings: dict[str, Any]
  names: dict[str, str]
  beginning: str
  roles: frozenset[str]
  extra: frozenset[str]
  added: dict[str, int]
  flags: dict[str, dict[str, bool]]
  tokenizer_class: str
  model_type: str
  is_saved: bool
  shown: tuple[str, ...]

  def setting(self, name: str) -> bool | None:
    """Returns a setting of tokenizer_config.json that is true, false or not there.

    Raises:
      DataError: it is something else.
    """
    value = self.settings.get(name)
    if value is not None and not isinstance(value, bool):
      raise DataError(f"{self.folder / CONFIG}: {name} is {value!r}. Set it to true or false")
    return value

  @property
  def used_class(self) -> str:
    """The class that transformers takes, without 'Fast'; '': the generic one, or not known."""
    if self.model_type in GENERIC_TYPES:
      return ""
    return self.tokenizer_class or _CLASSES.get(self.model_type, "")

  def refuse_other_classes(self, file: pathlib.Path, classes: Collection[str] = ()) -> None:
    """Checks that the class of the tokenizer reads a file in the same way as this program.

    Args:
      file: the tokenizer's file, for the message.
      classes: classes that read it so, without 'Fast'; none: all that are not known to differ.
    Raises:
      DataError: the class reads it differently; the message names the class.
    """
    name = self.tokenizer_class
    code = self.settings.get("auto_map") or {}  # Older files have a list.
    if isinstance(code, list) or code.get("AutoTokenizer"):
      reason = f"its tokenizer has code of its own ({name or 'auto_map'}), which is never run"
    elif name in _PYTHON_CLASSES or classes and name and name not in {*GENERIC_CLASSES, *classes}:
      reason = f"its tokenizer_class is {name}, which tokenizes differently"
    else:
      return
    raise DataError(f"{file}: {reason}. Use the model with transformers, or give another "
                    "tokenizer")


def read_hf_files(folder: pathlib.Path, is_saved: bool = False) -> HfFiles:
  """Reads those files next to a tokenizer's file that exist.

  Args:
    folder: folder of the tokenizer's file.
    is_saved: see `tokenizers.load_tokenizer`.
  Raises:
    DataError: one of them is damaged, or a link to a missing file; the message names it.
  """
  settings, special, added = (_read(folder / name) for name in (CONFIG, SPECIALS, ADDED))
  decoder = settings.get("added_tokens_decoder") or {}
  # The later one has priority: tokenizer_config.json, if it lists the added tokens.
  has_list = is_saved or "added_tokens_decoder" in settings
  order = (special, settings) if has_list else (settings, special)
  try:
    named = {key: _content(value) for values in order
             for key, value in values.items() if key in {*ROLES, _BEGINNING} and value is not None}
    listed = {_content(value): value for values in order for key in _LISTS
              for value in _listed(values.get(key))}
    ids = {content: int(i) for content, i in added.items()}
    ids |= {_content(value): int(i) for i, value in decoder.items()}
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    raise DataError(f"{folder}: its special and added tokens are not written as transformers "
                    f"writes them ({type(e).__name__}: {e}). {_REMEDY}") from e
  is_special = {*named.values(), *listed}.__contains__
  flags = {content: {"special": is_special(content), "normalized": not is_special(content)}
           for content in [*ids, *listed]}
  flags |= {content: flags[content] | _flags(value) for content, value in listed.items()
            if isinstance(value, dict)}
  flags |= {value["content"]: _flags(value) for value in decoder.values()}
  roles = frozenset(named.values())
  extra = set() if is_saved else {
      *listed, *(content for content in ids if flags[content].get("special"))} - roles
  model = _read_model_config(folder)
  name = settings.get("tokenizer_class") or model.get("tokenizer_class") or ""
  names = {ROLES[key]: content for key, content in named.items() if key in ROLES}
  return HfFiles(folder, settings, names, named.get(_BEGINNING, ""), roles, frozenset(extra), ids,
                 flags, str(name).removesuffix("Fast"), str(model.get("model_type") or ""),
                 is_saved, tuple(special.get(SHOWN) or ()))


def add_tokens(tokenizer: tokenizers.Tokenizer, hf: HfFiles, file: pathlib.Path) -> None:
  """Adds the added tokens of a folder to its tokenizer.

  Args:
    tokenizer: the tokenizer without them; changed.
    hf: files of the folder.
    file: the tokenizer's file, for the message.
  Raises:
    DataError: their ids do not follow those of the vocabulary, or the vocabulary gives them others.
  """
  known = tokenizer.get_vocab(with_added_tokens=True)
  # The flags in a tokenizer.json have priority over those that added_tokens.json cannot have.
  described = {value["content"] for value in (
      hf.settings.get("added_tokens_decoder") or {}).values()}
  kept = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()
          if token.content not in described and not hf.is_saved}
  for content, i in sorted(hf.added.items(), key=lambda item: item[1]):
    expected = known.get(content, len(known))
    if i != expected:
      raise DataError(f"{file}: the id of the added token {content!r} is {i} according to "
                      f"{hf.folder}, but {expected} according to the vocabulary. Give the "
                      "files of one tokenizer")
    if content not in known or not hf.flags[content].get("special") and content not in kept:
      tokenizer.add_tokens([AddedToken(content, **hf.flags[content])])
      known.setdefault(content, i)
  tokenizer.add_tokens([AddedToken(content, **hf.flags[content])
                        for content in sorted(hf.extra & known.keys())
                        if content not in kept or not kept[content].special])


def _content(token: Any) -> str:
  content = token["content"] if isinstance(token, dict) else token
  if not isinstance(content, str):
    raise TypeError(f"{content!r} is not a token")
  return content


def _flags(token: dict[str, Any]) -> dict[str, bool]:
  return {name: bool(token[name]) for name in _FLAGS if name in token}


def _listed(tokens: Any) -> list[Any]:
  return list(tokens.values() if isinstance(tokens, dict) else tokens or ())


def _read(path: pathlib.Path) -> dict[str, Any]:
  return files.read_json(path, _REMEDY) if files.has_file(path) else {}


def _read_model_config(folder: pathlib.Path) -> dict[str, Any]:
  """Returns config.json, or {} if it does not describe a model of transformers."""
  if not files.has_file(folder / MODEL):
    return {}
  try:
    return files.read_json(folder / MODEL, _REMEDY)
  except (DataError, OSError):
    return {}
