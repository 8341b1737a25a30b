"""Use of trained models, compared with `transformers` on the same weights.

Needs the extra `hf` (`make test-hf`); without PyTorch these tests are skipped.
"""

import importlib
import math

import numpy as np
import pytest
import small_runs
import tiny

from bertgpt import models
from bertgpt.config import base
from bertgpt.data.tokens import training
from bertgpt.inference import embed, generate, measures, multiple_choice, suites, zero_shot
from bertgpt.inference.score import score
from bertgpt.inference.suites import SUITES
from bertgpt.inference.zero_shot import Settings
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.trained import Trained

torch = pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
test_parity = importlib.import_module("hub.test_parity")  # Skips itself without transformers.
pytestmark = pytest.mark.hf
torch.set_num_threads(1)  # Models this small only wait for other threads.

WINDOW = 256
DECODER = test_parity.DECODER | {"n_positions": WINDOW}
ENCODER = test_parity.ENCODER | {"num_hidden_layers": 5}
MODERN = test_parity.MODERN | {"max_position_embeddings": 34}  # Pre-norm, with a final norm.


def make_pair(architecture, sizes):
  """Returns a model of transformers, and its `Trained` with a byte-level tokenizer."""
  config = base().tokenizer
  config.update(kind="bpe", vocab_size=300)
  tokenizer = training.train_tokenizer(config, [small_runs.make_text(30)])
  theirs = test_parity.make_theirs(architecture, sizes | {"vocab_size": tokenizer.vocab_size})
  with torch.no_grad():
    for name, p in theirs.named_parameters():
      if p.ndim == 2 and "tokens_embed" not in name and "wte" not in name:
        p *= 4  # So that the output depends on the input, and does not repeat it.
  config, params, _ = test_parity.to_ours(theirs)
  return theirs, Trained(config, models.make_model(config), params, tokenizer, 0, "")


@pytest.fixture(scope="module", params=["GPT2LMHeadModel", "OpenAIGPTLMHeadModel"])
def gpts(request):
  return make_pair(request.param, DECODER)


# ------------------------------------------------------------------ generation


def test_greedy_output_is_that_of_transformers_for_200_tokens(gpts):
  theirs, ours = gpts
  ours = ours._replace(tokenizer=type(ours.tokenizer)(ours.tokenizer.data))
  ours.tokenizer.eod_id = -1  # No token ends the output.
  rng = np.random.default_rng(0)
  prompts = [rng.integers(5, 300, n) for n in (1, 40)]
  found = generate.continue_prompts(ours, prompts, 200, generate.GREEDY)
  for prompt, added in zip(prompts, found, strict=True):
    expected = theirs.generate(torch.tensor(prompt[None]), max_new_tokens=200, do_sample=False,
                               eos_token_id=None, pad_token_id=0)[0, len(prompt):]
    assert len(set(expected.tolist())) > 5  # Not one token repeated.
    assert added.tolist() == expected.tolist()


def test_a_document_begins_as_after_its_end_in_transformers(gpts):
  theirs, ours = gpts
  end = ours.tokenizer.eod_id
  begun, = generate.continue_prompts(ours, [np.zeros(0, np.int32)], 40, generate.GREEDY)
  expected = theirs.generate(torch.tensor([[end]]), max_new_tokens=40, do_sample=False,
                             eos_token_id=end, pad_token_id=0)[0, 1:].tolist()
  assert begun.tolist() == expected[:expected.index(end) if end in expected else None]
  assert len(begun) > 5


def test_samples_follow_the_distribution_of_transformers(gpts):
  """A chi-square test compares first tokens: counts of the ten likeliest, and of all others."""
  theirs, ours = gpts
  prompt, draws = np.arange(5, 15), 2000
  found = generate.continue_prompts(ours, [prompt] * draws, 1, generate.Sampling(0.7, 30, 0.9),
                                    seed=1, batch_size=500)
  counts = np.bincount([x[0] if len(x) else ours.tokenizer.eod_id for x in found],
                       minlength=tiny.VOCAB)
  from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
  scores = theirs(torch.tensor(prompt[None])).logits[:, -1]
  for warp in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(30), TopPLogitsWarper(0.9)):
    scores = warp(None, scores)
  p = scores.softmax(-1)[0].detach().numpy()
  assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(p))
  top = np.argsort(-p)[:10]
  expected = draws * np.append(p[top], 1 - p[top].sum())
  observed = np.append(counts[top], draws - counts[top].sum())
  kept = expected > 1
  # 10 degrees of freedom; exceeded once in 10,000.
  assert ((observed - expected)[kept] ** 2 / expected[kept]).sum() < 35.6


# -------------------------------------------------------------------- features


@pytest.mark.parametrize("layer", embed.LAYERS)
@pytest.mark.parametrize("architecture, sizes", [
    ("BertForPreTraining", ENCODER), ("ModernBertForMaskedLM", MODERN)])
def test_features_are_the_hidden_states_of_transformers(architecture, sizes, layer):
  theirs, ours = make_pair(architecture, sizes)
  rng = np.random.default_rng(1)
  tokens = [rng.integers(5, 300, n) for n in (3, 34, 12, 20, 1)]
  for ids, found in zip(tokens, embed.embed_rows(ours, tokens, layer, 2), strict=True):
    output = theirs.base_model(torch.tensor(ids[None]), output_hidden_states=True)
    hidden = output.hidden_states
    assert torch.equal(hidden[-1], output.last_hidden_state)
    expected = {"cls": hidden[-1][0, 0], "mean": hidden[-1][0].mean(0), "last": hidden[-1][0],
                "last3": torch.cat(hidden[-3:], -1)[0],
                "last4": torch.cat(hidden[-4:], -1)[0]}[layer]
    expected = expected.detach().numpy()
    # Without a norm, the layers of ModernBERT have values of 20 and more.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 + 2e-5 * abs(expected).max())


# ---------------------------------------------------------------------- scores


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "BertForPreTraining"])
def test_scores_of_a_model_trained_in_bfloat16_are_those_of_pytorch_in_float32(architecture):
  is_gpt = architecture.startswith("GPT")
  theirs, ours = make_pair(architecture, DECODER if is_gpt else ENCODER)
  config = ours.config.copy_and_resolve_references()
  config.model.dtype = "bfloat16"
  ours = trained_lib.make_trained(config, ours.params, ours.tokenizer, 1, "")
  for text, found in zip(SENTENCES[:8], score(ours, SENTENCES[:8], window=32), strict=True):
    ids = ours.tokenizer.encode([text])[0].tolist()[:30]
    expected = (gpt_logp(theirs, [ours.tokenizer.eod_id, *ids]) if is_gpt else
                bert_logp(theirs, ours, ids))
    np.testing.assert_allclose(found[:len(ids)], expected, rtol=0, atol=1e-4)


# ------------------------------------------------------------------- zero-shot


TEXT = small_runs.make_text(8, seed=1)
SENTENCES = [line for line in TEXT.split("\n") if line]


def gpt_logp(theirs, ids):
  """Returns the log-probabilities of every token but the first."""
  logits = theirs(torch.tensor([ids])).logits[0, :-1]
  return -torch.nn.functional.cross_entropy(logits.double(), torch.tensor(ids[1:]),
                                            reduction="none")


def bert_logp(theirs, ours, ids):
  """Returns the log-probabilities of the tokens between the marks, masked one at a time."""
  whole = torch.tensor([ours.tokenizer.cls_id, *ids, ours.tokenizer.sep_id])
  rows = whole.repeat(len(ids), 1)
  at = torch.arange(len(ids))
  rows[at, at + 1] = ours.tokenizer.mask_id
  logits = theirs(rows).prediction_logits[at, at + 1].double()
  return logits.log_softmax(-1)[at, torch.tensor(ids)]


@torch.no_grad()
def test_perplexity_is_that_of_pytorch(gpts):
  theirs, ours = gpts
  found = zero_shot.measure(ours, SUITES["text"], [TEXT], Settings(48, 20, 0, 8))
  ids = [ours.tokenizer.eod_id, *ours.tokenizer.encode([TEXT])[0].tolist()]
  nats, done = 0.0, 1  # Windows as in the guide of transformers to perplexity.
  for end in [*range(48, len(ids), 20), len(ids)]:
    nats -= float(gpt_logp(theirs, ids[max(0, end - 48):end])[done - end:].sum())
    done = end
  assert found["tokens"] == len(ids) - 1
  assert found["token_perplexity"] == pytest.approx(math.exp(nats / (len(ids) - 1)), rel=1e-4)
  assert found["word_perplexity"] == pytest.approx(math.exp(nats / len(TEXT.split())), rel=1e-4)
  assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(TEXT), rel=1e-4)


@torch.no_grad()
def test_last_words_are_those_of_pytorch(gpts):
  """Half of the targets are the tokens that the model itself predicts."""
  theirs, ours = gpts
  starts = ours.tokenizer.encode([sentence.rpartition(" ")[0] for sentence in SENTENCES[:16]])
  said = generate.continue_prompts(ours, starts, 1, generate.GREEDY)
  passages = [ours.tokenizer.decode(ids) + " " + (
      "tree" if i % 2 else ours.tokenizer.decode(word).strip())
      for i, (ids, word) in enumerate(zip(starts, said, strict=True))]
  passages = [p for p in passages if not p.endswith(" ") and "\ufffd" not in p]
  correct, nats = 0, 0.0
  for passage in passages:
    context, word = passage.rsplit(maxsplit=1)
    seen, target = (ours.tokenizer.encode([x])[0].tolist() for x in (context, " " + word))
    logits = theirs(torch.tensor([seen + target])).logits[0, len(seen) - 1:-1].double()
    correct += bool((logits.argmax(-1) == torch.tensor(target)).all())
    nats -= float(logits.log_softmax(-1)[range(len(target)), target].sum())
  found = zero_shot.measure(ours, SUITES["lambada"], passages, Settings(WINDOW, 1, 0, 8))
  assert found["accuracy"] == correct / len(passages)
  assert found["perplexity"] == pytest.approx(math.exp(nats / len(passages)), rel=1e-3)


@torch.no_grad()
def test_masked_scores_are_those_of_pytorch():
  theirs, ours = make_pair("BertForPreTraining", ENCODER | {"max_position_embeddings": 64})
  settings = Settings(24, 12, 0, 16)
  found = zero_shot.measure(ours, SUITES["text"], [TEXT], settings)
  nats, tokens = 0.0, 0
  for ids in (x.tolist() for x in ours.tokenizer.encode(SENTENCES)):
    for first in range(0, len(ids), 22):
      nats -= float(bert_logp(theirs, ours, ids[first:first + 22]).sum())
    tokens += len(ids)
  assert found["tokens"] == tokens
  assert found["pseudo_perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)

  pairs = list(zip(SENTENCES[:6], SENTENCES[6:12], strict=True))
  scores = [[float(bert_logp(theirs, ours, ours.tokenizer.encode([x])[0].tolist()).sum())
             for x in pair] for pair in pairs]
  found = zero_shot.measure(ours, SUITES["pairs"], pairs, Settings(64, 1, 0, 16))
  assert found["accuracy"] == np.mean([good > bad for good, bad in scores])


@torch.no_grad()
def test_pairs_are_those_of_pytorch(gpts):
  theirs, ours = gpts
  pairs = list(zip(SENTENCES[:12], SENTENCES[12:24], strict=True))
  score = lambda text: float(gpt_logp(theirs, [
      ours.tokenizer.eod_id, *ours.tokenizer.encode([text])[0].tolist()]).sum())
  found = zero_shot.measure(ours, SUITES["pairs"], pairs, Settings(WINDOW, 1, 0, 16))
  assert found["accuracy"] == np.mean([score(good) > score(bad) for good, bad in pairs])
  assert 0 < found["accuracy"] < 1


@torch.no_grad()
def test_endings_are_those_of_pytorch(gpts):
  """The boundary is that of lm-evaluation-harness: the tokens after as many as the context has."""
  theirs, ours = gpts
  choices = [(first, [second, third], i % 2) for i, (first, second, third) in enumerate(
      zip(SENTENCES[:8], SENTENCES[8:16], SENTENCES[16:24], strict=True))]
  window, encode = 60, lambda text: ours.tokenizer.encode([text])[0].tolist()
  parts = [measures.make_part(SUITES["choices"], suites.make_choice(*x)) for x in choices]
  records = multiple_choice.add_choices(ours, SUITES["choices"], parts, Settings(window, 1, 0, 8),
                                        {})
  for record, (context, endings, _) in zip(records, choices, strict=True):
    for found, ending in zip(record["logp"], endings, strict=True):
      ids = encode(f"{context} {ending}")
      scored = len(ids) - len(encode(context))
      expected = float(gpt_logp(theirs, ids[-window:])[-scored:].sum())
      assert found == pytest.approx(expected, rel=1e-5)
