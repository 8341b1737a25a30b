"""Trees addressed by the paths of their leaves, such as 'params/layers/mlp/up/kernel'."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax


def path_of(key_path: tuple[Any, ...]) -> str:
  """Returns the path of a leaf, such as 'a/b/c'.

  Args:
    key_path: keys of the leaf, as `jax.tree_util.tree_map_with_path` passes them.
  """
  return jax.tree_util.keystr(key_path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by path, in the order of `jax.tree.leaves`.

  Args:
    tree: any pytree.
  Raises:
    ValueError: two leaves have the same path, because a key contains '/'.
  """
  pairs = jax.tree_util.tree_leaves_with_path(tree)
  leaves = {path_of(key_path): leaf for key_path, leaf in pairs}
  if len(leaves) < len(pairs):
    raise ValueError("two leaves of the tree have the same path. Use keys without '/'")
  return leaves


def rename_fields(leaves: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
  """Returns leaves by path, in the same order, with other names at the beginnings of paths.

  Args:
    leaves: path -> leaf.
    names: first part of a path -> its new name; other paths stay the same.
  """
  renamed = {}
  for path, leaf in leaves.items():
    field, *rest = path.split("/")
    renamed["/".join([names.get(field, field), *rest])] = leaf
  return renamed


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Returns nested dicts with leaves at their paths; `named_leaves` is the inverse.

  Args:
    leaves: path -> leaf.
  """
  tree: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *folders, last = path.split("/")
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[last] = leaf
  return tree


def first_match(rules: Sequence[tuple[str, Any]], path: str) -> Any:
  """Returns the value of the first rule whose expression occurs in a path.

  Args:
    rules: (regular expression, value) pairs.
    path: path of a leaf.
  Raises:
    ValueError: no rule matches; the message names the path and the expressions.
  """
  for pattern, value in rules:
    if re.search(pattern, path):
      return value
  patterns = ", ".join(pattern for pattern, _ in rules)
  raise ValueError(f"{path} matches none of the rules {patterns}. Add a rule for it")
