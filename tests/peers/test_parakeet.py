"""Parakeet's subsampling with the weights of transformers', where torch and it are installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.models.frontend import Subsampling

BANDS, CHANNELS, DIM = 16, 6, 8
LENGTHS = [41, 24, 17, 1]


def copied(module, bands):
    """Our parameters of a torch module: kernels there are [out, in, 3, 3], features [C, bands]."""

    def array(tensor):
        return jnp.asarray(tensor.detach().numpy())

    axes = {"conv": (2, 3, 1, 0), "depthwise": (2, 3, 0, 1), "pointwise": (2, 3, 1, 0)}
    shape = {"conv": (3, 3, 1, -1), "depthwise": (3, 3, -1), "pointwise": (CHANNELS, CHANNELS)}
    params = {}
    for n, conv in enumerate(m for m in module.layers if hasattr(m, "weight")):
        kind, stage = "conv" if n == 0 else ("pointwise", "depthwise")[n % 2], (n + 1) // 2 + 1
        kernel = jnp.transpose(array(conv.weight), axes[kind]).reshape(shape[kind])
        params[f"{kind}{stage}"] = {"kernel": kernel, "bias": array(conv.bias)}
    linear = array(module.linear.weight).reshape(DIM, CHANNELS, bands)
    linear = jnp.transpose(linear, (2, 1, 0)).reshape(-1, DIM)
    return params | {"linear": {"kernel": linear, "bias": array(module.linear.bias)}}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("factor", [4, 8])
def test_subsampling_equals_that_of_transformers(factor):
    torch = pytest.importorskip("torch")
    parakeet = pytest.importorskip("transformers.models.parakeet.modeling_parakeet")
    config = parakeet.ParakeetEncoderConfig(
        hidden_size=DIM,
        num_attention_heads=2,
        num_mel_bins=BANDS,
        subsampling_factor=factor,
        subsampling_conv_channels=CHANNELS,
    )
    torch.manual_seed(0)
    theirs = parakeet.ParakeetEncoderSubsamplingConv2D(config)
    frames, lengths = max(LENGTHS), np.array(LENGTHS, np.int32)
    x = np.random.default_rng(0).normal(size=(len(LENGTHS), frames, BANDS)).astype(np.float32)
    mask = np.arange(frames)[None] < lengths[:, None]
    x = np.where(mask[..., None], x, 0.0).astype(np.float32)
    expected = theirs(torch.from_numpy(x), torch.from_numpy(mask))
    valid = np.arange(expected.shape[1])[None] < -(-lengths[:, None] // factor)
    ours = Subsampling(CHANNELS, DIM, factor, separable=True)
    params = {"params": copied(theirs, BANDS // factor)}
    out, out_lengths = jax.jit(ours.apply)(params, x, lengths)
    assert out_lengths.tolist() == valid.sum(1).tolist()
    # float32 sums of at most 9 x 6 terms of size 1 a layer, in another order
    np.testing.assert_allclose(out[valid], expected.detach().numpy()[valid], atol=1e-5)
