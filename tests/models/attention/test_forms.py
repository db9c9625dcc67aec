"""The choice of a form, its limits, and splash and cuDNN against plain XLA."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.benchmarks.chips import CHIPS, absent
from bljust_jax.common.errors import UserError
from bljust_jax.models.attention import Task, attend, choose, cudnn, splash, xla
from bljust_jax.models.encoders.conformer import Conformer
from bljust_jax.models.platform import compile_for, is_ahead, platform

RELATIVE = Task(64, jnp.bfloat16, biased=True)
ROPE = RELATIVE._replace(biased=False)
LOCAL = ROPE._replace(reach=8)


@pytest.mark.parametrize(
    ("where", "task", "form"),
    [
        ("cpu", ROPE, "xla"),
        ("tpu", RELATIVE, "xla"),
        ("tpu", ROPE, "splash"),
        ("tpu", LOCAL, "splash"),
        ("tpu", ROPE._replace(dtype=jnp.float64), "xla"),
        ("gpu", ROPE, "xla"),  # until cuDNN's bits have been compared
    ],
)
def test_auto_is_a_table_of_platforms(where, task, form):
    with compile_for(where):
        assert choose("auto", task) == form


@pytest.mark.parametrize(
    ("task", "form"),
    [
        (RELATIVE, "cudnn"),
        (ROPE, "cudnn"),
        (LOCAL, "xla"),
        (ROPE._replace(size=60), "xla"),
        (ROPE._replace(size=136), "xla"),
        (ROPE._replace(dtype=jnp.float32), "xla"),
    ],
)
def test_auto_takes_cudnn_within_its_limits_once_it_is_deterministic(monkeypatch, task, form):
    monkeypatch.setattr(cudnn, "DETERMINISTIC", True)
    with compile_for("gpu"):
        assert choose("auto", task) == form
    with compile_for("cpu"):
        assert choose("auto", task) == "xla"


def test_compile_for_ends_with_its_block():
    with compile_for("gpu"):
        assert (platform(), is_ahead()) == ("gpu", True)
        assert cudnn.available()
    assert (platform(), is_ahead()) == (jax.default_backend(), False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention": "cudnn"}, "'cudnn' needs dtype='bfloat16', not float32: set 'auto'"),
        ({"attention": "cudnn", "dtype": "bfloat16", "dim": 24}, "dim/heads is 12"),
        ({"attention": "cudnn", "dtype": "bfloat16", "window": 4}, "has no window"),
        ({"attention": "splash"}, "has no bias, which positions='relative' needs"),
        ({"attention": "flash"}, "attention='flash': there is no 'flash'"),
        ({"positions": "rotary"}, "positions='rotary': there is no 'rotary'"),
    ],
)
def test_a_form_that_cannot_is_the_users_error(fields, message):
    small = {"dim": 16, "layers": 1, "heads": 2, "kernel": 3, "n_mels": 4, "channels": 2}
    with pytest.raises(UserError, match=message):
        Conformer(**small | fields)


@pytest.mark.parametrize(("form", "needs"), [("cudnn", "NVIDIA GPU"), ("splash", "TPU")])
def test_a_form_on_another_platform_is_the_users_error(form, needs):
    x, valid = jnp.zeros((1, 4, 1, 8), jnp.bfloat16), jnp.ones((1, 4), bool)
    with compile_for("cpu"), pytest.raises(UserError, match=f"config.model.attention.*{needs}"):
        attend(x, x, x, None, valid, form=form)


def arrays(frames, size, dtype, seed=0):
    """Query, key, value, bias and the mask of three utterances: all, one and no frame."""
    rng = np.random.default_rng(seed)
    shape = 3, frames, 2, size
    q, k, v = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(3))
    bias = jnp.asarray(rng.normal(size=(3, 2, frames, frames)), dtype)
    valid = jnp.arange(frames)[None, :] < jnp.array([frames, 1, 0])[:, None]
    return (q * size**-0.5, k, v, bias), valid


def run(form, inputs, valid, task, **options):
    """Outputs of real frames, and slopes of a loss in which each counts differently."""

    def loss(inputs):
        bias = inputs[3] if len(inputs) > 3 else None
        out = form.attend(*inputs[:3], bias, valid, task, **options)
        out = jnp.where(valid[..., None, None], out.astype(jnp.float32), 0.0)
        return jnp.sum(out * jnp.sin(jnp.arange(out.size)).reshape(out.shape)), out

    (_, out), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)
    return out, slopes


@pytest.mark.daily("3-False", "0-True")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("reach", [0, 3])
def test_splash_in_the_interpreter_is_xla(reach, causal):
    """Lengths, causality and windows of 131 frames, two blocks of 128; padded frames are finite."""
    (*inputs, _), valid = arrays(131, 8, jnp.float32)
    task = Task(8, jnp.float32, False, causal, reach)
    out, slopes = run(splash, inputs, valid, task, interpret=True)
    expected, references = run(xla, inputs, valid, task)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for slope, reference in zip(slopes, references, strict=True):
        np.testing.assert_allclose(slope, reference, atol=1e-5 * np.abs(reference).max())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("frames", "biased"), [(7, True), (8, True), (7, False)])
def test_cudnn_is_two_kernels_with_lengths_and_causality_as_their_masks(frames, biased, causal):
    """Forward and backward; jax refuses to train on an odd number of frames, which is padded."""
    inputs, valid = arrays(frames, 8, jnp.bfloat16)
    inputs = inputs if biased else inputs[:3]
    task = Task(8, jnp.bfloat16, biased, causal)

    def loss(inputs, valid):
        bias = inputs[3] if biased else None
        return jnp.sum(cudnn.attend(*inputs[:3], bias, valid, task).astype(jnp.float32))

    with absent(CHIPS["1 x H200"]):
        traced = jax.jit(jax.grad(loss)).trace(inputs, valid)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    kind = "ScaleBiasSoftmax" if biased else "Softmax"
    kernels = re.findall(r"@__cudnn\$fmha(\w*)", text)
    assert sorted(kernels) == [kind, f"{kind}Backward"]
    assert text.count("PADDING_CAUSAL" if causal else "PADDING") == 2
    padded = frames + frames % 2
    assert f"tensor<3x{padded}x2x8xbf16>" in text


@pytest.mark.gpu
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("frames", [1, 71, 400])
def test_cudnn_is_xla_in_float32_up_to_rounding_and_gives_the_same_bits_twice(
    frames, causal, biased
):
    """An odd number of frames is padded; utterances of one and no frame are finite. If the bits are
    equal, `cudnn.DETERMINISTIC` becomes True and "auto" takes it."""
    inputs, valid = arrays(frames, 64, jnp.bfloat16)
    inputs = inputs if biased else inputs[:3]
    task = Task(64, jnp.bfloat16, biased, causal)
    out, slopes = run(cudnn, inputs, valid, task)
    wide = [x.astype(jnp.float32) for x in inputs]
    expected, references = run(xla, wide, valid, task._replace(dtype=jnp.float32))
    np.testing.assert_allclose(out, expected, atol=2**-6)
    for slope, reference in zip(slopes, references, strict=True):
        error = np.abs(np.asarray(slope, np.float32) - reference).max()
        assert error <= 2**-5 * np.abs(reference).max()
    _, again = run(cudnn, inputs, valid, task)
    equal = all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(slopes, again, strict=True)
    )
    assert equal or not cudnn.DETERMINISTIC
