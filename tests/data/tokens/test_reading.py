"""bertgpt.data.tokens.reading: the files next to a tokenizer's file are applied, or refused."""

import io
import json
import pathlib
import re

import pytest
import sentencepiece
import small_runs
import tokenizers as library
from tokenizers import decoders, models, normalizers, pre_tokenizers
from tokenizers.implementations import BertWordPieceTokenizer

from bertgpt.data.tokens import pipelines, reach, tokenizers
from bertgpt.errors import DataError

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BYTES = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
TEXTS = ["The Cat sees the cát.", "Äpfel äpfel apfel", "天天向上 today", "हिन्दी में है",
         "THE ÉCOLE école", "한국어 문장",
         "e\u0301cole \ufb01ne", "tab\tand\u3000space", "e\u200bt c"]
MIXED = ("The", "the", "cat", "Cat", "cát", "Äpfel", "äpfel", "apfel", "天", "天天", "向上",
         "today", "हिन्दी", "में", "है", "मे", "ह", "THE", "école", "ecole", "한국어", "문장",
         "##a", "##s", ".", *(f"[unused{i}]" for i in range(99)), *(f"word{i}" for i in range(400)))
HINDI = ("में", "हिन्दी", "भाषा", "है", "अपने", "घर", "पानी", "यह", "पुस्तक", "मेरी", "नदी", "के", "पास")


def write_vocabulary(folder, pieces=MIXED, specials=SPECIALS, **settings):
  folder.mkdir(exist_ok=True)
  (folder / "vocab.txt").write_text("\n".join([*specials, *pieces, ""]), "utf-8")
  if settings:
    write_json(folder / "tokenizer_config.json", settings)
  return folder


def write_json(path, content):
  path.write_text(json.dumps(content), "utf-8")


def encode(tokenizer, texts=TEXTS):
  return [ids.tolist() for ids in tokenizer.encode(texts)]


def bert_ids(folder, texts=TEXTS, **settings):
  """Returns the ids of the BERT of `tokenizers`."""
  bert = BertWordPieceTokenizer(str(folder / "vocab.txt"), **settings)
  bert.encode_special_tokens = True
  return [e.ids for e in bert.encode_batch(texts, add_special_tokens=False)]


def pieces_of(tokenizer, text):
  return [tokenizer.pieces[i] for i in tokenizer.encode([text])[0]]


# --------------------------------------------------------------------- vocab.txt


@pytest.mark.parametrize("case", [True, False])
@pytest.mark.parametrize("accents", [None, True, False])
@pytest.mark.parametrize("chinese", [True, False])
def test_the_settings_of_the_folder_are_obeyed(tmp_path, case, accents, chinese):
  folder = write_vocabulary(tmp_path, do_lower_case=case, strip_accents=accents,
                            tokenize_chinese_chars=chinese)
  expected = bert_ids(folder, lowercase=case, strip_accents=accents, handle_chinese_chars=chinese)
  for lowercase in (None, True, False):  # The folder takes precedence over a config.
    for path in (folder, folder / "vocab.txt"):
      assert encode(tokenizers.load_tokenizer(path, lowercase)) == expected


@pytest.mark.parametrize("case", [True, False])
def test_the_config_is_obeyed_if_the_folder_does_not_say_it(tmp_path, case):
  folder = write_vocabulary(tmp_path, ("the", "cat", "##s", *(f"w{i}" for i in range(99)), "Cat"))
  ours = tokenizers.load_tokenizer(folder, case)
  assert encode(ours) == bert_ids(folder, lowercase=case)
  assert pieces_of(ours, "the Cat") == ["the", "cat" if case else "Cat"]


@pytest.mark.parametrize("lowercase", [None, True, False])
def test_pieces_with_marks_are_found_again(tmp_path, lowercase):
  ours = tokenizers.load_tokenizer(write_vocabulary(tmp_path, HINDI), lowercase)
  assert pieces_of(ours, " ".join(HINDI)) == list(HINDI)


def test_umlauts_of_a_vocabulary_without_capitals_stay(tmp_path):
  folder = write_vocabulary(tmp_path, ("äpfel", "über", "straße", "haus", "baum"))
  assert pieces_of(tokenizers.load_tokenizer(folder, True), "Äpfel Haus") == ["äpfel", "haus"]


@pytest.mark.parametrize("said, lowercase, pieces, remedy", [
    ({}, True, ("The", "Cat", "sees"), r"Set tokenizer\.lowercase=False"),
    ({"do_lower_case": True}, None, ("The", "Cat", "sees"),
     r'Write {"do_lower_case": false} into .*tokenizer_config\.json'),
    ({"do_lower_case": True}, None, HINDI, r'Write {"strip_accents": false} into'),
    ({"do_lower_case": False, "strip_accents": True}, None, HINDI, "Write {"),
    ({"do_lower_case": False}, None, ("天天", "向上", "today"),
     r'Write {"tokenize_chinese_chars": false}'),
    ({"strip_accents": True}, False, ("äpfel", "über", "haus"), r'Write {"strip_accents": null}'),
    ({}, True, ("Haus", *(f"w{i}" for i in range(25))), r"Set tokenizer\.lowercase=False"),
])
def test_pieces_that_no_text_yields_are_an_error_that_says_what_to_set(
    tmp_path, said, lowercase, pieces, remedy):
  folder = write_vocabulary(tmp_path, pieces, **said)
  with pytest.raises(DataError, match=rf"vocab\.txt: no text yields \d+% of its .*{remedy}") as e:
    tokenizers.load_tokenizer(folder, lowercase)
  assert "\n" not in str(e.value)


def test_the_advice_helps(tmp_path):
  for pieces in (("The", "Cat", "sees"), HINDI, ("天天", "向上", "today")):
    folder = write_vocabulary(tmp_path / pieces[0], pieces, do_lower_case=True)
    with pytest.raises(DataError) as e:
      tokenizers.load_tokenizer(folder)
    advice = json.loads(re.search(r"Write ({.*?}) into", str(e.value))[1])
    write_json(folder / "tokenizer_config.json", {"do_lower_case": True, **advice})
    assert pieces_of(tokenizers.load_tokenizer(folder), " ".join(pieces)) == list(pieces)


@pytest.mark.parametrize("data", [
    b"\xef\xbb\xbf[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\ncat\n",
    b"[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\nthe\r\ncat\r\n", b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\ncat",
    b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\ncat\n\n", b"[PAD] \n[UNK]\n[CLS]\t\n[SEP]\n the\ncat \n"])
def test_marks_and_spaces_around_the_lines_are_not_part_of_pieces(tmp_path, data):
  (tmp_path / "vocab.txt").write_bytes(data)
  ours = tokenizers.load_tokenizer(tmp_path)
  assert ours.pieces == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_special_tokens_have_the_names_that_the_folder_says(tmp_path, name):
  names = {"pad_token": "<pad>", "unk_token": "<unknown>", "cls_token": {"content": "<cls>"},
           "sep_token": "<sep>", "mask_token": {"content": "<MASK>", "lstrip": True}}
  specials = ("<pad>", "<unknown>", "<cls>", "<sep>", "<MASK>", "[MASK]")
  folder = write_vocabulary(tmp_path / "a", ("the", "cat"), specials)
  write_json(folder / name, names)
  ours = tokenizers.load_tokenizer(folder)
  ours.save(tmp_path / "b")
  for tokenizer in (ours, tokenizers.load_tokenizer(tmp_path / "b")):
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id,
            tokenizer.mask_id) == (0, 1, 2, 3, 4)
    assert tokenizer.fingerprint() == ours.fingerprint()
    assert pieces_of(tokenizer, "the dog") == ["the", "<unknown>"]
  (folder / name).unlink()
  with pytest.raises(DataError, match=r"is not a BERT vocabulary. It lacks .*\. Give a file with"):
    tokenizers.load_tokenizer(folder)


def test_the_end_of_a_document_stays_special_in_the_folder_of_gpt2(tmp_path):
  """GPT-2's folder also names it as the unknown token, and often as the padding."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  write_json(tmp_path / "vocab.json", {c: i for i, c in enumerate([*alphabet, "<|endoftext|>"])})
  (tmp_path / "merges.txt").write_text("#version: 0.2\n")
  plain = tokenizers.load_tokenizer(tmp_path)
  write_json(tmp_path / "special_tokens_map.json", dict.fromkeys(
      ("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>"))
  ours = tokenizers.load_tokenizer(tmp_path)
  assert ours.special_ids == (256,) and ours.eod_id == 256 and ours.unk_id == ours.pad_id == -1
  assert ours.fingerprint() == plain.fingerprint()


@pytest.mark.parametrize("role", ["unk_token", "pad_token"])
def test_a_name_that_the_vocabulary_lacks_is_a_note_and_changes_no_role(tmp_path, role):
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  write_json(tmp_path / "vocab.json", {c: i for i, c in enumerate([*alphabet, "<|endoftext|>"])})
  (tmp_path / "merges.txt").write_text("#version: 0.2\n")
  plain = tokenizers.load_tokenizer(tmp_path)
  write_json(tmp_path / "special_tokens_map.json", {role: "<|endoftext|>", "eos_token": "</s>"})
  ours = tokenizers.load_tokenizer(tmp_path)
  assert "its vocabulary lacks the special tokens '</s>', so they are not used" in ours.note
  write_json(tmp_path / "tokenizer_config.json", {"additional_special_tokens": ["[E1]", "[E2]"]})
  ours = tokenizers.load_tokenizer(tmp_path)
  assert "lacks the special tokens '</s>', '[E1]', '[E2]', so they are not used" in ours.note
  ours.save(tmp_path / "saved")
  saved = tokenizers.load_tokenizer(tmp_path / "saved", is_saved=True)
  assert ours.roles == saved.roles == plain.roles and ours.eod_id == 256
  assert ours.fingerprint() == saved.fingerprint() == plain.fingerprint()
  assert not saved.note and not plain.note


def test_names_that_the_vocabulary_tells_leave_one_file(tmp_path):
  folder = write_vocabulary(tmp_path / "a", ("the", "cat"), cls_token="[CLS]", mask_token="[MASK]")
  tokenizers.load_tokenizer(folder).save(tmp_path / "b")
  assert [path.name for path in (tmp_path / "b").iterdir()] == ["tokenizer.json"]


def test_added_tokens_follow_the_vocabulary(tmp_path):
  folder = write_vocabulary(tmp_path, ("the", "cat"), additional_special_tokens=["<mark>"])
  write_json(folder / "added_tokens.json", {"<url>": 7, "<mark>": 8, "<begin>": 9})
  write_json(folder / "special_tokens_map.json", {"bos_token": "<begin>"})
  ours = tokenizers.load_tokenizer(folder)
  assert ours.vocab_size == 10
  assert pieces_of(ours, "the<url> cat") == ["the", "<url>", "cat"]
  assert pieces_of(ours, "the<mark> cat") == ["the", "<mark>", "cat"]
  assert "<begin>" not in pieces_of(ours, "the <begin> cat")
  write_json(folder / "added_tokens.json", {"<url>": 10})
  with pytest.raises(DataError, match="the id of the added token '<url>' is 10 according to"):
    tokenizers.load_tokenizer(folder)


@pytest.mark.parametrize("content", ['{"do_lower_case": "yes"}', "[]", "{", '{"cls_token": 3}',
                                     '{"added_tokens_decoder": {"0": "x", "y": 1}}'])
def test_a_damaged_file_beside_it_is_named(tmp_path, content):
  folder = write_vocabulary(tmp_path)
  (folder / "tokenizer_config.json").write_text(content)
  with pytest.raises(DataError, match=re.escape(str(tmp_path))) as e:
    tokenizers.load_tokenizer(folder)
  assert "\n" not in str(e.value)


# ----------------------------------------------------------------------- classes


@pytest.mark.parametrize("name", ["BertTokenizer", "BertTokenizerFast", "ElectraTokenizerFast",
                                  "PreTrainedTokenizerFast", "DistilBertTokenizer"])
def test_classes_that_read_the_same_files_alike_are_known(tmp_path, name):
  folder = write_vocabulary(tmp_path, HINDI, tokenizer_class=name, do_lower_case=False)
  assert pieces_of(tokenizers.load_tokenizer(folder), HINDI[0]) == [HINDI[0]]


@pytest.mark.parametrize("settings", [
    {"tokenizer_class": "BertJapaneseTokenizer", "do_lower_case": False},
    {"tokenizer_class": "EsmTokenizer"}, {"tokenizer_class": "RoFormerTokenizerFast"},
    {"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": ["my.MyTokenizer", None]}},
    {"tokenizer_class": "MyTokenizer", "auto_map": ["my.MyTokenizer", None]}])
@pytest.mark.parametrize("place", ["tokenizer_config.json", "config.json"])
def test_classes_whose_files_are_merely_named_alike_are_refused_by_name(tmp_path, settings, place):
  if place == "config.json" and "auto_map" in settings:
    pytest.skip("only tokenizer_config.json names code")
  folder = write_vocabulary(tmp_path, HINDI)
  write_json(folder / place, settings)
  name = settings["tokenizer_class"].removesuffix("Fast")
  with pytest.raises(DataError, match=f"vocab.txt: .*{name}") as e:
    tokenizers.load_tokenizer(folder)
  assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["CLIPTokenizer", "Qwen2TokenizerFast", "CTRLTokenizer"])
def test_other_classes_with_merges_are_refused_by_name(tmp_path, name):
  write_gpt2(tmp_path)
  write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": name})
  with pytest.raises(DataError, match=f"tokenizer_class is {name.removesuffix('Fast')}"):
    tokenizers.load_tokenizer(tmp_path)


def test_the_class_of_a_folder_without_a_template_gives_the_separators_of_pairs(tmp_path):
  write_gpt2(tmp_path)
  size = tokenizers.load_tokenizer(tmp_path).vocab_size
  write_json(tmp_path / "added_tokens.json", {"<s>": size, "</s>": size + 1})
  for name, expected in (("GPT2Tokenizer", 1), ("RobertaTokenizer", 2), ("BartTokenizerFast", 2)):
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": name})
    ours = tokenizers.load_tokenizer(tmp_path)
    assert ours.num_separators == expected, name
    assert ours.encode(["the"])[0].tolist() == [size - 1]
  (tmp_path / "tokenizer_config.json").unlink()
  for model_type, expected in (("gpt2", 1), ("roberta", 2), ("longformer", 2)):
    write_json(tmp_path / "config.json", {"model_type": model_type})
    assert tokenizers.load_tokenizer(tmp_path).num_separators == expected, model_type


def test_another_class_of_sentencepiece_is_refused_by_name(tmp_path):
  write_sentencepiece(tmp_path)
  assert tokenizers.load_tokenizer(tmp_path).kind == "sentencepiece"
  write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer"})
  with pytest.raises(DataError, match="tokenizer_class is XLMRobertaTokenizer"):
    tokenizers.load_tokenizer(tmp_path)


def write_gpt2(folder):
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  write_json(folder / "vocab.json", {c: i for i, c in enumerate([*alphabet, "th", "the"])})
  (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")


def write_sentencepiece(folder, **options):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(small_runs.make_text(20).splitlines()), model_writer=model,
      vocab_size=60, hard_vocab_limit=False, minloglevel=2, **options)
  (folder / "tokenizer.model").write_bytes(model.getvalue())


def test_added_tokens_follow_the_pieces_of_sentencepiece(tmp_path):
  write_sentencepiece(tmp_path)
  size = tokenizers.load_tokenizer(tmp_path).vocab_size
  write_json(tmp_path / "added_tokens.json", {"<url>": size + 1, "[MASK]": size, "[E1]": size + 2})
  write_json(tmp_path / "special_tokens_map.json", {
      "mask_token": "[MASK]", "additional_special_tokens": ["[E1]"]})
  ours = tokenizers.load_tokenizer(tmp_path)
  assert ours.vocab_size == size + 3 and ours.mask_id == size
  ids, = ours.encode(["the <url> [MASK] house [E1]"])
  assert {size + 1, size + 2} <= set(ids) and size not in ids


def test_a_folder_with_a_model_of_another_name_says_how_to_convert_it(tmp_path):
  write_sentencepiece(tmp_path)
  (tmp_path / "tokenizer.model").rename(tmp_path / "spiece.model")
  with pytest.raises(DataError, match="spiece.model .*AutoTokenizer .*save_pretrained") as e:
    tokenizers.load_tokenizer(tmp_path)
  assert "\n" not in str(e.value)
  assert tokenizers.load_tokenizer(tmp_path / "spiece.model").kind == "sentencepiece"
  with pytest.raises(DataError, match="no tokenizer there"):
    tokenizers.load_tokenizer(tmp_path / "none")


@pytest.mark.parametrize("write, name", [
    *((write_vocabulary, name) for name in (
        "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json",
        "tokenizer.json", "tokenizer.model")),
    (write_sentencepiece, "tokenizer.json")])
@pytest.mark.parametrize("make", [pathlib.Path.mkdir, lambda path: path.symlink_to("../missing")])
def test_a_link_to_a_missing_file_is_not_taken_for_no_file(write, name, make, tmp_path):
  """Without its files, a tokenizer would give other ids."""
  write(tmp_path)
  tokenizers.load_tokenizer(tmp_path)
  make(tmp_path / name)
  message = f"{tmp_path / name}: is a folder, or a link to a missing file. Copy the folder again"
  with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
    tokenizers.load_tokenizer(tmp_path)


def test_a_link_that_is_given_as_the_tokenizer_is_named(tmp_path):
  (tmp_path / "tokenizer.json").symlink_to("missing")
  with pytest.raises(DataError, match="tokenizer.json: is a folder, or a link to a missing file"):
    tokenizers.load_tokenizer(tmp_path / "tokenizer.json")


def test_the_unknown_piece_of_sentencepiece_may_have_any_name(tmp_path):
  write_sentencepiece(tmp_path, unk_piece="<?>")
  ours = tokenizers.load_tokenizer(tmp_path)
  assert ours.pieces[ours.unk_id] == "<?>"
  assert ours.unk_id in ours.encode(["☃"])[0]


def test_a_space_before_the_text_is_added_if_the_folder_says_so(tmp_path):
  write_gpt2(tmp_path)
  assert pieces_of(tokenizers.load_tokenizer(tmp_path), "the") == ["the"]
  write_json(tmp_path / "tokenizer_config.json", {"add_prefix_space": True})
  assert pieces_of(tokenizers.load_tokenizer(tmp_path), "the") == ["Ġ", "the"]


# ---------------------------------------------------------------- tokenizer.json


def write_json_tokenizer(folder, tokenizer, **settings):
  tokenizer.save(str(folder / "tokenizer.json"))
  write_json(folder / "tokenizer_config.json", settings)
  return folder


def bert_json(lowercase):
  vocabulary = {p: i for i, p in enumerate([*SPECIALS, *MIXED])}
  tokenizer = library.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
  tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = library.decoders.WordPiece()
  return tokenizer


@pytest.mark.parametrize("before, said", [(True, False), (False, True)])
@pytest.mark.parametrize("named", [{"tokenizer_class": "BertTokenizer"}, {}])
def test_the_settings_beside_a_tokenizer_json_are_obeyed(tmp_path, before, said, named):
  folder = write_json_tokenizer(tmp_path, bert_json(before), do_lower_case=said,
                                strip_accents=False, model_max_length=512, **named)
  expected = bert_json(said)
  expected.normalizer = normalizers.BertNormalizer(lowercase=said, strip_accents=False)
  assert encode(tokenizers.load_tokenizer(folder)) == [
      expected.encode(text, add_special_tokens=False).ids for text in TEXTS]


def test_without_such_settings_a_tokenizer_json_stays_as_it_is(tmp_path):
  for settings in ({"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False},
                   {"tokenizer_class": "BertTokenizer"},
                   {"tokenizer_class": "BertTokenizer", "do_lower_case": True}):
    write_json_tokenizer(tmp_path, bert_json(True), **settings)
    ours = tokenizers.load_tokenizer(tmp_path)
    assert ours.data == (tmp_path / "tokenizer.json").read_bytes()


OWN = normalizers.BertNormalizer(lowercase=False, strip_accents=True, handle_chinese_chars=False)


@pytest.mark.parametrize("settings, model_type, is_default", [
    ({"tokenizer_class": "BertTokenizer"}, "", True),
    ({"tokenizer_class": "ElectraTokenizerFast", "strip_accents": None}, "electra", True),
    ({}, "bert", True),
    # Such as the folder of a tokenizer that was saved here.
    ({}, "", False),
    ({"tokenizer_class": "PreTrainedTokenizerFast"}, "bert", False),
    ({"tokenizer_class": "BertTokenizer"}, "modernbert", False)])
def test_a_setting_that_is_not_there_has_the_default_of_the_class(tmp_path, settings, model_type,
                                                                  is_default):
  write_json_tokenizer(tmp_path, json_of(MIXED, OWN), **settings)
  write_json(tmp_path / "config.json", {"model_type": model_type})
  expected = json_of(MIXED, normalizers.BertNormalizer() if is_default else OWN)
  ids = [expected.encode(text, add_special_tokens=False).ids for text in TEXTS]
  ours = tokenizers.load_tokenizer(tmp_path)
  assert encode(ours) == ids
  former = tokenizers.load_tokenizer(tmp_path, is_saved=True)  # As earlier versions read it.
  assert (former.fingerprint() == ours.fingerprint()) != is_default


def json_of(pieces, normalizer):
  vocabulary = {p: i for i, p in enumerate([*SPECIALS, *pieces])}
  tokenizer = library.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
  tokenizer.normalizer = normalizer
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = library.decoders.WordPiece()
  return tokenizer


@pytest.mark.parametrize("normalizer, settings, remedy", [
    (normalizers.BertNormalizer(), {}, r'Write {"do_lower_case": false} into .*_config\.json'),
    (normalizers.BertNormalizer(lowercase=False), {"do_lower_case": True},
     r'Write {"do_lower_case": false} into .*_config\.json'),
    (normalizers.BertNormalizer(), {"tokenizer_class": "PreTrainedTokenizerFast"},
     r'Set {"lowercase": false} in the normalizer of the file'),
    (normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()]), {},
     "because its normalizer changes them. Give the vocabulary .* or correct the normalizer")])
def test_pieces_that_the_normalizer_of_a_file_hides_are_an_error(tmp_path, normalizer, settings,
                                                                 remedy):
  folder = write_json_tokenizer(
      tmp_path, json_of(("Berlin", "Paris", "Hund"), normalizer), **settings)
  with pytest.raises(DataError, match=f"json: no text yields 100% of its .*{remedy}") as e:
    tokenizers.load_tokenizer(folder)
  assert "\n" not in str(e.value)
  if advice := re.search(r"Write ({.*?}) into", str(e.value)):
    write_json(folder / "tokenizer_config.json", settings | json.loads(advice[1]))
    assert pieces_of(tokenizers.load_tokenizer(folder), "Paris") == ["Paris"]
  ours = tokenizers.load_tokenizer(folder, is_saved=True)  # As earlier versions saved it.
  assert ours.vocab_size == len(SPECIALS) + 3


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_files_of_early_versions_do_not_name_the_type_of_their_model(tmp_path, kind):
  """The library wrote such files until the type was added, and still reads them."""
  if kind == "bpe":
    tokenizer = library.Tokenizer(models.BPE({c: i for i, c in enumerate("abcdehstĠ")}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
  elif kind == "unigram":
    tokenizer = library.Tokenizer(models.Unigram(
        [("<unk>", 0.0), *((piece, -1.0) for piece in ("▁the", "▁cat", "s"))], 0))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
  else:
    tokenizer = bert_json(True)
  write_json_tokenizer(tmp_path, tokenizer)
  typed = tokenizers.load_tokenizer(tmp_path)
  content = json.loads((tmp_path / "tokenizer.json").read_text())
  del content["model"]["type"]
  write_json(tmp_path / "tokenizer.json", content)
  ours = tokenizers.load_tokenizer(tmp_path)
  assert ours.kind == kind and ours.pieces == typed.pieces
  assert encode(ours, ["the cat s"]) == encode(typed, ["the cat s"])
  ours.save(tmp_path / "saved")
  assert tokenizers.load_tokenizer(tmp_path / "saved", is_saved=True).pieces == ours.pieces


def test_a_saved_tokenizer_is_the_same_when_its_folder_is_given(tmp_path):
  """`import` prints a command with this folder, and training compares fingerprints."""
  names = ["<|start|>", "<|pad|>", "<|end|>"]
  tokenizer = library.Tokenizer(models.BPE(BYTES | {n: 256 + i for i, n in enumerate(names)}, []))
  tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
  tokenizer.add_special_tokens(names)
  write_json_tokenizer(tmp_path, tokenizer, bos_token="<|start|>", pad_token="<|pad|>",
                       eos_token="<|end|>")
  ours = tokenizers.load_tokenizer(tmp_path)
  assert ours.names["eod"] == "<|end|>"
  ours.save(tmp_path / "saved")
  again = tokenizers.load_tokenizer(tmp_path / "saved")
  assert again.fingerprint() == ours.fingerprint()
  assert encode(again, ["a<|start|>b"]) == encode(ours, ["a<|start|>b"])


def test_special_tokens_that_a_list_alone_names_are_found_in_texts(tmp_path):
  folder = write_json_tokenizer(tmp_path, json_of((*MIXED, "[E1]"), normalizers.BertNormalizer()))
  (folder / "tokenizer_config.json").unlink(missing_ok=True)
  write_json(folder / "special_tokens_map.json",
             {"cls_token": "[CLS]", "additional_special_tokens": ["[E1]"]})
  assert "[E1]" in pieces_of(tokenizers.load_tokenizer(folder), "the [E1] cat")


@pytest.mark.parametrize("decoder, expected", [({}, "<mask2>"), (
    {"added_tokens_decoder": {"6": {"content": "word0", "special": False}}}, "<mask1>")])
def test_a_list_of_added_tokens_gives_the_config_priority(tmp_path, decoder, expected):
  folder = write_vocabulary(tmp_path, ("<mask1>", "<mask2>", "word0", *MIXED[:60]),
                            ("[PAD]", "[UNK]", "[CLS]", "[SEP]"), mask_token="<mask1>", **decoder)
  write_json(folder / "special_tokens_map.json", {"mask_token": "<mask2>"})
  pieces = tokenizers.load_tokenizer(folder)
  assert pieces.pieces[pieces.mask_id] == expected


@pytest.mark.parametrize("settings, model_type, is_obeyed", [
    ({"tokenizer_class": "BertTokenizer"}, "modernbert", False),
    ({"tokenizer_class": "BertTokenizer"}, "bert", True),
    ({}, "modernbert", False), ({}, "", True), ({}, "lxmert", True)])
def test_the_tokenizer_json_of_a_modernbert_needs_no_settings(tmp_path, settings, model_type,
                                                              is_obeyed):
  write_json_tokenizer(tmp_path, bert_json(False), do_lower_case=True, **settings)
  write_json(tmp_path / "config.json", {"model_type": model_type})
  one, other = encode(tokenizers.load_tokenizer(tmp_path), ["THE CAT", "the cat"])
  assert (one == other) == is_obeyed


@pytest.mark.parametrize("said", [True, False, None])
def test_the_class_of_gpt2_may_begin_texts(tmp_path, said):
  write_json(tmp_path / "vocab.json", BYTES | {"<s>": 256, "<|endoftext|>": 257})
  (tmp_path / "merges.txt").write_text("#version: 0.2\n")
  for name, expected in (("<s>", 256), (None, 257)):
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": said, "bos_token": name}
    write_json(tmp_path / "tokenizer_config.json",
               {key: value for key, value in settings.items() if value is not None})
    ids = tokenizers.load_tokenizer(tmp_path).apply_template("a")
    assert ids == [expected, BYTES["a"]][not said:]


def test_flags_in_a_tokenizer_json_stay(tmp_path):
  """added_tokens.json has only names and ids."""
  tokenizer = bert_json(False)
  tokenizer.add_tokens([library.AddedToken("[E1]", single_word=True)])
  write_json_tokenizer(tmp_path, tokenizer, tokenizer_class="BertTokenizer", do_lower_case=True)
  write_json(tmp_path / "added_tokens.json", {"[E1]": tokenizer.token_to_id("[E1]")})
  ours = tokenizers.load_tokenizer(tmp_path)
  alone, joined = encode(ours, ["the [E1] cat", "the [E1]cat"])
  assert ours.pieces.index("[E1]") in alone and ours.pieces.index("[E1]") not in joined


@pytest.mark.parametrize("is_json", [True, False])
@pytest.mark.parametrize("capitals, is_noted", [(1, False), (9, True)])
def test_few_pieces_that_no_text_yields_are_a_note(tmp_path, is_json, capitals, is_noted):
  pieces = [*(f"Word{i}" for i in range(capitals)), *(f"word{i}" for i in range(91))]
  if is_json:
    write_json_tokenizer(tmp_path, json_of(pieces, normalizers.BertNormalizer()))
  else:
    write_vocabulary(tmp_path, pieces, do_lower_case=True)
  note = tokenizers.load_tokenizer(tmp_path).note
  assert bool(note) == is_noted
  if is_noted:
    assert f"no text yields {capitals}% of its pieces" in note
    assert 'Unless the model was trained this way, write {"do_lower_case": false} into' in note


@pytest.mark.parametrize("model, decoder, kind", [
    (models.Unigram([("<unk>", 0.0), *(("\u2581" + w, -1.0) for w in ("The", "Cat", "x"))], 0),
     library.decoders.Metaspace(), "unigram"),
    (models.BPE({c: i for i, c in enumerate("ABCDEFxyz")}, []), library.decoders.ByteLevel(),
     "bpe")])
def test_the_normalizers_of_other_models_hide_pieces_too(tmp_path, model, decoder, kind):
  tokenizer = library.Tokenizer(model)
  tokenizer.normalizer = normalizers.Lowercase()
  tokenizer.decoder = decoder
  tokenizer.pre_tokenizer = (pre_tokenizers.ByteLevel() if kind == "bpe"
                             else pre_tokenizers.Metaspace())
  with pytest.raises(DataError, match="tokenizer.json: no text yields (50|67)% of its pieces"):
    tokenizers.load_tokenizer(write_json_tokenizer(tmp_path, tokenizer))


def test_bytes_may_come_from_the_normalizer(tmp_path):
  """No piece with a space or an accent is found in a text before it is written in bytes."""
  tokenizer = library.Tokenizer(models.BPE())
  tokenizer.normalizer = normalizers.ByteLevel()
  tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
  tokenizer.decoder = library.decoders.ByteLevel()
  words = [f"é{a}{b}ü" for a in "abcdefghij" for b in "klmnopqrst"]
  tokenizer.train_from_iterator([" ".join(words)] * 3, library.trainers.BpeTrainer(
      vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
  ours = tokenizers.load_tokenizer(write_json_tokenizer(tmp_path, tokenizer))
  assert not ours.note
  assert encode(ours, ["éakü"])[0] == tokenizer.encode("éakü").ids


def test_a_setting_of_the_normalizer_may_be_missing(tmp_path):
  folder = write_json_tokenizer(tmp_path, json_of(("the", "cat"), normalizers.BertNormalizer()),
                                tokenizer_class="PreTrainedTokenizerFast")
  content = json.loads((folder / "tokenizer.json").read_text())
  del content["normalizer"]["strip_accents"]
  write_json(folder / "tokenizer.json", content)
  assert pieces_of(tokenizers.load_tokenizer(folder), "The cat") == ["the", "cat"]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "gpt1_bpe", "unigram"])
@pytest.mark.parametrize("in_sequence", [True, False])
def test_a_decoder_may_lack_or_be_alone_in_a_sequence(tmp_path, kind, in_sequence):
  tokenizer = {
      "wordpiece": lambda: bert_json(True),
      "bpe": lambda: pipelines.byte_bpe_pipeline(
          models.BPE({"t": 0, "h": 1, "th": 2}, [("t", "h")])),
      "gpt1_bpe": lambda: pipelines.gpt1_pipeline({"t": 0, "h</w>": 1, "th</w>": 2, "<unk>": 3},
                                                  [("t", "h</w>")]),
      "unigram": lambda: library.Tokenizer(models.Unigram(
          [("<unk>", 0.0), ("\u2581th", -1.0), ("\u2581t", -2.0), ("h", -2.0)], 0))}[kind]()
  if kind == "unigram":
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
  write_json_tokenizer(tmp_path, tokenizer)
  whole = tokenizers.load_tokenizer(tmp_path)
  tokenizer.decoder = decoders.Sequence([tokenizer.decoder]) if in_sequence else None
  write_json_tokenizer(tmp_path, tokenizer)
  ours = tokenizers.load_tokenizer(tmp_path)
  assert ours.kind == kind
  (ids,), (expected,) = ours.encode(["th th"]), whole.encode(["th th"])
  assert ids.tolist() == expected.tolist() and ours.decode(ids) == whole.decode(ids)


@pytest.mark.parametrize("model, decoder, message", [
    (models.BPE({"a": 0, "b": 1, "ab</w>": 2, "b</w>": 3}, [("a", "b</w>")],
                end_of_word_suffix="</w>"), library.decoders.ByteLevel(), "marks the ends of"),
    (models.BPE({"a": 0, "b": 1}, []), library.decoders.ByteLevel(), "pre-tokenizer to bytes"),
    (models.BPE({"a": 0, "b@@": 1}, [], end_of_word_suffix="@@"),
     library.decoders.BPEDecoder(suffix="@@"), "does not mark the ends of words with </w>"),
    (models.WordPiece({"a": 0, "@b": 1}, unk_token="a", continuing_subword_prefix="@"),
     library.decoders.WordPiece(), "begin with '@' instead of '##'"),
    (models.WordLevel({"a": 0}, unk_token="a"), library.decoders.WordPiece(), "type WordLevel")])
def test_another_model_is_refused(tmp_path, model, decoder, message):
  tokenizer = library.Tokenizer(model)
  tokenizer.decoder = decoder
  with pytest.raises(DataError, match=f"tokenizer.json: .*{message}"):
    tokenizers.load_tokenizer(write_json_tokenizer(tmp_path, tokenizer))


def test_lower_cased_words_are_read_again(tmp_path):
  fast = pipelines.words_pipeline({"[UNK]": 0, "the": 1, "cat": 2}, lowercase=True)
  ours = tokenizers.Words(pipelines.serialize(fast))
  ours.save(tmp_path)
  assert pieces_of(tokenizers.load_tokenizer(tmp_path), "The CAT sees") == ["the", "cat", "[UNK]"]


def test_pieces_of_every_kind_in_a_tokenizer_json_have_a_text():
  assert set(reach._TEXTS) == {kind for kind, cls in tokenizers.KINDS.items()
                               if cls.file_name == "tokenizer.json"}


# -------------------------------------------------------------------------- GPT-1


def gpt1_files(folder):
  """Writes a small GPT-1 vocabulary, trained by `tokenizers`, and returns its lines of text."""
  texts = [*small_runs.make_text(40).splitlines(), *TEXTS]
  tokenizer = library.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
  tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.train_from_iterator(texts, library.trainers.BpeTrainer(
      vocab_size=300, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False))
  folder.mkdir(exist_ok=True)
  tokenizer.model.save(str(folder))
  tokenizer.decoder = library.decoders.BPEDecoder(suffix="</w>")
  return tokenizer, [*texts, "Unseen: ☃ and ZEBRAS, naïve!", "", " ", "a\n\nb", "x" * 120]


@pytest.mark.parametrize("settings", [{}, {"tokenizer_class": "OpenAIGPTTokenizer"},
                                      {"tokenizer_class": "OpenAIGPTTokenizerFast"}])
def test_gpt1_is_told_from_its_vocabulary(tmp_path, settings):
  expected, texts = gpt1_files(tmp_path / "a")
  write_json(tmp_path / "a" / "tokenizer_config.json", settings)
  write_json(tmp_path / "a" / "config.json", {"model_type": "openai-gpt"})
  expected.save(str(tmp_path / "tokenizer.json"))
  for path in (tmp_path / "a", tmp_path / "tokenizer.json"):
    ours = tokenizers.load_tokenizer(path)
    assert ours.kind == "gpt1_bpe"
    assert encode(ours, texts) == [expected.encode(text).ids for text in texts]
    assert ours.decode(ours.encode(["The cat sees. It"])[0]) == "the cat sees . it"
    assert ours.pieces[ours.unk_id] == "<unk>"


def test_words_of_gpt1_begin_after_a_marked_piece(tmp_path):
  gpt1_files(tmp_path)
  ours = tokenizers.load_tokenizer(tmp_path)
  ids, = ours.encode(["the findsees. trees"])
  starts = ~ours.continues_word()[ids[1:]] | ours.ends_word()[ids[:-1]]
  assert starts.sum() + 1 == len(["the", "findsees", ".", "trees"]) < len(ids)


def test_another_model_with_marked_ends_is_refused(tmp_path):
  gpt1_files(tmp_path)
  for name, content, message in (
      ("config.json", {"model_type": "xlm"}, "model_type=xlm"),
      ("tokenizer_config.json", {"tokenizer_class": "HerbertTokenizerFast"}, "HerbertTokenizer")):
    write_json(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
      tokenizers.load_tokenizer(tmp_path)


def test_a_model_of_sentencepiece_comes_before_the_json_made_from_it(tmp_path):
  """An exported folder has both: its tokenizer.json is a BPE made from SentencePiece's model."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(["the cat sees the tree"] * 9), model_writer=model, vocab_size=30,
      hard_vocab_limit=False, model_type="bpe", minloglevel=2, pad_id=0, unk_id=1, bos_id=-1,
      eos_id=-1)
  (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
  library.Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
  assert tokenizers.load_tokenizer(tmp_path).kind == "sentencepiece"
  (tmp_path / "tokenizer.json").unlink()
  assert tokenizers.load_tokenizer(tmp_path).kind == "sentencepiece"
  write_json(tmp_path / "config.json", {"model_type": "albert"})  # Its class lower-cases.
  with pytest.raises(DataError, match="is albert, whose AlbertTokenizer tokenizes differently"):
    tokenizers.load_tokenizer(tmp_path)


# ---------------------------------------------------------- the same as transformers


@pytest.mark.hf
def test_alberts_unigram_model_gives_the_ids_of_transformers(tmp_path):
  """The normalizer, like ALBERT's, lower-cases, strips accents and turns `` and '' into quotes."""
  transformers = pytest.importorskip("transformers")
  texts = ["The river finds a stone.", "Café au lait, ``quoted'' and 12,345 dogs!",
           "It is what it is.", "A small boat leaves the hill; naïve ﬁsh."]
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts * 40), model_writer=model, vocab_size=120, minloglevel=2,
      hard_vocab_limit=False, pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, pad_piece="<pad>",
      unk_piece="<unk>", control_symbols=["[CLS]", "[SEP]", "[MASK]"])
  (tmp_path / "spiece.model").write_bytes(model.getvalue())
  theirs = transformers.AlbertTokenizerFast.from_pretrained(tmp_path)
  theirs.save_pretrained(tmp_path / "saved")
  ours = tokenizers.load_tokenizer(tmp_path / "saved")
  assert ours.kind == "unigram" and ours.pieces[ours.unk_id] == "<unk>"
  texts += ["ÀÉÎ õ 天天 x", "  two  spaces ", "", "a\n\nb"]
  for text, ids in zip(texts, ours.encode(texts), strict=True):
    assert ids.tolist() == theirs.encode(text, add_special_tokens=False), text
  ids, = ours.encode(["[MASK] the [SEP]"])
  assert not set(ids.tolist()) & set(ours.special_ids)
  ids, = ours.encode(["the river, finds"])
  starts = ~ours.continues_word()[ids[1:]] | ours.ends_word()[ids[:-1]]
  assert starts.sum() + 1 == len(["the", "river", ",", "finds"])
  ours.save(tmp_path / "again")
  assert tokenizers.load_tokenizer(tmp_path / "again").fingerprint() == ours.fingerprint()


@pytest.mark.hf
@pytest.mark.parametrize("settings", [
    {"do_lower_case": False}, {"do_lower_case": True},
    {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True},
    {"do_lower_case": False, "tokenize_chinese_chars": False}])
def test_ids_of_a_bert_folder_are_those_of_transformers(tmp_path, settings):
  folder = write_vocabulary(tmp_path, tokenizer_class="BertTokenizer", **settings)
  write_json(folder / "added_tokens.json", {"<url>": len(SPECIALS) + len(MIXED), "Dog":
                                            len(SPECIALS) + len(MIXED) + 1})
  assert_same_ids(folder, [*TEXTS, "see <url>here", "a Dog dog"], "bert")


@pytest.mark.hf
@pytest.mark.parametrize("model_type", ["bert", "distilbert", "electra"])
@pytest.mark.parametrize("named", [{}, {"tokenizer_class": "BertTokenizer"},
                                   {"tokenizer_class": "PreTrainedTokenizerFast"}])
@pytest.mark.parametrize("before, settings", [
    (True, {"do_lower_case": False}), (False, {"do_lower_case": True}),
    (True, {"do_lower_case": True, "strip_accents": False}), (True, {}), (False, {}),
    (False, {"strip_accents": None}), (False, {"tokenize_chinese_chars": False})])
def test_ids_of_a_tokenizer_json_are_those_of_transformers(tmp_path, model_type, named, before,
                                                           settings):
  write_json_tokenizer(tmp_path, bert_json(before), model_max_length=512, **settings, **named)
  assert_same_ids(tmp_path, TEXTS, model_type)


@pytest.mark.hf
@pytest.mark.parametrize("name, is_json", [
    ("BertTokenizer", True), ("PreTrainedTokenizerFast", True), ("BertTokenizer", False)])
def test_ids_of_special_tokens_without_a_role_are_those_of_transformers(tmp_path, name, is_json):
  pieces = ("the", "cat", "[unused1]", "[unused2]")
  second = {"__type": "AddedToken", "content": "[unused2]", "lstrip": True, "special": True}
  settings = {"additional_special_tokens": ["[unused1]", second], "do_lower_case": True,
              "tokenizer_class": name}
  if is_json:
    write_json_tokenizer(tmp_path, json_of(pieces, normalizers.BertNormalizer()), **settings)
  else:
    write_vocabulary(tmp_path, pieces, **settings)
  assert_same_ids(tmp_path, ["the [unused1] Cat", "the[unused2]cat [unused2]"], "bert")


@pytest.mark.hf
def test_ids_of_gpt1_are_those_of_transformers(tmp_path):
  _, texts = gpt1_files(tmp_path)
  write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "OpenAIGPTTokenizer"})
  assert_same_ids(tmp_path, texts, "openai-gpt")


def assert_same_ids(folder: pathlib.Path, texts, model_type):
  transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hf")
  write_json(folder / "config.json", {"model_type": model_type})
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  ours = tokenizers.load_tokenizer(folder)
  assert ours.vocab_size == len(theirs)
  assert encode(ours, texts) == theirs(texts, add_special_tokens=False)["input_ids"]


# ------------------------------------------------------------------------- merges


@pytest.mark.parametrize("merge, lacking", [("a b", "ab"), ("x a", "x"), ("a x", "x")])
@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json"])
def test_merges_of_another_vocabulary_are_refused(tmp_path, name, merge, lacking):
  vocabulary = {"a": 0, "b": 1, "<|endoftext|>": 2}
  if name == "vocab.json":
    write_json(tmp_path / "vocab.json", vocabulary)
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merge}\n")
  else:
    write_json(tmp_path / name, {
        "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel"}, "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [merge.split()]}})
  with pytest.raises(DataError, match=f"{name}: the merge .* needs the piece '{lacking}'"):
    tokenizers.load_tokenizer(tmp_path)


def test_a_vocabulary_with_one_id_for_two_pieces_is_refused(tmp_path):
  write_json(tmp_path / "vocab.json", {"a": 0, "b": 1, "c": 1})
  (tmp_path / "merges.txt").write_text("#version: 0.2\n")
  with pytest.raises(DataError, match="vocab.json: two pieces have the same id"):
    tokenizers.load_tokenizer(tmp_path)


def test_a_word_piece_without_its_unknown_piece_is_refused(tmp_path):
  write_json(tmp_path / "tokenizer.json", {
      "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
      "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
      "model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]",
                "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}})
  with pytest.raises(DataError, match=r"tokenizer.json: is not a tokenizer \(.*\[UNK\]"):
    tokenizers.load_tokenizer(tmp_path)


# ---------------------------------------------------------------------- buckets


def upload(folder, target):
  for file in folder.iterdir():
    (target / file.name).write_bytes(file.read_bytes())


def test_a_file_in_a_bucket_is_read_with_the_files_next_to_it(tmp_path, bucket):
  local = write_vocabulary(tmp_path / "bert", do_lower_case=False)
  write_json(local / "added_tokens.json", {"<new>": len(SPECIALS) + len(MIXED)})
  upload(local, bucket)
  texts = [*TEXTS, "a <new> word"]
  expected = encode(tokenizers.load_tokenizer(local), texts)
  for place in (local / "vocab.txt", bucket, bucket / "vocab.txt"):
    assert encode(tokenizers.load_tokenizer(str(place)), texts) == expected


def test_a_vocabulary_in_a_bucket_is_read_with_its_merges(tmp_path, bucket):
  pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "<|endoftext|>"]
  write_json(tmp_path / "my-vocab.json", {piece: i for i, piece in enumerate(pieces)})
  (tmp_path / "my-merges.txt").write_text("#version: 0.2\na b\n")
  upload(tmp_path, bucket)
  place = str(bucket / "my-vocab.json")
  assert encode(tokenizers.load_tokenizer(place), ["ab"]) == [[pieces.index("ab")]]


def test_only_the_files_of_a_tokenizer_are_fetched_from_a_bucket(tmp_path, bucket, storage):
  upload(write_vocabulary(tmp_path / "bert", do_lower_case=True), bucket)
  (bucket / "model.safetensors").write_bytes(b"weights")
  (bucket / "step_1" / "vocab.txt").write_bytes(b"another")
  for place in (bucket, bucket / "vocab.txt"):
    storage.requests.clear()
    tokenizers.load_tokenizer(str(place))
    fetched = {path for _, path in storage.requests if "alt=media" in path}
    assert [path for path in fetched if "vocab.txt" in path]
    assert not [path for path in fetched if "safetensors" in path or "step_1" in path]


@pytest.mark.parametrize("name, content", [
    ("tokenizer.model", "no model"), ("vocab.txt", "a\nb"), ("tokenizer_config.json", "[")])
@pytest.mark.parametrize("is_file", [True, False])
def test_messages_name_the_place_in_the_bucket(bucket, name, content, is_file):
  (bucket / "vocab.txt").write_text("\n".join([*SPECIALS, *MIXED]))
  (bucket / name).write_text(content)
  file = "tokenizer.model" if name == "tokenizer.model" else "vocab.txt"
  with pytest.raises(DataError) as e:
    tokenizers.load_tokenizer(str(bucket / file if is_file else bucket))
  assert str(e.value).startswith(str(bucket / name)) and "bertgpt-" not in str(e.value)


def test_a_piece_that_a_vocabulary_has_twice_is_named_with_its_lines(tmp_path):
  path = tmp_path / "vocab.txt"
  path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\ncat\nthe\n")
  message = r"It has the piece 'the' on lines 5 and 7\. .* line 5 another name"
  with pytest.raises(DataError, match=message):
    tokenizers.load_tokenizer(path)
