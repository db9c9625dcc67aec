"""Recipe, optimizer, abstract train state and jitted train step of a config, without data.

Training, ahead-of-time compilation and benchmarks build their steps with these functions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bljust_jax import recipes
from bljust_jax.bilevel import step
from bljust_jax.bilevel.optimizer import group_of_parameters, make_optimizer
from bljust_jax.bilevel.phases import check_penalties
from bljust_jax.bilevel.rng import Seed
from bljust_jax.bilevel.types import Means, Phase, Recipe, TrainState, Tree
from bljust_jax.common.errors import UserError
from bljust_jax.inference import measures
from bljust_jax.parallel.mesh import state_sharding, with_shardings


class System(NamedTuple):
    """A recipe with all that its training steps are compiled from."""

    recipe: Recipe
    optimizer: Any  # optax transformation with extra arguments
    groups: Tree  # the `Group` of each parameter
    mesh: Mesh
    state: TrainState  # abstract: shapes, types and shardings

    @property
    def shardings(self) -> TrainState:
        """The sharding of each array of the state."""
        return jax.tree.map(lambda x: x.sharding, self.state)


def build_recipe(config: Any, facts: recipes.Facts) -> Recipe:
    """The recipe of `config.recipe`; UserError for a config that it cannot be built from,
    and for a penalty that stays 0."""
    try:
        recipe = recipes.load(config.recipe)(config, facts)
    except ValueError as error:
        raise UserError(f"config: {error}") from error
    if not recipe.phases:
        raise UserError("config.phases: every phase has length 0")
    check_penalties(recipe.phases)
    for task in recipe.tasks:
        measures.check(task)
    return recipe


def make_system(config: Any, recipe: Recipe, mesh: Mesh, optimizer: Any = None) -> System:
    """Optimizer, groups and the abstract train state of a recipe on a mesh.

    `optimizer` replaces that of `config.optim`. UserError for a group without parameters.
    """
    b1, b2 = config.optim.b1, config.optim.b2
    optimizer = optimizer or make_optimizer(recipe.combiner, recipe.groups, b1=b1, b2=b2)
    groups = assign_groups(recipe, jax.eval_shape(recipe.init, jax.random.key(0))[0])
    abstract = jax.eval_shape(lambda: step.init_state(recipe, optimizer, config.seed))
    state = with_shardings(abstract, state_sharding(abstract, mesh))
    return System(recipe, optimizer, groups, mesh, state)


def assign_groups(recipe: Recipe, params: Tree) -> Tree:
    """The `Group` of each parameter; UserError for a group without parameters."""
    try:
        return group_of_parameters(params, recipe.groups)
    except ValueError as error:
        parts = ", ".join(params["encoder"])
        raise UserError(f"config.freeze: {error}; the encoder has {parts}") from error


def jit_train_step(config: Any, system: System, phases: tuple[Phase, ...]) -> Any:
    """The jitted step of phases that share a program, or of one: (state, batch, seed) -> (state,
    means), not compiled yet; the state is donated, and the seed is that of `seed_of`. To be lowered
    and called under `jax.set_mesh(system.mesh)`."""

    def train_step(state: TrainState, batch: Tree, seed: Seed) -> tuple[TrainState, Means]:
        parts = system.recipe, phases, system.optimizer, system.groups, seed, config.accumulate
        return step.make_train_step(*parts)(state, batch)

    return jax.jit(train_step, donate_argnums=0, out_shardings=(system.shardings, None))


def seed_of(config: Any) -> np.int32:
    """`config.seed` as an operand: runs that differ in nothing else share their programs."""
    return np.int32(config.seed)
