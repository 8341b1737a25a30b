"""bertgpt.generate: draws follow the model's distribution, and [MASK] hides what it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt import generate, workdir

DRAWS = 20_000
LOGITS = np.array([2.0, 1.0, 0.0, -1.0, 3.0, 1.5], np.float32)


def frequencies(temperature, top_k=0):
  keys = jax.random.split(jax.random.key(0), DRAWS)
  draw = jax.vmap(lambda key: generate.draw(jnp.asarray(LOGITS), temperature, top_k, key))
  return np.bincount(draw(keys), minlength=len(LOGITS)) / DRAWS


def distribution(logits, temperature=1.0):
  weights = np.exp(np.float64(logits) / temperature)
  return weights / weights.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_distribution(temperature):
  p = distribution(LOGITS, temperature)
  np.testing.assert_array_less(abs(frequencies(temperature) - p), 5 * np.sqrt(p / DRAWS))


def test_top_k_draws_among_the_k_likeliest_in_their_proportions():
  p = np.zeros(len(LOGITS))
  best = [4, 0, 5]
  p[best] = distribution(LOGITS[best])
  found = frequencies(1.0, top_k=3)
  assert set(np.flatnonzero(found)) == set(best)
  np.testing.assert_array_less(abs(found - p), 5 * np.sqrt(p / DRAWS) + 1e-9)


def test_top_k_of_all_or_more_changes_nothing():
  for top_k in (len(LOGITS), 1000):
    np.testing.assert_array_equal(frequencies(1.0, top_k=top_k), frequencies(1.0))


def test_temperature_0_takes_the_likeliest():
  assert frequencies(0)[4] == 1


# ---------------------------------------------------------------- with models


@pytest.fixture(scope="module")
def gpt(finished_gpt):
  return workdir.load_trained(finished_gpt)


@pytest.fixture(scope="module")
def bert(finished_bert):
  return workdir.load_trained(finished_bert)


def next_logits(gpt, tokens):
  """Of the token after `tokens`: the model sees these and nothing else."""
  ones = np.ones((1, len(tokens)), np.int32)
  x_1LD = gpt.model.apply({"params": gpt.params}, np.array([tokens]), ones,
                          np.arange(len(tokens))[None], method="decode")
  return gpt.model.apply({"params": gpt.params}, x_1LD[0, -1], method="logits")


def test_a_greedy_sample_is_the_argmax_after_every_prefix(gpt):
  tokens = gpt.tokenizer.encode(["The cat sees"])[0].tolist()
  found = generate.sample(gpt, np.array(tokens), 3, temperature=0)
  for _ in range(3):
    tokens.append(int(np.argmax(next_logits(gpt, tokens))))
  assert found.tolist() == tokens


def test_a_sample_keeps_its_prompt_and_depends_on_the_seed_alone(gpt):
  prompt = gpt.tokenizer.encode(["The cat"])[0]
  samples = [generate.sample(gpt, prompt, 30, seed=seed) for seed in (0, 0, 1)]
  for tokens in samples:
    assert tokens[:len(prompt)].tolist() == prompt.tolist()
    assert len(tokens) == len(prompt) + 30
    assert 0 <= tokens.min() and tokens.max() < gpt.tokenizer.vocab_size  # Padded ids never win.
  assert samples[0].tolist() == samples[1].tolist() != samples[2].tolist()


def test_a_sample_ends_at_the_models_positions(gpt):
  room = gpt.config.model.max_positions
  assert len(generate.sample(gpt, np.array([5]), room - 1)) == room
  with pytest.raises(ValueError, match=f"exceed the model's {room} positions"):
    generate.sample(gpt, np.array([5]), room)
  with pytest.raises(ValueError, match="prompt is empty"):
    generate.sample(gpt, np.array([], np.int32), 3)


def test_a_masked_word_is_hidden_and_its_context_is_not(bert):
  tokenizer = bert.tokenizer
  ids = tokenizer.encode(["The cat sees the dog near a tree."])[0]
  tokens = np.array([tokenizer.cls_id, *ids, tokenizer.sep_id])
  p = generate.predict_masked(bert, tokens, 2)
  assert p.shape == (tokenizer.vocab_size,)
  assert p.min() >= 0 and p.sum() == pytest.approx(1, abs=1e-5)

  hidden, context = tokens.copy(), tokens.copy()
  hidden[2] = (tokens[2] + 1) % tokenizer.vocab_size
  context[3:6] = tokens[6]
  np.testing.assert_array_equal(generate.predict_masked(bert, hidden, 2), p)
  assert abs(generate.predict_masked(bert, context, 2) - p).max() > 1e-5
