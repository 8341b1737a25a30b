"""bertgpt.data.tokens.tokenizers: ids of the original pipelines; training, words and files."""

import itertools
import json
import multiprocessing
import os
import pathlib
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import source_files
import tokenizers as library
from tokenizers.implementations import BertWordPieceTokenizer, ByteLevelBPETokenizer

from bertgpt import config as config_lib
from bertgpt.data.tokens import offsets, tokenizers, training
from bertgpt.errors import DataError

HELPERS = pathlib.Path(__file__).parents[2] / "helpers"

KINDS = ("sentencepiece", "wordpiece", "bpe")
SIZES = {"sentencepiece": 80, "wordpiece": 160, "bpe": 330, "words": 30}
ENGLISH = [
    "The rain had only ceased with the grey streaks of morning.",
    "It wasn't known, however, who had seen the well-known house before.",
    "She walked slowly towards the river; nobody followed her there.",
    "Numbers such as 3.5 or 1,000 were written down (in ink) every day.",
    "Reading, writing and walking were the things they liked doing most."]
CHINESE = [
    "今天天气很好，我们去公园散步。",
    "他说：你好！世界很大，我们很小。",
    "我喜欢自然语言处理和机器学习。"]


def settings(kind, **fields):
  config = config_lib.base().tokenizer
  config.update({"kind": kind, "vocab_size": SIZES[kind], **fields})
  return config


@pytest.fixture(scope="module")
def trained():
  """Returns one small tokenizer of every kind."""
  return {kind: training.train_tokenizer(settings(kind), ENGLISH * 20) for kind in KINDS}


def write_bert_vocabulary(folder, pieces=("the", "cat", "##s", "Cat", "##,")):
  path = folder / "vocab.txt"
  path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, ""]))
  return path


# ------------------------------------------------------- the original pipelines


@pytest.fixture(scope="module")
def lines(data_dir):
  """Returns 10,000 sentences of Wikipedia and books, and some odd ones."""
  spec = (f"jsonl:{data_dir}/lm/wikipedia_en/heldout.jsonl.xz,"
          f"jsonl:{data_dir}/lm/gutenberg/heldout.jsonl.xz,"
          f"text:{data_dir}/lm/tinyshakespeare.txt.gz")
  sentences = source_files.sentences(spec)
  odd = ["naïve Äpfel\u00a0İstanbul 力加勝北区ᴵᴺᵀᵃছজটডণত", "\tTabs\u200b and 😀👍🏽",
         "x" * 300, " "]
  return [*odd, *itertools.islice(sentences, 10_000 - len(odd))]


@pytest.mark.parametrize("case,lowercase", [("uncased", True), ("cased", False)])
def test_wordpiece_equals_bert_on_10000_lines(data_dir, lines, case, lowercase):
  path = f"{data_dir}/vocab/bert-base-{case}-vocab.txt"
  ours = tokenizers.load_tokenizer(path)
  bert = BertWordPieceTokenizer(path, lowercase=lowercase)
  assert len(lines) == 10_000
  expected = bert.encode_batch(lines, add_special_tokens=False)
  assert [ids.tolist() for ids in ours.encode(lines)] == [e.ids for e in expected]
  assert (ours.pad_id, ours.unk_id, ours.cls_id, ours.sep_id, ours.mask_id, ours.eod_id) == (
      0, 100, 101, 102, 103, 102)


def test_byte_bpe_equals_gpt2_on_10000_lines(data_dir, lines):
  vocabulary, merges = (f"{data_dir}/vocab/gpt2-{name}" for name in ("encoder.json", "vocab.bpe"))
  ours = tokenizers.load_tokenizer(vocabulary)
  gpt2 = ByteLevelBPETokenizer(vocabulary, merges)
  ids = ours.encode(lines)
  assert [i.tolist() for i in ids] == [e.ids for e in gpt2.encode_batch(lines)]
  assert [ours.decode(i) for i in ids] == lines
  assert (ours.vocab_size, ours.eod_id, ours.pad_id, ours.mask_id) == (50257, 50256, -1, -1)


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
def test_both_names_of_gpt2_files_are_known_in_a_folder(tmp_path, trained, names):
  tokenizer = json.loads(trained["bpe"].data)["model"]
  (tmp_path / names[0]).write_text(json.dumps(tokenizer["vocab"]))
  merges = "\n".join(" ".join(pair) for pair in tokenizer["merges"])
  (tmp_path / names[1]).write_text(f"#version: 0.2\n{merges}\n")
  loaded = tokenizers.load_tokenizer(tmp_path)
  for ours, theirs in zip(loaded.encode(ENGLISH), trained["bpe"].encode(ENGLISH), strict=True):
    assert ours.tolist() == theirs.tolist()


# ----------------------------------------------------------------- training


@pytest.mark.parametrize("kind", KINDS)
def test_specials_come_first_and_text_never_yields_them(trained, kind):
  tokenizer = trained[kind]
  assert tokenizer.vocab_size == SIZES[kind] == len(tokenizer.pieces)
  assert tokenizer.pieces[:6] == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|endoftext|>")
  assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id,
          tokenizer.mask_id, tokenizer.eod_id) == (0, 1, 2, 3, 4, 5)
  assert tokenizer.special_ids == (0, 2, 3, 4, 5)
  named = tokenizer.encode(["a [MASK] b", "[PAD][CLS][SEP]<|endoftext|> <s> </s> <pad>"])
  assert not set(np.concatenate(named).tolist()) & set(tokenizer.special_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_training_twice_gives_the_same_file(kind):
  code = f"""
import sys
sys.path[:0] = [{os.path.dirname(__file__)!r}, {str(HELPERS)!r}]
import test_tokenizers as t
text = t.ENGLISH * 20 + t.CHINESE
config = t.settings({kind!r}, vocab_size={SIZES[kind] + 25})
print(t.training.train_tokenizer(config, text).fingerprint())
"""
  hashes = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONHASHSEED": seed}).stdout for seed in "123"}
  assert len(hashes) == 1


@pytest.mark.parametrize("kind, size", [
    *((kind, size) for kind in KINDS for size in (20, 100_000)), ("words", 5), ("words", 100_000)])
def test_a_size_that_does_not_fit_is_refused_with_one_that_does(kind, size):
  with pytest.raises(DataError, match=r"tokenizer.vocab_size=\d+ does not fit") as e:
    training.train_tokenizer(settings(kind, vocab_size=size), ENGLISH)
  assert "\n" not in str(e.value)
  possible = int(re.search(r"at (?:most|least) (\d+)", str(e.value))[1])
  tokenizer = training.train_tokenizer(settings(kind, vocab_size=possible), ENGLISH)
  assert tokenizer.vocab_size == possible


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_is_an_error(kind):
  with pytest.raises(DataError, match="no text to train on"):
    training.train_tokenizer(settings(kind), iter(["", "  \n"]))


def test_ctrl_c_in_the_training_of_sentencepiece_is_not_an_error_of_the_text():
  class Interrupted(str):
    def __len__(self):
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    training.train_tokenizer(settings("sentencepiece"), [*ENGLISH, Interrupted("the text")])


def test_sentencepiece_learns_from_lines_beyond_its_limit_of_4192_bytes():
  lines = [" ".join(ENGLISH * 40), "".join(CHINESE * 200)]
  assert min(len(line.encode()) for line in lines) > 4192
  tokenizer = training.train_tokenizer(settings("sentencepiece", vocab_size=120), lines)
  ids = np.concatenate(tokenizer.encode(ENGLISH + CHINESE))
  assert not (ids == tokenizer.unk_id).any()


def test_large_sentencepiece_vocabularies_write_unknown_characters_as_bytes(data_dir):
  spec = f"jsonl:{data_dir}/lm/wikipedia_en/heldout.jsonl.xz"
  text = [line for document in source_files.read(spec) for line in document.text.split("\n")]
  config = settings("sentencepiece", model_type="bpe", vocab_size=4096, lowercase=False)
  tokenizer = training.train_tokenizer(config, text)
  odd = "ꙮ is a letter, 😀 is not."
  ids, = tokenizer.encode([odd])
  assert tokenizer.unk_id not in ids and tokenizer.decode(ids) == odd


def test_lowercase_follows_the_config():
  for kind in ("sentencepiece", "wordpiece"):
    for lowercase in (True, False):
      config = settings(kind, lowercase=lowercase)
      tokenizer = training.train_tokenizer(config, ENGLISH * 20)
      text = tokenizer.decode(tokenizer.encode(["The Rain"])[0])
      assert text == ("the rain" if lowercase else "The Rain")


# ----------------------------------------------------------- text and words


@pytest.mark.parametrize("kind", KINDS)
def test_decode_gives_the_text_back(trained, kind):
  tokenizer = trained[kind]
  fold = str if kind == "bpe" else str.lower
  for text in ENGLISH:
    ids, = tokenizer.encode([text])
    assert ids.dtype == np.int32
    # BERT's pieces do not show which punctuation marks had no space before them.
    strip = "".join if kind != "wordpiece" else lambda t: "".join(t).replace(" ", "")
    assert strip(tokenizer.decode(ids)) == strip(fold(text))


@pytest.mark.parametrize("kind", KINDS)
def test_decode_writes_specials_by_name(trained, kind):
  tokenizer = trained[kind]
  ids, = tokenizer.encode(["the house"])
  space = "" if kind == "bpe" else " "
  text = tokenizer.decode([tokenizer.cls_id, *ids, tokenizer.mask_id, tokenizer.eod_id])
  assert text == f"[CLS]{space}the house{space}[MASK]{space}<|endoftext|>"


def whole_words(tokenizer, text):
  """Returns the words of a text according to `continues_word`."""
  continues, groups = tokenizer.continues_word(), []
  for i in tokenizer.encode([text])[0].tolist():
    if groups and continues[i]:
      groups[-1].append(i)
    else:
      groups.append([i])
  return [tokenizer.decode(group).strip() for group in groups]


@pytest.mark.parametrize("kind", KINDS)
def test_table_of_words_follows_spaces_and_marks(trained, kind):
  tokenizer = trained[kind]
  text = "the morning was known to nobody, walking slowly"
  assert whole_words(tokenizer, text) == text.replace(",", " ,").split()
  assert any(len(ids) > 8 for ids in tokenizer.encode([text]))
  assert tokenizer.continues_word().shape == (tokenizer.vocab_size,)
  assert not tokenizer.continues_word()[:6].any()


ODD_WORDS = ["(word) [sic], 'quoted' don't", 'She said:"Yes..."and left', "the-art/old_name@x",
             "naïve café—résumé… «oui»", "हिन्दी में है।वे", "price:€5,000 (≈$6k)😀ok",
             "天天Hello世上。a", "e\u0301te\u0301(a)", "\tTabs\n(and)\nlines", "Привет,мир! ¿Qué?"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_words_start_where_those_of_bert_do(kind, model_type):
  config = settings(kind, model_type=model_type, lowercase=False,
                    vocab_size={"sentencepiece": 150, "wordpiece": 300, "bpe": 420}[kind])
  tokenizer = training.train_tokenizer(config, (ENGLISH + ODD_WORDS) * 20)
  bert = library.Tokenizer(library.models.WordLevel({"?": 0}, unk_token="?"))
  bert.normalizer = library.normalizers.BertNormalizer(False, True, False, False)
  bert.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
  continues, ends = tokenizer.continues_word(), tokenizer.ends_word()
  compared = 0
  for text in ENGLISH + ODD_WORDS:
    starts = {start for start, _ in bert.encode(text).offsets}
    (ids, places), = offsets.encode_with_offsets(tokenizer, [text])
    begins = ~continues[ids] | np.append(True, ends[ids[:-1]])
    end, was_inside, was_space = 0, False, False
    for begin, (first, last) in zip(begins, places.tolist(), strict=True):
      # A token of spaces belongs to the word after it, and a token that begins inside a character
      # does not show which character it ends.
      part, is_inside = text[first:last], first < end
      at = first + len(part) - len(part.lstrip())
      follows_space = was_space and not part[:1].isspace()
      if part.strip() and not (is_inside or was_inside or follows_space):
        assert begin == (at in starts), (text, part)
        compared += 1
      end, was_inside, was_space = last, is_inside, not part.strip()
  assert compared > 100


@pytest.mark.parametrize("kind", KINDS)
def test_chinese_characters_are_words_and_decode(kind):
  config = settings(kind, vocab_size={"sentencepiece": 43, "wordpiece": 42, "bpe": 350}[kind])
  tokenizer = training.train_tokenizer(config, CHINESE * 20)
  for text in CHINESE:
    ids, = tokenizer.encode([text])
    assert tokenizer.unk_id not in ids
    decoded = tokenizer.decode(ids)
    # NFKC replaces the wide punctuation marks of Chinese by narrow ones.
    assert decoded.translate(str.maketrans(",:!", "，：！")) == text
    groups = whole_words(tokenizer, text)
    assert max(map(len, groups)) <= 12 and len(groups) >= len(text) // 4


def test_bert_splits_chinese_into_characters(data_dir):
  tokenizer = tokenizers.load_tokenizer(data_dir / "vocab" / "bert-base-uncased-vocab.txt")
  ids, = tokenizer.encode(["天天Hello世上。"])
  assert [tokenizer.pieces[i] for i in ids] == ["天", "天", "hello", "世", "上", "。"]
  assert tokenizer.decode(ids) == "天天 hello 世上。"


@pytest.mark.parametrize("kind", KINDS)
def test_lone_surrogates_do_not_stop_encoding(trained, kind):
  bad, good = trained[kind].encode(["the \ud800 house", "the house"])
  assert len(bad) > len(good) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_batches_do_not_change_the_ids(trained, kind):
  texts = [text * 1500 for text in ENGLISH * 3]  # Several internal batches.
  whole = trained[kind].encode(texts)
  for ids, text in zip(whole, texts, strict=True):
    assert np.array_equal(ids, trained[kind].encode([text])[0])
  assert trained[kind].encode([]) == []


@pytest.mark.parametrize("method", ["encode", "encode_with_spans"])
def test_unknown_words_are_recorded_in_their_order(method):
  plain = training.train_tokenizer(settings("words"), ENGLISH)
  recording = tokenizers.RecordingWords(plain.data, plain.names)
  for texts in (["the zyzzyva", "qwyx the zyzzyva"], ["abacab", "qwyx"]):
    found, expected = (getattr(t, method)(texts) for t in (recording, plain))
    assert str(found) == str(expected)
  assert list(recording.recorded) == ["zyzzyva", "qwyx", "abacab"]


# -------------------------------------------------------- files and processes


@pytest.mark.parametrize("kind", KINDS)
def test_saved_loaded_and_pickled_tokenizers_are_the_same(tmp_path, trained, kind):
  tokenizer = trained[kind]
  tokenizer.save(tmp_path / "t")
  for other in (tokenizers.load_tokenizer(tmp_path / "t"), pickle.loads(pickle.dumps(tokenizer))):
    assert other.kind == kind and other.fingerprint() == tokenizer.fingerprint()
    assert [i.tolist() for i in other.encode(ENGLISH)] == [
        i.tolist() for i in tokenizer.encode(ENGLISH)]


def _encode_in_child(tokenizer, texts):
  ids = tokenizer.encode(texts)
  return [i.tolist() for i in ids], len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads under /proc")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_worker_processes_encode_the_same_with_one_thread(trained, kind, method):
  tokenizer, texts = trained[kind], ENGLISH * 200
  expected = [i.tolist() for i in tokenizer.encode(texts)]  # Starts the threads of the parent.
  context = multiprocessing.get_context(method)
  with context.Pool(1) as pool:
    before = pool.apply(_count_threads)
    ids, after = pool.apply_async(_encode_in_child, (tokenizer, texts)).get(timeout=1200)
  assert ids == expected
  assert after == before


def _count_threads():
  return len(os.listdir("/proc/self/task"))


NO_TOKENIZERS = {
    "a.model": b"junk", "b.model": b"", "tokenizer.json": b"{}", "c/tokenizer.json": b"not JSON",
    "d/tokenizer.json": b'{"model": {"type": "Unigram"}, "decoder": null}',
    "vocab.txt": b"\xff\xfe", "e/vocab.txt": b"the\ncat\n", "encoder.json": b"{}", "f.bin": b"?",
    "h/tokenizer.json": b'''{"model": {"type": "WordPiece", "unk_token": "[UNK]",
        "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0}},
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true}}''',
    "g/vocab.txt": b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\na\n",
}


@pytest.mark.parametrize("name", NO_TOKENIZERS)
def test_a_file_that_is_not_a_tokenizer_is_one_line_that_names_it(tmp_path, name):
  path = tmp_path / name
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(NO_TOKENIZERS[name])
  with pytest.raises(DataError, match=re.escape(str(path))) as e:
    tokenizers.load_tokenizer(path)
  assert "\n" not in str(e.value)


def test_a_path_without_tokenizer_is_named(tmp_path):
  for path in (tmp_path, tmp_path / "none"):
    with pytest.raises(DataError, match=f"{path}: no tokenizer there"):
      tokenizers.load_tokenizer(path)


def test_case_of_a_bert_vocabulary_is_told_from_its_pieces(tmp_path):
  cased = tokenizers.load_tokenizer(write_bert_vocabulary(tmp_path))
  assert [cased.pieces[i] for i in cased.encode(["the Cat"])[0]] == ["the", "Cat"]
  uncased = tokenizers.load_tokenizer(write_bert_vocabulary(tmp_path, ("the", "cat", "\u2028")))
  assert [uncased.pieces[i] for i in uncased.encode(["the Cát"])[0]] == ["the", "cat"]
  assert uncased.vocab_size == 8
