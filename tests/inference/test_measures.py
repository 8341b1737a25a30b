"""bertgpt.inference.measures: every measure against the model's logits, one token per pass."""

import math
import types

import numpy as np
import pytest
import sentencepiece
import small_runs
from one_by_one import after, encode, instead
from zero_shot_texts import PAIRS, PASSAGES, TEXT

from bertgpt.data.tokens import lost, training
from bertgpt.data.tokens.tokenizers import load_tokenizer
from bertgpt.errors import ConfigError
from bertgpt.inference import measures, suites, zero_shot
from bertgpt.inference.suites import SUITES
from bertgpt.inference.zero_shot import Settings

# ------------------------------------------------------------------ perplexity


@pytest.mark.parametrize("stride", [8, 15])
def test_perplexities_of_a_gpt(gpt, stride):
  settings = Settings(window=16, stride=stride, batch_size=3)
  documents = [TEXT, "The cat."]
  found = zero_shot.measure(gpt, SUITES["text"], documents, settings)
  nats, count = 0.0, 0
  for document in documents:
    tokens = [gpt.tokenizer.eod_id, *encode(gpt, document)]
    for i in range(1, len(tokens)):
      # All earlier tokens in the first window; later windows end every `stride` tokens.
      ends = 16 + math.ceil(max(0, i + 1 - 16) / stride) * stride
      first = max(0, min(ends, len(tokens)) - 16)
      nats -= after(gpt, tokens[first:i])[tokens[i]]
      count += 1
  words = len([w for w in (TEXT + " The cat.").replace("\n", " ").split(" ") if w])
  assert found["tokens"] == count and found["words"] == words
  assert found["token_perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-5)
  assert found["word_perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-5)
  assert found["bits_per_byte"] == pytest.approx(
      nats / len(TEXT + "The cat.") / math.log(2), rel=1e-5)


@pytest.mark.parametrize("lost_parts", [["case"], []])
def test_a_protocol_says_what_the_tokenizer_loses(gpt, monkeypatch, lost_parts):
  assert lost.find_lost(gpt.tokenizer), "it lower-cases"
  monkeypatch.setattr(lost, "find_lost", lambda *arguments: lost_parts)
  found = zero_shot.measure(gpt, SUITES["text"], [TEXT], Settings(16, 8, 0, 3))
  assert found["protocol"].endswith(
      ", per word and byte comparable only with tokenizers that lose case") == bool(lost_parts)
  limited = zero_shot.measure(gpt, SUITES["text"], [TEXT], Settings(16, 8, 1, 3))
  assert "bits_per_byte" not in limited and "comparable" not in limited["protocol"]


def test_a_text_without_spaces_has_no_perplexity_of_words(gpt):
  found = zero_shot.measure(gpt, SUITES["text"], ["cat." * 300], Settings(64, 32, 0, 8))
  assert found["words"] == 1 and found["word_perplexity"] == math.inf
  assert math.isfinite(found["token_perplexity"])


def test_a_decoder_without_a_start_has_no_perplexity_of_words_for_several_texts(gpt, monkeypatch):
  """Their words would count, but not their first tokens."""
  monkeypatch.setattr(type(gpt), "start_id", -1)
  measure = lambda *texts: zero_shot.measure(gpt, SUITES["text"], texts, Settings(16, 8, 0, 3))
  assert measure(TEXT).keys() >= {"word_perplexity", "bits_per_byte"}
  several = measure(TEXT, "cat")
  assert several.keys() == {"protocol", "token_perplexity", "tokens"}
  assert several["protocol"].endswith(", without their first tokens")
  with pytest.raises(ConfigError, match="no second token to score. Give a longer text"):
    measure("\x01")


def test_texts_without_tokens_are_numbered(bert):
  """So that a record can be found in the file: blank lines are the only ones without a number."""
  settings, totals = Settings(16, 8, 0, 3), {}
  part = measures.make_part(SUITES["text"], ("\x01\n\nThe cat.",))
  records = measures.add_perplexity(bert, SUITES["text"], [part], settings, totals)
  assert [record["text"] for record in records] == [2] and totals["texts"] == 2
  with pytest.raises(ConfigError, match="finds no tokens in it. Give another text"):
    zero_shot.measure(bert, SUITES["text"], ["\x01"], settings)


def test_much_unknown_text_has_no_perplexity_per_word(gpt, bert):
  """An unknown token is likely whatever it stands for, so a hopeless model would look excellent."""
  settings, known = Settings(16, 8, 0, 4), "The cat sees the dog."
  unknown = f"{known} \u0e01\u0e02\u0e03 \u0e04\u0e05"  # 15 of 38 bytes.
  for text, is_known in ((known * 9 + " \u0e01", True), (unknown, False)):
    found = zero_shot.measure(gpt, SUITES["text"], [text], settings)
    assert ("word_perplexity" in found) == ("bits_per_byte" in found) == is_known
    assert ("of the bytes are unknown" in found["protocol"]) == (not is_known)
  for suite, texts in (("pairs", [(unknown, unknown)]), ("lambada", [unknown])):
    found = zero_shot.measure(gpt, SUITES[suite], texts, settings)
    assert "39% of the bytes are unknown to the tokenizer" in found["protocol"]
  found = zero_shot.measure(bert, SUITES["text"], [unknown], settings)
  assert "39% of the bytes are unknown to the tokenizer" in found["protocol"]


def test_pseudo_perplexity_of_a_bert(bert):
  found = zero_shot.measure(bert, SUITES["text"], [TEXT],
                            Settings(window=12, stride=6, batch_size=7))
  nats, count = 0.0, 0
  for line in filter(None, TEXT.split("\n")):
    tokens = encode(bert, line)
    for piece in (tokens[i:i + 10] for i in range(0, len(tokens), 10)):
      for at, token in enumerate(piece):
        nats -= instead(bert, piece, at)[token]
        count += 1
  assert found["tokens"] == count
  assert found["pseudo_perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-5)


# --------------------------------------------------------------------- LAMBADA


@pytest.mark.parametrize("name", ["lambada", "lambada_stop_words", "lambada_last_token"])
def test_last_words(gpt, name):
  """The oracle guesses one token after the other."""
  starts = ("The cat sees the dog near a", "The bird likes", "The")
  passages = PASSAGES + [f"{start} {word}" for start in starts for word in (
      *small_runs.NOUNS, *small_runs.VERBS, "near", "a", "the.")]
  found = zero_shot.measure(gpt, SUITES[name], passages, Settings(64, 32, 0, 4))
  allowed = ~suites.find_stop_tokens(gpt.tokenizer)
  correct, nats = [], 0.0
  for passage in passages:
    context, word = passage.rsplit(" ", 1)
    seen, target = encode(gpt, context), encode(gpt, word)
    seen = seen[-(64 - len(target)):]
    is_right = []
    for i, token in enumerate(target):
      logp = after(gpt, seen)
      guess = np.where(allowed, logp, -np.inf) if "stop" in name and i == 0 else logp
      is_right.append(guess.argmax() == token)
      if i + 1 == len(target) or name != "lambada_last_token":
        nats -= logp[token]
      seen.append(token)
    correct.append(is_right[-1] if name == "lambada_last_token" else all(is_right))
  assert found["accuracy"] == pytest.approx(np.mean(correct))
  assert found["perplexity"] == pytest.approx(math.exp(nats / len(passages)), rel=1e-4)
  assert 0 < found["accuracy"] < 1


def test_a_last_word_comes_after_any_white_space(gpt):
  settings = Settings(64, 32, 0, 4)
  score = lambda *passages: zero_shot.measure(gpt, SUITES["lambada"], passages, settings)
  plain = score("The cat sees the dog near a tree", "The bird likes the stone")
  assert score("The cat sees the dog near a\n tree", "The bird likes the \tstone\n") == plain


def encode_passages(trained, name, passages):
  parts = [measures.make_part(SUITES[name], (passage,)) for passage in passages]
  return measures.encode_passages(trained, SUITES[name], parts, Settings(64, 32, 0, 4))


@pytest.mark.parametrize("name, num_words", [("lambada", 2), ("lambada_last_token", 1)])
def test_line_breaks_before_a_last_word_are_kept(gpt, name, num_words):
  """lm-evaluation-harness, which `lambada` follows, cuts passages at spaces only."""
  config = types.SimpleNamespace(kind="bpe", vocab_size=280)
  tokenizer = training.train_tokenizer(config, ["the king saw some kind of power"] * 9)
  passages = ["the king saw some kind of\n\npower", "the\npower"]
  contexts, words = encode_passages(gpt._replace(tokenizer=tokenizer), name, passages)
  for passage, context, word in zip(passages, contexts, words, strict=True):
    assert tokenizer.decode(word).count("\n") == passage.count("\n")
    assert [*context, *word] == encode(gpt._replace(tokenizer=tokenizer), passage)
  assert len(tokenizer.decode(words[0]).split()) == num_words


@pytest.mark.parametrize("options", [
    {}, {"add_dummy_prefix": False}, {"remove_extra_whitespaces": False}], ids=str)
def test_a_last_word_has_the_tokens_of_running_text(gpt, tmp_path, options):
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(["the cat saw the dog. a cat ran to the house."] * 20), vocab_size=36,
      minloglevel=2, model_prefix=str(tmp_path / "tokenizer"), hard_vocab_limit=False, **options)
  tokenizer = load_tokenizer(tmp_path / "tokenizer.model")
  passages = ["the cat saw the dog", "a dog ran to the house."]
  contexts, words = encode_passages(gpt._replace(tokenizer=tokenizer), "lambada", passages)
  for passage, context, word in zip(passages, contexts, words, strict=True):
    assert [*context, *word] == encode(gpt._replace(tokenizer=tokenizer), passage)


# ------------------------------------------------------------------------ pairs


def test_pairs_by_a_gpt(gpt):
  score = lambda tokens: sum(after(gpt, [gpt.tokenizer.eod_id, *tokens[:i]])[token]
                             for i, token in enumerate(tokens))
  scores = [[score(encode(gpt, sentence)) for sentence in pair] for pair in PAIRS]
  found = zero_shot.measure(gpt, SUITES["pairs"], PAIRS, Settings(64, 32, 0, 3))
  assert found["accuracy"] == np.mean([good > bad for good, bad in scores[:-1]] + [False])


@pytest.mark.parametrize("num_ties, expected", [(0, ""), (1, "1 tie, counted as wrong"),
                                                (2, "2 ties, counted as wrong")])
def test_pairs_that_are_equally_likely_are_wrong_and_counted(gpt, num_ties, expected):
  pairs = [*PAIRS[:1], *[("the cat sees", "the cat sees")] * num_ties]
  found = zero_shot.measure(gpt, SUITES["pairs"], pairs, Settings(64, 32, 0, 3))
  right = zero_shot.measure(gpt, SUITES["pairs"], PAIRS[:1], Settings(64, 32, 0, 3))["accuracy"]
  assert found["accuracy"] == right / (1 + num_ties)
  assert found["protocol"] == ", ".join(filter(None, [
      f"{len(pairs)} pairs, after the end of a document", expected]))


def test_pairs_without_a_token_before_the_first_one(gpt, monkeypatch):
  """As in GPT-1: a sentence of one token has nothing to compare."""
  monkeypatch.setattr(type(gpt), "start_id", -1)
  settings = Settings(64, 32, 0, 3)
  found = zero_shot.measure(gpt, SUITES["pairs"], PAIRS[:1], settings)
  assert found["protocol"] == "1 pairs, without their first tokens"
  with pytest.raises(ConfigError, match="has 1 tokens. Give sentences of 2 to 64"):
    zero_shot.measure(gpt, SUITES["pairs"], [("the cat", "cat")], settings)


def test_pairs_by_a_bert(bert):
  score = lambda tokens: sum(instead(bert, tokens, i)[t] for i, t in enumerate(tokens))
  scores = [[score(encode(bert, sentence)) for sentence in pair] for pair in PAIRS]
  found = zero_shot.measure(bert, SUITES["pairs"], PAIRS, Settings(64, 32, 0, 3))
  assert found["accuracy"] == np.mean([good > bad for good, bad in scores[:-1]] + [False])
