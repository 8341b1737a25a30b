"""bertgpt.hub.tokenizer_files: tokenizer.json gives our ids, and the other files agree with it."""

import itertools
import json
import random

import pytest
import small_runs
import source_files
import tokenizers as fast_tokenizers

from bertgpt import config as config_lib
from bertgpt.data.tokens import tokenizers, training
from bertgpt.errors import DataError
from bertgpt.hub import tokenizer_files

ODD = ["", " ", "  two  spaces\tand a tab ", "naïve Äpfel\u00a0İstanbul 力加勝北区ᴵᴺᵀᵃছজটডণত",
       "Tabs\u200b and 😀👍🏽", "x" * 300, "e\u0301 \ufb01 ½ Å ｆｕｌｌ",
       "日本語のテキスト、です。", "नमस्ते दुनिया", "👨‍👩‍👧 at home"]
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
  tokenizer_files.write(tokenizer, folder, **{"is_encoder": True, "max_length": 64,
                                              "num_segments": 2, **how})
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
  fast = write(tokenizer, tmp_path, is_encoder=False, num_segments=0)
  assert fast.encode("The cat").ids == tokenizer.encode(["The cat"])[0].tolist()
  settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert settings["eos_token"] == settings["bos_token"] == "<|endoftext|>"
  assert settings["model_input_names"] == ["input_ids", "attention_mask"]
  assert settings["model_max_length"] == 64


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
  fast = tokenizer_files.to_fast(tokenizer, is_encoder=False)
  found = [e.ids for e in fast.encode_batch(lines, add_special_tokens=False)]
  assert found == [ids.tolist() for ids in tokenizer.encode(lines)]


def test_a_sentencepiece_model_of_another_type_is_refused():
  proto = tokenizer_files.proto_lib.ModelProto()
  proto.trainer_spec.model_type = tokenizer_files.proto_lib.TrainerSpec.WORD
  with pytest.raises(DataError, match="only unigram and BPE"):
    tokenizer_files.from_sentencepiece(proto.SerializeToString())


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
