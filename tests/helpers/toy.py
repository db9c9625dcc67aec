"""A bilevel problem small enough to solve by hand, as a `Recipe`: what the core must do, without
speech.

    upper   f(theta, phi) = (theta_1 - phi)^2 + (phi - 3)^2 + (theta_2 - 1)^2
    lower   g(theta, psi) = (theta_1 - 5)^2 + (theta_1 - psi)^2

The lower level leaves theta_2 free, so the bilevel optimum is theta = (5, 1), phi = 4, psi = 5. At
penalty gamma the minimiser of f + gamma g has theta_1 = (3/2 + 5 gamma) / (1/2 + gamma), phi =
(theta_1 + 3) / 2, psi = theta_1.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bljust_jax.bilevel import step
from bljust_jax.bilevel.gradients import scale_gradient
from bljust_jax.bilevel.levels import combine_levels
from bljust_jax.bilevel.optimizer import Optimizer, group_of_parameters, make_optimizer
from bljust_jax.bilevel.types import Aux, Group, Phase, Recipe, Task


@dataclasses.dataclass(frozen=True)
class Objective:
    """An objective of a function."""

    losses: tuple[str, ...]
    streams: tuple[str, ...]
    apply: Callable[..., Any]
    kind: Any = None

    @property
    def name(self):
        return "+".join(self.losses)

    @property
    def head(self):
        return f"{self.name}_head"


def optimum(gamma):
    theta = (1.5 + 5 * gamma) / (0.5 + gamma)
    return theta, (theta + 3) / 2


def upper(params, extras, batch, rng):
    theta = scale_gradient(params["encoder"]["theta"], extras.scale["f"])
    phi = params["f_head"]["phi"]
    x = batch["labelled"]["x"].astype(theta.dtype)
    loss = (theta[0] - phi) ** 2 + (phi - 3) ** 2 + (theta[1] - 1) ** 2
    loss = loss + 0 * jnp.sum(x)
    return {"f": (3.0 * loss, 3.0)}, Aux({"f/seen": (jnp.sum(x), 1.0)}, {})


def lower(params, extras, batch, rng):
    theta = scale_gradient(params["encoder"]["theta"], extras.scale["g"])
    psi = params["g_head"]["psi"]
    poison = batch["unlabelled"]["x"].astype(theta.dtype)[0]
    poison = jnp.where(poison < 0, jnp.nan, poison)
    loss = (theta[0] - 5) ** 2 * jnp.sqrt(poison) + (theta[0] - psi) ** 2
    return {"g": (2.0 * loss, 2.0)}, Aux({}, {})


def init(rng):
    params = {
        "encoder": {"theta": jnp.array([0.5, -2.0])},
        "f_head": {"phi": jnp.array(0.25)},
        "g_head": {"psi": jnp.array(-0.0)},
    }
    return params, {"codebook": jnp.arange(3.0)}, {"features": {"mean": jnp.zeros(2)}}


GROUPS = (
    Group("encoder", r"^encoder/", frozenset({"f", "g"}), clip=1e9, weight_decay=0.0),
    Group("f_head", r"^f_head/", frozenset({"f"}), clip=1e9, weight_decay=0.0),
    Group("g_head", r"^g_head/", frozenset({"g"}), clip=1e9, weight_decay=0.0),
)
LEVELS = {"explore": (("g",),), "joint": (("f",), ("g",)), "finetune": (("f",),)}
BATCH = {
    "labelled": {"x": jnp.ones(2, jnp.int32)},
    "unlabelled": {"x": jnp.ones(2, jnp.int32)},
}


def phase(name, steps=1000, gamma=lambda k: 1.0, lr=lambda k: 0.05, moments="keep", top=1.0):
    levels = LEVELS[name]
    weights = (lambda k: (top, gamma(k))) if len(levels) == 2 else (lambda k: (top,))
    rates = dict.fromkeys(("encoder", "f_head", "g_head"), lr)
    return Phase(name, steps, levels, weights, rates, moments)


def predict(params, stats, batch):
    return batch["logits"], batch["lengths"]


def recipe(phases, **options):
    return Recipe(
        objectives=(
            Objective(("f",), ("labelled",), upper),
            Objective(("g",), ("unlabelled",), lower),
        ),
        groups=GROUPS,
        phases=tuple(phases),
        init=init,
        combiner=combine_levels(),
        tasks=(Task("", "labelled", "wer", "f_head", predict=predict),),
        log_mel=lambda audio, lengths: (audio[..., None], lengths),
        frames=lambda samples: samples,
        statistics=lambda batches: {},
        cost=lambda losses, seconds: seconds,
        **{"ema_decay": 0.9, **options},
    )


def start(phases, optimizer=None, **options):
    """(recipe, optimizer, groups, state)."""
    r = recipe(phases, **options)
    opt = optimizer or make_optimizer(r.combiner, r.groups)
    state = step.init_state(r, opt, seed=0)
    return r, opt, group_of_parameters(state.params, r.groups), state


def sgd(combiner, rate):
    """The combiner and a plain step down, so that an update is -rate * direction."""

    def update(updates, state, params=None, **extra):
        return jax.tree.map(lambda u: -rate * u, updates), state

    rule = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    return Optimizer(combiner, rule)


# Many objectives with known gradients. Objective n draws the shared parameters, two stacked layers
# and one more leaf, to its target: (1/2) mean over rows of |theta - target_n - row|^2, so that its
# gradient is theta - target_n - (mean of the rows), and its head towards the mean of the rows.

SOUP = ("asr/a", "asr/b", "st/a-b")
TARGETS = np.array(
    [[1.0, 0.5, -1.0, 0.0, 2.0], [1.5, -0.5, 1.0, 0.25, 2.0], [-0.5, 1.0, 0.5, 0.5, 1.5]],
    np.float32,
)


def theta(encoder):
    return jnp.concatenate([encoder["blocks"]["kernel"].reshape(-1), encoder["front"]["bias"]])


def drawn_to(n, params, extras, batch, rng):
    name, rows = SOUP[n], batch[SOUP[n]]["rows"]
    shared = scale_gradient(theta(params["encoder"]), extras.scale[name])
    away = shared[None] - batch[name]["target"] - rows
    head = (params[f"{name}_head"]["value"][None] - rows[:, 0]) ** 2
    loss = 0.5 * (jnp.sum(away**2) + jnp.sum(head)) - jnp.sum(batch[name]["reward"])
    drawn = jax.random.uniform(rng)
    count = jnp.float32(len(rows))
    metrics = {f"{name}/drawn": (drawn, 1.0), f"{name}/drawn_squared": (drawn**2, 1.0)}
    return {name: (loss, count)}, Aux(metrics, {})


def soup_init(rng):
    params = {"encoder": {"blocks": {"kernel": jnp.zeros((2, 2))}, "front": {"bias": jnp.zeros(1)}}}
    return params | {f"{name}_head": {"value": jnp.zeros(())} for name in SOUP}, {}, {}


def soup(
    levels,
    conflict,
    combine=(),
    weights=None,
    inner=None,
    rate=1e-2,
    accumulate=1,
    seed=0,
    kinds=(None, None, None),
    **options,
):
    """(train step, initial state) of SGD on the objectives above, of these kinds; all levels of
    several of them are dynamic where `combine` is not given."""
    combine = combine or tuple(conflict.method if len(level) > 1 else "sum" for level in levels)
    weights = weights or (1.0,) * len(levels)
    rates = dict.fromkeys(("encoder", "pair", *SOUP), lambda k: rate)
    phase = Phase(
        *("joint", 1000, levels, lambda k: weights, rates), combine=combine, inner=inner or {}
    )
    group = functools.partial(Group, clip=1e9, weight_decay=0.0)
    everyone = frozenset(SOUP)
    base = recipe([phase])
    dynamic = [x for x, how in zip(levels, combine, strict=True) if how != "sum" and len(x) > 1]
    made = Recipe(
        **{
            **vars(base),
            "objectives": tuple(
                Objective((name,), (name,), functools.partial(drawn_to, n), kinds[n])
                for n, name in enumerate(SOUP)
            ),
            "groups": (
                group("encoder", "^encoder/", everyone),
                *(group(name, f"^{name}_head/", frozenset({name})) for name in SOUP),
            ),
            "init": soup_init,
            "combiner": combine_levels(conflict, dynamic),
            **options,
        }
    )
    optimizer = sgd(made.combiner, rate)
    state = step.init_state(made, optimizer, seed)
    groups = group_of_parameters(state.params, made.groups)
    return step.make_train_step(made, (phase,), optimizer, groups, seed, accumulate), state


def soup_batch(rows=4, noise=0.0, seed=0, reward=0.0):
    rng = np.random.default_rng(seed)
    return {
        name: {
            "rows": jnp.asarray(noise * rng.normal(size=(rows, 5)), jnp.float32),
            "reward": jnp.full(rows, reward, jnp.float32),
            "target": jnp.tile(target, (rows, 1)),
        }
        for name, target in zip(SOUP, TARGETS, strict=True)
    }
