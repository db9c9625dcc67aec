"""A bilevel problem small enough to solve by hand, as a `Recipe`: what the core must do, without
speech.

    upper   f(theta, phi) = (theta_1 - phi)^2 + (phi - 3)^2 + (theta_2 - 1)^2
    lower   g(theta, psi) = (theta_1 - 5)^2 + (theta_1 - psi)^2

The lower level leaves theta_2 free, so the bilevel optimum is theta = (5, 1), phi = 4, psi = 5. At
penalty gamma the minimiser of f + gamma g has theta_1 = (3/2 + 5 gamma) / (1/2 + gamma), phi =
(theta_1 + 3) / 2, psi = theta_1.
"""

import jax
import jax.numpy as jnp
import optax

from bljust_jax import bilevel, optim, step, system


def optimum(gamma):
    theta = (1.5 + 5 * gamma) / (0.5 + gamma)
    return theta, (theta + 3) / 2


def upper(params, extras, batch, rng):
    theta = system.scale_gradient(params["encoder"]["theta"], extras.scale["f"])
    phi = params["f_head"]["phi"]
    x = batch["labelled"]["x"].astype(theta.dtype)
    loss = (theta[0] - phi) ** 2 + (phi - 3) ** 2 + (theta[1] - 1) ** 2
    loss = loss + 0 * jnp.sum(x)
    return {"f": (3.0 * loss, 3.0)}, system.Aux({"f/seen": (jnp.sum(x), 1.0)}, {})


def lower(params, extras, batch, rng):
    theta = system.scale_gradient(params["encoder"]["theta"], extras.scale["g"])
    psi = params["g_head"]["psi"]
    poison = batch["unlabelled"]["x"].astype(theta.dtype)[0]
    poison = jnp.where(poison < 0, jnp.nan, poison)
    loss = (theta[0] - 5) ** 2 * jnp.sqrt(poison) + (theta[0] - psi) ** 2
    return {"g": (2.0 * loss, 2.0)}, system.Aux({}, {})


def init(rng):
    params = {
        "encoder": {"theta": jnp.array([0.5, -2.0])},
        "f_head": {"phi": jnp.array(0.25)},
        "g_head": {"psi": jnp.array(-0.0)},
    }
    return params, {"codebook": jnp.arange(3.0)}, {"features": {"mean": jnp.zeros(2)}}


GROUPS = (
    system.Group("encoder", r"^encoder/", frozenset({"f", "g"}), clip=1e9, weight_decay=0.0),
    system.Group("f_head", r"^f_head/", frozenset({"f"}), clip=1e9, weight_decay=0.0),
    system.Group("g_head", r"^g_head/", frozenset({"g"}), clip=1e9, weight_decay=0.0),
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
    return system.Phase(name, steps, levels, weights, rates, moments)


def predict(params, stats, batch):
    return batch["logits"], batch["lengths"]


def recipe(phases, **options):
    return system.Recipe(
        objectives=(
            system.Objective(("f",), ("labelled",), upper),
            system.Objective(("g",), ("unlabelled",), lower),
        ),
        groups=GROUPS,
        phases=tuple(phases),
        init=init,
        combiner=bilevel.combine_levels(),
        tasks=(system.Task("", "labelled", "wer", "f_head", predict=predict),),
        log_mel=lambda audio, lengths: (audio[..., None], lengths),
        frames=lambda samples: samples,
        statistics=lambda batches: {},
        cost=lambda losses, seconds: seconds,
        **{"ema_decay": 0.9, **options},
    )


def start(phases, optimizer=None, **options):
    """(recipe, optimizer, groups, state)."""
    r = recipe(phases, **options)
    opt = optimizer or optim.make(r.combiner, r.groups)
    state = step.init_state(r, opt, seed=0)
    return r, opt, optim.assign(state.params, r.groups), state


def sgd(combiner, rate):
    """The combiner and a plain step down, so that an update is -rate * direction."""

    def update(updates, state, params=None, **extra):
        return jax.tree.map(lambda u: -rate * u, updates), state

    return optax.chain(
        combiner, optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    )
