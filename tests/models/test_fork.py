"""bertgpt.models.fork: the gradient of a forked array equals that of a plain one."""

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.models.fork import fork


def test_the_gradient_is_that_of_plain_uses():
  rng = np.random.default_rng(0)
  x, *weights = rng.normal(size=(4, 5, 5)).astype(np.float32)

  def use(*uses):
    return sum(jnp.sin(u @ w).sum() for u, w in zip(uses, weights, strict=True))

  got = jax.grad(lambda x: use(*fork(x, 3)))(x)
  np.testing.assert_allclose(got, jax.grad(lambda x: use(x, x, x))(x), rtol=1e-5, atol=1e-6)


def test_a_use_without_a_gradient_adds_nothing():
  np.testing.assert_array_equal(jax.grad(lambda x: (fork(x, 2)[1] * 3).sum())(jnp.ones(4)),
                                np.full(4, 3))
