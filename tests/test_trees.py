"""bertgpt.trees: leaves by path and back, and the first rule that matches a path."""

import collections

import jax
import numpy as np
import pytest

from bertgpt import trees

State = collections.namedtuple("State", ["step", "params"])
TREE = {"layers": {"mlp": {"bias": 1, "up": {"kernel": 2}}, "norm": {"scale": 3}}, "head": 4}
PATHS = ["head", "layers/mlp/bias", "layers/mlp/up/kernel", "layers/norm/scale"]


def test_paths_are_in_the_order_of_the_leaves():
  leaves = trees.named_leaves(TREE)
  assert list(leaves) == PATHS
  assert list(leaves.values()) == jax.tree.leaves(TREE)


def test_every_container_gives_its_own_part_of_the_path():
  tree = State(0, {"a": (1, [2, None]), "b": {}})
  assert trees.named_leaves(tree) == {"step": 0, "params/a/0": 1, "params/a/1/0": 2}
  assert trees.named_leaves({}) == {}


def test_only_the_first_part_of_a_path_is_renamed():
  leaves = {"a/a/b": 1, "b/a": 2, "a": 3, "aa/b": 4}
  assert list(trees.rename_fields(leaves, {"a": "c"}).items()) == [
      ("c/a/b", 1), ("b/a", 2), ("c", 3), ("aa/b", 4)]


def test_path_of_is_the_path_that_a_mapped_function_sees():
  seen = jax.tree_util.tree_map_with_path(lambda path, leaf: trees.path_of(path), TREE)
  assert jax.tree.leaves(seen) == PATHS


def test_nest_and_named_leaves_are_inverses():
  assert trees.nest(trees.named_leaves(TREE)) == TREE
  leaves = {"b/c/d": np.arange(3), "a": np.ones(2), "b/c/e": np.zeros(1), "b/f": np.ones(())}
  found = trees.named_leaves(trees.nest(leaves))
  assert found.keys() == leaves.keys()
  assert all(found[name] is leaf for name, leaf in leaves.items())


def test_two_leaves_with_one_path_are_refused():
  with pytest.raises(ValueError, match="two leaves of the tree have the same path"):
    trees.named_leaves({"a/b": 1, "a": {"b": 2}})


def test_the_first_rule_wins_wherever_it_fits():
  rules = ((r"mlp/.*kernel$", "matrix"), (r"kernel$", "other"), (r"^head", None))
  assert trees.first_match(rules, "layers/mlp/up/kernel") == "matrix"
  assert trees.first_match(rules, "layers/out/kernel") == "other"
  assert trees.first_match(rules, "head/kernels") is None


def test_a_path_without_a_rule_is_named():
  with pytest.raises(ValueError, match=r"^head/bias matches none of the rules a\$, \^b\."):
    trees.first_match((("a$", 1), ("^b", 2)), "head/bias")
