"""What a trained model says: masked words of a BERT, continuations of a GPT."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.workdir import Trained


def predict_masked(trained: Trained, tokens: np.ndarray, position: int) -> np.ndarray:
  """The distribution of the token at one position, seen as [MASK].

  Args:
    tokens: int [N], one sequence with its [CLS] and [SEP].
    position: index into `tokens`.
  Returns:
    float32 [vocab_size] probabilities.
  """
  tokens = np.array(tokens, np.int32)
  tokens[position] = trained.tokenizer.mask_id
  logits_V = _masked_logits(trained.model, trained.params, tokens[None], np.array([[position]]))
  return np.asarray(jax.nn.softmax(logits_V))[:trained.config.model.vocab_size]


@functools.partial(jax.jit, static_argnums=0)
def _masked_logits(model, params, tokens_1L, predict_11):
  ones = jnp.ones_like(tokens_1L)
  positions = jnp.arange(tokens_1L.shape[1])[None]
  logits_11V, _ = model.apply({"params": params}, tokens_1L, ones * 0, ones, positions,
                              predict_11, None)
  return logits_11V[0, 0]


def sample(trained: Trained, prompt: np.ndarray, num_tokens: int, *, temperature: float = 1.0,
           top_k: int = 0, seed: int = 0) -> np.ndarray:
  """Continues a prompt of a GPT token by token.

  Args:
    prompt: int [N], at least one token.
    num_tokens: tokens to add; with the prompt they must fit into the model's positions.
    temperature: 0 takes the likeliest token.
    top_k: draw among the k likeliest; 0, or more than there are: among all.
  Returns:
    int32 [N + num_tokens].
  Raises:
    ValueError: no prompt, or prompt and continuation longer than the model's positions.
  """
  length, window = len(prompt), len(prompt) + num_tokens
  if not length:
    raise ValueError("the prompt is empty; [end of document] starts a new one")
  if window > trained.config.model.max_positions:
    raise ValueError(f"{length} + {num_tokens} tokens exceed the model's "
                     f"{trained.config.model.max_positions} positions")
  tokens_L = np.zeros(window, np.int32)
  tokens_L[:length] = prompt
  return np.asarray(_sample(trained.model, trained.params, tokens_L, length, temperature, top_k,
                            jax.random.key(seed)))


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _sample(model, params, tokens_L, first, temperature, top_k, key):
  window = tokens_L.shape[0]
  positions_1L = jnp.arange(window)[None]

  def add(i, tokens_L):
    x_1LD = model.apply({"params": params}, tokens_L[None], jnp.ones_like(positions_1L),
                        positions_1L, method="decode")
    logits_V = model.apply({"params": params}, x_1LD[0, i - 1], method="logits")
    return tokens_L.at[i].set(draw(logits_V, temperature, top_k, jax.random.fold_in(key, i)))

  return jax.lax.fori_loop(first, window, add, tokens_L)


def draw(logits_V: jax.Array, temperature: float, top_k: int, key: jax.Array) -> jax.Array:
  """A token from logits: int32 scalar. See `sample` for the arguments."""
  if temperature == 0:
    return logits_V.argmax().astype(jnp.int32)
  if 0 < top_k < len(logits_V):
    smallest = jax.lax.top_k(logits_V, top_k)[0][-1]
    logits_V = jnp.where(logits_V < smallest, -jnp.inf, logits_V)
  return jax.random.categorical(key, logits_V / temperature).astype(jnp.int32)
