"""Any text has ids, and any file of a tokenizer is loaded or refused in one line."""

import functools
import json

import fuzzing
import numpy as np
import pytest
from fuzzing import FAILED, attempt
from hypothesis import strategies as st
from source_files import write

from bertgpt import config as config_lib
from bertgpt.data.corpus import corpus, prepare
from bertgpt.data.text import documents, sources
from bertgpt.data.tokens import offsets, pipelines, text_parts, tokenizers, training

LINES = ["It is so. Is it? It was not the end of the road.", "Das Übel naïver Äpfel: 1,000 [sic].",
         "今天天气很好，我们去公园散步。", "मैं हिन्दी बोलता हूँ।", "def f(x):\n    return x\n"]
KINDS = {"wordpiece": {"kind": "wordpiece", "vocab_size": 110},
         "wordpiece-cased": {"kind": "wordpiece", "vocab_size": 110, "lowercase": False},
         "bpe": {"kind": "bpe", "vocab_size": 300},
         "unigram": {"kind": "sentencepiece", "vocab_size": 77},
         "sentencepiece-bpe": {"kind": "sentencepiece", "vocab_size": 95, "model_type": "bpe"},
         "gpt1": {}}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "it", "is", "##s", "the", "##a", "."]
TOKENIZER_CONFIG = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True,
                    "tokenizer_class": "BertTokenizer", "model_max_length": 512,
                    "unk_token": "[UNK]", "mask_token": {"content": "[MASK]", "lstrip": False},
                    "added_tokens_decoder": {"4": {"content": "[MASK]", "special": True}}}


@functools.cache
def trained(name):
  if name == "gpt1":
    letters = sorted({letter for line in LINES for letter in line.lower()} - {" ", "\n"})
    pieces = ["<unk>", *letters, *(f"{letter}</w>" for letter in letters), "is</w>", "it", "it</w>"]
    merges = [("i", "s</w>"), ("i", "t"), ("i", "t</w>")]
    fast = pipelines.gpt1_pipeline({p: i for i, p in enumerate(pieces)}, merges, "<unk>")
    return tokenizers.KINDS["gpt1_bpe"](pipelines.serialize(fast))
  config = config_lib.base().tokenizer
  config.update(KINDS[name])
  return training.train_tokenizer(config, LINES * 5)


def without_surrogates(text):
  return text.encode(errors="replace").decode()


# -------------------------------------------------------------------- texts


@pytest.mark.parametrize("name", KINDS)
def test_any_text_has_ids_and_they_have_a_text(name):
  tokenizer = trained(name)

  def check(texts):
    encoded = tokenizer.encode(texts)
    assert len(encoded) == len(texts)
    for text, ids in zip(texts, encoded, strict=True):
      assert not np.isin(ids, tokenizer.special_ids).any()
      assert ((ids >= 0) & (ids < tokenizer.vocab_size)).all()
      np.testing.assert_array_equal(tokenizer.encode([text])[0], ids)
      decoded = tokenizer.decode(ids)
      if name == "bpe":
        assert decoded == without_surrogates(text)
    every = np.concatenate([*encoded, np.array(tokenizer.special_ids)])
    assert isinstance(tokenizer.decode(every), str)
  fuzzing.run(check, 60, texts=st.lists(fuzzing.texts(), max_size=4))


@pytest.mark.parametrize("name", KINDS)
def test_any_ids_have_a_text(name):
  tokenizer = trained(name)

  def check(ids):
    assert isinstance(tokenizer.decode(ids), str)
  fuzzing.run(check, 60, ids=st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))


@pytest.mark.parametrize("name", KINDS)
def test_tokens_have_their_places_in_any_text(name):
  tokenizer = trained(name)

  def check(text):
    text = without_surrogates(text)
    (ids, spans), = offsets.encode_with_offsets(tokenizer, [text])
    np.testing.assert_array_equal(ids, tokenizer.encode([text])[0])
    assert spans.shape == (len(ids), 2)
    assert (spans >= 0).all() and (spans <= len(text)).all() and (spans[:, 0] <= spans[:, 1]).all()
  fuzzing.run(check, 60, text=fuzzing.texts())


@pytest.mark.parametrize("name", KINDS)
def test_a_corpus_holds_the_ids_of_any_texts(name, tmp_path):
  """Prepares files of many texts; the ids of byte-level BPE are the text again."""
  trained(name).save(tmp_path / "tokenizer")
  tokenizer = tokenizers.load_tokenizer(tmp_path / "tokenizer")
  config = config_lib.base()
  config.tokenizer.path = str(tmp_path / "tokenizer")
  config.data.update({"prepare_workers": 1, "cache_dir": str(tmp_path / "cache"),
                      "invalid_text": "replace"})

  def check(texts):
    with fuzzing.folder() as folder:
      lines = [json.dumps({"text": text}) for text in ["One.", "Two.", *texts]]
      path = write(folder / "a.jsonl", "\n".join(lines).encode())
      config.data.source = f"jsonl:{path}"
      made = prepare.prepare(config, folder / "corpus")
      opened = [corpus.open_corpus(made, split) for split in corpus.SPLITS]
      found = [ids for c in opened for ids in c.tokens(np.arange(len(c)))]
      assert not any(np.isin(ids, tokenizer.special_ids).any() for ids in found)
      read = sources.open_source(config.data.source, invalid_text="replace")
      written = [document.text for document in read]
      expected = [ids.tolist() for ids in tokenizer.encode(written) if len(ids)]
      assert sorted(ids.tolist() for ids in found) == sorted(expected)
      if name == "bpe":
        assert sorted(map(tokenizer.decode, found)) == sorted(written)
  fuzzing.run(check, 1, texts=st.lists(fuzzing.texts(), min_size=40, max_size=40))


@pytest.mark.parametrize("name", KINDS)
def test_ids_in_parts_are_those_of_the_whole_text(name):
  tokenizer = trained(name)
  encode = text_parts.make_encoder(tokenizer)

  def check(text, language):
    document = documents.Document(without_surrogates(text), False)
    sentences = documents.cut_sentences(document, language)
    if sentences:
      (ids, lengths), = encode([sentences])
      np.testing.assert_array_equal(ids, tokenizer.encode([document.text])[0])
      assert len(lengths) == len(sentences) and lengths.sum() == len(ids)
  fuzzing.run(check, 60, text=fuzzing.texts(90), language=st.sampled_from(("en", "zh", "hi")))


# -------------------------------------------------------------------- files


def load_and_use(path):
  tokenizer = tokenizers.load_tokenizer(path)
  ids = tokenizer.encode([*LINES, "[MASK] and [SEP]", "a" * 200])
  assert not any(np.isin(i, tokenizer.special_ids).any() for i in ids)
  tokenizer.decode(ids[0])
  tokenizer.continues_word()
  return tokenizer


@pytest.mark.parametrize("name", ["wordpiece", "bpe"])
def test_any_change_of_tokenizer_json_is_loaded_or_refused(name):
  content = json.loads(trained(name).data)
  vocabulary = content["model"]["vocab"]
  kept = dict(list(vocabulary.items())[:12] + list(vocabulary.items())[-60:])
  for i, piece in enumerate(kept):
    kept[piece] = i
  content["model"]["vocab"] = kept
  content["model"].pop("merges", None)
  if name == "bpe":
    content["model"]["merges"] = []

  def check(content):
    with fuzzing.folder() as folder:
      write(folder / "tokenizer.json", json.dumps(content).encode(errors="surrogatepass"))
      attempt(load_and_use, folder)
  fuzzing.run(check, 80, content=fuzzing.changed(content, st.sampled_from(
      (None, True, "", "[MASK]", "a", 0, 5, 10**6, 0.3, [], {})) | fuzzing.values()))


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_loaded_or_refused(name):
  tokenizer = trained(name)

  def check(data):
    with fuzzing.folder() as folder:
      write(folder / tokenizer.file_name, data)
      attempt(load_and_use, folder)
  fuzzing.run(check, 40, data=fuzzing.damaged(tokenizer.data) | st.binary(max_size=30))


def test_any_vocabulary_is_loaded_or_refused():
  pieces = st.lists(st.sampled_from(VOCABULARY) | fuzzing.texts(6), max_size=6)

  def check(pieces, end, is_complete):
    with fuzzing.folder() as folder:
      lines = VOCABULARY * is_complete + pieces
      write(folder / "vocab.txt", end.join(lines).encode(errors="surrogatepass"))
      attempt(load_and_use, folder)
  fuzzing.run(check, 100, pieces=pieces, end=st.sampled_from(("\n", "\r\n", "\r")),
              is_complete=st.booleans())


def test_any_tokenizer_config_is_obeyed_or_refused():
  def check(content, special, added):
    with fuzzing.folder() as folder:
      write(folder / "vocab.txt", "\n".join(VOCABULARY).encode())
      for name, value in (("tokenizer_config", content), ("special_tokens_map", special),
                          ("added_tokens", added)):
        if value is not FAILED:
          data = json.dumps(value).encode(errors="surrogatepass")
          write(folder / f"{name}.json", data)
      attempt(load_and_use, folder)
  special = fuzzing.changed({"mask_token": "[MASK]", "unk_token": {"content": "[UNK]"}})
  added = st.dictionaries(fuzzing.texts(6), st.integers(-1, 14) | fuzzing.values(), max_size=3)
  fuzzing.run(check, 100, content=fuzzing.changed(TOKENIZER_CONFIG) | fuzzing.values(),
              special=st.just(FAILED) | special, added=st.just(FAILED) | added)


def test_any_merges_are_loaded_or_refused():
  def check(vocabulary, merges, names):
    with fuzzing.folder() as folder:
      write(folder / names[0], json.dumps(vocabulary).encode(errors="surrogatepass"))
      write(folder / names[1], "\n".join(merges).encode(errors="surrogatepass"))
      attempt(load_and_use, folder)
  characters = {chr(33 + i): i for i in range(94)}
  lines = st.sampled_from(("#version: 0.2", "a b", "ab c", "a", "", "\u0120 t", "a b c", "a b</w>"))
  merges = st.lists(lines | fuzzing.texts(6), max_size=5)
  pieces = st.sampled_from(("ab", "abc", "<|endoftext|>", "\u0120t", "a</w>", "ab</w>", "<unk>"))
  words = st.dictionaries(pieces | fuzzing.texts(6), st.integers(90, 100) | fuzzing.values(),
                          max_size=4)
  fuzzing.run(check, 80, merges=merges,
              vocabulary=words.map(lambda new: characters | new) | fuzzing.values(),
              names=st.sampled_from((("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))))
