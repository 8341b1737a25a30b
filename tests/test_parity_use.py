"""What trained models are used for, beside `transformers` on the same weights.

Needs the extra `hf` (`make test-hf`); without PyTorch these tests are skipped.
"""

import numpy as np
import pytest
import small_runs
import tiny

from bertgpt import embed, generate, models
from bertgpt.config import base
from bertgpt.data import tokenizers
from bertgpt.workdir import Trained

torch = pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
test_parity = pytest.importorskip("test_parity", reason="needs transformers: make test-hf")
pytestmark = pytest.mark.hf

WINDOW = 256
DECODER = test_parity.DECODER | {"n_positions": WINDOW}
ENCODER = test_parity.ENCODER | {"num_hidden_layers": 5}


def make_pair(architecture, sizes):
  """(a model of transformers, the same as one trained here), with a byte-level tokenizer."""
  config = base().tokenizer
  config.update(kind="bpe", vocab_size=300)
  tokenizer = tokenizers.train_tokenizer(config, [small_runs.make_text(30)])
  theirs = test_parity.make_theirs(architecture, sizes | {"vocab_size": tokenizer.vocab_size})
  with torch.no_grad():
    for name, p in theirs.named_parameters():
      if p.ndim == 2 and "tokens_embed" not in name and "wte" not in name:
        p *= 4  # So that what is said depends on what was said, and does not repeat it.
  config, params, _ = test_parity.to_ours(theirs)
  return theirs, Trained(config, models.make_model(config), params, tokenizer, 0, "")


@pytest.fixture(scope="module", params=["GPT2LMHeadModel", "OpenAIGPTLMHeadModel"])
def gpts(request):
  return make_pair(request.param, DECODER)


# ------------------------------------------------------------------ generation


def test_greedy_output_is_that_of_transformers_for_200_tokens(gpts):
  theirs, ours = gpts
  ours.tokenizer.eod_id = -1  # To the end.
  rng = np.random.default_rng(0)
  prompts = [rng.integers(5, 300, n) for n in (1, 40)]
  found = generate.continue_prompts(ours, prompts, 200, generate.GREEDY)
  for prompt, added in zip(prompts, found, strict=True):
    expected = theirs.generate(torch.tensor(prompt[None]), max_new_tokens=200, do_sample=False,
                               eos_token_id=None, pad_token_id=0)[0, len(prompt):]
    assert len(set(expected.tolist())) > 5  # No single token over and over.
    assert added.tolist() == expected.tolist()


def test_samples_follow_the_distribution_of_transformers(gpts):
  """The first tokens of many rows: a chi-square over the ten likeliest and the rest."""
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
  assert ((observed - expected)[kept] ** 2 / expected[kept]).sum() < 35.6  # 10 degrees, 1e-4.


# -------------------------------------------------------------------- features


@pytest.mark.parametrize("layer", embed.LAYERS)
def test_features_are_the_hidden_states_of_transformers(layer):
  theirs, ours = make_pair("BertForPreTraining", ENCODER)
  rng = np.random.default_rng(1)
  tokens = [rng.integers(5, 300, n) for n in (3, 34, 12, 20, 1)]
  for ids, found in zip(tokens, embed.embed(ours, tokens, layer, 2), strict=True):
    hidden = theirs.bert(torch.tensor(ids[None]), output_hidden_states=True).hidden_states
    expected = {"cls": hidden[-1][0, 0], "mean": hidden[-1][0].mean(0), "last": hidden[-1][0],
                "last4": torch.cat(hidden[-4:], -1)[0]}[layer]
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=0, atol=1e-4)
