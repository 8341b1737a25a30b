"""bertgpt.data.tokens.promises: no text yields a special id, and no text has two encodings."""

import io
import json
import pickle

import numpy as np
import pytest
import sentencepiece
import small_runs
import tokenizers as library
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from bertgpt.data.tokens import offsets, promises, tokenizers
from bertgpt.errors import DataError

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TEXT = "The [MASK] sees[SEP]the [cls] house, <url>[PAD]."


def plain_texts():
  return [line for line in small_runs.make_text(20).splitlines() if line]


def sentencepiece_model(folder, **options):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter([*plain_texts(), "[ M A S K C L E P m a s k c l e p ] < url >"] * 3),
      model_writer=model, hard_vocab_limit=False, minloglevel=2, pad_id=0, unk_id=1, bos_id=-1,
      eos_id=-1, pad_piece="[PAD]", unk_piece="[UNK]",
      user_defined_symbols=["[CLS]", "[SEP]", "[MASK]", "<url>"], **{"vocab_size": 90, **options})
  return write(folder / "m.model", model.getvalue())


def wordpiece(pre_tokenizer, *, lowercase=True):
  words = {word for text in plain_texts() for word in (text.lower().replace(".", " .")).split()}
  letters = "abcdefghijklmnopqrstuvwxyz[]<>.,"
  pieces = dict.fromkeys([*SPECIALS, *sorted(words), *letters, *(f"##{c}" for c in letters)])
  tokenizer = library.Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)},
                                                 unk_token="[UNK]"))
  tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
  tokenizer.pre_tokenizer = pre_tokenizer
  tokenizer.decoder = decoders.WordPiece()
  return tokenizer


def byte_bpe(pieces, merges):
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {p: i for i, p in enumerate([*alphabet, *pieces])}
  tokenizer = library.Tokenizer(models.BPE(vocabulary, merges))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def write(path, content):
  path.write_bytes(content if isinstance(content, bytes) else content.to_str().encode())
  return path


def json_file(folder, tokenizer):
  return write(folder / "tokenizer.json", tokenizer)


def words_kept_whole(folder):
  return json_file(folder, wordpiece(pre_tokenizers.WhitespaceSplit(), lowercase=False))


def added_as_text(folder):
  tokenizer = wordpiece(pre_tokenizers.BertPreTokenizer())
  tokenizer.add_tokens(["[MASK]", "[SEP]", "[CLS]", "[PAD]", "<url>"])
  return json_file(folder, tokenizer)


def added_after_the_vocabulary(folder):
  tokenizer = byte_bpe(["ab"], [("a", "b")])
  tokenizer.add_tokens(["[MASK]", "[CLS]", "[SEP]", "<|endoftext|>", "<url>"])
  return json_file(folder, tokenizer)


def merged(folder):
  pieces = ["<|", "<|e", "|>", "<|e|>", "nd", "<s", "<s>"]
  merges = [("<", "|"), ("|", ">"), ("<|", "e"), ("<|e", "|>"), ("n", "d"), ("<", "s"), ("<s", ">")]
  return json_file(folder, byte_bpe(pieces, merges))


BAD = {
    "unigram": sentencepiece_model,
    "unigram in one case": lambda f: sentencepiece_model(f, normalization_rule_name="nmt_nfkc_cf"),
    "bpe of sentencepiece": lambda f: sentencepiece_model(f, model_type="bpe"),
    "words kept whole": words_kept_whole,
    "added as text": added_as_text,
    "added after the vocabulary": added_after_the_vocabulary,
    "merged": merged,
}


@pytest.fixture(params=BAD)
def file(request, tmp_path):
  return BAD[request.param](tmp_path)


def plain_encode(file, texts):
  """Returns the ids that the library alone gives."""
  if file.suffix == ".model":
    return sentencepiece.SentencePieceProcessor(model_file=str(file)).encode(texts)
  encodings = library.Tokenizer.from_file(str(file)).encode_batch(texts, add_special_tokens=False)
  return [e.ids for e in encodings]


def test_text_yields_no_special_id_and_other_texts_keep_their_ids(file):
  tokenizer = tokenizers.load_tokenizer(file)
  names = [tokenizer.pieces[i] for i in tokenizer.special_ids]
  texts = [place.replace("{}", form) for name in names
           for form in (name, name.lower(), name.title())
           for place in ("{}", "the {} house", "the{}house", " {}{}", "天{}。")]
  specials = set(tokenizer.special_ids)
  assert specials & {i for ids in plain_encode(file, texts) for i in ids}, "the file is a good one"
  for other in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
    for text, ids in zip(texts, other.encode(texts), strict=True):
      assert not specials & set(ids.tolist()) and len(ids), text
  plain = plain_texts()
  assert [i.tolist() for i in tokenizer.encode(plain)] == plain_encode(file, plain)
  assert tokenizer.mask_id < 0 or tokenizer.decode([tokenizer.mask_id]) == "[MASK]"


def test_the_file_is_kept_as_it_is(file, tmp_path):
  """The file must not change, because runs and corpora compare its SHA-256."""
  tokenizer = tokenizers.load_tokenizer(file)
  assert tokenizer.data == file.read_bytes()
  tokenizer.save(tmp_path / "saved")
  again = tokenizers.load_tokenizer(tmp_path / "saved")
  assert again.fingerprint() == tokenizer.fingerprint()
  assert np.array_equal(again.encode([TEXT])[0], tokenizer.encode([TEXT])[0])


def test_positions_in_the_text_belong_to_the_same_ids(file):
  tokenizer = tokenizers.load_tokenizer(file)
  (ids, _), = offsets.encode_with_offsets(tokenizer, [TEXT])
  assert np.array_equal(ids, tokenizer.encode([TEXT])[0])


def test_other_added_tokens_keep_their_ids(tmp_path):
  for make in (added_as_text, added_after_the_vocabulary, sentencepiece_model):
    tokenizer = tokenizers.load_tokenizer(make(tmp_path))
    assert tokenizer.pieces.index("<url>") in tokenizer.encode(["a <url> b"])[0], make


def test_a_special_token_that_is_a_part_of_texts_is_refused(tmp_path):
  file = json_file(tmp_path, byte_bpe(["[CLS]", "[SEP]"], []))
  (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!"}))
  with pytest.raises(DataError, match="tokenizer.json: the text '!' yields no token. Give a "
                     "tokenizer with an unknown token or byte fallback$") as e:
    tokenizers.load_tokenizer(file)
  assert "\n" not in str(e.value)


@pytest.mark.parametrize("make", [words_kept_whole, sentencepiece_model, lambda folder: json_file(
    folder, wordpiece(pre_tokenizers.BertPreTokenizer()))])
def test_a_file_is_searched_once_and_what_is_taken_out_of_it_once_more(tmp_path, make, monkeypatch):
  file, searched, search = make(tmp_path), [], promises.find_leak

  def find_leak(encode, specials):
    searched.append(search(encode, specials))
    return searched[-1]

  monkeypatch.setattr(promises, "find_leak", find_leak)
  tokenizers.load_tokenizer(file)
  assert len(searched) == (2 if searched[0] else 1) and not searched[-1]


def test_an_added_special_token_is_text_in_a_text(tmp_path):
  """This includes tokens with flags, such as RoBERTa's mask, which takes the space before it."""
  tokenizer = byte_bpe(["<s>", "</s>", "<pad>"], [])
  tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True), "<s>"])
  loaded = tokenizers.load_tokenizer(json_file(tmp_path, tokenizer))
  text = "the <mask> <s> house"
  assert loaded.mask_id == loaded.vocab_size - 1
  assert loaded.decode(loaded.encode([text])[0]) == text


@pytest.mark.parametrize("make", [lambda: wordpiece(pre_tokenizers.BertPreTokenizer()),
                                  lambda: byte_bpe(["[MASK]", "<|endoftext|>"], [])])
def test_special_tokens_without_a_role_are_parts_of_texts(tmp_path, make):
  """Earlier versions saved files in which they are special, and their ids stay."""
  tokenizer, extra = make(), ["[E1]", "<|user|>"]
  tokenizer.add_special_tokens([*extra, "[MASK]", "<begin>"])
  file = json_file(tmp_path, tokenizer)
  (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<begin>"}))
  names = [*extra, "<begin>", "[MASK]"]
  texts = [f"the {name} house {name}" for name in names]
  ours = tokenizers.load_tokenizer(file)
  ours.save(tmp_path / "saved")
  saved = tokenizers.load_tokenizer(tmp_path / "saved")  # As --config.tokenizer.path=RUN/tokenizer.
  assert saved.fingerprint() == ours.fingerprint()
  for loaded in (ours, saved, tokenizers.load_tokenizer(tmp_path / "saved", is_saved=True)):
    assert set(extra) <= set(loaded.user_symbols) and loaded.shown == ("<|user|>", "[E1]")
    counts = [sum(loaded.pieces[i] == name for i in ids)
              for name, ids in zip(names, loaded.encode(texts), strict=True)]
    assert counts == [2, 2, 0, 0]
  former = tokenizers.load_tokenizer(file, is_saved=True)
  assert former.pieces == ours.pieces and former.fingerprint() != ours.fingerprint()
  former.save(tmp_path / "former")
  assert tokenizers.load_tokenizer(tmp_path / "former").fingerprint() == former.fingerprint()
  assert not any({*map(former.pieces.index, extra)} & set(ids) for ids in former.encode(texts))


def test_dropout_of_a_bpe_is_turned_off(tmp_path):
  pieces = ["th", "the", "ho", "hou", "hous", "house"]
  merges = [("t", "h"), ("th", "e"), ("h", "o"), ("ho", "u"), ("hou", "s"), ("hous", "e")]
  tokenizer = byte_bpe(pieces, merges)
  right = tokenizer.encode("the house" * 9).ids
  tokenizer.model.dropout = 0.5
  assert any(tokenizer.encode("the house" * 9).ids != right for _ in range(9))
  loaded = tokenizers.load_tokenizer(json_file(tmp_path, tokenizer))
  for _ in range(9):
    assert loaded.encode(["the house" * 9])[0].tolist() == right
    (ids, _), = offsets.encode_with_offsets(loaded, ["the house" * 9])
    assert ids.tolist() == right
