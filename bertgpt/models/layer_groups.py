"""Layers that share their parameters (Lan et al. 2019, arXiv:1909.11942)."""

from typing import Any

from flax import linen as nn
from ml_collections import FrozenConfigDict


def make_group(block: Any, length: int, unroll: int) -> type[nn.Module]:
  """Returns the class of a run of layers that share the parameters, and the paths, of one layer.

  Args:
    block: class of a layer.
    length: number of layers.
    unroll: layers per iteration of the loop over them.
  """

  class Group(nn.Module):
    config: FrozenConfigDict

    def setup(self) -> None:
      self.layers = nn.scan(block, length=length, in_axes=(nn.broadcast, 0, 0),
                            variable_broadcast="params", variable_axes={"intermediates": 0},
                            split_rngs={"params": False}, unroll=unroll)(self.config)
      nn.share_scope(self, self.layers)

    def __call__(self, x_BLD, shared, cache, of_layers):
      return self.layers(x_BLD, shared, cache, of_layers)

  return Group
