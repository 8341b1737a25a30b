"""bertgpt.inference.fill: [MASK] hides a word at the place where it stands in the text."""

import functools

import numpy as np
import pytest
import sentencepiece
import tiny
import tokenizers as fast_tokenizers
from tokenizers import decoders, models, pre_tokenizers

from bertgpt import cli
from bertgpt import config as config_lib
from bertgpt.data.tokens import training
from bertgpt.data.tokens.pipelines import bert_pipeline, byte_bpe_pipeline
from bertgpt.data.tokens.tokenizers import ByteBPE, load_tokenizer
from bertgpt.errors import ConfigError
from bertgpt.inference import fill
from bertgpt.models import Inputs
from bertgpt.runs import trained as trained_lib


def test_masked_words_are_hidden_and_their_context_is_not(bert):
  tokenizer = bert.tokenizer
  ids = tokenizer.encode(["The cat sees the dog near a tree."])[0]
  tokens = np.array([tokenizer.cls_id, *ids, tokenizer.sep_id])
  p = fill.predict_masked(bert, tokens, [2, 5])
  assert p.shape == (2, tokenizer.vocab_size)
  assert p.min() >= 0 and p.sum(1) == pytest.approx(1, abs=1e-5)

  hidden, context = tokens.copy(), tokens.copy()
  hidden[[2, 5]] = tokens[[5, 2]]
  context[3:5] = tokens[6]
  np.testing.assert_array_equal(fill.predict_masked(bert, hidden, [2, 5]), p)
  assert abs(fill.predict_masked(bert, context, [2, 5]) - p).max() > 1e-5
  assert abs(fill.predict_masked(bert, tokens, [2])[0] - p[0]).max() > 1e-5  # The other is visible.


def test_rows_are_not_longer_than_the_text_in_effect(bert):
  """The model does not see the padding: without it, predictions are the same."""
  tokenizer = bert.tokenizer
  tokens = np.array([tokenizer.cls_id, *tokenizer.encode(["The bird likes a cloud."])[0],
                     tokenizer.sep_id])
  masked = tokens.copy()
  masked[3] = tokenizer.mask_id
  row = masked[None].astype(np.int32)
  inputs = Inputs.of_texts(row, np.array([len(tokens)]))
  inputs = inputs._replace(predict_positions_BK=np.array([[3]]))
  logits = tiny.apply(bert.model, bert.params, inputs, method="predict").logits()
  logits = np.float64(logits[0, 0, :tokenizer.vocab_size])
  expected = np.exp(logits) / np.exp(logits).sum()
  np.testing.assert_allclose(fill.predict_masked(bert, tokens, [3])[0], expected, atol=1e-6)


@pytest.mark.parametrize("kind, vocab_size", [("sentencepiece", 45), ("wordpiece", 40),
                                              ("bpe", 275)])
def test_no_special_token_is_a_guess(kind, vocab_size):
  """A special token is left out even if it is likeliest; the others stay in their order."""
  config = config_lib.base().tokenizer
  config.update(kind=kind, vocab_size=vocab_size, model_type="bpe")
  tokenizer = training.train_tokenizer(config, ["the cat saw the dog, and the dog ran."] * 20)
  specials = {i for i, piece in enumerate(tokenizer.pieces)
              if piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|endoftext|>")}
  assert len(specials) >= 5
  p = np.arange(1.0, 1 + tokenizer.vocab_size)
  p[list(specials)] = 1e6
  p /= p.sum()
  expected = [i for i in reversed(range(tokenizer.vocab_size)) if i not in specials]
  assert fill.likeliest(tokenizer, p, 10 ** 6).tolist() == expected
  assert fill.likeliest(tokenizer, p, 3).tolist() == expected[:3]


def more_specials(tmp_path, kind):
  """Returns a tokenizer whose file has special tokens without a role, and unused ids."""
  if kind == "sentencepiece":
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat saw the dog."] * 20), vocab_size=20, minloglevel=2,
        model_prefix=str(tmp_path / "tokenizer"), pad_id=3,
        control_symbols="[CLS],[SEP],[MASK],<turn>")
    return load_tokenizer(tmp_path / "tokenizer.model")
  names = ["[PAD]", "[unused0]", "[unused99]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##s"]
  library = bert_pipeline({name: i for i, name in enumerate(names)}, True)
  library.add_special_tokens(["<turn>", *names[3:7]])
  library.add_tokens(["<url>"])  # A token that texts may contain.
  library.save(str(tmp_path / "tokenizer.json"))
  return load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("kind, hidden", [
    ("sentencepiece", {"<unk>", "<s>", "</s>", "<pad>", "[CLS]", "[SEP]", "[MASK]", "<turn>"}),
    ("wordpiece", {"[PAD]", "[unused0]", "[unused99]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
                   "<turn>"})])
def test_neither_is_one_that_only_the_file_calls_special(tmp_path, kind, hidden):
  tokenizer = more_specials(tmp_path, kind)
  p = np.ones(tokenizer.vocab_size + 40)  # A model may have more rows than there are tokens.
  p[tokenizer.vocab_size:] = 1e6
  shown = fill.likeliest(tokenizer, p, 10 ** 6)
  assert {tokenizer.pieces[i] for i in shown} == set(tokenizer.pieces) - hidden


@pytest.mark.parametrize("kind, vocab_size", [("sentencepiece", 45), ("wordpiece", 40),
                                              ("bpe", 275)])
def test_a_mask_takes_the_place_of_a_word(kind, vocab_size):
  """All other ids are those of the text without masks, in which the word is one token."""
  texts = ["the cat saw the dog. the cat ran, and the dog ran."] * 20
  config = config_lib.base().tokenizer
  config.update(kind=kind, vocab_size=vocab_size, model_type="bpe")
  tokenizer = training.train_tokenizer(config, texts)
  for text, word in (("the cat ran.", "cat"), ("the cat.", "cat"), ("the dog, the cat", "cat")):
    whole = tokenizer.encode([text])[0].tolist()
    token = tokenizer.encode([" " + word])[0].tolist()
    assert len(token) == 1  # Training made one token of each of these words.
    expected = [tokenizer.mask_id if i == token[0] else i for i in whole]
    assert fill.encode_template(tokenizer, text.replace(word, "[MASK]")).tolist() == expected
  found = fill.encode_template(tokenizer, "[MASK] [MASK]")
  assert found.tolist() == [tokenizer.mask_id] * 2


def unigram_of_json(folder, scheme="always"):
  """Returns a tokenizer.json with a unigram model, like ALBERT's."""
  words = ["the", "cat", "saw", "dog", "ran", "and", "is", "x"]
  pieces = ["<unk>", "[MASK]", "\u2581", ",", ".", ")", *"thecasw dognri", *words,
            *("\u2581" + word for word in [*words, "cow"])]  # No piece is "cow".
  model = models.Unigram([(piece, -float(i)) for i, piece in enumerate(dict.fromkeys(pieces))], 0)
  library = fast_tokenizers.Tokenizer(model)
  library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
  library.decoder = decoders.Metaspace(prepend_scheme=scheme)
  library.save(str(folder / "tokenizer.json"))
  return load_tokenizer(folder)


def byte_bpe_with_space(folder):
  """Returns a byte-level BPE that puts a space before every text, like that of some RoBERTas."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  merges = [("c", "a"), ("ca", "t"), ("\u0120", "cat"), ("\u0120", "."), ("i", "s")]
  pieces = [*alphabet, *map("".join, merges), "[MASK]"]
  library = byte_bpe_pipeline(models.BPE({p: i for i, p in enumerate(pieces)}, merges), True)
  library.save(str(folder / "tokenizer.json"))
  return load_tokenizer(folder)


def sentencepiece_of(folder, **options):
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(["the cat saw the dog. the cat is (a) cat, and it ran."] * 20),
      vocab_size=36, minloglevel=2, model_prefix=str(folder / "tokenizer"), hard_vocab_limit=False,
      control_symbols="[CLS],[SEP],[MASK]", **options)
  return load_tokenizer(folder / "tokenizer.model")


@pytest.mark.parametrize("make", [
    unigram_of_json, functools.partial(unigram_of_json, scheme="never"), byte_bpe_with_space,
    sentencepiece_of, functools.partial(sentencepiece_of, add_dummy_prefix=False),
    functools.partial(sentencepiece_of, remove_extra_whitespaces=False)])
def test_no_space_comes_after_a_mask_that_the_text_does_not_have(tmp_path, make):
  tokenizer = make(tmp_path)
  for text in ("the [MASK]. is", "the [MASK] is", "[MASK], the [MASK].", "[MASK].", "a [MASK]cow."):
    ids = fill.encode_template(tokenizer, text).tolist()
    spelled = "".join(tokenizer.pieces[i] for i in ids)
    spelled = spelled.replace("\u2581", " ").replace("\u0120", " ")
    # The space before a mask belongs to the hidden word.
    assert spelled.strip() == text.replace(" [MASK]", "[MASK]"), text


def test_guesses_are_the_likeliest_tokens_of_every_mask(bert):
  tokenizer = bert.tokenizer
  texts = ["The [MASK] sees the dog [MASK] a tree.", "A [MASK]."]
  found = fill.fill(bert, texts, top=4)
  assert [len(masks) for masks in found] == [2, 1]
  for text, masks in zip(texts, found, strict=True):
    row = fill.encode_row(bert, text)
    at = [i for i, token in enumerate(row) if token == tokenizer.mask_id]
    for p, guesses in zip(fill.predict_masked(bert, row, at), masks, strict=True):
      assert [guess.probability for guess in guesses] == sorted(
          (float(p[i]) for i in range(tokenizer.vocab_size)
           if i not in tokenizer.special_ids and i != tokenizer.unk_id), reverse=True)[:4]
      for token, probability in guesses:
        ids = [i for i, piece in enumerate(tokenizer.pieces) if piece == token]
        assert len(ids) == 1 and p[ids[0]] == pytest.approx(probability)


def test_a_model_in_memory_is_refused_by_what_it_is(gpt):
  with pytest.raises(ConfigError, match=r"^the model is a GPT, which cannot fill in words\. "):
    fill.fill(gpt._replace(workdir=None), ["[MASK]"])


# ------------------------------------------------------------------ the command


def run(capsys, *argv):
  """Returns (exit code, lines on stdout, lines on stderr) of a command."""
  capsys.readouterr()
  code = cli.main([str(a) for a in argv])
  output = capsys.readouterr()
  return code, output.out.splitlines(), output.err.splitlines()


def test_the_command_names_the_likeliest_words_of_every_mask(capsys, finished_bert, bert):
  code, lines, _ = run(capsys, "fill", f"--workdir={finished_bert}", "--top=3",
                       "The [MASK] sees the dog [MASK] a tree.")
  assert code == 0 and [line.split(": ")[0] for line in lines] == ["[MASK] 1", "[MASK] 2"]
  guesses = fill.fill(bert, ["The [MASK] sees the dog [MASK] a tree."], top=3)[0]
  for line, of_mask in zip(lines, guesses, strict=True):
    assert line.endswith(": " + ", ".join(f"{word} {p:.1%}" for word, p in of_mask))
    shares = [float(guess.rsplit(" ", 1)[1].rstrip("%"))
              for guess in line.split(": ")[1].split(", ")]
    assert len(shares) == 3 and shares == sorted(shares, reverse=True) and shares[0] <= 100


def test_the_command_never_names_a_special_token(capsys, finished_bert, bert):
  """Even when asked for the whole vocabulary, the command leaves out special tokens."""
  tokenizer = bert.tokenizer
  code, (line,), _ = run(capsys, "fill", f"--workdir={finished_bert}", "--top=1000000",
                         "The [MASK] sees the dog.")
  names = [guess.rsplit(" ", 1)[0] for guess in line.removeprefix("[MASK] 1: ").split("%, ")]
  assert code == 0 and len(names) == tokenizer.vocab_size - len(
      {*tokenizer.special_ids, tokenizer.unk_id} - {-1})
  assert not {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"} & set(names)


def test_a_token_without_visible_text_has_the_name_of_the_vocabulary():
  config = config_lib.base().tokenizer
  config.update(kind="bpe", vocab_size=275)
  tokenizer = training.train_tokenizer(config, ["the cat saw the dog, and the dog ran."] * 20)
  names = [fill.name_token(tokenizer, i, False) for i in range(tokenizer.vocab_size)]
  assert all(name.strip() and "\N{REPLACEMENT CHARACTER}" not in name for name in names)
  newline, = tokenizer.encode(["\n"])[0]
  assert names[newline] == tokenizer.pieces[newline]


@pytest.mark.parametrize("text", ["#", "##", "###", "####", "##a"])
def test_number_signs_of_a_byte_level_token_are_its_text(text):
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  merges = [("#", "#"), ("##", "#"), ("##", "##"), ("##", "a")]
  pieces = [*alphabet, *map("".join, merges), "[MASK]"]
  library = byte_bpe_pipeline(models.BPE({p: i for i, p in enumerate(pieces)}, merges), False)
  tokenizer = ByteBPE(library.to_str().encode())
  token = pieces.index(text)
  assert fill.name_token(tokenizer, token, False) == text
  assert fill.name_token(tokenizer, token, True) == f"##{text}"


def test_a_wordpiece_inside_a_word_has_one_pair_of_number_signs(tmp_path):
  tokenizer = more_specials(tmp_path, "wordpiece")
  names = [fill.name_token(tokenizer, tokenizer.pieces.index(piece), True)
           for piece in ("##s", "the")]
  assert names == ["##s", "##the"]


@pytest.mark.parametrize("rows, is_noted", [([32], False), ([33, 5], True)])
def test_rows_longer_than_those_of_the_training_are_noted(bert, capsys, rows, is_noted):
  """Even though later phases will be longer: they have not begun."""
  config = bert.config.copy_and_resolve_references()
  config.phases = (config_lib.phase(steps=40, seq_len=32), config_lib.phase(steps=40, seq_len=64))
  trained = bert._replace(config=config, step=40)
  count = trained_lib.count_untrained(trained, [np.zeros(n) for n in rows])
  trained_lib.note_untrained(trained, count, len(rows))
  error = capsys.readouterr().err
  assert is_noted == bool(error)
  assert is_noted == ("1 of 2 texts have more tokens than the rows of the training (32)" in error)
  assert trained_lib.longest_row(trained._replace(step=41)) == 64


@pytest.mark.parametrize("flags, fragment", [
    (["The cat sees the dog."], "has no [MASK]. Write [MASK] in place of a word"),
    ([""], "has no [MASK]"),
    (["[MASK] " + "cat " * 70], "exceed the model's 64 positions. Shorten it"),
    (["[MASK]", "--top=0"], "--top: 0: give a whole number of at least 1"),
    ([], "required: TEXT"),
])
def test_bad_input_is_one_line(capsys, finished_bert, flags, fragment):
  code, out, lines = run(capsys, "fill", f"--workdir={finished_bert}", *flags)
  assert (code, out, len(lines)) == (2, [], 1)
  assert fragment in lines[0]


def test_a_gpt_is_refused(capsys, finished_gpt):
  code, out, lines = run(capsys, "fill", f"--workdir={finished_gpt}", "The [MASK]")
  assert (code, out, len(lines)) == (2, [], 1)
  assert "holds a GPT" in lines[0] and "`bertgpt generate`" in lines[0]


def test_a_vocabulary_without_a_mask_hides_no_word(tmp_path):
  """An XLNet may have such a vocabulary; its last piece is a word like any other."""
  (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\nsees\nzebra\n")
  tokenizer = load_tokenizer(tmp_path)
  assert tokenizer.mask_id == -1
  ids = fill.encode_template(tokenizer, "the [MASK] sees the zebra")
  assert ids.tolist() == [4, -1, 5, 4, 6]
