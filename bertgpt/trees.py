"""Trees by the paths of their leaves: 'params/layers/mlp/up/kernel'."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax


def path_of(key_path: Sequence[Any]) -> str:
  """Returns 'a/b/c' for a key path, as `jax.tree_util.tree_map_with_path` passes it."""
  return jax.tree_util.keystr(key_path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
  """Returns the leaves by path, in the order of `jax.tree.leaves`.

  Raises:
    ValueError: two leaves have one path, because a key contains '/'.
  """
  pairs = jax.tree_util.tree_leaves_with_path(tree)
  leaves = {path_of(key_path): leaf for key_path, leaf in pairs}
  if len(leaves) < len(pairs):
    raise ValueError("two leaves of the tree have one path; use keys without '/'")
  return leaves


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Returns nested dicts with the leaves at their paths: `named_leaves` is the inverse."""
  tree: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *folders, last = path.split("/")
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[last] = leaf
  return tree


def first_match(rules: Sequence[tuple[str, Any]], path: str) -> Any:
  """Returns the value of the first rule whose expression is found in a path.

  Args:
    rules: (regular expression, value) pairs.
    path: path of a leaf.
  Raises:
    ValueError: no rule fits; the message names the path and the expressions.
  """
  for pattern, value in rules:
    if re.search(pattern, path):
      return value
  patterns = ", ".join(pattern for pattern, _ in rules)
  raise ValueError(f"{path} matches none of the rules {patterns}; add a rule for it")
