"""EMA parameters: warm-up, first values, decay by share of a phase."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.bilevel import step
from tests.helpers import toy


def test_ema_follows_with_warm_up():
    phase = toy.phase("joint")
    r, opt, groups, state = toy.start([phase])
    after, _ = step.make_train_step(r, (phase,), opt, groups, seed=0)(state, toy.BATCH)
    decay = min(0.9, 1 / 10)
    want = decay * state.ema["encoder"]["theta"] + (1 - decay) * after.params["encoder"]["theta"]
    np.testing.assert_allclose(after.ema["encoder"]["theta"], want, rtol=1e-6)


def test_the_average_starts_at_the_first_parameters():
    *_, state = toy.start([toy.phase("joint")])
    jax.tree.map(np.testing.assert_array_equal, state.ema, state.params)
    assert any(np.any(x != 0) for x in jax.tree.leaves(state.ema))


def test_the_average_of_a_short_phase_forgets_the_one_before():
    """Twelve steps at 1 - 1 / (0.25 * 12) = 2/3, after forty at 0.9, with parameters at rest."""
    still = [toy.phase(name, n, lr=lambda k: 0.0) for name, n in (("joint", 40), ("finetune", 12))]
    r, opt, groups, state = toy.start(still, ema_share=0.25)
    run = jax.jit(step.make_train_step(r, tuple(still), opt, groups, seed=0))
    far = jax.tree.map(lambda x: x + 1, state.params)
    for start, n, decay in ((30, 10, 0.9), (40, 12, 2 / 3)):
        now = state._replace(step=jnp.int32(start), ema=far)
        for _ in range(n):
            # the warm-up of the average, (1 + k) / (10 + k), is below 0.9 up to step 81
            limit = min(decay, (1 + int(now.step)) / (10 + int(now.step)))
            before, (now, _) = now, run(now, toy.BATCH)
            apart = [s.ema["f_head"]["phi"] - s.params["f_head"]["phi"] for s in (now, before)]
            gap, old = map(float, apart)
            assert gap == pytest.approx(limit * old, rel=1e-5)
    assert gap == pytest.approx((2 / 3) ** 12, rel=1e-4)
