"""bertgpt.hub.same_ids, bertgpt.hub.precompiled: exported tokenizers give the ids of training."""

import io
import json
import random
import unicodedata

import pytest
import sentencepiece
import small_runs
import tokenizers as fast_tokenizers
from tokenizers import AddedToken, models
from written_tokenizers import to_fast, write

from bertgpt.config import base
from bertgpt.data.tokens import marks, pipelines, tokenizers, training
from bertgpt.hub import export, same_ids, tokenizer_files
from bertgpt.inference import fill

RULES = ("nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity")
SYMBOLS = ["<url>", "<URL>", "\n", "AB", "ABC", "(x)", "@@"]
MASKED = (*same_ids.MASKED, "the king is {}.", "the\t{}\tcat", "the \u3000{}\u3000cat", "\n{}\ncat",
          "{}\u0301 b", "{}\u00bd x", "{}<url>.", "{} <url> {}", "<url> {}(x)", "{}\ufdd0 a",
          "the{}cat", "{}Tree", "a  {}  {}  b", "{}\u0001", "x\u0001 {}", "  The {}, {}; {}? ")
SPACES = [{"add_dummy_prefix": has_prefix, "remove_extra_whitespaces": is_short}
          for has_prefix in (True, False) for is_short in (True, False)]
KINDS = [{}, {"model_type": "bpe"}, {"user_defined_symbols": SYMBOLS},
         {"vocab_size": 1500, "byte_fallback": True},
         {"model_type": "bpe", "byte_fallback": True, "user_defined_symbols": SYMBOLS},
         # As in the files of ALBERT and XLNet.
         {"control_symbols": ["[CLS]", "[SEP]"], "user_defined_symbols": ["[MASK]", "(", ")"]},
         {"control_symbols": ["<cls>", "<sep>", "<mask>", "<eop>"], "unk_piece": "<unk>",
          "pad_piece": "<pad>", "user_defined_symbols": ["<eod>", ".", "("]}]


def train(rule="nmt_nfkc", **options):
  """Returns a SentencePiece model that knows the characters of all texts that are compared."""
  model = io.BytesIO()
  texts = [unicodedata.normalize(form, text) for text in same_ids.TEXTS for form in ("NFC", "NFD")]
  lines = [line for text in [*texts, *small_runs.make_text(20).split("\n")]
           for line in (text, text.lower()) if line.strip() and len(line) < 200]
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(lines * 3), model_writer=model, minloglevel=2,
      **{"vocab_size": 900, "hard_vocab_limit": False, "normalization_rule_name": rule,
         "character_coverage": 1.0, "pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1,
         "pad_piece": "[PAD]", "unk_piece": "[UNK]",
         "control_symbols": ["[CLS]", "[SEP]", "[MASK]"], **options})
  return tokenizers.SentencePiece(model.getvalue())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("options", [
    {}, {"model_type": "bpe"}, {"user_defined_symbols": SYMBOLS},
    {"user_defined_symbols": SYMBOLS, "model_type": "bpe"},
    {"remove_extra_whitespaces": False, "add_dummy_prefix": False},
    {"remove_extra_whitespaces": False},
    {"remove_extra_whitespaces": False, "model_type": "bpe", "user_defined_symbols": SYMBOLS},
    {"vocab_size": 1500, "byte_fallback": True}], ids=str)
def test_sentencepiece_is_exported_with_the_same_ids(rule, options):
  tokenizer = train(rule, **options)
  fast = to_fast(tokenizer)
  assert same_ids.find_difference(fast, tokenizer, marks.of_encoder(tokenizer)) is None
  assert fast.get_vocab() == {piece: i for i, piece in enumerate(tokenizer.pieces)}


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nmt_nfkc_cf"])
def test_texts_of_all_scripts_are_normalized_as_by_sentencepiece(rule):
  """Words combine letters and marks of one script; SentencePiece is the oracle."""
  tokenizer, rng = train(rule), random.Random(0)
  fast = to_fast(tokenizer, is_encoder=False)
  letters, marks = {}, {}
  for char in map(chr, range(0x41, 0xFFF0)):
    kind, script = unicodedata.category(char)[0], unicodedata.name(char, "").split(" ")[0]
    # The table does not compose the few characters that Unicode has twice (the angstrom sign).
    if kind in "LM" and script and unicodedata.normalize("NFC", char) == char:
      (letters if kind == "L" else marks).setdefault(script, []).append(char)
  # Dialytika with tonos is one character that the table makes two of.
  accents = [c for c in map(chr, range(0x300, 0x315)) if c != "\u0344"] + ["\u0323", "\u0327"]
  checked = 0
  for script in sorted(letters):
    for _ in range(30):
      of_script = marks.get(script) or accents
      word = ""
      for letter in rng.choices(letters[script], k=6):
        is_plain = unicodedata.normalize("NFKD", letter) == letter
        word += letter + (rng.choice(of_script) if is_plain and rng.random() < 0.5 else "")
      for text in (word, unicodedata.normalize("NFC", word), unicodedata.normalize("NFKD", word)):
        normal = fast.normalizer.normalize_str(text)
        found = "".join(part for part, _ in fast.pre_tokenizer.pre_tokenize_str(normal))
        assert found == tokenizer.library.normalize(text), ascii(text)
        checked += 1
  assert checked > 5000


def test_the_first_character_may_be_one_that_is_removed():
  """The `Precompiled` step panics at such a text if another step came before it."""
  tokenizer = train(user_defined_symbols=["<url>"])
  fast = to_fast(tokenizer, is_encoder=False)
  for text in ("\u0001abc", "\u2122 <url>", "½ x", "\ufb01ne", "\u0f8fy\u034f\uff76"):
    assert fast.encode(text).ids == tokenizer.encode([text])[0].tolist()


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nmt_nfkc_cf", "identity"])
@pytest.mark.parametrize("options", [{}, {"byte_fallback": True, "vocab_size": 400}], ids=str)
@pytest.mark.parametrize("symbols", [SYMBOLS, ["<URL>", "X\ufdd0", "\ufdd5\ufde0Y"]])
def test_placeholders_of_the_normalizer_are_text_in_a_text(rule, options, symbols):
  """The normalizer uses these characters internally; in texts they are unknown, or bytes."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(small_runs.make_text(30).split("\n")), model_writer=model,
      minloglevel=2, hard_vocab_limit=False, normalization_rule_name=rule,
      user_defined_symbols=symbols, **{"vocab_size": 90, **options})
  tokenizer = tokenizers.SentencePiece(model.getvalue())
  fast = to_fast(tokenizer, is_encoder=False)
  signs = [*map(chr, (*range(0xFDD0, 0xFDF0), *range(0xF0000, 0xF0009))), "<URL>", "\u0301", "X",
           "I\u0307", "Y", " the ", "e"]
  rng = random.Random(0)
  texts = [*signs, *("".join(rng.choices(signs, k=5)) for _ in range(2000))]
  for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
    assert fast.encode(text, add_special_tokens=False).ids == ids.tolist(), ascii(text)


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nmt_nfkc_cf", "identity"])
@pytest.mark.parametrize("spaces", SPACES, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_texts_with_masks_have_the_ids_of_fill(rule, spaces, kind):
  tokenizer = train(rule, **kind, **spaces)
  fast = to_fast(tokenizer)
  assert tokenizer.mask_id >= 0
  for place in MASKED:
    text = place.replace("{}", tokenizer.pieces[tokenizer.mask_id])
    found = fast.encode(text, add_special_tokens=False).ids
    assert found == fill.encode_template(tokenizer, text).tolist(), ascii(text)
  assert same_ids.find_mask_difference(fast, tokenizer) is None


@pytest.mark.parametrize("spaces", SPACES, ids=str)
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_text_with_a_masked_token_has_the_ids_of_training(spaces, model_type):
  """The ids of the whole text, with the mask in place of one."""
  tokenizer, rng = train(model_type=model_type, **spaces), random.Random(0)
  fast = to_fast(tokenizer)
  lines = ["(the cat), a dog! The house...", *small_runs.make_text(60, seed=1).splitlines()]
  for ids in tokenizer.encode([line for line in lines if line]):
    for k in rng.choices(range(len(ids)), k=5):
      row = [*ids[:k], tokenizer.mask_id, *ids[k + 1:]]
      before, hidden, after = ("".join(tokenizer.pieces[i] for i in part)
                               for part in (ids[:k], ids[k:k + 1], ids[k + 1:]))
      if hidden == "\u2581" or before.endswith("\u2581"):
        continue  # The space would be part of the mask.
      space = "\u2581" * hidden.startswith("\u2581")
      text = f"{before}{space}[MASK]{after}".replace("\u2581", " ")
      text = text.removeprefix(" ") if spaces["add_dummy_prefix"] else text
      assert fast.encode(text, add_special_tokens=False).ids == row, text
      assert fill.encode_template(tokenizer, text).tolist() == row, text


@pytest.mark.parametrize("spaces", SPACES, ids=str)
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_the_rest_of_a_word_is_cut_as_without_the_space_of_a_word(spaces, model_type):
  """SentencePiece is the oracle, with the same pieces and neither prefix nor strip."""
  tokenizer = train(model_type=model_type, **spaces)
  fast = to_fast(tokenizer)
  proto = tokenizer_files.proto_lib.ModelProto.FromString(tokenizer.data)
  proto.normalizer_spec.add_dummy_prefix = proto.normalizer_spec.remove_extra_whitespaces = False
  oracle = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
  words = sorted(set(small_runs.make_text(20).split()))
  parts = [word[i:] + end for word in words for i in range(len(word)) for end in ("", " and")]
  parts += [f" {word}" for word in words]
  for part in parts:
    found = fast.encode(f"a [MASK]{part}", add_special_tokens=False).ids
    assert found == [*tokenizer.encode(["a"])[0], tokenizer.mask_id, *oracle.encode(part)], part
    assert fill.encode_template(tokenizer, f"a [MASK]{part}").tolist() == found


@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
@pytest.mark.parametrize("spaces", SPACES, ids=str)
def test_the_start_of_a_text_has_the_spaces_of_sentencepiece(rule, spaces):
  """Also if its first characters are removed, or are the one that stands for a space."""
  tokenizer = train(rule, user_defined_symbols=["<url>", " x"], **spaces)
  fast = to_fast(tokenizer)
  rng = random.Random(0)
  signs = [" ", "  ", "\t", "\u0001", "\u2581", "\ufdd0", "the", "x", "<url>", "."]
  texts = [*signs, *("".join(rng.choices(signs, k=rng.randint(2, 5))) for _ in range(500))]
  for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
    assert fast.encode(text, add_special_tokens=False).ids == ids.tolist(), ascii(text)


def test_words_that_come_one_by_one_begin_with_a_space():
  """As in token classification: each is a text of its own."""
  tokenizer = train()
  fast = to_fast(tokenizer)
  words = ["The", "cat", "sees", "."]
  found = fast.encode(words, is_pretokenized=True, add_special_tokens=False)
  expected = [ids.tolist() for ids in tokenizer.encode(words)]
  assert found.ids == [i for ids in expected for i in ids]
  assert found.word_ids == [n for n, ids in enumerate(expected) for _ in ids]


def test_an_export_notes_a_difference_after_a_mask(tmp_path, capsys):
  """As with ALBERT's tokenizer.json, in which text after a mask always begins with a space."""
  source = fast_tokenizers.Tokenizer(models.Unigram(
      [("<unk>", 0.0), ("[MASK]", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("<pad>", 0.0),
       *((piece, -2.0) for piece in ("\u2581The", "\u2581the", "\u2581cat", "\u2581is", ".", "s",
                                     "\u2581", "cat", ",", "(", ")"))], 0, False))
  source.pre_tokenizer = fast_tokenizers.pre_tokenizers.Metaspace()
  source.add_special_tokens(["<unk>", "<pad>", "[CLS]", "[SEP]", AddedToken("[MASK]", lstrip=True)])
  tokenizer = tokenizers.Unigram(pipelines.serialize(source))
  write(tokenizer, tmp_path)
  export.note_masks(tmp_path, tokenizer, "RUN")
  assert capsys.readouterr().err == (
      "note: --workdir RUN: in transformers, the text 'The cat is [MASK].' would be \u2581The "
      "\u2581cat \u2581is [MASK] \u2581 . instead of \u2581The \u2581cat \u2581is [MASK] ., which "
      "`bertgpt fill` reads\n")


def test_a_difference_is_shown_with_its_text():
  tokenizer = train(user_defined_symbols=["<url>"])
  fast = to_fast(tokenizer, is_encoder=False)
  fast.add_tokens([AddedToken("<url>", normalized=False)])
  line = same_ids.find_difference(fast, tokenizer, marks.of_decoder())
  assert line == "in transformers, the text '<url>' would be <url> instead of \u2581 <url>"


def test_pieces_of_equal_likelihood_are_the_same_to_rounding():
  """A long run of one letter has several, and the libraries choose another one."""
  proto = tokenizer_files.proto_lib.ModelProto.FromString(train().data)
  for piece, score in (("xx", -2.1), ("xxx", -3.15), ("x", -1.05)):
    found = next((p for p in proto.pieces if p.piece == piece), None)
    found = found or proto.pieces.add(piece=piece)
    found.score, found.type = score, tokenizer_files.proto_lib.ModelProto.SentencePiece.NORMAL
  tokenizer = tokenizers.SentencePiece(proto.SerializeToString())
  fast = to_fast(tokenizer, is_encoder=False)
  text = "x" * 300
  assert fast.encode(text).ids != tokenizer.encode([text])[0].tolist()
  assert same_ids.find_difference(fast, tokenizer, marks.of_decoder()) is None
  proto.pieces[next(i for i, p in enumerate(proto.pieces) if p.piece == "xxx")].score = -3.0
  other = tokenizers.SentencePiece(proto.SerializeToString())
  assert "xxx" in same_ids.find_difference(fast, other, marks.of_decoder())


def test_truncation_padding_and_dropout_of_the_source_are_not_exported():
  fast = fast_tokenizers.Tokenizer(models.BPE({"<unk>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")],
                                              dropout=0.5, unk_token="<unk>"))
  fast.enable_truncation(3)
  fast.enable_padding(length=9)
  tokenizer = tokenizers.ByteBPE(pipelines.serialize(fast))
  content = json.loads(to_fast(tokenizer, is_encoder=False).to_str())
  assert content["truncation"] is content["padding"] is content["model"]["dropout"] is None


def test_roberta_keeps_its_beginning_end_and_mask():
  alphabet = sorted(fast_tokenizers.pre_tokenizers.ByteLevel.alphabet())
  names = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, "<mask>"]
  fast = pipelines.byte_bpe_pipeline(models.BPE({p: i for i, p in enumerate(names)}, []))
  fast.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)])
  tokenizer = tokenizers.ByteBPE(pipelines.serialize(fast))
  roles = tokenizer_files.special_tokens(tokenizer, is_encoder=True)
  assert roles["bos_token"] == roles["cls_token"] == "<s>"
  assert roles["eos_token"] == roles["sep_token"] == "</s>"
  exported = to_fast(tokenizer)
  assert exported.encode("a <mask>", add_special_tokens=False).ids == [
      names.index("a"), names.index("<mask>")]


@pytest.mark.hf
def test_the_mask_of_our_byte_bpe_includes_the_space_before_it(tmp_path):
  config = base().tokenizer
  config.update(kind="bpe", vocab_size=300)
  tokenizer = training.train_tokenizer(config, [small_runs.make_text(30)])
  write(tokenizer, tmp_path)
  mask = tokenizer.pieces[tokenizer.mask_id]
  transformers = pytest.importorskip("transformers")
  loaded = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
  before, after = tokenizer.encode(["the cat sees", " and"])
  assert loaded(f"the cat sees {mask} and", add_special_tokens=False)["input_ids"] == [
      *before, tokenizer.mask_id, *after]


@pytest.mark.hf
@pytest.mark.parametrize("rule", ["nmt_nfkc", "nmt_nfkc_cf"])
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_transformers_gives_the_same_ids(tmp_path, rule, model_type):
  transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hf")
  tokenizer = train(rule, model_type=model_type, user_defined_symbols=SYMBOLS)
  write(tokenizer, tmp_path)
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  texts = list(same_ids.make_texts(tokenizer))
  ours = [ids.tolist() for ids in tokenizer.encode(texts)]
  for place in MASKED:
    texts.append(place.replace("{}", "[MASK]"))
    ours.append(fill.encode_template(tokenizer, texts[-1]).tolist())
  for text, found, expected in zip(texts, theirs(texts, add_special_tokens=False)["input_ids"],
                                   ours, strict=True):
    assert found == expected, ascii(text)
