"""bertgpt.models.layer_keys: dropout keys, derived before the loop over the layers."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import FrozenConfigDict

from bertgpt.models.layer_keys import make_layer_keys


class Attention(nn.Module):
  """Asks for a key like a module inside a layer."""

  @nn.compact
  def __call__(self):
    return jax.random.key_data(self.make_rng("dropout"))


class Layer(nn.Module):
  """A layer that asks for its own keys within the loop."""

  @nn.compact
  def __call__(self, carry, _):
    keys = (Attention(name="attention")(),
            *(jax.random.key_data(self.make_rng("dropout")) for _ in range(2)))
    return carry, keys


class Parent(nn.Module):
  """Loops over layers, or over groups of layers, with keys derived before the loop."""

  config: FrozenConfigDict
  lengths: tuple[int, ...]

  @nn.compact
  def __call__(self):
    body = Layer
    for length in reversed(self.lengths):
      body = nn.scan(body, length=length, split_rngs={"dropout": True})
    _, expected = body(name="layers")(0, None)
    return expected, make_layer_keys(self, "layers", self.lengths)


class Grandparent(nn.Module):
  """A model whose loop is in a submodule."""

  config: FrozenConfigDict
  lengths: tuple[int, ...]

  def setup(self):
    self.encoder = Parent(self.config, self.lengths)

  def __call__(self):
    return self.encoder()


@pytest.mark.parametrize("lengths", [(5,), (3, 2)])
@pytest.mark.parametrize("generator, impl", [
    ("hash", "threefry2x32"), ("threefry", "threefry2x32"), ("rbg", "rbg")])
def test_keys_are_those_that_the_layers_would_derive(lengths, generator, impl):
  model = Grandparent(FrozenConfigDict({"dropout_rng": generator}), lengths)
  expected, keys = model.apply({}, rngs={"dropout": jax.random.key(7, impl=impl)})
  for found, key in zip(keys, expected, strict=True):
    words = found if generator == "hash" else jax.random.key_data(found)
    assert words.shape[:-1] == lengths
    np.testing.assert_array_equal(words, key)
  assert len({key.tobytes() for stack in expected
              for key in np.asarray(stack).reshape(-1, stack.shape[-1])}) == 3 * np.prod(lengths)


def test_there_are_none_without_dropout():
  assert make_layer_keys(Attention().bind({}), "layers", (2,)) is None
