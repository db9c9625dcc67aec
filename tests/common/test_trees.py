"""Path names and digests of trees."""

import jax
import jax.numpy as jnp
import numpy as np

from bljust_jax.bilevel.types import Weights
from bljust_jax.common import trees

TREE = Weights({"encoder": {"blocks": [jnp.arange(3.0), jnp.ones(2)]}}, {"mean": jnp.zeros(())})


def test_leaves_are_named_by_their_path():
    names = [name for name, _ in trees.named_leaves(TREE)]
    assert names == ["params/encoder/blocks/0", "params/encoder/blocks/1", "stats/mean"]
    sizes = trees.map_named(lambda name, leaf: f"{name}: {leaf.size}", TREE)
    assert jax.tree.leaves(sizes) == [f"{names[0]}: 3", f"{names[1]}: 2", f"{names[2]}: 1"]


def test_stored_keys_keep_their_spelling():
    keys = [key for key, _ in trees.keyed_leaves({"state": TREE})]
    assert keys[0] == "['state'].params['encoder']['blocks'][0]"
    assert keys[2] == "['state'].stats['mean']"


def test_a_digest_is_of_bits_types_shapes_and_keys():
    tree = {"a": np.zeros(4, np.float32)}
    others = [{"b": tree["a"]}, {"a": -tree["a"]}, {"a": tree["a"].reshape(2, 2)}]
    others.append({"a": np.zeros(4, np.int32)})
    assert len({trees.digest(t) for t in (tree, *others)}) == 5
    assert trees.digest(jax.tree.map(jnp.asarray, tree)) == trees.digest(tree) == "91b5da58064f7c10"


def test_cosine_of_a_vanishing_tree_is_zero():
    zero = jax.tree.map(jnp.zeros_like, TREE)
    assert trees.cosine(TREE, zero) == 0
    np.testing.assert_allclose(trees.cosine(TREE, TREE), 1, rtol=1e-6)
