"""Every shipped config with every method of its recipe: its parameters and their groups, by shape.

tests/train/test_dry_run.py has each config with its own method, and the memory of its parameters.
"""

import jax
import pytest

from bljust_jax.train.system import assign_groups, build_recipe
from tests.helpers import shipped

CASES = [
    (module, variant, method)
    for module, variant in shipped.names()
    for method in shipped.methods(shipped.config(module, variant))
    if method != shipped.config(module, variant).method
]


@pytest.mark.slow
@pytest.mark.parametrize("module", shipped.VARIANTS, ids=shipped.label)
def test_each_method_of_each_variant_builds(module):
    built = 0
    for _, variant, method in (case for case in CASES if case[0] is module):
        config = shipped.config(module, variant, method)
        recipe = build_recipe(config, shipped.facts(config))
        params, _, _ = jax.eval_shape(recipe.init, jax.random.key(0))
        groups = jax.tree.leaves(assign_groups(recipe, params))
        assert len(groups) == len(jax.tree.leaves(params)) > 20, (variant, method)
        trained = {loss for phase in recipe.phases for loss in phase.losses}
        assert trained, (variant, method)
        assert trained <= {loss for group in groups for loss in group.owners}, (variant, method)
        built += 1
    assert built
