"""CTC against the sum over all paths, a float64 lattice, optax, PyTorch, and identities of its
gradient. Every implementation runs the same table; kernels are interpreted here."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bljust_jax.ops import ctc
from bljust_jax.ops.ctc import IMPLEMENTATIONS, ctc_feasible, ctc_loss

every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
VALUE_AND_GRAD = jax.jit(
    jax.value_and_grad(
        lambda *args, **kw: (lambda loss: (loss.sum(), loss))(ctc_loss(*args, **kw)), has_aux=True
    ),
    static_argnames=("blank", "implementation"),
)


def loss_and_grad(logits, logit_lengths, labels, label_lengths, blank=0, implementation="auto"):
    """[B] losses and the gradient of their sum, as numpy."""
    ints = (jnp.asarray(a, jnp.int32) for a in (logit_lengths, labels, label_lengths))
    (_, loss), gradient = VALUE_AND_GRAD(
        jnp.asarray(logits), *ints, blank=blank, implementation=implementation
    )
    return np.asarray(loss), np.asarray(gradient)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def collapse(path, blank):
    return [k for k, _ in itertools.groupby(path) if k != blank]


def by_enumeration(logits, labels, blank=0):
    """Loss and gradient of one utterance [T, K] by summing over all K**T paths, in float64."""
    log_probs = log_softmax(logits)
    frames, classes = log_probs.shape
    total, occupancy = 0.0, np.zeros_like(log_probs)
    for path in itertools.product(range(classes), repeat=frames):
        if collapse(path, blank) == list(labels):
            probability = np.exp(log_probs[np.arange(frames), list(path)].sum())
            total += probability
            occupancy[np.arange(frames), list(path)] += probability
    if total == 0:
        return None
    return -np.log(total), np.exp(log_probs) - occupancy / total


def by_lattice(logits, labels, blank=0):
    """Loss and gradient of one utterance over the 2U+1 interleaved states, in float64."""
    log_probs = log_softmax(logits)
    frames = len(log_probs)
    states = [blank]
    for label in labels:
        states += [label, blank]
    count = len(states)
    reach = np.zeros((count, count), bool)  # reach[s, r]: state r may follow state s
    for s, r in itertools.product(range(count), repeat=2):
        skip = r == s + 2 and states[r] not in (blank, states[s])
        reach[s, r] = r in (s, s + 1) or skip
    emit = log_probs[:, states]
    with np.errstate(divide="ignore"):
        arc = np.log(reach.astype(float))
        alpha = np.full((frames, count), -np.inf)
        alpha[0, :2] = emit[0, :2]
        for t in range(1, frames):
            alpha[t] = emit[t] + np.logaddexp.reduce(alpha[t - 1][:, None] + arc, axis=0)
        beta = np.full((frames, count), -np.inf)
        beta[-1, -2:] = 0.0
        for t in range(frames - 2, -1, -1):
            beta[t] = np.logaddexp.reduce(arc + (emit[t + 1] + beta[t + 1])[None], axis=1)
    log_prob = np.logaddexp.reduce(alpha[-1, -2:])
    gradient = np.exp(log_probs)
    for s, label in enumerate(states):
        gradient[:, label] -= np.exp(alpha[:, s] + beta[:, s] - log_prob)
    return -log_prob, gradient


def random_batch(seed, batch, frames, width, classes, scale=1.0, blank=0):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(batch, frames, classes))).astype(np.float32)
    alphabet = [k for k in range(classes) if k != blank]
    labels = rng.choice(alphabet, size=(batch, width)) if width else np.zeros((batch, 0), int)
    return logits, labels


ORDINARY = ([30, 24, 17, 30], [6, 4, 6, 0])  # frames and labels of `ordinary_batch`


def ordinary_batch(seed):
    """Logits [4, 30, 8] and labels [4, 6]: one shape for many tests, so few compilations."""
    return random_batch(seed, 4, 30, 6, 8)


@pytest.mark.daily("4-4-2-*", "1-4-0-scan", "6-3-0-one_scan")
@every_implementation
@pytest.mark.parametrize(("frames", "classes", "blank"), [(1, 4, 0), (4, 4, 2), (6, 3, 0)])
def test_equals_sum_over_all_paths(frames, classes, blank, implementation):
    """Every labelling of up to 4 labels: 1e-5 is float32 over six frames."""
    alphabet = [k for k in range(classes) if k != blank]
    labellings = [y for n in range(5) for y in itertools.product(alphabet, repeat=n)]
    labels = np.zeros((len(labellings), 4), int)
    for row, labelling in zip(labels, labellings, strict=True):
        row[: len(labelling)] = labelling
    logits, _ = random_batch(0, len(labellings), frames, 0, classes, scale=2.0)
    lengths = [len(y) for y in labellings]
    full = [frames] * len(labellings)
    loss, gradient = loss_and_grad(
        logits, full, labels, lengths, blank, implementation=implementation
    )
    feasible = ctc_feasible(jnp.asarray(labels), jnp.asarray(lengths), jnp.asarray(full))
    for i, labelling in enumerate(labellings):
        expected = by_enumeration(logits[i], labelling, blank)
        assert bool(feasible[i]) == (expected is not None)
        if expected is None:
            assert loss[i] == 0
            assert not gradient[i].any()
        else:
            np.testing.assert_allclose(loss[i], expected[0], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(gradient[i], expected[1], atol=2e-6)


@every_implementation
@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 1000),
    frames=st.sampled_from([1, 12]),
    width=st.sampled_from([0, 4]),
    scale=st.sampled_from([0.1, 1.0, 20.0]),
)
def test_equals_float64_lattice_at_any_shape(seed, frames, width, scale, implementation):
    logits, labels = random_batch(seed, 3, frames, width, 5, scale)
    rng = np.random.default_rng(seed)
    frame_counts = rng.integers(1, frames + 1, 3)
    label_counts = rng.integers(0, width + 1, 3)
    loss, gradient = loss_and_grad(
        logits, frame_counts, labels, label_counts, implementation=implementation
    )
    for i in range(3):
        t, u = frame_counts[i], label_counts[i]
        y = labels[i, :u]
        if u + (y[1:] == y[:-1]).sum() > t:
            assert loss[i] == 0
            assert not gradient[i].any()
            continue
        expected, expected_gradient = by_lattice(logits[i, :t], y)
        # float32 logits of size 20 over 12 frames: losses of 1e2 known to 1e-5 relative.
        np.testing.assert_allclose(loss[i], expected, rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(gradient[i, :t], expected_gradient, atol=2e-5)
        assert not gradient[i, t:].any()


def test_float64_equals_lattice():
    logits, labels = random_batch(3, 2, 30, 8, 6, 3.0)
    with jax.enable_x64(True):
        loss, gradient = loss_and_grad(logits.astype(np.float64), [30, 25], labels, [8, 6])
    assert loss.dtype == gradient.dtype == np.float64
    for i, (t, u) in enumerate([(30, 8), (25, 6)]):
        expected, expected_gradient = by_lattice(logits[i, :t], labels[i, :u])
        np.testing.assert_allclose(loss[i], expected, rtol=1e-13)
        np.testing.assert_allclose(gradient[i, :t], expected_gradient, atol=1e-12)


def test_finite_differences_in_float64():
    """Central differences of step 1e-5: truncation 1e-10, rounding 1e-10."""
    logits, labels = random_batch(4, 2, 6, 3, 4)
    direction = np.random.default_rng(5).normal(size=logits.shape)
    with jax.enable_x64(True):
        logits = logits.astype(np.float64)
        args = ([6, 5], labels, [3, 2])
        _, gradient = loss_and_grad(logits, *args)
        up, _ = loss_and_grad(logits + 1e-5 * direction, *args)
        down, _ = loss_and_grad(logits - 1e-5 * direction, *args)
    np.testing.assert_allclose((gradient * direction).sum(), (up - down).sum() / 2e-5, rtol=1e-7)


def test_float32_gradient_keeps_its_digits_at_length():
    """5e-4 at T = 1600, where recursions that carry the whole log-probability have 1e-2."""
    logits, labels = random_batch(6, 1, 1600, 150, 40)
    args = ([1600], labels, [150])
    loss, gradient = loss_and_grad(logits, *args)
    with jax.enable_x64(True):
        exact, exact_gradient = loss_and_grad(logits.astype(np.float64), *args)
    np.testing.assert_allclose(loss, exact, rtol=3e-7)
    assert np.abs(gradient - exact_gradient).max() < 5e-4


def test_equals_optax_on_an_ordinary_batch():
    logits, labels = ordinary_batch(7)
    frame_counts, label_counts = map(np.array, ORDINARY)
    frame_pad = (np.arange(30)[None] >= frame_counts[:, None]).astype(np.float32)
    label_pad = (np.arange(6)[None] >= label_counts[:, None]).astype(np.float32)
    expected, expected_gradient = jax.jit(
        jax.value_and_grad(lambda x: optax.ctc_loss(x, frame_pad, labels, label_pad).sum())
    )(jnp.asarray(logits))
    loss, gradient = loss_and_grad(logits, frame_counts, labels, label_counts)
    np.testing.assert_allclose(loss.sum(), expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=3e-5)  # optax carries log P ~ 60


def test_equals_torch_on_an_ordinary_batch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    logits, labels = ordinary_batch(14)
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    log_probs = torch.log_softmax(x, -1).transpose(0, 1)
    ints = (torch.tensor(labels), *map(torch.tensor, ORDINARY))
    expected = torch.nn.functional.ctc_loss(log_probs, *ints, reduction="none")
    expected.sum().backward()
    loss, gradient = loss_and_grad(logits, ORDINARY[0], labels, ORDINARY[1])
    np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(gradient, x.grad.numpy(), atol=3e-6)


@pytest.mark.daily("scan", "one_scan")
@every_implementation
def test_gradient_of_a_valid_frame_sums_to_zero_and_padding_never_matters(implementation):
    """Sums of 8 float32 terms of at most 1. More padding may change the order of additions."""
    (logits, labels), (frame_counts, label_counts) = ordinary_batch(8), ORDINARY
    kw = {"implementation": implementation}
    loss, gradient = loss_and_grad(logits, frame_counts, labels, label_counts, **kw)
    assert np.abs(gradient.sum(-1)).max() < 2e-6
    for i in range(4):
        logits[i, frame_counts[i] :] = np.nan
        labels[i, label_counts[i] :] = [-1, 999, 2**31 - 1, 3][i]
    dirty, dirty_gradient = loss_and_grad(logits, frame_counts, labels, label_counts, **kw)
    np.testing.assert_array_equal(dirty, loss)
    np.testing.assert_array_equal(dirty_gradient, gradient)
    longer = np.pad(logits, ((0, 0), (0, 13), (0, 0)), constant_values=np.inf)
    wider = np.pad(labels, ((0, 0), (0, 4)))
    padded, padded_gradient = loss_and_grad(longer, frame_counts, wider, label_counts, **kw)
    np.testing.assert_allclose(padded, loss, rtol=1e-6)
    np.testing.assert_allclose(padded_gradient[:, :30], gradient, atol=1e-6)
    assert not padded_gradient[:, 30:].any()


@pytest.mark.daily("scan", "one_scan", "pallas_tpu")
@every_implementation
def test_infeasible_rows_are_exactly_zero_even_when_their_logits_are_nan(implementation):
    logits, labels = random_batch(9, 4, 5, 4, 3)
    labels[:] = [[1, 1, 1, 1], [1, 2, 1, 2], [1, 1, 2, 2], [1, 1, 1, 2]]
    logits[0] = np.nan
    frame_counts, label_counts = [5, 3, 5, 0], [4, 4, 4, 1]
    args = (jnp.asarray(labels), jnp.asarray(label_counts), jnp.asarray(frame_counts))
    assert ctc_feasible(*args).tolist() == [False] * 4
    loss, gradient = loss_and_grad(
        logits, frame_counts, labels, label_counts, implementation=implementation
    )
    assert not loss.any()
    assert not gradient.any()


def test_feasibility_counts_repeats_among_valid_labels_only():
    labels = jnp.array([[1, 1, 1], [1, 1, 1], [1, 2, 1], [2, 2, 2], [1, 1, 1], [1, 1, 1]])
    label_lengths = jnp.array([3, 3, 3, 2, 0, 1])
    frames = jnp.array([5, 4, 3, 3, 0, 0])
    expected = [True, False, True, True, True, False]
    assert ctc_feasible(labels, label_lengths, frames).tolist() == expected


@pytest.mark.daily("scan", "one_scan")
@every_implementation
def test_no_labels_and_no_frames(implementation):
    logits, _ = random_batch(10, 2, 5, 0, 3)
    loss, gradient = loss_and_grad(
        logits, [5, 0], np.zeros((2, 0), int), [0, 0], implementation=implementation
    )
    np.testing.assert_allclose(loss[0], -log_softmax(logits[0])[:, 0].sum(), rtol=1e-6)
    assert loss[1] == 0
    assert not gradient[1].any()
    empty, _ = loss_and_grad(
        np.zeros((2, 0, 3), np.float32),
        [0, 0],
        np.ones((2, 2), int),
        [0, 1],
        implementation=implementation,
    )
    assert empty.tolist() == [0, 0]


@pytest.mark.daily("scan", "one_scan")
@every_implementation
def test_confident_logits_never_go_below_zero_and_nan_is_not_hidden(implementation):
    labels = np.array([[1, 2, 1]])
    path = np.array([0, 1, 1, 0, 2, 0, 1, 0])
    for confidence in (5.0, 20.0, 300.0):
        logits = confidence * np.eye(3, dtype=np.float32)[path][None]
        loss, gradient = loss_and_grad(logits, [8], labels, [3], implementation=implementation)
        assert loss[0] >= 0
        assert np.isfinite(gradient).all()
    logits[0, 3, 1] = np.nan
    assert np.isnan(loss_and_grad(logits, [8], labels, [3], implementation=implementation)[0][0])


@pytest.mark.daily("scan", "one_scan")
@every_implementation
def test_probability_zero_is_infinite_loss(implementation):
    logits = np.zeros((1, 4, 3), np.float32)
    logits[..., 1] = -np.inf
    assert loss_and_grad(logits, [4], np.array([[1]]), [1], implementation=implementation)[
        0
    ].tolist() == [np.inf]
    logits[0, 1, 0] = -np.inf  # frame 1 must now be the label
    assert np.isinf(
        loss_and_grad(logits, [4], np.array([[1]]), [1], implementation=implementation)[0][0]
    )
    logits[0, 1, 0] = 0
    loss, gradient = loss_and_grad(logits, [4], np.array([[2]]), [1], implementation=implementation)
    np.testing.assert_allclose(loss[0], -np.log(10 / 16), rtol=1e-6)  # runs of 1..4 in 4 frames
    assert np.isfinite(gradient).all()


@every_implementation
def test_batch_permutation_is_bit_exact(implementation):
    logits, labels = ordinary_batch(11)
    frame_counts, label_counts = map(np.array, ORDINARY)
    kw = {"implementation": implementation}
    loss, gradient = loss_and_grad(logits, frame_counts, labels, label_counts, **kw)
    order = np.array([3, 0, 2, 1])
    permuted, permuted_gradient = loss_and_grad(
        logits[order], frame_counts[order], labels[order], label_counts[order], **kw
    )
    np.testing.assert_array_equal(permuted, loss[order])
    np.testing.assert_array_equal(permuted_gradient, gradient[order])


@pytest.mark.daily("scan", "one_scan")
@every_implementation
def test_bfloat16_logits_are_read_in_float32_and_get_bfloat16_gradients(implementation):
    logits, labels = ordinary_batch(12)
    half = jnp.asarray(logits, jnp.bfloat16)
    args, kw = (ORDINARY[0], labels, ORDINARY[1]), {"implementation": implementation}
    loss, gradient = loss_and_grad(half, *args, **kw)
    wide, wide_gradient = loss_and_grad(half.astype(jnp.float32), *args, **kw)
    assert loss.dtype == np.float32
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(loss, wide, rtol=1e-6)  # two programs may round apart
    np.testing.assert_allclose(
        gradient.astype(np.float32), wide_gradient, rtol=2**-8, atol=1e-6
    )  # bfloat16 keeps 8 bits


@pytest.mark.parametrize("less", [ctc._subtract_by_scatter, ctc._subtract_by_product])
def test_every_label_of_a_class_is_taken_off_it(less):
    """Exact: one-hot products and scatters add the same few numbers of two digits."""
    rng = np.random.default_rng(15)
    probability = rng.integers(0, 99, size=(2, 3, 5)).astype(np.float32)
    occupancy = rng.integers(0, 99, size=(2, 3, 8)).astype(np.float32)
    columns = np.array([[1, 1, 1, 1, 4, 1, 0, 0], [2, 3, 2, 3, 2, 3, 2, 0]])
    expected = probability.copy()
    for b, w in itertools.product(range(2), range(8)):
        expected[b, :, columns[b, w]] -= occupancy[b, :, w]
    found = less(*map(jnp.asarray, (probability, occupancy, columns)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("outside", [8, -1])
def test_label_outside_the_classes_is_nan_and_not_another_class(outside):
    logits, labels = ordinary_batch(16)
    labels[1, 2] = outside
    loss, _ = loss_and_grad(logits, ORDINARY[0], labels, ORDINARY[1])
    assert np.isnan(loss).tolist() == [False, True, False, False]


def test_value_only_program_stores_no_forward_variables():
    logits, labels = random_batch(13, 2, 64, 8, 5)
    jaxpr = jax.make_jaxpr(ctc_loss)(
        jnp.asarray(logits), jnp.array([64, 64]), jnp.asarray(labels), jnp.array([8, 8])
    )

    def scans(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "scan":
                yield equation
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from scans(inner)

    (scan,) = scans(jaxpr.jaxpr)
    assert max(out.aval.size for out in scan.outvars) <= 64 * 2  # a number a frame, no states


def test_rejects_unknown_implementation_and_blank():
    logits, ones = jnp.zeros((1, 2, 3)), jnp.ones(1, jnp.int32)
    with pytest.raises(ValueError, match="implementation 'cuda'"):
        ctc_loss(logits, ones, ones[:, None], ones, implementation="cuda")
    with pytest.raises(ValueError, match="blank 3 is outside the 3 classes"):
        ctc_loss(logits, ones, ones[:, None], ones, blank=3)
