"""bertgpt.data.tokens.text_parts: ids are those of the whole text; parts own what they start."""

import functools
import io
import itertools
import json

import numpy as np
import pytest
import sentencepiece
import source_files
import tokenizers as library
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_pb2
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from bertgpt.data.tokens import text_parts, tokenizers

TRAIN = ["The cat sees the dog, and the dog sees a café.", "They'll never see it! Or will they?",
         "Ａ full-width text", "今天天气很好。我们去哪里？", "def f(x):\n    return x  # 3.14",
         "x  y   z"] * 30
GPT4 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_bpe(pre_tokenizer, normalizer=None):
  tokenizer = library.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, library.decoders.ByteLevel()
  if normalizer:
    tokenizer.normalizer = normalizer
  tokenizer.train_from_iterator(TRAIN, trainers.BpeTrainer(
      vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
  return tokenizers.ByteBPE(tokenizer.to_str().encode())


def wordpiece(pre_tokenizer, **options):
  tokenizer = library.Tokenizer(models.WordPiece(unk_token="[UNK]"))
  tokenizer.normalizer = normalizers.BertNormalizer(**options)
  tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, library.decoders.WordPiece()
  specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  tokenizer.train_from_iterator(TRAIN, trainers.WordPieceTrainer(
      vocab_size=200, special_tokens=specials, show_progress=False))
  return tokenizers.WordPiece(tokenizer.to_str().encode())


def sentencepiece_model(model_type, **options):
  model = io.BytesIO()
  options = {"vocab_size": 140, "hard_vocab_limit": False, "byte_fallback": False} | options
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(line for text in TRAIN for line in text.split("\n")),
      model_writer=model, model_type=model_type, minloglevel=2, pad_id=0, unk_id=1, bos_id=-1,
      eos_id=-1, **options)
  return tokenizers.SentencePiece(model.getvalue())


AS_LLAMA = {"byte_fallback": True, "vocab_size": 400, "remove_extra_whitespaces": False,
            "normalization_rule_name": "identity", "allow_whitespace_only_pieces": True}
byte_level = pre_tokenizers.ByteLevel
MAKERS = {
    "bpe": lambda: byte_bpe(byte_level(add_prefix_space=False)),
    "bpe that puts a space first": lambda: byte_bpe(byte_level(add_prefix_space=True)),
    "bpe of GPT-4's words": lambda: byte_bpe(pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(GPT4), "isolated"),
         byte_level(add_prefix_space=False, use_regex=False)])),
    "bpe without words": lambda: byte_bpe(byte_level(add_prefix_space=False, use_regex=False)),
    "bpe of NFKC": lambda: byte_bpe(byte_level(add_prefix_space=False), normalizers.NFKC()),
    "wordpiece": lambda: wordpiece(pre_tokenizers.BertPreTokenizer()),
    "wordpiece, cased": lambda: wordpiece(
        pre_tokenizers.BertPreTokenizer(), lowercase=False, handle_chinese_chars=False),
    "wordpiece of other words": lambda: wordpiece(pre_tokenizers.WhitespaceSplit()),
    "unigram": lambda: sentencepiece_model("unigram"),
    "unigram with bytes": lambda: sentencepiece_model(
        "unigram", byte_fallback=True, vocab_size=400),
    "unigram over spaces": lambda: sentencepiece_model("unigram", split_by_whitespace=False),
    "unigram as Llama": lambda: sentencepiece_model("unigram", **AS_LLAMA),
    "unigram, no prefix": lambda: sentencepiece_model("unigram", add_dummy_prefix=False),
    "sentencepiece bpe": lambda: sentencepiece_model("bpe"),
    "sentencepiece bpe with bytes": lambda: sentencepiece_model(
        "bpe", byte_fallback=True, vocab_size=400),
    "sentencepiece bpe as Llama": lambda: sentencepiece_model("bpe", **AS_LLAMA),
    "sentencepiece bpe, identity": lambda: sentencepiece_model(
        "bpe", normalization_rule_name="identity"),
    "sentencepiece bpe, symbols": lambda: sentencepiece_model(
        "bpe", user_defined_symbols=["<url>", "ca"]),
}


@functools.cache
def make(name):
  tokenizer = MAKERS[name]()
  return tokenizer, text_parts.make_encoder(tokenizer)


def starts_by_library(tokenizer, text):
  """Returns the ids of a text and the character at which each token starts, by the library."""
  if tokenizer.kind == "sentencepiece":
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.data)
    proto = processor.encode(text, out_type="serialized_proto")
    pieces = sentencepiece_pb2.SentencePieceText.FromString(proto).pieces
    data = text.encode()
    return [p.id for p in pieces], [len(data[:p.begin].decode(errors="ignore")) for p in pieces]
  fast = library.Tokenizer.from_buffer(tokenizer.data)
  fast.encode_special_tokens = True
  encoding = fast.encode(text, add_special_tokens=False)
  return encoding.ids, [start for start, _ in encoding.offsets]


def assert_right(name, texts):
  tokenizer, encode = make(name)
  for parts, (ids, lengths) in zip(texts, encode(texts), strict=True):
    expected, starts = starts_by_library(tokenizer, "".join(parts))
    assert ids.dtype == np.int32 and ids.tolist() == expected
    borders = np.cumsum([len(part) for part in parts])[:-1]
    part_of = [sum(start >= border for border in borders) for start in starts]
    assert lengths.tolist() == np.bincount(part_of, minlength=len(parts)).tolist()


@pytest.fixture(autouse=True)
def divide_everywhere(monkeypatch):
  """Texts are divided at every border that allows it, not only if they are long."""
  monkeypatch.setattr(text_parts, "_LONG_CHARS", 0)


@pytest.mark.parametrize("name", MAKERS)
def test_sentences(name):
  assert_right(name, [
      ["The cat sees.", " The dog sees!", "\n\n  They will", "\tnever."],
      ["今天天气很好。", "我们去哪里？", "\u3000去"], ["ca", "fé. The", "cat"], ["One sentence."],
      ["  It", " is", " indented. \n"], ["See <ur", "l> the", " dog"], ["A. \u200b", "\u0301 B."],
      ["naïve 😀", "👍🏽.", " ꙮ", "\u2581x", " y"], ["The\u00b4dog", " a\u00b4"]])


def end_in_text(texts):
  """Returns the texts that are not blank, all but the last without white space at their ends."""
  texts = [text for text in texts if text.strip()] or ["x"]
  return [*(text.rstrip() for text in texts[:-1]), texts[-1]]


PARTS = st.lists(st.text(st.one_of(
    # No control characters: tokenizers drop some of them, and a part could become empty.
    st.characters(exclude_categories=["Cs", "Cc"]),
    st.sampled_from(" \n\t.,!?。abcté'\u0301\u3000\x85\u2581")), min_size=1, max_size=8),
    max_size=5).map(end_in_text)


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=25, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(PARTS, max_size=3))
def test_any_parts(name, texts):
  assert_right(name, texts)


def test_ids_of_real_documents_are_those_of_the_library(data_dir):
  spec = f"jsonl:{data_dir}/lm/wikipedia_en/heldout.jsonl.xz"
  documents = [d.text for d in itertools.islice(source_files.read(spec), 30)]
  texts = [text.split("\n") for text in documents]
  texts = [[texts[0], *("\n" + part for part in texts[1:])] for texts in texts]
  texts = [[part for part in parts if part] for parts in texts]
  vocabulary = tokenizers.load_tokenizer(data_dir / "vocab" / "bert-base-uncased-vocab.txt")
  gpt2 = tokenizers.load_tokenizer(data_dir / "vocab" / "gpt2-encoder.json")
  for tokenizer in (vocabulary, gpt2, make("unigram with bytes")[0]):
    encoded = text_parts.make_encoder(tokenizer)(texts)
    for text, parts, (ids, lengths) in zip(documents, texts, encoded, strict=True):
      expected, starts = starts_by_library(tokenizer, text)
      assert ids.tolist() == expected
      borders = np.cumsum([len(part) for part in parts])
      assert lengths.tolist() == np.diff(np.searchsorted(starts, borders), prepend=0).tolist()


@pytest.mark.parametrize("name", ["wordpiece", "bpe", "unigram with bytes",
                                  "sentencepiece bpe with bytes"])
def test_the_library_is_not_asked_for_the_positions_of_running_text(name, monkeypatch):
  """Asking for the positions would be slow."""
  tokenizer, encode = make(name)
  monkeypatch.setattr(tokenizer, "encode_with_spans", lambda *_: pytest.fail("asked"))
  (_, lengths), = encode([["The cat sees.", " The dog sees!", "\n\nThey will."]])
  assert lengths.all()


def test_added_tokens_are_assigned_too():
  content = json.loads(make("bpe")[0].data)
  new = {"id": len(content["model"]["vocab"]), "content": "<é b>", "single_word": False,
         "lstrip": True, "rstrip": True, "normalized": False, "special": False}
  tokenizer = tokenizers.ByteBPE(json.dumps(content | {"added_tokens": [new]}).encode())
  parts = ["A <é", " b>  end.", " Then <é b>"]
  (ids, lengths), = text_parts.make_encoder(tokenizer)([parts])
  expected, starts = starts_by_library(tokenizer, "".join(parts))
  assert ids.tolist() == expected and new["id"] in expected
  borders = np.cumsum([len(part) for part in parts])
  assert lengths.tolist() == np.diff(np.searchsorted(starts, borders), prepend=0).tolist()


@pytest.mark.parametrize("name", ["bpe", "wordpiece"])
def test_a_file_may_leave_out_what_is_null_and_the_added_tokens(name):
  tokenizer, encode = make(name)
  content = json.loads(tokenizer.data)
  content = {key: value for key, value in content.items() if value and key != "added_tokens"}
  short = type(tokenizer)(json.dumps(content).encode())
  texts = [["The cat sees.", " The dog sees!"]]
  (ids, lengths), = text_parts.make_encoder(short)(texts)
  (expected, expected_lengths), = encode(texts)
  assert ids.tolist() == expected.tolist() and lengths.tolist() == expected_lengths.tolist()


def test_a_run_of_spaces_is_not_divided():
  """It may be one token, and a part may end in the middle of it."""
  text = "".join(f"w{i % 9}" + " " * (1, 7, 20)[i % 3] for i in range(3000))
  tokenizer = library.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
  tokenizer.train_from_iterator([text], trainers.BpeTrainer(
      vocab_size=300, initial_alphabet=byte_level.alphabet(), show_progress=False))
  tokenizer = tokenizers.ByteBPE(tokenizer.to_str().encode())
  parts = [text[i:i + 50] for i in range(0, len(text), 50)]
  divided = list(text_parts._divide(parts, functools.partial(
      text_parts._starts_with, text_parts._spaces_of_bytes(tokenizer)), 1))
  assert len(divided) > 20
  found = np.concatenate(tokenizer.encode(["".join(group) for group in divided]))
  np.testing.assert_array_equal(found, tokenizer.encode([text])[0])
