"""Folders of `transformers`: models compute the same here, or are refused with a one-line error.

Needs the extra `hf` (`make test-hf`); without PyTorch these tests are skipped. The folders are
written by transformers with small random models.
"""

import io
import json
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import small_runs
import tiny
import tokenizers as fast_tokenizers
from safetensors.numpy import load_file, save_file
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from bertgpt import cli
from bertgpt.config.families import HEADS
from bertgpt.data.tokens import following, hf_files, marks, pipelines, tokenizers
from bertgpt.errors import DataError
from bertgpt.hub import export, folder_tokenizer, importing, opening, same_ids, weights
from bertgpt.inference import generate, score
from bertgpt.models import Inputs, make_model

torch = pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hf")
pytestmark = pytest.mark.hf

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sees", "a", "."]
PIECES += [f"w{i}" for i in range(80)]
ENCODER = {"vocab_size": len(PIECES), "hidden_size": 32, "num_hidden_layers": 2,
           "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 40}
SHARED = ENCODER | {"embedding_size": 16}
DECODER = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40,
           "pad_token_id": 0}
ONE_SEGMENT = {"type_vocab_size": 1}
ROBERTA = ENCODER | {"vocab_size": 300, "type_vocab_size": 1, "layer_norm_eps": 1e-5}


def make_wordpiece():
  vocabulary = {piece: i for i, piece in enumerate(PIECES)}
  return transformers.PreTrainedTokenizerFast(
      tokenizer_object=pipelines.bert_pipeline(vocabulary, True), unk_token="[UNK]",
      pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
      # As BertTokenizer has them. By default, this class numbers no segments.
      model_input_names=["input_ids", "token_type_ids", "attention_mask"])


def make_byte_bpe(specials=("<s>", "<pad>", "</s>", "<unk>", "<mask>")):
  tokenizer = fast_tokenizers.ByteLevelBPETokenizer()
  tokenizer.train_from_iterator([small_runs.make_text(30)], 300, special_tokens=[
      fast_tokenizers.AddedToken(name, normalized=False, lstrip=name == "<mask>")
      for name in specials])
  names = {"<pad>": "pad_token", "<unk>": "unk_token", "<mask>": "mask_token"}
  return transformers.PreTrainedTokenizerFast(
      tokenizer_object=fast_tokenizers.Tokenizer.from_str(tokenizer.to_str()),
      **{names[token]: token for token in specials if token in names})


def put_around(tokenizer, first="", last=""):
  """Gives a tokenizer of transformers a template with a token before and after a text."""
  before, after = ([name] if name else [] for name in (first, last))
  tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
      [*before, "$A", *after], [*before, "$A", *after, "$B:1", *(f"{name}:1" for name in after)],
      [(name, tokenizer.convert_tokens_to_ids(name)) for name in before + after])


def make_theirs(name, sizes, **options):
  """Returns a model of transformers without parameters of 0 or 1, which could hide an error."""
  torch.manual_seed(0)
  cls = getattr(transformers, name.partition(",")[0])
  model = cls(cls.config_class(**sizes), **options).eval()
  with torch.no_grad():
    for p in model.parameters():
      p += 0.1 * torch.randn_like(p)
  return model


def save(theirs, folder, **options):
  """Writes a model with a tokenizer into a folder."""
  theirs.save_pretrained(folder, **options)
  is_byte_level = theirs.config.model_type not in ("bert", "albert")
  tokenizer = make_byte_bpe() if is_byte_level else make_wordpiece()
  if "gpt" not in theirs.config.model_type:
    put_around(tokenizer, *(("<s>", "</s>") if is_byte_level else ("[CLS]", "[SEP]")))
  tokenizer.save_pretrained(folder)
  assert len(tokenizer) <= theirs.config.vocab_size
  return folder


def make_rows(theirs, num_tokens):
  rng = np.random.default_rng(0)
  lengths = np.array([20, 13, 7])
  tokens = rng.integers(5, num_tokens, (3, 20))
  pad_id = 1 if theirs.config.model_type == "roberta" else 0
  return np.where(np.arange(20) < lengths[:, None], tokens, pad_id), lengths


def run_theirs(theirs, tokens, lengths):
  mask = torch.tensor(np.arange(tokens.shape[1]) < lengths[:, None]).long()
  with torch.no_grad():
    return theirs(input_ids=torch.tensor(tokens), attention_mask=mask, output_hidden_states=True)


def assert_same_features(theirs, ours, atol=1e-4):
  """Compares the hidden states of the last layer."""
  tokens, lengths = make_rows(theirs, ours.tokenizer.vocab_size)
  expected = run_theirs(theirs.base_model, tokens, lengths).last_hidden_state.float().numpy()
  found = tiny.apply(ours.model, ours.params, Inputs.of_texts(tokens, lengths),
                     method="features")
  is_text = np.arange(tokens.shape[1]) < lengths[:, None]
  np.testing.assert_allclose(np.asarray(found)[is_text], expected[is_text], rtol=0, atol=atol)


def assert_same_logits(theirs, ours, atol=1e-4):
  """Compares the logits of every pretraining head that transformers has."""
  tokens, lengths = make_rows(theirs, ours.tokenizer.vocab_size)
  output = run_theirs(theirs, tokens, lengths)
  every, pairs = jnp.tile(jnp.arange(tokens.shape[1]), (len(tokens), 1)), None
  inputs = Inputs.of_texts(tokens, lengths)._replace(predict_positions_BK=every)
  if "pooler" in ours.params:
    inputs = inputs._replace(pair_positions_BP=jnp.zeros((len(tokens), 1), int))
    logits, pairs = tiny.apply(ours.model, ours.params, inputs)
  else:
    logits = tiny.apply(ours.model, ours.params, inputs, method="predict").logits()
  expected = getattr(output, "prediction_logits", None)
  expected = output.logits if expected is None else expected
  is_text, size = np.arange(tokens.shape[1]) < lengths[:, None], ours.tokenizer.vocab_size
  np.testing.assert_allclose(logits[is_text][:, :size], expected.float().numpy()[is_text][:, :size],
                             rtol=0, atol=atol)
  for name in ("seq_relationship_logits", "sop_logits"):
    if name in output:
      np.testing.assert_allclose(pairs[:, 0], output[name].float(), rtol=0, atol=atol)


class Kind(NamedTuple):
  """A class of `transformers`.

  Attributes:
    sizes: fields of its config.
    fresh: heads that are drawn at random.
    dropped: layers that are left out.
    has_logits: whether its logits are those of a pretraining head.
  """

  sizes: dict
  fresh: tuple[str, ...] = ()
  dropped: str = ""
  has_logits: bool = False


KINDS = {
    "BertForPreTraining": Kind(ENCODER, has_logits=True),
    "BertForMaskedLM": Kind(ENCODER, has_logits=True),
    "BertModel": Kind(ENCODER, ("mlm", "nsp")),
    "BertForNextSentencePrediction": Kind(ENCODER, ("mlm",)),
    "BertForSequenceClassification": Kind(ENCODER, ("mlm", "nsp"), "classifier"),
    "BertForMultipleChoice": Kind(ENCODER, ("mlm", "nsp"), "classifier"),
    "BertForTokenClassification": Kind(ENCODER, ("mlm",), "classifier"),
    "BertForQuestionAnswering": Kind(ENCODER, ("mlm",), "qa_outputs"),
    "BertModel, one segment": Kind(ENCODER | ONE_SEGMENT, ("mlm",), "pooler.dense"),
    "BertForPreTraining, one segment": Kind(
        ENCODER | ONE_SEGMENT, (), "bert.pooler.dense, cls.seq_relationship"),
    "BertForSequenceClassification, one segment": Kind(
        ENCODER | ONE_SEGMENT, ("mlm",), "bert.pooler.dense, classifier"),
    "AlbertModel, one segment": Kind(SHARED | ONE_SEGMENT, ("mlm",), "pooler"),
    "RobertaForMaskedLM": Kind(ROBERTA, has_logits=True),
    "RobertaModel": Kind(ROBERTA, ("mlm",), "pooler.dense"),
    "RobertaForSequenceClassification": Kind(
        ROBERTA, ("mlm",), "classifier.dense, classifier.out_proj"),
    "RobertaForTokenClassification": Kind(ROBERTA, ("mlm",), "classifier"),
    "RobertaForQuestionAnswering": Kind(ROBERTA, ("mlm",), "qa_outputs"),
    "AlbertForPreTraining": Kind(SHARED, has_logits=True),
    "AlbertForMaskedLM": Kind(SHARED, has_logits=True),
    "AlbertModel": Kind(SHARED, ("mlm", "sop")),
    "AlbertForSequenceClassification": Kind(SHARED, ("mlm", "sop"), "classifier"),
    "AlbertForTokenClassification": Kind(SHARED, ("mlm",), "classifier"),
    "AlbertForQuestionAnswering": Kind(SHARED, ("mlm",), "qa_outputs"),
    "GPT2LMHeadModel": Kind(DECODER, has_logits=True),
    "GPT2Model": Kind(DECODER),
    "GPT2DoubleHeadsModel": Kind(DECODER, (), "multiple_choice_head.summary"),
    "GPT2ForSequenceClassification": Kind(DECODER, (), "score"),
    "GPT2ForTokenClassification": Kind(DECODER, (), "classifier"),
    "OpenAIGPTLMHeadModel": Kind(DECODER, has_logits=True),
    "OpenAIGPTModel": Kind(DECODER),
    "OpenAIGPTForSequenceClassification": Kind(DECODER, (), "score"),
}


def expected_notes(kind):
  notes = []
  if kind.fresh:
    notes.append("drawn at random, because the folder has none: "
                 + ", ".join(HEADS[head] for head in kind.fresh))
  if kind.dropped:
    notes.append(f"has no such head: {kind.dropped}")
  return notes


@pytest.mark.parametrize("name", KINDS)
def test_a_class_of_transformers_comes_in(name, tmp_path, capsys):
  kind = KINDS[name]
  theirs = make_theirs(name, kind.sizes)
  folder = save(theirs, tmp_path / "model")
  before = sorted(os.walk(tmp_path))
  capsys.readouterr()  # Progress of transformers.
  ours = opening.open_model(folder)
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == len(expected_notes(kind))
  assert all(part in line for part, line in zip(expected_notes(kind), lines, strict=True))
  assert ours.fresh == kind.fresh and ours.step == 0
  assert_same_features(theirs, ours)
  if kind.has_logits:
    assert_same_logits(theirs, ours)
  assert sorted(os.walk(tmp_path)) == before, "something was written"


def test_an_imported_run_is_the_model_of_its_folder(tmp_path, capsys):
  """Even randomly drawn weights are the same whenever the folder is opened."""
  folder = save(make_theirs("BertModel", ENCODER), tmp_path / "model")
  said = importing.import_model(folder, tmp_path / "run")
  assert "note: drawn at random, because the folder has none: masked-LM head" in said
  direct, imported = opening.open_model(folder), opening.open_model(tmp_path / "run")
  assert jax.tree.all(jax.tree.map(np.array_equal, direct.params, imported.params))
  assert imported.fresh == direct.fresh == ("mlm", "nsp")
  kernel = direct.params["mlm"]["dense"]["kernel"]
  assert np.std(kernel) == pytest.approx(0.02, rel=0.1)  # initializer_range
  assert not np.any(kernel == direct.params["pooler"]["kernel"])
  assert np.all(direct.params["mlm"]["norm"]["scale"] == 1)
  for path in (folder, tmp_path / "run"):
    capsys.readouterr()
    assert cli.main(["fill", f"--workdir={path}", "the [MASK] sees a cat."]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"--workdir {path}: its model came without a masked-LM head" in line


# ------------------------------------------------------------------ marks around texts


@pytest.fixture(scope="module")
def with_beginning(tmp_path_factory):
  """Returns a GPT-2 of transformers whose template begins texts with <s>, and its folder."""
  theirs = make_theirs("GPT2LMHeadModel", DECODER | {"bos_token_id": 0, "eos_token_id": 2})
  folder = tmp_path_factory.mktemp("beginning") / "model"
  theirs.save_pretrained(folder)
  tokenizer = make_byte_bpe()
  tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
  put_around(tokenizer, "<s>")
  tokenizer.save_pretrained(folder)
  return theirs, folder


@pytest.fixture(scope="module", params=["folder", "run"])
def begun(request, with_beginning, tmp_path_factory):
  """Returns the GPT-2 as it is opened from its folder, and from an imported run."""
  path = with_beginning[1]
  if request.param == "run":
    path = tmp_path_factory.mktemp("beginning") / "run"
    importing.import_model(with_beginning[1], path)
  return opening.open_model(path)


@pytest.mark.parametrize("prompt", ["The cat sees", ""])
def test_a_text_begins_as_in_the_template_of_its_folder(prompt, with_beginning, begun):
  theirs, folder = with_beginning
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  tokens = tokenizer(prompt, return_tensors="pt")["input_ids"].long()
  expected = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False,
                             max_new_tokens=12, eos_token_id=2)[0]
  added, = generate.continue_prompts(begun, begun.tokenizer.encode([prompt]), 12, generate.GREEDY)
  assert added.tolist() == [i for i in expected.tolist()[tokens.shape[1]:] if i != 2]
  text, = generate.generate(begun, [prompt], max_tokens=12, sampling=generate.GREEDY)
  assert "<s>" not in text and text.startswith(prompt)


def test_a_score_follows_the_token_that_begins_a_text(with_beginning, begun):
  theirs, text = with_beginning[0], "The cat sees"
  tokens = torch.tensor([[0, *begun.tokenizer.encode([text])[0]]])
  with torch.no_grad():
    logp = theirs(tokens).logits.log_softmax(-1)[0, :-1]
  expected = logp.gather(1, tokens[0, 1:, None])[:, 0]
  np.testing.assert_allclose(score.score(begun, [text])[0], expected, rtol=0, atol=1e-4)


def test_an_export_keeps_the_token_that_begins_a_text(with_beginning, tmp_path):
  importing.import_model(with_beginning[1], tmp_path / "run")
  export.export(tmp_path / "run", tmp_path / "out")
  for name in ("config.json", "generation_config.json"):
    ids = json.loads((tmp_path / "out" / name).read_text())
    assert (ids["bos_token_id"], ids["eos_token_id"]) == (0, 2)
  before, after = (transformers.AutoTokenizer.from_pretrained(folder)
                   for folder in (with_beginning[1], tmp_path / "out"))
  assert (after.bos_token, after.eos_token) == ("<s>", "</s>")
  assert after("The cat")["input_ids"] == before("The cat")["input_ids"]


@pytest.mark.parametrize("named", ["tokenizer", "config"])
def test_a_document_begins_with_the_token_that_the_folder_names(named, with_beginning, tmp_path):
  """Without a template, only an empty prompt begins with it in transformers."""
  theirs = with_beginning[0]
  theirs.save_pretrained(tmp_path / "model")
  tokenizer = make_byte_bpe()
  tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"} if named == "tokenizer"
                               else {"eos_token": "</s>"})
  tokenizer.save_pretrained(tmp_path / "model")
  importing.import_model(tmp_path / "model", tmp_path / "run")
  beginning = torch.tensor([[0]])  # It is the padding too, so its mask is given.
  expected = theirs.generate(beginning, attention_mask=torch.ones_like(beginning), do_sample=False,
                             max_new_tokens=12, eos_token_id=2)[0, 1:].tolist()
  for path in (tmp_path / "model", tmp_path / "run"):
    begun = opening.open_model(path)
    assert (begun.bos_id, begun.start_id) == (-1, 0)
    added, = generate.continue_prompts(begun, [np.zeros(0, np.int32)], 12, generate.GREEDY)
    assert added.tolist() == [i for i in expected if i != 2]
  export.export(tmp_path / "run", tmp_path / "out")
  for name in ("config.json", "generation_config.json"):
    ids = json.loads((tmp_path / "out" / name).read_text())
    assert (ids["bos_token_id"], ids["eos_token_id"]) == (0, 2)
  after = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  assert (after.bos_token, after.eos_token) == ("<s>", "</s>")
  assert after("The cat")["input_ids"] == begun.tokenizer.encode(["The cat"])[0].tolist()


@pytest.mark.parametrize("name, first, last, shown", [
    ("RobertaModel", "<s>", "</s>", ""),
    ("RobertaModel", "", "", "transformers gives the model a, bertgpt <s> a </s>"),
    ("RobertaModel", "<s>", "", "transformers gives the model <s> a, bertgpt <s> a </s>"),
    ("GPT2Model", "", "", ""),
    ("GPT2Model", "<s>", "", ""),
    ("GPT2Model", "<s>", "</s>", "transformers gives the model <s> a </s>, bertgpt a"),
])
def test_other_marks_than_those_of_the_folder_are_noted(name, first, last, shown, tmp_path, capsys):
  theirs = make_theirs(name, ROBERTA if name.startswith("Roberta") else DECODER)
  theirs.save_pretrained(tmp_path)
  tokenizer = make_byte_bpe()
  put_around(tokenizer, first, last)
  tokenizer.save_pretrained(tmp_path)
  opening.open_model(tmp_path)
  notes = [line for line in capsys.readouterr().err.splitlines() if "gives the model" in line]
  assert [shown in note for note in notes] == [True] * bool(shown)


@pytest.mark.parametrize("name, tokenizer_class", [
    ("GPT2Model", "GPT2Tokenizer"), ("GPT2Model", "GPT2TokenizerFast"), ("GPT2Model", None),
    ("GPT2Model", "PreTrainedTokenizerFast"), ("RobertaModel", "RobertaTokenizer"),
    ("RobertaModel", None), ("RobertaModel", "TokenizersBackend")])
@pytest.mark.parametrize("file", [True, False])
@pytest.mark.parametrize("setting", [True, False, None])
def test_a_text_begins_with_a_space_as_in_transformers(name, tokenizer_class, file, setting,
                                                       tmp_path):
  """Some classes let tokenizer_config.json have priority over tokenizer.json."""
  model_type = "gpt2" if name == "GPT2Model" else "roberta"
  tokenizer = make_byte_bpe()
  tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=file)
  tokenizer.save_pretrained(tmp_path)
  settings = {"tokenizer_class": tokenizer_class, "add_prefix_space": setting}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(
      {key: value for key, value in settings.items() if value is not None}))
  (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  ours = folder_tokenizer.load_tokenizer(hf_files.read_hf_files(tmp_path), 300)
  for text in ("the cat", " the cat", "a"):
    expected = theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode([text])[0].tolist() == expected
  stored = tokenizers.load_tokenizer(tmp_path)
  assert stored.data == (tmp_path / "tokenizer.json").read_bytes()


ONE_SEPARATOR = "<s>:0 $A:0 </s>:0 $B:1 </s>:1"


def make_library(kind):
  """Returns a tokenizer of the library, with the steps that the classes of its kind have."""
  first = ["<unk>", "<pad>"] if kind == "xlnet" else ["<pad>", "<unk>"]
  special_tokens = [*first, "<s>", "</s>", "<mask>"]
  if kind == "xlm-roberta":
    special_tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
  if kind.endswith("wordpiece"):
    library = pipelines.bert_pipeline({}, True, unknown="<unk>")
    library.model.max_input_chars_per_word = 400 if kind == "long wordpiece" else 100
    trainer = trainers.WordPieceTrainer(special_tokens=special_tokens, vocab_size=200)
  elif kind == "bpe":
    library = pipelines.byte_bpe_pipeline(models.BPE())
    trainer = trainers.BpeTrainer(special_tokens=special_tokens, vocab_size=320,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
  elif kind == "gpt1_bpe":
    library = pipelines.gpt1_pipeline({}, [])
    trainer = trainers.BpeTrainer(special_tokens=special_tokens, vocab_size=200,
                                  end_of_word_suffix=pipelines.END_OF_WORD)
  else:
    library = fast_tokenizers.Tokenizer(models.Unigram())
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sees it"] * 9), model_writer=model, vocab_size=60,
        hard_vocab_limit=False, minloglevel=2)
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    first_steps = [] if kind == "xlm-roberta" else [
        normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(),
        normalizers.StripAccents(), *[normalizers.Lowercase()] * (kind == "albert")]
    library.normalizer = normalizers.Sequence([
        *first_steps, normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)])
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    library.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(special_tokens=special_tokens, vocab_size=60,
                                      unk_token="<unk>")
  library.train_from_iterator([small_runs.make_text(30)] * 2 + ["Großes café, NAÏVE (1)"], trainer)
  return library


@pytest.mark.parametrize("model_type, kind, tokenizer_class, settings", [
    ("bert", "wordpiece", "BertTokenizer", {}), ("electra", "wordpiece", None, {}),
    ("bert", "long wordpiece", "BertTokenizer", {}), ("bert", "wordpiece", "TokenizersBackend", {}),
    ("bert", "wordpiece", "DistilBertTokenizer", {}), ("bert", "wordpiece", "MPNetTokenizer", {}),
    ("bert", "wordpiece", "MobileBertTokenizerFast", {}),
    ("bert", "wordpiece", "ConvBertTokenizer", {}),
    ("electra", "wordpiece", "ElectraTokenizerFast", {}),
    ("roberta", "bpe", "RobertaTokenizerFast", {}), ("roberta", "bpe", "BartTokenizer", {}),
    ("gpt2", "bpe", None, {}), ("modernbert", "bpe", "PreTrainedTokenizerFast", {}),
    ("openai-gpt", "gpt1_bpe", None, {}),
    ("albert", "albert", None, {}), ("albert", "xlnet", "AlbertTokenizer", {}),
    ("albert", "albert", None, {"do_lower_case": None}),
    ("albert", "albert", None, {"add_prefix_space": False}),
    ("albert", "albert", "AlbertTokenizer", {"keep_accents": True}),
    ("bert", "xlm-roberta", "XLMRobertaTokenizer", {}),
    ("bert", "xlm-roberta", "XLMRobertaTokenizerFast", {"add_prefix_space": False}),
    ("roberta", "xlm-roberta", "CamembertTokenizer", {}),
    ("bert", "xlnet", "CamembertTokenizer", {}),
    ("gpt2", "bpe", "LlamaTokenizerFast", {}),
    ("xlnet", "xlnet", "XLNetTokenizer", {}), ("xlnet", "xlnet", None, {"keep_accents": True}),
    ("xlnet", "albert", None, {"do_lower_case": True}),
    ("xlnet", "albert", None, {"do_lower_case": True, "unk_id": 1})])
@pytest.mark.parametrize("normalizer", [None, normalizers.Sequence([
    normalizers.NFKC(), normalizers.Lowercase()])], ids=["as in the class", "NFKC"])
def test_a_class_that_prepares_texts_in_another_way_is_noted(model_type, kind, tokenizer_class,
                                                             settings, normalizer, tmp_path):
  library = make_library(kind)
  library.normalizer = normalizer or library.normalizer
  library.save(str(tmp_path / "tokenizer.json"))
  roles = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>",
           "mask_token": "<mask>", "bos_token": "<s>", "eos_token": "</s>"}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(
      roles | settings | ({"tokenizer_class": tokenizer_class} if tokenizer_class else {})))
  (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
  hf = hf_files.read_hf_files(tmp_path)
  ours = folder_tokenizer.load_tokenizer(hf, 400)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  texts = list(same_ids.make_texts(ours))
  same = [theirs(text, add_special_tokens=False)["input_ids"] == ids.tolist()
          for text, ids in zip(texts, ours.encode(texts), strict=True)]
  line = folder_tokenizer.describe_class(hf, ours)
  assert bool(line) == (not all(same)), line


@pytest.mark.parametrize("tokenizer_class", [
    "BarthezTokenizer", "BigBirdTokenizer", "DebertaV2TokenizerFast", "LlamaTokenizer",
    "MBartTokenizer", "RemBertTokenizer", "T5Tokenizer"])
def test_a_class_that_is_not_compared_is_named(tokenizer_class, tmp_path):
  make_library("xlm-roberta").save(str(tmp_path / "tokenizer.json"))
  (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer_class}))
  (tmp_path / "config.json").write_text('{"model_type": "bert"}')
  hf = hf_files.read_hf_files(tmp_path)
  ours = folder_tokenizer.load_tokenizer(hf, 400)
  name = tokenizer_class.removesuffix("Fast")
  assert folder_tokenizer.describe_class(hf, ours) == (
      f"tokenizer.json is used as it is. {name} of transformers 5 may give other tokens and marks")


@pytest.mark.parametrize("template, settings, shown", [
    ("<s>:0 $A:0 </s>:0 </s>:0 $B:0 </s>:0", {}, ""),
    (ONE_SEPARATOR, {}, "for the texts 'a' and 'a', transformers gives the model <s> "),
    ("<s>:0 $A:0 </s>:0 </s>:0 $B:0 </s>:0", {"bos_token": "<mask>"},
     "for the text 'a', transformers gives the model <mask> ")])
def test_marks_of_an_xlm_roberta_are_compared(template, settings, shown, tmp_path):
  """Its class does not read the template in tokenizer.json."""
  library = make_library("xlm-roberta")
  specials = [(name, library.token_to_id(name)) for name in ("<s>", "</s>")]
  library.post_processor = processors.TemplateProcessing("<s>:0 $A:0 </s>:0", template, specials)
  make_theirs("BertModel", ENCODER).save_pretrained(tmp_path)
  library.save(str(tmp_path / "tokenizer.json"))
  roles = {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>", "pad_token": "<pad>",
           "bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "XLMRobertaTokenizer"}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(roles | settings))
  opened = opening.open_folder(tmp_path, "--from")
  found = [note[:len(shown)] for note in opened.notes if "gives the model" in note]
  assert found == [shown][:bool(shown)]
  tokenizer, theirs = opened.tokenizer, transformers.AutoTokenizer.from_pretrained(tmp_path)
  ours = marks.of_encoder(tokenizer)
  (ids,) = tokenizer.encode(["a"])
  rows = [theirs("a"), theirs("a", "a")]
  is_same = [row["input_ids"] for row in rows] == [ours.enclose(ids).tolist(),
                                                   ours.enclose(ids, ids).tolist()]
  assert is_same == (not shown)
  assert not any("token_type_ids" in row for row in rows)
  assert any("all segments" in note and "numbers none" in note for note in opened.notes)


@pytest.mark.parametrize("specials, pad_id, is_refused", [
    (("<s>", "<pad>", "</s>", "<unk>", "<mask>"), 1, False),
    (("<s>", "<unk>", "</s>", "<mask>"), 1, True),  # Of a text.
    (("<s>", "</s>", "<pad>", "<unk>", "<mask>"), 1, True),  # Around every text.
    (("<s>", "<pad>", "</s>", "<unk>", "<mask>"), 30, True)])  # A byte.
def test_a_roberta_whose_padding_occurs_in_texts_is_refused(specials, pad_id, is_refused, tmp_path):
  """transformers gives that token no position of its own."""
  theirs = make_theirs("RobertaModel", ROBERTA | {"pad_token_id": pad_id,
                                                  "max_position_embeddings": 80})
  theirs.save_pretrained(tmp_path)
  tokenizer = make_byte_bpe(specials)
  put_around(tokenizer, "<s>", "</s>")
  tokenizer.save_pretrained(tmp_path)
  if is_refused:
    with pytest.raises(DataError, match=f"pad_token_id={pad_id} in config.json is the token"):
      opening.open_folder(tmp_path, "--from")
    return
  opened = opening.open_folder(tmp_path, "--from")
  tokens = np.array([tokenizer("the cat sees")["input_ids"]])
  expected = theirs(torch.asarray(tokens)).last_hidden_state.detach().numpy()
  inputs = Inputs.of_texts(jnp.asarray(tokens), jnp.asarray([tokens.shape[1]]))
  ours = tiny.apply(make_model(opened.config), opened.params, inputs, method="features")
  np.testing.assert_allclose(ours, expected, atol=2e-5)


@pytest.mark.parametrize("tokenizer_class, template", [
    ("RobertaTokenizer", None), (None, None), ("RobertaTokenizer", ONE_SEPARATOR),
    (None, ONE_SEPARATOR), ("PreTrainedTokenizerFast", ONE_SEPARATOR)])
def test_two_texts_are_put_into_a_row_as_in_transformers(tokenizer_class, template, tmp_path):
  """The class of RoBERTa puts two separators between them, whatever tokenizer.json says."""
  make_theirs("RobertaModel", ROBERTA).save_pretrained(tmp_path)
  tokenizer = make_byte_bpe()
  library = tokenizer.backend_tokenizer
  if template:
    library.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", template, [("<s>", 0), ("</s>", 2)])
  tokenizer.save_pretrained(tmp_path)
  settings = {"tokenizer_class": tokenizer_class, "cls_token": "<s>", "sep_token": "</s>",
              "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(
      {key: value for key, value in settings.items() if value}))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  importing.import_model(tmp_path, tmp_path / "run")
  ours = tokenizers.load_tokenizer(tmp_path / "run" / "tokenizer", is_saved=True)
  a, b = ours.encode(["the cat", "sees"])
  expected = theirs("the cat", "sees")["input_ids"]
  assert marks.of_encoder(ours).enclose(a, b).tolist() == expected


# ------------------------------------------------------- the same model, stored in another way


def in_shards(theirs, folder):
  theirs.save_pretrained(folder, max_shard_size="20KB")
  (folder / "model.safetensors").unlink(missing_ok=True)
  assert len(list(folder.glob("model-*.safetensors"))) > 2


def rename(change):
  """Returns a function that writes the same tensors under other names."""
  def write(theirs, folder):
    theirs.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({change(name): x for name, x in tensors.items()}, folder / "model.safetensors")
  return write


def with_copies(theirs, folder):
  """Adds copies of tensors, as old versions of transformers and other programs did."""
  theirs.save_pretrained(folder)
  tensors = load_file(folder / "model.safetensors")
  table = tensors["bert.embeddings.word_embeddings.weight"]
  tensors |= {"cls.predictions.decoder.weight": table.copy(),
              "cls.predictions.decoder.bias": tensors.pop("cls.predictions.bias"),
              "bert.embeddings.position_ids": np.arange(40)[None],
              "bert.embeddings.token_type_ids": np.zeros((1, 40), np.int64)}
  save_file(tensors, folder / "model.safetensors")


STORED = {
    "shards": in_shards,
    "names of before": rename(lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma")
                              .replace("LayerNorm.bias", "LayerNorm.beta")),
    "names of a wrapper": rename(lambda name: f"module.{name}"),
    "without a prefix": rename(lambda name: name.removeprefix("bert.")),
    "copies and buffers": with_copies,
}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("name", ["BertForPreTraining", "BertForMaskedLM"])
def test_another_way_of_storing_gives_the_same_model(name, stored, tmp_path, capsys):
  theirs = make_theirs(name, ENCODER)
  folder = save(theirs, tmp_path / "model")
  (folder / "model.safetensors").unlink()
  STORED[stored](theirs, folder)
  capsys.readouterr()
  ours = opening.open_model(folder)
  assert not capsys.readouterr().err
  assert_same_features(theirs, ours)
  assert_same_logits(theirs, ours)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "RobertaForMaskedLM", "AlbertForMaskedLM",
                                  "GPT2LMHeadModel", "OpenAIGPTLMHeadModel"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_comes_in_exactly(name, dtype, tmp_path):
  theirs = make_theirs(name, KINDS[name].sizes).to(getattr(torch, dtype))
  ours = opening.open_model(save(theirs, tmp_path / "model"))
  theirs = theirs.float()
  assert_same_features(theirs, ours)
  assert_same_logits(theirs, ours)


@pytest.mark.parametrize("name", ["BertForPreTraining", "BertModel", "RobertaForMaskedLM",
                                  "AlbertForPreTraining", "GPT2LMHeadModel",
                                  "OpenAIGPTLMHeadModel"])
def test_spare_rows_of_a_padded_vocabulary_are_cut(name, tmp_path, capsys):
  sizes = KINDS[name].sizes
  theirs = make_theirs(name, sizes | {"vocab_size": sizes["vocab_size"] + 38})
  with torch.no_grad():
    for p in theirs.parameters():
      if p.ndim == 1 and len(p) == sizes["vocab_size"] + 38:
        p[-38:] = 50  # Spare rows would win.
  folder = save(theirs, tmp_path / "model")
  ours = opening.open_model(folder)
  assert f"the last 38 of {sizes['vocab_size'] + 38} rows" in capsys.readouterr().err
  assert ours.config.model.vocab_size == ours.tokenizer.vocab_size == sizes["vocab_size"]
  assert_same_features(theirs, ours)
  if KINDS[name].has_logits:
    assert_same_logits(theirs, ours)
  importing.import_model(folder, tmp_path / "run")
  assert cli.main(["export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"]) == 0
  assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == sizes["vocab_size"]


def test_spare_rows_may_hold_anything_and_others_may_not(tmp_path):
  """Some programs put -inf into rows without a token."""
  theirs = make_theirs("BertForMaskedLM", ENCODER | {"vocab_size": 96})
  with torch.no_grad():
    theirs.cls.predictions.bias[90:] = -np.inf
  folder = save(theirs, tmp_path / "model")
  assert_same_logits(theirs, opening.open_model(folder))
  with torch.no_grad():
    theirs.cls.predictions.bias[89] = -np.inf
  with pytest.raises(DataError, match="the tensor cls.predictions.bias is not finite"):
    opening.open_model(save(theirs, tmp_path / "other"))


def test_features_do_not_need_a_tied_table(tmp_path):
  theirs = make_theirs("BertModel", ENCODER | {"tie_word_embeddings": False})
  assert_same_features(theirs, opening.open_model(save(theirs, tmp_path / "model")))


def test_an_albert_with_embeddings_as_wide_as_itself_is_refused(tmp_path):
  """In this package, such a model has no dense layer after its embeddings."""
  folder = save(make_theirs("AlbertModel", SHARED | {"embedding_size": 32}), tmp_path / "model")
  with pytest.raises(DataError, match="embedding_size=32: transformers' ALBERT has a dense"):
    opening.open_model(folder)


def test_an_albert_with_two_groups_of_layers_comes_in(tmp_path):
  theirs = make_theirs("AlbertModel", SHARED | {"num_hidden_layers": 4, "num_hidden_groups": 2})
  assert_same_features(theirs, opening.open_model(save(theirs, tmp_path / "model")))


def test_a_model_without_its_pooler_comes_in(tmp_path):
  theirs = make_theirs("BertModel", ENCODER, add_pooling_layer=False)
  ours = opening.open_model(save(theirs, tmp_path / "model"))
  assert ours.fresh == ("mlm",) and ours.config.objective.name == "mlm"
  assert_same_features(theirs, ours)


@pytest.mark.parametrize("lstrip, number", [(True, 0), (False, 1)])
@pytest.mark.parametrize("name", ["RobertaForMaskedLM", "RobertaModel"])
def test_a_mask_that_does_not_include_the_space_before_it_is_noted(tmp_path, name, lstrip, number):
  folder = save(make_theirs(name, ROBERTA), tmp_path / "model")
  content = json.loads((folder / "tokenizer.json").read_text())
  (mask,) = (token for token in content["added_tokens"] if token["content"] == "<mask>")
  mask["lstrip"] = lstrip
  (folder / "tokenizer.json").write_text(json.dumps(content))
  opened = opening.open_folder(folder, "--workdir")
  lines = [note for note in opened.notes if "which `bertgpt fill` reads" in note]
  assert len(lines) == (number if name == "RobertaForMaskedLM" else 0)
  text = "The cat is <mask>."
  ours = following.encode_template(opened.tokenizer, text).tolist()
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  assert (theirs(text, add_special_tokens=False)["input_ids"] == ours) == lstrip


def test_roberta_keeps_the_ids_of_its_beginning_and_end(tmp_path):
  theirs = make_theirs("RobertaForMaskedLM", ROBERTA)
  importing.import_model(save(theirs, tmp_path / "model"), tmp_path / "run")
  assert cli.main(["export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"]) == 0
  expected = theirs.config.to_dict()
  found = json.loads((tmp_path / "out/config.json").read_text())
  for name in ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings"):
    assert found[name] == expected[name]


@pytest.mark.parametrize("name, segments", [("RobertaTokenizer", 1), ("BertTokenizer", 2)])
def test_segments_that_the_tokenizer_of_a_roberta_does_not_number_are_left_out(
    name, segments, tmp_path, capsys):
  """RobertaConfig says 2 if nothing else is said."""
  theirs = make_theirs("RobertaForMaskedLM", ROBERTA | {"type_vocab_size": 2})
  folder = save(theirs, tmp_path / "model")
  (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
  ours = opening.open_model(folder)
  assert ours.config.model.num_segments == segments
  assert ("numbers none" in capsys.readouterr().err) == (segments == 1)
  assert_same_logits(theirs, ours)


@pytest.mark.parametrize("tokenizer_class, note", [
    ("PreTrainedTokenizerFast", "all segments of BertForPreTraining are equal"),
    ("BertTokenizer", "transformers 4 numbers none")])
def test_segments_that_the_template_does_not_number_are_noted(
    tokenizer_class, note, tmp_path, capsys):
  """Other classes than the generic ones have templates of their own in transformers 5."""
  folder = save(make_theirs("BertForPreTraining", ENCODER), tmp_path / "model")
  library = fast_tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  library.post_processor = processors.TemplateProcessing(
      "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", [("[CLS]", 2), ("[SEP]", 3)])
  library.save(str(folder / "tokenizer.json"))
  settings = json.loads((folder / "tokenizer_config.json").read_text())
  (folder / "tokenizer_config.json").write_text(json.dumps(
      settings | {"tokenizer_class": tokenizer_class}))
  ours = opening.open_model(folder)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)("the cat", "a cat")
  first, second = ours.params["embeddings"]["segment"]["embedding"]
  assert np.array_equal(first, second) == (not any(theirs["token_type_ids"]))
  assert note in capsys.readouterr().err


@pytest.mark.parametrize("place", ["config.json", "generation_config.json"])
def test_a_decoder_ends_where_its_config_says(tmp_path, place):
  """Its tokenizer may name no end, and hold the end of text of another model."""
  theirs = make_theirs("GPT2LMHeadModel", DECODER | {"eos_token_id": None, "bos_token_id": None})
  folder = save(theirs, tmp_path / "model")
  tokenizer = make_byte_bpe(("<|endoftext|>", "<pad>", "<end>"))
  tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
  tokenizer.save_pretrained(folder)
  (folder / "generation_config.json").unlink()
  for eos, expected in ((None, 0), (2, 2), (300, 0)):
    path = folder / place
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | {"eos_token_id": eos}))
    ours = opening.open_model(folder)
    assert ours.tokenizer.eod_id == expected
  (folder / place).write_text(json.dumps(content | {"eos_token_id": 2}))
  importing.import_model(folder, tmp_path / "run")
  assert opening.open_model(tmp_path / "run").tokenizer.eod_id == 2


def test_tensors_are_read_one_at_a_time(tmp_path, monkeypatch):
  folder = tmp_path / "model"
  in_shards(make_theirs("BertForPreTraining", ENCODER), folder)
  found = weights.find(folder)
  opened = []
  monkeypatch.setattr(weights.Weights, "__getitem__",
                      lambda self, name: opened.append(name) or np.zeros(1))
  assert len(found) == len(set(found)) > 40 and not opened


# ------------------------------------------------------------------------------- refusals


def change_config(**changes):
  def change(folder):
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: x for key, x in content.items() if x != "remove"}))
  return change


def change_tensors(make):
  def change(folder):
    path = folder / "model.safetensors"
    save_file(make(load_file(path)), path)
  return change


def change_index(make):
  def change(folder):
    make_theirs("BertForMaskedLM", ENCODER).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    make(content["weight_map"])
    path.write_text(json.dumps(content))
  return change



def replace_weights(name, content=b"x"):
  def change(folder):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
  return change


def quantize(tensors):
  return tensors | {QUERY: (tensors[QUERY] * 100).astype(np.int8)}


def remove_shard(folder):
  change_index(lambda weight_map: None)(folder)
  sorted(folder.glob("model-*.safetensors"))[1].unlink()


def nest(folder):
  inner = folder / "0_Transformer"
  inner.mkdir()
  for path in folder.iterdir():
    if path.is_file():
      path.rename(inner / path.name)


def with_one(value):
  def make(tensors):
    tensors[QUERY][3, 1] = value
    return tensors
  return change_tensors(make)


QUERY = "bert.encoder.layer.1.attention.self.query.weight"
REFUSED = {
    "no model_type": (change_config(model_type="remove"), 'no model_type. Add it, as "model_type"'),
    "another kind": (change_config(model_type="invented"),
                     "model_type='invented' in config.json: not supported. Choose a model of alb"),
    "a name within another": (change_config(model_type="x-roberta"), "model_type='x-roberta'"),
    "relu": (change_config(hidden_act="relu"), "hidden_act='relu' in config.json: only gelu"),
    "decoder": (change_config(is_decoder=True), "is_decoder=True in config.json: only False"),
    "untied": (change_config(tie_word_embeddings=False), "tie_word_embeddings=False"),
    "relative positions": (change_config(position_embedding_type="relative_key"),
                           "position_embedding_type='relative_key'"),
    "remote code": (change_config(auto_map={"AutoModel": "modeling_x.X"}), "code in its folder"),
    "quantized": (change_config(quantization_config={"bits": 8}), "its weights are quantized"),
    "weights in another file": (change_config(transformers_weights="other.safetensors"),
                                "config.json has transformers_weights: it names another file"),
    "int8": (change_tensors(quantize), f"the tensor {QUERY} is of type int8"),
    "pickle": (replace_weights("pytorch_model.bin"), "pytorch_model.bin is a pickle"),
    "pickles": (replace_weights("pytorch_model-00001-of-00002.bin"), "is a pickle"),
    "TensorFlow": (replace_weights("tf_model.h5"), "tf_model.h5 is the file of another program"),
    "another name": (replace_weights("model.fp16.safetensors"), "Rename it to model.safetensors"),
    "Git LFS": (replace_weights("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"
                                b"oid sha256:1\nsize 9\n"), "run git lfs pull"),
    "adapter": (lambda folder: (folder / "adapter_config.json").write_text("{}"),
                "holds an adapter, not a model. Merge it"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no such file. Give a"),
    "NaN": (with_one(np.nan), f"the tensor {QUERY} is not finite"),
    "infinity": (with_one(np.inf), f"the tensor {QUERY} is not finite"),
    "a layer is missing": (change_tensors(lambda t: {k: x for k, x in t.items() if ".1." not in k}),
                           "bert.encoder.layer.1.attention.self.query.weight is missing"),
    "a part of a head is missing": (
        change_tensors(lambda t: {k: x for k, x in t.items() if "transform.dense" not in k}),
        "the tensor cls.predictions.transform.dense.weight is missing"),
    "unknown tensor": (change_tensors(lambda t: t | {"linear.weight": t[QUERY]}),
                       "the tensor linear.weight has no place in a BertForMaskedLM"),
    "fewer rows than tokens": (
        lambda folder: save_rows(folder, 80), "its tokenizer has 90 tokens, but config.json says"),
    "a shard is missing": (remove_shard, "no such file, but model.safetensors.index.json names it"),
    "an index leads out": (change_index(lambda m: m.update({QUERY: "../model.safetensors"})),
                           "'../model.safetensors' is not the name of a file in the folder"),
    "an index leads to the root": (change_index(lambda m: m.update({QUERY: "/etc/passwd"})),
                                   "'/etc/passwd' is not the name of a file in the folder"),
    "an index lacks a tensor": (change_index(lambda m: m.pop(QUERY)),
                                f"does not name the tensor {QUERY}"),
    "an index has one too many": (
        change_index(lambda m: m.update({"bert.x": m[QUERY]})), "lacks the tensor bert.x"),
    "an empty index": (change_index(dict.clear), "weight_map does not give a file"),
    "a folder too high": (nest, "0_Transformer. Give that folder"),
}


def save_rows(folder, rows):
  make_theirs("BertForMaskedLM", ENCODER | {"vocab_size": rows}).save_pretrained(folder)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_come_in_is_refused_in_one_line(kind, tmp_path, capsys):
  damage, message = REFUSED[kind]
  folder = save(make_theirs("BertForMaskedLM", ENCODER), tmp_path / "model")
  damage(folder)
  capsys.readouterr()
  for argv in (["import", f"--from={folder}", f"--workdir={tmp_path / 'run'}"],
               ["fill", f"--workdir={folder}", "the [MASK]."]):
    assert cli.main(argv) == 65
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and str(folder) in line
  assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("letters", ["ACGT", "acgt"])
def test_a_tokenizer_may_have_no_token_for_a_text(tmp_path, letters):
  """A tokenizer of DNA; that `<eos>` is a special token, only config.json says."""
  tokenizer = fast_tokenizers.Tokenizer(fast_tokenizers.models.BPE())
  tokenizer.pre_tokenizer = fast_tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = fast_tokenizers.decoders.ByteLevel()
  tokenizer.train_from_iterator([letters * 9], fast_tokenizers.trainers.BpeTrainer(
      vocab_size=12, special_tokens=["<eos>"], show_progress=False))
  make_theirs("GPT2LMHeadModel", DECODER | {
      "vocab_size": tokenizer.get_vocab_size(), "eos_token_id": 0}).save_pretrained(tmp_path)
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  opened = opening.open_model(tmp_path)
  assert (opened.bos_id, opened.tokenizer.eod_id) == (-1, 0)
  assert opened.tokenizer.encode(["?"])[0].tolist() == []


def test_an_encoder_whose_tokenizer_has_no_mask_is_refused_with_its_folder(tmp_path):
  make_theirs("BertModel", ENCODER).save_pretrained(tmp_path)
  pieces = [piece if piece != "[MASK]" else "[none]" for piece in PIECES]
  (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
  with pytest.raises(DataError, match=f"{tmp_path}.*its tokenizer has no mask_token. Name the"):
    opening.open_model(tmp_path)


def test_a_tokenizer_of_another_type_than_its_class_reads_is_named(tmp_path):
  make_theirs("AlbertModel", SHARED).save_pretrained(tmp_path)
  make_wordpiece().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
  assert any("holds a WordPiece, which AlbertTokenizer of transformers 5 does not read" in note
             for note in opening.open_folder(tmp_path, "--workdir").notes)


def test_gpt1_comes_in_with_its_own_tokenizer(tmp_path):
  """GPT-1's vocabulary has no token for the end of a document."""
  texts = [*small_runs.make_text(20).splitlines(), "Naïve CAFÉ: (unseen) ☃!", ""]
  tokenizer = pipelines.gpt1_pipeline({"<unk>": 0}, [])
  tokenizer.train_from_iterator(texts, fast_tokenizers.trainers.BpeTrainer(
      vocab_size=200, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False))
  model = make_theirs("OpenAIGPTLMHeadModel", DECODER | {"vocab_size": tokenizer.get_vocab_size()})
  model.save_pretrained(tmp_path / "gpt1")
  tokenizer.model.save(str(tmp_path / "gpt1"))
  (tmp_path / "gpt1" / "tokenizer_config.json").write_text(
      json.dumps({"tokenizer_class": "OpenAIGPTTokenizer"}))
  assert cli.main(["import", f"--from={tmp_path / 'gpt1'}", f"--workdir={tmp_path / 'run'}"]) == 0
  for path in (tmp_path / "gpt1", tmp_path / "run"):
    ours = opening.open_model(path).tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "gpt1")
    assert [ids.tolist() for ids in ours.encode(texts)] == theirs(texts)["input_ids"]
