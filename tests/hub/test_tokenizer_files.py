"""bertgpt.hub.tokenizer_files: tokenizer.json gives our ids, and the other files agree with it."""

import itertools
import json
import random

import pytest
import small_runs
import source_files
import tokenizers as fast_tokenizers
import written_tokenizers
from tokenizers import processors
from written_tokenizers import to_fast

from bertgpt import config as config_lib
from bertgpt.config import finetuning as finetune_config
from bertgpt.data.tokens import marks, pipelines, tokenizers, training
from bertgpt.errors import DataError
from bertgpt.finetuning.tasks.rows import make_text_format
from bertgpt.hub import same_ids, tokenizer_files
from bertgpt.inference import fill

ODD = ["", " ", "  two  spaces\tand a tab ", "naïve Äpfel\u00a0İstanbul 力加勝北区ᴵᴺᵀᵃছজটডণত",
       "Tabs\u200b and 😀👍🏽", "x" * 300, "e\u0301 \ufb01 ½ Å ｆｕｌｌ",
       "日本語のテキスト、です。", "नमस्ते दुनिया", "👨‍👩‍👧 at home", "a <0x41> b <0x0A>"]
MODELS = {
    "unigram": {"kind": "sentencepiece", "vocab_size": 400},
    "unigram, with bytes": {"kind": "sentencepiece", "vocab_size": 4096},
    "unigram, with case": {"kind": "sentencepiece", "vocab_size": 400, "lowercase": False},
    "bpe of sentencepiece": {"kind": "sentencepiece", "vocab_size": 400, "model_type": "bpe"},
    "wordpiece": {"kind": "wordpiece", "vocab_size": 400},
    "byte-level bpe": {"kind": "bpe", "vocab_size": 400},
}


def make_texts():
  """Returns sentences of made-up words, enough to train every size, and of real words."""
  rng = random.Random(0)
  words = ["".join(rng.choices("etaoinshrdluT", k=rng.randint(2, 8))) for _ in range(8000)]
  sentences = [" ".join(rng.choices(words, k=10)) + "." for _ in range(2000)]
  return small_runs.make_text(100).splitlines() + sentences


def train(texts, **fields):
  config = config_lib.base().tokenizer
  config.update(fields)
  return training.train_tokenizer(config, texts)


@pytest.fixture(scope="module", params=MODELS)
def tokenizer(request):
  return train(make_texts(), **MODELS[request.param])


def write(tokenizer, folder, **how):
  written_tokenizers.write(tokenizer, folder, **how)
  return fast_tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_ids_and_texts_are_ours(tokenizer, tmp_path):
  fast = write(tokenizer, tmp_path)
  assert fast.get_vocab() == {piece: i for i, piece in enumerate(tokenizer.pieces)}
  lines = [*ODD, *small_runs.make_text(20, seed=1).splitlines()]
  ours = [ids.tolist() for ids in tokenizer.encode(lines)]
  assert [fast.encode(line, add_special_tokens=False).ids for line in lines] == ours
  for line, ids in zip(lines[len(ODD):], ours[len(ODD):], strict=True):
    if tokenizer.unk_id not in ids:
      assert fast.decode(ids) == tokenizer.decode(ids), line


def test_texts_are_put_between_special_tokens(tokenizer, tmp_path):
  fast = write(tokenizer, tmp_path)
  a, b = (ids.tolist() for ids in tokenizer.encode(["The cat", "sees a dog."]))
  cls, sep = tokenizer.cls_id, tokenizer.sep_id
  pair = fast.encode("The cat", "sees a dog.")
  assert pair.ids == [cls, *a, sep, *b, sep]
  assert pair.type_ids == [0] * (len(a) + 2) + [1] * (len(b) + 1)
  assert fast.encode("[MASK]", add_special_tokens=False).ids == [tokenizer.mask_id]


def test_gpt_gets_no_special_tokens(tokenizer, tmp_path):
  fast = write(tokenizer, tmp_path, is_encoder=False)
  assert fast.encode("The cat").ids == tokenizer.encode(["The cat"])[0].tolist()
  settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert settings["eos_token"] == settings["bos_token"] == "<|endoftext|>"
  assert settings["model_input_names"] == ["input_ids", "attention_mask"]
  assert settings["model_max_length"] == 64


# Post-processors of a tokenizer.json of others, by their effect.
TEMPLATES = {
    "none": lambda cls, sep: None,
    "no marks, trimmed": lambda cls, sep: processors.ByteLevel(trim_offsets=True),
    "no marks": lambda cls, sep: processors.TemplateProcessing("$A", "$A $B", []),
    "first": lambda cls, sep: processors.TemplateProcessing(
        f"{cls[0]} $A", f"{cls[0]} $A $B", [cls]),
    "BERT's": lambda cls, sep: processors.BertProcessing(sep, cls),
    "RoBERTa's": lambda cls, sep: processors.RobertaProcessing(sep, cls),
}


@pytest.fixture(scope="module", params=["wordpiece", "byte-level bpe"])
def plain(request):
  """Returns a tokenizer without a template, whose mask includes no space."""
  tokenizer = train(make_texts(), **MODELS[request.param])
  assert not any(token["lstrip"] for token in json.loads(tokenizer.data)["added_tokens"])
  return tokenizer


def with_template(plain, name):
  """Returns a tokenizer whose file has a template."""
  fast = fast_tokenizers.Tokenizer.from_buffer(plain.data)
  cls, sep = ((plain.pieces[i], i) for i in (plain.cls_id, plain.sep_id))
  fast.post_processor = TEMPLATES[name](cls, sep)
  return type(plain)(fast.to_str().encode())


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_is_that_of_the_training(plain, name):
  tokenizer = with_template(plain, name)
  texts = ("The cat", "sees a dog.")
  a, b = tokenizer.encode(texts)
  for cls_last in (False, True):
    around = marks.of_encoder(tokenizer, cls_last)
    encoder = to_fast(tokenizer, around=around)
    assert encoder.encode(texts[0]).ids == around.enclose(a).tolist()
    pair = encoder.encode(*texts)
    assert pair.ids == around.enclose(a, b).tolist()
    assert pair.type_ids == around.segments(len(a), len(b)).tolist()
    assert same_ids.find_difference(encoder, tokenizer, around) is None
  decoder = to_fast(tokenizer, is_encoder=False)
  assert decoder.encode(*texts).ids == [*a, *b]
  assert same_ids.find_difference(decoder, tokenizer, marks.of_decoder()) is None


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_mask_includes_the_space_before_it_as_in_training(plain, name):
  tokenizer = with_template(plain, name)
  encoder = to_fast(tokenizer)
  for text in ("The cat [MASK] a dog.", "The[MASK], and", "a [MASK] [MASK] b", "[MASK] dog"):
    found = encoder.encode(text, add_special_tokens=False).ids
    assert found == fill.encode_template(tokenizer, text).tolist()


def test_a_difference_of_marks_is_found():
  tokenizer = train(make_texts(), **MODELS["byte-level bpe"])
  content = json.loads(to_fast(tokenizer).to_str())
  fast = fast_tokenizers.Tokenizer.from_str(json.dumps(content | {"post_processor": None}))
  line = same_ids.find_difference(fast, tokenizer, marks.of_encoder(tokenizer))
  assert "the row of 'cat' would be c at instead of [CLS] c at [SEP]" in line


@pytest.mark.parametrize("kind", ["byte-level bpe", "unigram", "bpe of sentencepiece"])
def test_a_mask_that_does_not_include_the_space_before_it_is_found(kind):
  tokenizer = train(make_texts(), **MODELS[kind])
  content = json.loads(to_fast(tokenizer).to_str())
  for token in content["added_tokens"]:
    token["lstrip"] = False
  if kind != "byte-level bpe":  # Else SentencePiece strips the text before it.
    content["normalizer"] = {"type": "Prepend", "prepend": " "}
  fast = fast_tokenizers.Tokenizer.from_str(json.dumps(content))
  assert "[MASK]" in same_ids.find_mask_difference(fast, tokenizer)


def test_every_tokenizer_of_ours_reads_masks_as_fill_does(tokenizer, tmp_path):
  assert same_ids.find_mask_difference(write(tokenizer, tmp_path), tokenizer) is None


def test_the_files_of_every_kind_load_again(tokenizer, tmp_path):
  write(tokenizer, tmp_path)
  files = {path.name for path in tmp_path.iterdir()}
  own = {"sentencepiece": {"tokenizer.model"}, "wordpiece": {"vocab.txt"},
         "bpe": {"vocab.json", "merges.txt"}}[tokenizer.kind]
  assert files == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"} | own
  for name in own - {"merges.txt"}:
    again = tokenizers.load_tokenizer(tmp_path / name)
    assert again.pieces == tokenizer.pieces
    texts = ["The dog sees the cat.", "A tree!"]
    assert ([ids.tolist() for ids in again.encode(texts)]
            == [ids.tolist() for ids in tokenizer.encode(texts)])


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize("lowercase", [True, False])
def test_ids_of_sentencepiece_on_10000_lines(data_dir, model_type, lowercase):
  spec = (f"jsonl:{data_dir}/lm/wikipedia_en/heldout.jsonl.xz,"
          f"jsonl:{data_dir}/lm/gutenberg/heldout.jsonl.xz,"
          f"text:{data_dir}/lm/tinyshakespeare.txt.gz")
  sentences = source_files.sentences(spec)
  lines, texts = list(itertools.islice(sentences, 10_000)), itertools.islice(sentences, 5_000)
  assert len(lines) == 10_000
  tokenizer = train(texts, kind="sentencepiece", vocab_size=5_000, model_type=model_type,
                    lowercase=lowercase)
  fast = to_fast(tokenizer, is_encoder=False)
  found = [e.ids for e in fast.encode_batch(lines, add_special_tokens=False)]
  assert found == [ids.tolist() for ids in tokenizer.encode(lines)]


def test_a_sentencepiece_model_of_another_type_is_refused():
  proto = tokenizer_files.proto_lib.ModelProto()
  proto.trainer_spec.model_type = tokenizer_files.proto_lib.TrainerSpec.WORD
  with pytest.raises(DataError, match="only unigram and BPE"):
    tokenizer_files.from_sentencepiece(proto.SerializeToString())


def test_words_are_exported(tmp_path):
  texts = small_runs.make_text(30).splitlines()
  tokenizer = train(texts, kind="words", vocab_size=20)
  assert not same_ids.find_difference(write(tokenizer, tmp_path), tokenizer,
                                      marks.of_encoder(tokenizer))


def test_special_tokens_without_a_role_are_special_again(plain, tmp_path):
  """They are parts of texts here, see `Tokenizer.shown`, and so they are in transformers."""
  source = fast_tokenizers.Tokenizer.from_buffer(plain.data)
  source.add_special_tokens(["[E1]"])
  source.save(str(tmp_path / "tokenizer.json"))
  (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}')
  ours = tokenizers.load_tokenizer(tmp_path)
  fast = write(ours, tmp_path)
  ids = ours.encode(["the [E1] cat"])[0].tolist()
  assert fast.encode("the [E1] cat", add_special_tokens=False).ids == ids
  assert ours.vocab_size - 1 in ids and "[E1]" not in fast.decode(ids, skip_special_tokens=True)
  settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert settings["additional_special_tokens"] == ["[E1]"]


@pytest.mark.parametrize("has_space", [False, True])
def test_a_space_before_a_text_is_a_setting_too(tmp_path, has_space):
  """transformers 4 puts `add_prefix_space` of tokenizer_config.json, or false, into the file."""
  content = json.loads(train(make_texts(), **MODELS["byte-level bpe"]).data)
  content["pre_tokenizer"]["add_prefix_space"] = has_space
  write(tokenizers.ByteBPE(json.dumps(content).encode()), tmp_path)
  settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert settings.get("add_prefix_space", False) == has_space


@pytest.mark.hf
@pytest.mark.parametrize("lowercase, strip_accents, split_chinese", [
    (True, False, True), (False, True, True), (True, None, False)])
def test_the_class_of_bert_reads_the_settings(tmp_path, lowercase, strip_accents, split_chinese):
  transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hf")
  pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "café", "cafe", "Café", "天", "天天"]
  ours = tokenizers.WordPiece(pipelines.serialize(pipelines.bert_pipeline(
      {piece: i for i, piece in enumerate(pieces)}, lowercase, strip_accents=strip_accents,
      split_chinese=split_chinese)))
  write(ours, tmp_path)
  theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
  text = "Café café 天天"
  assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode([text])[0].tolist()


@pytest.mark.hf
def test_transformers_reads_the_files(tokenizer, tmp_path):
  transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hf")
  write(tokenizer, tmp_path)
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert len(theirs) == tokenizer.vocab_size and theirs.model_max_length == 64
  assert ((theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id, theirs.sep_token_id,
           theirs.mask_token_id)
          == (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id,
              tokenizer.mask_id))
  lines = [*ODD, *make_texts()[:50]]
  ours = [[tokenizer.cls_id, *ids.tolist(), tokenizer.sep_id] for ids in tokenizer.encode(lines)]
  assert theirs(lines)["input_ids"] == ours
  assert theirs("The cat", "sees").keys() == {"input_ids", "token_type_ids", "attention_mask"}


@pytest.mark.hf
@pytest.mark.parametrize("mode", ["head", "tail"])
def test_transformers_keeps_the_same_part_of_longer_texts(tokenizer, tmp_path, mode):
  transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hf")
  write(tokenizer, tmp_path, cuts_left=mode == "tail")
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  model, task = config_lib.base().model, finetune_config.base().task
  task.update(max_length=12, truncation=mode)
  texts = (" ".join(make_texts()[:2]), "The cat.")
  text_format = make_text_format(tokenizer, model, task)
  for row in (texts[:1], texts):
    ours = text_format.make_row(*tokenizer.encode(row))[0].tolist()
    assert theirs(*row, truncation=True, max_length=12)["input_ids"] == ours
