"""What a CPC context has seen, with the real features and the real encoder.

Every sample after a context's last frame is perturbed: the context must be bit-equal and its first
target must change, or the task would be to copy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.bilevel.types import Extras
from bljust_jax.models.encoders.conformer import Conformer
from bljust_jax.objectives import cpc
from bljust_jax.ops.log_mel import log_mel, normalise
from tests.helpers.batches import ToyEncoder

RATE, WINDOW, HOP, STRIDE = 16000, 400, 160, 4
CHUNK = (0.4, 0.2, 0.2)
FIRST_STEP = 2
MODEL = Conformer(dim=16, layers=2, heads=2, kernel=5, n_mels=8, channels=4)


def features(audio, lengths, *, keys, train, stats):
    x, lengths = log_mel(audio, lengths, n_mels=8)
    return normalise(x, lengths, (stats["mean"], stats["std"])), lengths, None


def encode(params, x, lengths, *, stats, input_mask, context, train, rng):
    return MODEL.apply(params, x, lengths, context=context, train=train, rng=rng)


def make_view(context):
    """audio [1, S] -> the contexts that the objective predicts from, and the targets."""
    seen = {}

    class Cpc(cpc.Cpc):
        def predict(self, params, output):
            seen["contexts"] = output[0]
            return output[None]

        def project(self, params, latents):
            seen["targets"] = latents[0]
            return latents

    objective = Cpc(
        encoder=ToyEncoder(features, encode),
        steps=1,
        first_step=FIRST_STEP,
        context=context,
        chunk=CHUNK,
        sample_rate=RATE,
    )
    params, _ = jax.jit(MODEL.init)(jax.random.key(0))
    stats = {"features": {"mean": jnp.zeros(8), "std": jnp.ones(8)}}
    extras = Extras(step=0, frozen={}, stats=stats, ema={}, scale={"cpc": 1.0})

    @jax.jit
    def view(audio):
        ids, lengths = jnp.zeros(1, jnp.uint32), jnp.array([audio.shape[1]])
        batch = {"unlabelled": {"audio": audio, "audio_lengths": lengths, "ids": ids}}
        losses, _ = objective.apply(params, extras, batch, jax.random.key(0))
        return seen["contexts"], seen["targets"], losses["cpc"]

    return lambda audio: jax.tree.map(np.asarray, view(audio))


@pytest.fixture
def audio():
    return np.random.default_rng(0).integers(-3000, 3000, size=(1, RATE)).astype(np.int16)


def perturbed(audio, start, stop=None):
    other = audio.copy()
    other[:, start:stop] = np.random.default_rng(1).integers(
        -3000, 3000, other[:, start:stop].shape
    )
    return other


@pytest.mark.daily("7")
@pytest.mark.parametrize("frame", [0, 7, 20])
def test_causal_context_has_not_seen_its_target(audio, frame):
    """Output t depends on feature frames up to 4t + 3; target t + 2 begins at frame 4t + 5."""
    view = make_view("causal")
    end = (STRIDE * frame + 3) * HOP + WINDOW
    contexts, targets, (loss, pairs) = view(audio)
    others, changed, (other_loss, _) = view(perturbed(audio, end))
    np.testing.assert_array_equal(contexts[: frame + 1], others[: frame + 1])
    assert (np.abs(targets - changed).max(-1)[frame + FIRST_STEP :] > 1e-3).all()
    assert np.abs(contexts - others).max(-1)[frame + 1] > 1e-6
    assert pairs == len(targets) - FIRST_STEP
    assert loss != other_loss


@pytest.mark.daily("1")
@pytest.mark.parametrize("window", [0, 1, 2])
def test_chunked_context_has_not_seen_its_target(audio, window):
    """Nor does the target depend on its context: both windows are encoded separately."""
    view = make_view("chunked")
    past, future, slide = (round(s * RATE) for s in CHUNK)
    start = window * slide
    contexts, targets, (_, pairs) = view(audio)
    assert len(contexts) == pairs == (RATE - past - future) // slide + 1
    first = len(targets) // len(contexts) * window
    others, changed, _ = view(perturbed(audio, start + past))
    np.testing.assert_array_equal(contexts[window], others[window])
    assert np.abs(targets - changed).max(-1)[first] > 1e-3
    others, changed, _ = view(perturbed(audio, 0, start + past))
    assert np.abs(contexts - others).max(-1)[window] > 1e-6
    np.testing.assert_array_equal(targets[first], changed[first])
