"""BiRQ on an encoder of a few products: finite differences, BEST-RQ inside it, limits, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.bilevel.gradients import scale_gradient
from bljust_jax.bilevel.rng import row_keys
from bljust_jax.bilevel.types import Extras
from bljust_jax.objectives import best_rq, birq
from bljust_jax.objectives.birq import ANCHOR, ENHANCED, SelfLabels
from bljust_jax.ops import quantizer
from tests.helpers.batches import ToyEncoder

MELS, STACK, DIM, BLOCKS, BOOKS, CODES, WIDTH = 3, 2, 6, 3, 2, 5, 4
LENGTHS = (26, 17, 0, 9)  # feature frames
KEY = jax.random.key(0)
SIZE = best_rq.QuantizerSize(STACK * MELS, CODES, WIDTH, BOOKS)
BOTH = (ENHANCED, ANCHOR)
MASKS = best_rq.Masking(stack=STACK, probability=0.3, span=2, noise_std=0.1)


def features(audio, lengths, *, keys, train):
    """Three samples are a frame of three bands."""
    assert keys is None
    assert train
    x = audio.astype(jnp.float64 if jax.config.jax_enable_x64 else jnp.float32) / 1000
    return x.reshape(len(audio), -1, MELS), lengths // MELS, None


def encode(params, x, lengths, *, stats, context, input_mask, train, rng, depth=None):
    """Two frames make one, then blocks that mix neighbours; a pass for labels reads the parameters
    "labeller" where there are such."""
    assert context == "full"
    assert input_mask is None
    weights = params["encoder"] if depth is None else params.get("labeller", params["encoder"])
    lengths = -(-lengths // STACK)
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % STACK), (0, 0)))
    h = jnp.tanh(x.reshape(len(x), -1, STACK * MELS) @ weights["front"])
    for kernel in weights["blocks"][:depth]:
        around = h + jnp.pad(h, ((0, 0), (1, 0), (0, 0)))[:, :-1] + jnp.roll(h, -1, axis=1)
        h = jnp.tanh(around @ kernel)
    valid = jnp.arange(h.shape[1])[None, :] < lengths[:, None]
    return jnp.where(valid[..., None], h, 0), lengths, {}, stats


class BiRq(birq.BiRq):
    def predict(self, params, hidden, scale):
        """One head for both losses, or one per loss, as in `birq.BiRq`."""

        def logits(kernel, h):
            return (h @ kernel).reshape(*h.shape[:2], BOOKS, -1)

        if "label_head" in params:
            both = logits(params["label_head"], hidden)
            return {loss: scale_gradient(both, w) for loss, w in scale.items()}
        heads = {n: params[f"{n}_head"] for n in scale}
        return {n: logits(heads[n], scale_gradient(hidden, w)) for n, w in scale.items()}


def make(entries=quantizer.ENTRIES, encode=encode, **how):
    labels = SelfLabels(**{"layer": 2, "sharpness": 3.0, **how})
    toy = ToyEncoder(features, encode)
    return BiRq(encoder=toy, losses=BOTH, labels=labels, entries=entries, masking=MASKS, size=SIZE)


def make_params(heads=("label_head",), codes=CODES, seed=0):
    rng = np.random.default_rng(seed)
    encoder = {
        "front": rng.normal(size=(STACK * MELS, DIM)),
        "blocks": 0.6 * rng.normal(size=(BLOCKS, DIM, DIM)),
    }
    return {"encoder": encoder} | {n: rng.normal(size=(DIM, BOOKS * codes)) for n in heads}


def make_frozen(codes=CODES, shared=False):
    anchor = quantizer.init_random_projection(KEY, STACK * MELS, codes, WIDTH, BOOKS)
    enhanced = quantizer.init_random_projection(jax.random.key(1), DIM, codes, WIDTH, BOOKS)
    if shared:
        del enhanced["codebook"]
    return {ANCHOR: anchor, ENHANCED: enhanced}


def make_batch(lengths=LENGTHS):
    rng = np.random.default_rng(1)
    frames = max(lengths)
    batch = {
        "audio": rng.integers(-2000, 2000, (len(lengths), frames * MELS)).astype(np.int16),
        "audio_lengths": np.asarray(lengths, np.int32) * MELS,
        "ids": np.arange(5, 5 + len(lengths), dtype=np.uint32),
    }
    return jax.tree.map(jnp.asarray, batch)


def means(objective, params, scale, frozen, teacher=None, name="birq", batch=None):
    """({loss: mean}, metrics)."""
    extras = Extras(jnp.int32(3), {name: frozen, "teacher": teacher}, {}, {}, scale)
    data = {"unlabelled": make_batch() if batch is None else batch}
    losses, aux = objective.apply(params, extras, data, KEY)
    return {n: s / jnp.maximum(w, 1) for n, (s, w) in losses.items()}, aux.metrics


def gradient(objective, frozen, scale, params, **how):
    """Gradient of the plain sum of the losses, each scaled on its way back as `fused` does."""

    def total(params):
        losses, metrics = means(objective, params, scale, frozen, **how)
        return sum(losses.values()), (losses, metrics)

    return jax.grad(total, has_aux=True)(params)


def to_float64(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def dot(a, b):
    return sum(float(jnp.vdot(x, y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


WAYS = {
    "one encoder": {},
    "no noise, own head": {"noise": False, "normalise": "frame", "score": "distance"},
    "no label gradient": {"label_gradient": False},
    "label entropy": {"label_entropy": 1.5},
}


@pytest.mark.daily("one encoder", "no label gradient", "label entropy")
@pytest.mark.parametrize("way", WAYS)
def test_gradient_of_the_enhanced_loss_against_finite_differences(way):
    """Noise is fixed by the key; the error of central differences at 1e-6 in float64 is far under
    1e-6 of the slope. With one encoder the slope is that of both its paths; two encoders
    separate the label path from the prediction path."""
    heads = ("enhanced_head",) if "own head" in way else ("label_head",)
    with jax.enable_x64(True):
        params = to_float64(make_params(heads))
        if way != "one encoder":
            params["labeller"] = to_float64(make_params(seed=4)["encoder"])
        frozen = to_float64(make_frozen(shared="own head" in way))
        objective = make(**WAYS[way])
        scale = {ENHANCED: 1.0}

        @jax.jit
        def value_and_gradient(params):
            grads, (losses, _) = gradient(objective, frozen, scale, params)
            return losses[ENHANCED], grads

        _, grads = value_and_gradient(params)
        rng = np.random.default_rng(2)
        for path in params:
            direction = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params[path])
            if path == "labeller" and "no label" in way:
                assert not any(np.any(g) for g in jax.tree.leaves(grads[path]))
                continue

            def moved(eps, path=path, direction=direction):
                leaf = jax.tree.map(lambda p, d: p + eps * d, params[path], direction)
                return float(value_and_gradient({**params, path: leaf})[0])

            slope = (moved(1e-6) - moved(-1e-6)) / 2e-6
            assert slope == pytest.approx(dot(grads[path], direction), rel=1e-6)
            assert abs(slope) > 1e-3


def to_float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def best_rq_objective():
    class BestRq(best_rq.BestRq):
        def logits(self, params, h):
            return (h @ params["label_head"]).reshape(*h.shape[:2], BOOKS, -1)

    return BestRq(encoder=ToyEncoder(features, encode), masking=MASKS, size=SIZE)


@pytest.mark.slow
def test_without_the_enhanced_loss_it_is_best_rq():
    """w1 = 0, w2 = 1: BEST-RQ's gradient array for array in one program, though the label path is
    not a number; 1e-6 of its size between two programs."""
    objective, frozen, params = make(), make_frozen(), to_float32(make_params())
    other, broken = best_rq_objective(), jax.tree.map(lambda x: x * jnp.nan, params["encoder"])

    def bilevel(params, scale):
        poisoned = {**params, "labeller": broken}
        grads, (losses, _) = gradient(objective, frozen, scale, poisoned)
        del grads["labeller"]
        return grads, losses[ANCHOR]

    def plain(params, weight):
        scale = {"best_rq": weight}
        how = {"name": "best_rq"}
        grads, (losses, _) = gradient(other, frozen[ANCHOR], scale, params, **how)
        return grads, losses["best_rq"]

    def together(params, off, on):
        return bilevel(params, {ENHANCED: off, ANCHOR: on}), plain(params, on)

    off, on = jnp.float32(0), jnp.float32(1)
    ours, theirs = jax.jit(together)(params, off, on)
    alone = jax.jit(plain)(params, on)
    for a, b, c in zip(*map(jax.tree.leaves, (ours, theirs, alone)), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, rtol=0, atol=1e-6 * np.abs(c).max())


@pytest.mark.daily("heads0")
@pytest.mark.parametrize("heads", [("label_head",), ("enhanced_head", "anchor_head")])
def test_one_backward_pass_gives_the_weighted_sum(heads):
    """w1 grad F + w2 grad G on the encoder and on a head that both losses read; heads of their own
    keep their plain gradients."""
    objective, frozen, params = make(), make_frozen(), to_float32(make_params(heads))
    weights = {ENHANCED: jnp.float32(0.1), ANCHOR: jnp.float32(2.4)}

    @jax.jit
    def run(params, weights):
        once = gradient(objective, frozen, weights, params)[0]
        return once, {n: gradient(objective, frozen, {n: 1.0}, params)[0] for n in BOTH}

    once, alone = run(params, weights)
    for part in params:
        own = len(heads) > 1 and part != "encoder"
        w = dict.fromkeys(BOTH, 1.0) if own else weights
        each = (once[part], *(alone[n][part] for n in BOTH))
        for a, f, g in zip(*map(jax.tree.leaves, each), strict=True):
            np.testing.assert_allclose(a, w[ENHANCED] * f + w[ANCHOR] * g, rtol=1e-5, atol=1e-6)


@functools.cache
def metrics_of(**how):
    """Losses and metrics of both losses; the labeller is the encoder, and the teacher too."""
    params = to_float32(make_params())
    teacher = ({"encoder": params["encoder"]}, {})
    call = functools.partial(means, make(**how), frozen=make_frozen(), teacher=teacher)
    return jax.jit(lambda p: call(p, {ENHANCED: 1.0, ANCHOR: 1.0}))(params)


def test_without_noise_a_cold_label_is_the_nearest_code():
    """tau -> 0: the soft label is the nearest code, which is what relabelling by a teacher with the
    same weights gives; so is the straight-through one at any temperature."""
    cold = {"noise": False, "tau_start": 1e-5, "tau_end": 1e-5, "tau_decay": 1.0}
    expected, metrics = metrics_of(teacher=True)
    for how in (cold, {"noise": False, "hard": True}):
        losses, others = metrics_of(**how)
        np.testing.assert_allclose(losses[ENHANCED], expected[ENHANCED], rtol=1e-5)
        for name in ("enhanced/accuracy", "birq/agreement", "codebook/enhanced/perplexity"):
            np.testing.assert_allclose(others[name], metrics[name], rtol=1e-6)
    assert float(metrics_of(**cold)[1]["enhanced/entropy"][0]) == pytest.approx(0, abs=1e-3)
    noisy, _ = metrics_of()
    assert abs(float(noisy[ENHANCED] - expected[ENHANCED])) > 1e-2


def test_collapse_shows_in_the_metrics():
    """Labels that are all one code, and uniform scores: perplexity 1, entropy log V."""
    params = to_float32(make_params())
    params["labeller"] = jax.tree.map(jnp.zeros_like, params["encoder"])
    scale = {ENHANCED: 1.0, ANCHOR: 1.0}
    objective = make(noise=False, normalise="frame")
    run = jax.jit(lambda p: means(objective, p, scale, make_frozen()))
    losses, metrics = run(params)
    figures = {n: float(s) / float(w) for n, (s, w) in metrics.items()}
    assert figures["codebook/enhanced/perplexity"] == pytest.approx(1)
    assert figures["codebook/enhanced/unused"] == pytest.approx((CODES - 1) / CODES)
    assert figures["codebook/enhanced/entropy"] == pytest.approx(0, abs=1e-6)
    # z = 0 is equally far from all codes
    assert figures["enhanced/entropy"] == pytest.approx(np.log(CODES), rel=1e-5)
    assert figures["codebook/anchor/perplexity"] > 2
    assert 0 < figures["birq/masked_share"] < 1
    assert float(losses[ENHANCED]) > figures["enhanced/entropy"]


def test_a_prediction_without_information_does_not_move_the_labels():
    """p_t = m in all frames: the label gradient of F is that of frames * H(m), so that a step
    along it collapses the labels; beta = 1 cancels it, and beta = 2 spreads the labels as much."""
    codes, frames = 6, 40
    rng = np.random.default_rng(0)
    vectors = quantizer.unit(jnp.asarray(rng.normal(size=(2, frames, 1, WIDTH)) + 0.5, jnp.float32))
    codebook = quantizer.unit(jnp.asarray(rng.normal(size=(1, codes, WIDTH)), jnp.float32))
    positions = jnp.broadcast_to(jnp.arange(frames), (2, frames))
    wanted = positions < frames - 3
    keys = row_keys(KEY, jnp.arange(2, dtype=jnp.uint32))

    def sums(beta, mean_label=None):
        labels = SelfLabels(layer=1, sharpness=6.0, label_entropy=beta)
        logits = None if mean_label is None else jnp.log(mean_label)[None, None]
        return birq.FrameSums(
            labels=labels,
            predict=lambda h: {ENHANCED: logits + h[..., None, None]},
            given=(),
            codebook=codebook,
            keys=keys,
            tau=labels.tau(0),
            mean_label=mean_label,
        )

    def mean_label(vectors):
        return sums(0.0).sum_labels(positions, wanted, vectors) / jnp.sum(wanted)

    @jax.jit
    def entropy(vectors):
        return jnp.log(quantizer.perplexity(mean_label(vectors)))[0]

    @functools.partial(jax.jit, static_argnums=0)
    def gradient_on_labels(beta):
        call = sums(beta, mean_label(vectors))
        hidden = jnp.zeros((2, frames))
        return jax.grad(lambda v: call(positions, wanted, hidden, v)["nats"][ENHANCED])(vectors)

    pull = gradient_on_labels(0.0)
    slope = jax.jit(jax.grad(entropy))(vectors) * jnp.sum(wanted)
    np.testing.assert_allclose(pull, slope, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(gradient_on_labels(1.0), 0, atol=1e-5)
    np.testing.assert_allclose(gradient_on_labels(2.0), -pull, rtol=1e-3, atol=1e-4)
    assert float(jnp.max(jnp.abs(pull))) > 0.1
    before, after = (float(entropy(v)) for v in (vectors, vectors - 0.05 * pull))
    assert after < before - 0.05


def test_the_entropy_of_the_mean_label_is_in_the_loss_with_a_label_gradient():
    """Without one it would be a constant, and the loss is that without it."""
    plain, metrics = metrics_of()
    for beta in (1.0, 3.0):
        losses, others = metrics_of(label_entropy=beta)
        value, count = others["enhanced/mean_entropy"]
        assert 0 < float(value / count) <= np.log(CODES)
        want = plain[ENHANCED] - beta * value / count
        np.testing.assert_allclose(losses[ENHANCED], want, rtol=1e-5)
        np.testing.assert_array_equal(losses[ANCHOR], plain[ANCHOR])
    for off in ({"label_gradient": False}, {"teacher": True}):
        losses, others = metrics_of(label_entropy=1.0, **off)
        assert "enhanced/mean_entropy" not in others
        np.testing.assert_array_equal(losses[ENHANCED], metrics_of(**off)[0][ENHANCED])
    assert "enhanced/mean_entropy" not in metrics


def test_labels_that_are_the_same_agree():
    """A labeller that hands the features through, and the anchor's quantiser on both sides. Frames
    come in equal pairs, so that joined or not they have one mean and deviation."""

    def through(params, x, lengths, *, depth=None, **how):
        h, lengths, *rest = encode(params, x, lengths, depth=depth, **how)
        return h if depth is None else x.reshape(len(x), -1, STACK * MELS), lengths, *rest

    frozen, batch = make_frozen()[ANCHOR], make_batch((24, 24))
    frames = batch["audio"].reshape(2, 12, 2, MELS)
    batch["audio"] = jnp.broadcast_to(frames[:, :, :1], frames.shape).reshape(2, -1)
    objective = make(noise=False, layer=1, encode=through)
    scale = dict.fromkeys(BOTH, 1.0)
    run = functools.partial(means, objective, scale=scale, frozen=dict.fromkeys(BOTH, frozen))
    _, metrics = jax.jit(lambda p: run(p, batch=batch))(to_float32(make_params()))
    agreed, count = metrics["birq/agreement"]
    assert float(agreed) == float(count) > 0


@pytest.mark.daily("1.0")
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_chunks_give_the_losses_of_all_frames_at_once(beta):
    """Two frames of each row at a time: the same draws, sums in another order in float64."""
    with jax.enable_x64(True):
        params, frozen = to_float64(make_params()), to_float64(make_frozen())

        @jax.jit
        def run(params):
            scale = {ENHANCED: 0.1, ANCHOR: 2.4}
            entries = 2 * len(LENGTHS) * BOOKS * CODES
            ways = [make(entries=n, label_entropy=beta) for n in (2**20, entries)]
            return [gradient(way, frozen, scale, params) for way in ways]

        whole, chunked = run(params)
        for a, b in zip(*map(jax.tree.leaves, (whole, chunked)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_memory_is_that_of_a_chunk():
    """16 x 512 label frames, 2 codebooks of 8,192 codes: a [B, T, C, V] array has 512 MiB. All
    frames at once hold five of them, chunks of 64 MiB nine of a chunk's size. Compiled, never
    run."""
    codes, lengths = 8192, (1024,) * 16
    params = jax.eval_shape(lambda: to_float32(make_params(codes=codes)))
    frozen = jax.eval_shape(lambda: make_frozen(codes))
    batch = jax.eval_shape(lambda: make_batch(lengths))
    scale = {ENHANCED: 0.1, ANCHOR: 2.4}
    array = 16 * 512 * BOOKS * codes

    def temporaries(entries):
        def run(params, frozen, batch):
            objective = make(entries=entries, label_entropy=1.0)
            return gradient(objective, frozen, scale, params, batch=batch)[0]

        program = jax.jit(run).lower(params, frozen, batch).compile()
        return program.memory_analysis().temp_size_in_bytes / (4 * array)

    plain, chunked = temporaries(array), temporaries(quantizer.ENTRIES)
    assert plain > 4
    assert chunked < plain / 4
