"""The table of a family's parameters: how each of them is sharded and optimized.

A model file holds the table `PARAMETERS` of its family, made of its own lines and the lines of the
layers that it uses. Paths of parameters are part of the interface: checkpoints, conversion to
`transformers` and these tables name them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from bertgpt import trees

STACKED = ("layers", "directions")


class Param(NamedTuple):
  """One line of a table.

  Attributes:
    pattern: regular expression, searched in the '/'-joined path; the first line that matches
      counts.
    axes: logical axis of every dimension, a key of `config.mesh.axes`, or one of `STACKED` (stacked
      layers, or directions of reading, never split), or None.
    decays: whether weight decay applies. BERT decays everything except biases and LayerNorm.
    is_matrix: whether it is a hidden matrix, which Muon orthogonalizes; embeddings and output
      layers are not hidden matrices.
    is_constant: whether it is never trained. Its gradient is 0, and no decay rule applies.
    is_embedding: whether it comes before the layers, for decay by depth.
  """

  pattern: str
  axes: tuple[str | None, ...]
  decays: bool = True
  is_matrix: bool = False
  is_constant: bool = False
  is_embedding: bool = False

  @property
  def is_stacked(self) -> bool:
    """True if the first axis is layers or directions, each with norms and moments of its own.

    Those of layers must be stacked: `optimizer.layer_decay` scales no others. With directions, the
    path has the number of the layer, as in lstm_1_kernel.
    """
    return self.axes[0] in STACKED


Table = Sequence[Param]


def find(table: Table, path: str) -> Param:
  """Returns the first line of a table whose pattern occurs in the path of a parameter.

  Args:
    table: table of a family.
    path: names of the nested dicts, joined by '/'.
  Raises:
    ValueError: no line matches. Every parameter needs a line in the file of its family.
  """
  return trees.first_match([(param.pattern, param) for param in table], path)
