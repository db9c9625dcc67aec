"""CPC against a loop over one utterance, closed forms, and proofs that nothing leaks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.bilevel.types import Extras
from bljust_jax.objectives import cpc
from bljust_jax.objectives.cpc import Candidates, draw_negatives, info_nce
from tests.helpers import batches
from tests.helpers.batches import ToyEncoder

HOP, DIM, WIDTH = 4, 6, 5
KEY = jax.random.key(0)


def features(audio, lengths, *, keys, train, stats):
    """Frames of four samples, normalised by stored statistics."""
    assert keys is None
    x = audio.astype(jnp.float32)[:, : audio.shape[1] // HOP * HOP].reshape(len(audio), -1, HOP)
    return (x - stats["mean"][None, None]) / stats["std"][None, None], lengths // HOP, None


def encode(params, x, lengths, *, context, train=True, stats=None, input_mask=None, rng=None):
    """Linear latents; the output is their running mean ("causal") or the mean of all ("full")."""
    latents = x @ params["encoder"]
    valid = jnp.arange(x.shape[1])[None, :] < lengths[:, None]
    total = jnp.cumsum(jnp.where(valid[..., None], latents, 0), axis=1)
    count = jnp.arange(1, x.shape[1] + 1, dtype=jnp.float32)[None, :, None]
    if context == "full":
        total, count = total[:, -1:] + 0 * total, jnp.maximum(lengths, 1)[:, None, None]
    return total / count, lengths, {"latents": latents}, stats


def project(params, latents):
    return latents @ params["project"]


def predict(params, output):
    return jnp.einsum("btd,kdp->kbtp", output, params["predict"])


class Cpc(cpc.Cpc):
    def project(self, params, latents):
        return project(params, latents)

    def predict(self, params, output):
        return predict(params, output)


def make(encode=encode, **kw):
    return Cpc(encoder=ToyEncoder(features, encode), sample_rate=HOP, **{"steps": 3, **kw})


def extras(scale=1.0):
    stats = {"features": {"mean": jnp.full(HOP, 5.0), "std": jnp.full(HOP, 300.0)}}
    return Extras(step=0, frozen={}, stats=stats, ema={}, scale={"cpc": jnp.float32(scale)})


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    shapes = {"encoder": (HOP, DIM), "project": (DIM, WIDTH), "predict": (3, DIM, WIDTH)}
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}


make_batch = functools.partial(batches.unlabelled, samples=48)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(objective, params, extras, batch):
    def loss(params):
        losses, aux = objective.apply(params, extras, batch, KEY)
        return losses["cpc"][0], (losses["cpc"], aux.metrics)

    gradient, report = jax.grad(loss, has_aux=True)(params)
    return report, gradient


def run(objective, params, batch, scale=1.0):
    return value_and_gradient(objective, params, extras(scale), batch)[0]


def gradient(objective, params, batch, scale=1.0):
    return jax.tree.map(np.asarray, value_and_gradient(objective, params, extras(scale), batch)[1])


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def by_loop(predictions, targets, pairs, temperature):
    """Sum of nats and hits over pairs (step, time, truth); negatives are all other targets."""
    nats, hits = 0.0, 0
    for k, t, j in pairs:
        scores = np.array([cosine(predictions[k, t], z) for z in targets]) / temperature
        nats += np.log(np.exp(scores).sum()) - scores[j]
        hits += scores[j] > np.delete(scores, j).max()
    return nats, hits


@functools.partial(jax.jit, static_argnums=2)
def encode_alone(params, audio, mode):
    lengths = jnp.array([audio.shape[1]])
    stats = extras().stats["features"]
    x, lengths, _ = features(audio, lengths, keys=None, train=True, stats=stats)
    output, _, hidden, _ = encode(params, x, lengths, context=mode, train=True, rng=None)
    return predict(params, output)[:, 0], project(params, hidden["latents"])[0]


def utterance(params, batch, row, mode, start=0, stop=None):
    """Predictions [K, T, P] and targets [T, P] of some samples of a row, encoded alone."""
    audio = np.asarray(batch["unlabelled"]["audio"])[row : row + 1, start:stop]
    return tuple(np.asarray(x, float) for x in encode_alone(params, audio, mode))


@pytest.mark.parametrize("first_step", [1, 2])
def test_causal_equals_loop(params, first_step):
    lengths = [48, 30, 12, 5, 0]
    batch = make_batch(lengths)
    (total, weight), metrics = run(make(first_step=first_step), params, batch)
    nats, hits, count, short = 0.0, 0, 0, 0
    for row, length in enumerate(lengths):
        frames = length // HOP
        predictions, targets = utterance(params, batch, row, "causal", 0, frames * HOP)
        pairs = [
            (k, t, t + first_step + k)
            for k in range(3)
            for t in range(frames)
            if t + first_step + k < frames
        ]
        loss, hit = by_loop(predictions, targets, pairs, 0.1)
        nats, hits, count = nats + loss, hits + hit, count + len(pairs)
        short += bool(length) and not pairs
    np.testing.assert_allclose(total, nats, rtol=1e-5)
    assert weight == count
    assert metrics["cpc/accuracy"] == (hits, count)
    assert metrics["cpc/short"] == (short, 1)


def test_chunked_equals_loop(params):
    """Past 4 frames, future 2, slide 2 (a second is a frame here); 3 steps become 2."""
    lengths = [48, 33, 24, 23, 0]
    batch = make_batch(lengths)
    (total, weight), metrics = run(make(context="chunked", chunk=(4, 2, 2)), params, batch)
    nats, hits, count = 0.0, 0, 0
    for row, length in enumerate(lengths):
        starts = range(0, length - 24 + 1, 8)
        if not starts:
            continue
        pasts = [utterance(params, batch, row, "full", s, s + 16)[0][:, -1] for s in starts]
        futures = [utterance(params, batch, row, "full", s + 16, s + 24)[1] for s in starts]
        pairs = [(k, w, 2 * w + k) for k in range(2) for w in range(len(starts))]
        loss, hit = by_loop(np.stack(pasts, 1), np.concatenate(futures), pairs, 0.1)
        nats, hits, count = nats + loss, hits + hit, count + len(pairs)
    np.testing.assert_allclose(total, nats, rtol=1e-5)
    assert weight == count
    assert metrics["cpc/accuracy"] == (hits, count)
    assert metrics["cpc/short"] == (1, 1)


def make_view(valid, pool=None, first_step=1):
    """Frame t predicts frame t + first_step, among the frames of the pool."""
    pool = jnp.ones((*valid.shape, 3)) if pool is None else pool

    def pick(x):
        return jnp.roll(x, -first_step, axis=1)[None]

    return Candidates(queries=pick(pool), targets=pool, valid=valid, truth_of=pick)


@pytest.mark.parametrize("count", [0, 2, 3])
def test_equal_scores_cost_the_log_of_the_number_of_choices(count):
    """Targets all alike: log(1 + negatives), and no truth beats its negatives."""
    length, size = 5, 8
    view = make_view((jnp.arange(size) < length)[None])
    drawn, is_negative = draw_negatives(jax.random.split(KEY, 1), view, count)
    pairs = (jnp.arange(size) < length - 1)[None, None]
    nats, hits, counted = info_nce(
        view.queries, view.truth_of(view.targets), pairs, drawn, is_negative, temperature=0.1
    )
    number = np.asarray(is_negative.sum(-1))[0, 0, : length - 1]
    assert set(number) <= ({4} if count == 0 else {count - 1, count})
    np.testing.assert_allclose(nats[0, 0, : length - 1], np.log(1 + number), rtol=1e-5)
    assert not nats[0, 0, length - 1 :].any()
    assert not hits.any()
    assert counted.sum() == length - 1


def test_perfect_prediction_of_orthogonal_targets():
    """The truth scores 1/tau, the n negatives 0: log(1 + n exp(-1/tau))."""
    view = make_view(jnp.ones((1, 4), bool), 7 * jnp.eye(4)[None])
    nats, hits, _ = info_nce(
        3 * view.queries,
        view.truth_of(view.targets),
        view.truth_of(view.valid),
        *draw_negatives(jax.random.split(KEY, 1), view, 0),
        temperature=0.5,
    )
    np.testing.assert_allclose(nats, np.log1p(3 * np.exp(-2.0)), rtol=1e-5)
    assert hits.all()


@functools.partial(jax.jit, static_argnums=1)
def draw_of_positions(valid, count, keys):
    pool = jnp.broadcast_to(
        jnp.arange(valid.shape[1], dtype=jnp.float32)[None, :, None], (*valid.shape, 1)
    )
    return draw_negatives(keys, make_view(valid, pool), count)


def drawn_positions(valid, count, keys):
    """Which frames are drawn: the pool holds its own positions."""
    drawn, is_negative = draw_of_positions(valid, count, keys)
    used = np.asarray(is_negative.any(axis=(0, 2)))
    return [
        row[use].astype(int).tolist()
        for row, use in zip(np.asarray(drawn)[..., 0], used, strict=True)
    ]


def test_drawn_negatives_are_distinct_valid_and_blind_to_padding():
    keys = jax.random.split(KEY, 4)
    lengths = [12, 7, 2, 0]
    valid = jnp.arange(12)[None, :] < jnp.array(lengths)[:, None]
    drawn = drawn_positions(valid, 5, keys)
    assert [len(set(row)) for row in drawn] == [len(row) for row in drawn] == [5, 5, 2, 0]
    assert all(max(row, default=-1) < n for row, n in zip(drawn, lengths, strict=True))
    assert drawn_positions(jnp.pad(valid, ((0, 0), (0, 9))), 5, keys) == drawn
    everything = [sorted(row) for row in drawn_positions(valid, 100, keys)]
    assert everything == drawn_positions(valid, 0, keys) == [list(range(n)) for n in lengths]


def test_draws_are_uniform():
    """Each of 6 positions in half of 2,000 draws of 3; 5 sigma of a binomial is 0.056."""
    drawn = drawn_positions(jnp.ones((2000, 6), bool), 3, jax.random.split(KEY, 2000))
    share = np.bincount(np.ravel(drawn), minlength=6) / 2000
    assert np.abs(share - 0.5).max() < 0.056


SETTINGS = [
    {"negatives": 0},
    {"negatives": 3},
    {"context": "chunked", "chunk": (4, 2, 2)},
    {"context": "chunked", "chunk": (4, 2, 2), "negatives": 3},
]


@pytest.mark.daily("setting3")
@pytest.mark.parametrize("setting", SETTINGS)
def test_padding_and_order_never_matter(params, setting):
    lengths = [48, 31, 9, 0]
    batch = make_batch(lengths)
    objective = make(**setting)
    (total, weight), metrics = run(objective, params, batch)
    data = jax.tree.map(np.asarray, batch["unlabelled"])
    real = np.arange(48)[None, :] < data["audio_lengths"][:, None]
    noisy = np.where(real, data["audio"], 31000).astype(np.int16)
    longer = {**data, "audio": np.pad(noisy, ((0, 0), (0, 8)), constant_values=-31000)}
    order = np.array([2, 0, 3, 1])
    permuted = jax.tree.map(lambda x: x[order], data)
    for other in (longer, permuted):
        (same, same_weight), same_metrics = run(objective, params, {"unlabelled": other})
        np.testing.assert_allclose(total, same, rtol=1e-5)
        assert weight == same_weight
        assert metrics == same_metrics
        ours = gradient(objective, params, batch)
        theirs = gradient(objective, params, {"unlabelled": other})
        for name, value in ours.items():
            np.testing.assert_allclose(value, theirs[name], rtol=1e-4, atol=1e-4)


@pytest.mark.daily("inf-chunked")
@pytest.mark.parametrize("context", ["causal", "chunked"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_garbage_from_the_encoder_in_padded_frames_is_ignored(params, context, poison):
    def dirty(params, x, lengths, **kw):
        output, lengths, hidden, stats = encode(params, x, lengths, **kw)
        valid = (jnp.arange(x.shape[1])[None, :] < lengths[:, None])[..., None]
        latents = jnp.where(valid, hidden["latents"], poison)
        return jnp.where(valid, output, poison), lengths, {"latents": latents}, stats

    batch = make_batch([48, 31, 0])
    setting = {"context": context, "chunk": (4, 2, 2)}
    other = make(encode=dirty, **setting)
    assert run(make(**setting), params, batch)[0] == run(other, params, batch)[0]
    for value in gradient(other, params, batch).values():
        assert np.isfinite(value).all()


@pytest.mark.daily("16-*", "48-setting1")
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("samples", [16, 48])
def test_utterances_too_short_cost_exactly_nothing(params, setting, samples):
    """Lengths of 2 frames, less than one, none: no pair with first_step = 2, no window."""
    batch = make_batch([8, 3, 0], samples=samples)
    objective = make(**setting)
    (total, weight), metrics = run(objective, params, batch)
    assert (total, weight) == (0, 0)
    assert metrics["cpc/short"] == (2, 1)
    assert metrics["cpc/accuracy"] == (0, 0)
    for value in gradient(objective, params, batch).values():
        assert not value.any()


def test_silence_has_a_finite_gradient(params):
    batch = make_batch([48])
    batch["unlabelled"]["audio"] = jnp.full((1, 48), 5, jnp.int16)  # 0 once normalised
    for value in gradient(make(), params, batch).values():
        assert np.isfinite(value).all()


@pytest.mark.parametrize("context", ["causal", "chunked"])
def test_where_the_gradient_flows(params, context):
    setting = {"context": context, "chunk": (4, 2, 2)}
    batch = make_batch([48, 40])
    objective = make(**setting)
    plain = gradient(objective, params, batch)
    stopped = gradient(make(**setting, target_gradient=False), params, batch)
    assert all(np.abs(value).max() > 0 for value in plain.values())
    assert np.abs(stopped["encoder"] - plain["encoder"]).max() > 1e-3
    np.testing.assert_allclose(stopped["project"], plain["project"], rtol=1e-5, atol=1e-5)
    for scale in (0.0, 0.5):
        scaled = gradient(objective, params, batch, scale)
        np.testing.assert_allclose(
            scaled["encoder"], scale * plain["encoder"], rtol=1e-5, atol=1e-5
        )
        for head in ("project", "predict"):
            np.testing.assert_array_equal(scaled[head], plain[head])


def test_a_diverged_model_is_not_hidden(params):
    params["predict"] = params["predict"] * jnp.nan
    (total, weight), _ = run(make(), params, make_batch([48]))
    assert np.isnan(total)
    assert weight > 0


def test_rejects_settings_that_cannot_work():
    with pytest.raises(ValueError, match="context 'full'"):
        make(context="full")
    with pytest.raises(ValueError, match="slide shorter than the future"):
        make(context="chunked", chunk=(2.0, 1.0, 0.5))
    with pytest.raises(ValueError, match="first_step >= 1"):
        make(first_step=0)
