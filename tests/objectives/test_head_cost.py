"""FLOPs of heads and decoders: those of the matrix products in their traced forward passes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from bljust_jax import recipes
from bljust_jax.models.decoder import Decoder
from configs import birq
from tests.helpers.systems import FACTS, RATE, build

SECONDS = 1.5


def product_flops(fn, *args):
    """2 m n k of every matrix product in the trace of a function; a loop counts its iterations."""

    def of(jaxpr):
        total = 0
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                (contracted, _), _ = eqn.params["dimension_numbers"]
                left = eqn.invars[0].aval.shape
                inner = math.prod(left[axis] for axis in contracted)
                total += 2 * math.prod(eqn.outvars[0].aval.shape) * inner
            times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
            for inside in jax.tree.leaves(
                list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
            ):
                body = getattr(inside, "jaxpr", inside)
                total += times * of(body) if hasattr(body, "eqns") else 0
        return total

    return of(jax.make_jaxpr(fn)(*args).jaxpr)


def part(recipe, name):
    return next(o for o in recipe.objectives if name in o.losses)


def hidden(objective, width):
    return jnp.zeros((1, objective.frames_of(SECONDS), width))


@pytest.mark.parametrize("layers", [1, 3])
def test_flops_of_the_decoder(layers):
    model = Decoder(dim=16, layers=layers, heads=2, vocab_size=7, memory_dim=6, ff_mult=3)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    memory, tokens = jnp.zeros((1, 9, 6)), jnp.zeros((1, 5), jnp.int32)
    counted = product_flops(
        lambda p: model.apply(p, memory, jnp.array([9]), tokens, jnp.array([5])), params
    )
    assert model.flops(tokens=5, frames=9) == counted


def test_flops_of_linear_heads():
    recipe = build("bljust")
    params = jax.eval_shape(lambda: recipe.init(jax.random.key(0))[0])
    ctc, cpc = part(recipe, "ctc"), part(recipe, "cpc")
    x = hidden(ctc, ctc.encoder.dim)
    assert ctc.head_cost(frozenset({"ctc"}), SECONDS) == 3 * product_flops(
        lambda p: ctc.logits(p, x), params
    )
    latents = hidden(cpc, cpc.encoder.latent_dim)
    maps = product_flops(lambda p: (cpc.project(p, latents), cpc.predict(p, x)), params)
    times = cpc.frames_of(SECONDS)
    scores = cpc.steps * times * (times + 1) * cpc.width  # all times are candidates, and the truth
    assert cpc.head_cost(frozenset({"cpc"}), SECONDS) == 3 * (maps + 2 * scores)
    assert recipe.head_cost(frozenset({"cpc"}), SECONDS) == cpc.head_cost(frozenset(), SECONDS)


def test_flops_of_windows_are_those_of_the_times_that_are_encoded():
    """0.3 s predict 0.15 s, every 0.15 s: 8 windows in 1.5 s, one prediction of 2 steps each."""
    recipe = build("lstm")
    cpc = part(recipe, "cpc")
    assert cpc.context == "chunked"
    assert cpc.windows(SECONDS) == 8
    assert cpc.windows(0.4) == 0 == cpc.head_cost(frozenset({"cpc"}), 0.4)
    wide = dataclasses.replace(cpc, negatives=3)
    maps = 8 * 2 * (cpc.encoder.latent_dim + cpc.encoder.dim) * cpc.width
    scores = 2 * 8 * (3 + 1) * cpc.width
    assert wide.head_cost(frozenset({"cpc"}), SECONDS) == 6 * (maps + scores)


def test_flops_of_label_heads_and_quantisers():
    config = birq.get_config("smoke")
    for head, gradient in (("shared", True), ("separate", False)):
        config.birq.update(head=head, label_gradient=gradient)
        both = part(recipes.load("birq")(config, FACTS), "anchor")
        frames = both.encoder.frames(round(SECONDS * RATE))
        dim, codes, width = both.encoder.dim, both.size.codes, both.size.code_dim
        heads = 6 * dim * codes * (1 if head == "shared" else 2)
        anchor = 2 * width * (both.size.dim + codes)
        enhanced = 2 * width * (dim + codes) * (3 if gradient else 1)
        losses = frozenset({"anchor", "enhanced"})
        assert both.head_cost(losses, SECONDS) == frames * (heads + anchor + enhanced)
        alone = both.head_cost(frozenset({"anchor"}), SECONDS)
        assert alone == frames * (6 * dim * codes + anchor)
    best_rq = part(build("best_rq"), "best_rq")
    size, frames = best_rq.size, best_rq.frames_of(SECONDS)
    own = 6 * best_rq.encoder.dim * size.codes
    own += 2 * size.code_dim * (size.dim + size.codes)
    assert best_rq.head_cost(frozenset({"best_rq"}), SECONDS) == frames * own
