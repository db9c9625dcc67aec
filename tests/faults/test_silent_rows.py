"""F9, F11: a row without audio has length 0 and adds nothing to any loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.laws import CASES, bind_objective, lengthen
from tests.helpers.systems import ROWS, make_batch

# Batch norm and the mean use of codes or labels make a row's loss depend on the other rows.
COUPLED = (("parakeet", "ctc"), ("wav2vec2_just", "wav2vec2"), ("birq", "enhanced+anchor"))


def silence(batch, rows):
    """The batch with these rows as the loader leaves them: ids stay, all else is 0."""
    silent = {name: np.array(x) for name, x in batch.items()}
    for name in silent.keys() - {"ids"}:
        silent[name][list(rows)] = 0
    return jax.tree.map(jnp.asarray, silent)


@pytest.mark.daily("bljust-ctc", "birq-*")
@pytest.mark.parametrize(("name", "objective"), CASES)
def test_a_silent_row_adds_exactly_nothing(name, objective):
    bound = bind_objective(name, objective)
    found = bound.lower(bound.params, silence(make_batch(), range(ROWS)))
    assert float(found.loss) == 0
    assert not any(np.any(np.asarray(g)) for g in jax.tree.leaves(found.gradient))

    sums, batch = bound.sums, lengthen(make_batch())
    if (name, objective) in COUPLED:
        without = jax.tree.map(lambda x: x[np.array([0, 1, 3])], batch)
        silent, absent = sums(silence(batch, [2])), sums(without)
        for key in silent:
            np.testing.assert_allclose(silent[key], absent[key], rtol=1e-5)
        return
    whole = sums(batch)
    alone = [sums(silence(batch, [r for r in range(ROWS) if r != row])) for row in range(ROWS)]
    for key, (total, weight) in whole.items():
        assert float(weight) > 0
        assert float(weight) == sum(float(part[key][1]) for part in alone)
        # rows are independent; float32 sums differ in order
        np.testing.assert_allclose(total, sum(float(part[key][0]) for part in alone), rtol=1e-5)
