"""The Conformer with Parakeet's switches against transformers' `ParakeetForCTC`, on torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="4.57")

from bljust_jax.export import hf_parakeet  # noqa: E402
from bljust_jax.models.encoders.conformer import Conformer  # noqa: E402
from bljust_jax.models.norms import BatchNorm  # noqa: E402
from bljust_jax.ops import nemo  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

VOCABULARY, BLANK, FRAMES = 11, 4, [61, 40, 17, 1]
SWITCHES = {
    "plain": {"scale_input": False, "attention_bias": True},
    "scaled": {"scale_input": True, "attention_bias": True},
    "bare": {"attention_bias": False, "convolution_bias": False, "subsampling_factor": 4},
}


@functools.cache
def peer(switches, dtype):
    """(their model with random weights and moments, its config.json, its tensors)."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = {
        "hidden_size": 12,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 24,
        "conv_kernel_size": 5,
        "num_mel_bins": 16,
        "subsampling_conv_channels": 6,
    } | SWITCHES[switches]
    config = transformers.ParakeetCTCConfig(
        vocab_size=VOCABULARY, pad_token_id=BLANK, encoder_config=encoder
    )
    model = transformers.ParakeetForCTC(config).eval().to(getattr(torch, dtype))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand_like if "var" in name else torch.randn_like
                tensor += 0.3 * noise(tensor)
    if dtype == "float64":
        model.encoder.encode_positions.forward = exact_positions
    return model, config.to_dict(), {n: t.numpy() for n, t in model.state_dict().items()}


def exact_positions(hidden):
    """Their sinusoids are float32 whatever the dtype: these are the same in float64."""
    frames, dim = hidden.shape[1:]
    distance = torch.arange(frames - 1, -frames, -1, dtype=torch.float64)
    angle = distance[:, None] * 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    table = torch.stack([angle.sin(), angle.cos()], -1).reshape(1, -1, dim)
    return table.expand(len(hidden), -1, -1)


def features(dtype):
    """Normal features, 0 in padded frames as their extractor leaves them."""
    x = np.random.default_rng(0).normal(size=(len(FRAMES), max(FRAMES), 16))
    mask = np.arange(max(FRAMES))[None] < np.array(FRAMES)[:, None]
    return np.where(mask[..., None], x, 0.0).astype(dtype), mask


def converted(switches, dtype):
    """(our model, params, stats) of the peer's tensors."""
    _, hf, tensors = peer(switches, dtype)
    fields = hf_parakeet.model_fields(hf)
    trees = hf_parakeet.parameters(tensors, fields, **hf_parakeet.conventions(hf))
    del fields["features"]
    return Conformer(n_mels=16, dtype=dtype, **fields), *jax.tree.map(jnp.asarray, trees)


def logits(model, params, stats, x):
    h, lengths, _, _ = model.apply(
        params["encoder"], jnp.asarray(x), jnp.array(FRAMES), stats=stats["encoder"]
    )
    head = params["ctc_head"]
    return h @ head["kernel"] + head["bias"][None, None], lengths


def extractor(bands):
    """Their features; before version 5 they took the mel filters from librosa."""
    if transformers.__version__ < "5":
        pytest.importorskip("librosa")
    return transformers.ParakeetFeatureExtractor(feature_size=bands)


def their_order(ours):
    """Columns of our logits, whose blank is 0, in the peer's order."""
    return np.insert(np.asarray(ours)[..., 1:], BLANK, ours[..., 0], axis=-1)


def valid(lengths, frames):
    return np.arange(frames)[None] < np.asarray(lengths)[:, None]


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_logits_of_a_padded_batch(switches, dtype, tolerance):
    """Within the issue's bounds of the largest logit, on every valid frame."""
    theirs, _, _ = peer(switches, dtype)
    x, mask = features(dtype)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x), torch.from_numpy(mask)).logits.numpy()
    with jax.enable_x64(dtype == "float64"):
        model, params, stats = converted(switches, dtype)
        ours, lengths = jax.jit(functools.partial(logits, model))(params, stats, x)
    real = valid(lengths, ours.shape[1])
    error = np.abs(their_order(ours) - expected)[real].max() / np.abs(expected[real]).max()
    print(f"{switches} {dtype}: {error:.1e} of the largest logit")
    assert lengths.tolist() == [model.frames(n) for n in FRAMES]
    assert error <= tolerance


NAMED = (
    "encoder.subsampling.layers.0.weight",
    "encoder.subsampling.linear.weight",
    "encoder.layers.0.feed_forward1.linear1.weight",
    "encoder.layers.1.self_attn.relative_k_proj.weight",
    "encoder.layers.1.self_attn.bias_u",
    "encoder.layers.2.conv.depthwise_conv.weight",
    "encoder.layers.2.conv.norm.weight",
)


def test_gradients_of_named_tensors():
    """Of a loss in which every valid logit counts differently; none of these is absorbed."""
    theirs, _, _ = peer("plain", "float32")
    x, mask = features("float32")
    model, params, stats = converted("plain", "float32")
    real = valid([model.frames(n) for n in FRAMES], model.frames(max(FRAMES)))
    weights = np.where(real[..., None], np.random.default_rng(1).normal(size=(*real.shape, 11)), 0)
    weights = weights.astype(np.float32)
    theirs.zero_grad()
    out = theirs(torch.from_numpy(x), torch.from_numpy(mask)).logits
    (out * torch.from_numpy(their_order(weights))).sum().backward()
    loss = lambda p: jnp.sum(logits(model, p, stats, x)[0] * weights)  # noqa: E731
    ours = hf_parakeet.tensors(jax.jit(jax.grad(loss))(params), stats, model)
    for name in NAMED:
        expected = theirs.get_parameter(name).grad.numpy()
        error = np.abs(ours[name] - expected).max() / np.abs(expected).max()
        print(f"{name}: {error:.1e} of the largest gradient")
        assert error <= 1e-4  # the bound


def test_what_we_write_loads_and_hears_the_same_audio():
    """Their extractor and model against ours from int16 samples, with weights that we wrote."""
    model = Conformer(
        dim=12, layers=2, heads=3, kernel=5, n_mels=16, channels=6, ff_mult=2, dropout=0.1,
        subsampling="parakeet", norm="batch",
    )  # fmt: skip
    draw = np.random.default_rng(3)
    params, stats = model.init(jax.random.key(0))
    head = {"kernel": jnp.asarray(draw.normal(size=(12, 11)), jnp.float32), "bias": jnp.ones(11)}
    stats = {"encoder": {"mean": stats["mean"] + 0.1, "var": stats["var"] * 0.7}}
    params = {"encoder": params, "ctc_head": head, "cpc_head": {"kernel": jnp.ones(3)}}
    settings = {"n_mels": 16, "window": 400, "hop": 160, "n_fft": 512}
    config = hf_parakeet.hf_config(model, 11, settings | {"frontend": "nemo"})
    theirs = transformers.ParakeetForCTC(transformers.ParakeetCTCConfig.from_dict(config)).eval()
    written = hf_parakeet.tensors(params, stats, model)
    theirs.load_state_dict({n: torch.from_numpy(t) for n, t in written.items()}, strict=True)

    samples = [16000, 9999, 3200]
    rows = [draw.normal(0, 1000, n).astype(np.int16) for n in samples]
    audio = np.stack([np.pad(r, (0, 16000 - len(r)), constant_values=-99) for r in rows])
    extract = extractor(16)
    floats = [row / np.float32(32768) for row in rows]
    heard = extract(floats, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**heard).logits.numpy()

    @jax.jit
    def recognise(params, audio, lengths):
        x, lengths = nemo.log_mel(audio, lengths, **settings)
        h, lengths, _, _ = model.apply(
            params["encoder"], nemo.normalise(x, lengths), lengths, stats=stats["encoder"]
        )
        return h @ head["kernel"] + head["bias"][None, None], lengths

    ours, lengths = recognise(params, audio, np.array(samples))
    assert lengths.tolist() == [13, 8, 3]
    real = valid(lengths, ours.shape[1])
    error = np.abs(ours - expected[:, : ours.shape[1]])[real].max() / np.abs(expected[real]).max()
    print(f"from audio: {error:.1e} of the largest logit")
    assert error <= 1e-4


@pytest.mark.parametrize("loud", [False, True])
def test_features_of_padded_int16_audio(loud):
    """Noise, and a hum whose upper bands are at the floor; another row ends inside a frame.

    Values are up to 8 standard deviations; a quiet band's logarithm carries the rounding of the
    loud ones in one float32 transform, about 1e-4.
    """
    draw, samples = np.random.default_rng(0), [16000, 9999, 12345, 700, 321]
    time = np.arange(16000) / 16000
    hum = 3000 * np.sin(2 * np.pi * 150 * time) * (1 + np.sin(2 * np.pi * 3 * time))
    signal = draw.normal(0, 3000, 16000) if loud else hum + draw.normal(0, 3, 16000)
    audio = np.stack([np.roll(signal, n) for n in samples]).astype(np.int16)
    extract = extractor(80)
    rows = [row[:n] / np.float32(32768) for row, n in zip(audio, samples, strict=True)]
    theirs = extract(rows, sampling_rate=16000, return_tensors="np")
    x, lengths = nemo.log_mel(audio, np.array(samples))
    ours = nemo.normalise(x, lengths)
    assert lengths.tolist() == theirs["attention_mask"].sum(1).tolist() == [100, 62, 77, 4, 2]
    error = np.abs(ours - theirs["input_features"][:, :100]).max()
    print(f"features: {error:.1e} of a standard deviation")
    assert error <= 1e-3


def test_batch_norm_in_training_is_that_of_torch():
    """Two steps over whole batches, and one over the valid frames of a padded one."""
    draw = np.random.default_rng(0)
    theirs = torch.nn.BatchNorm1d(5)
    stats = {"mean": jnp.zeros(5), "var": jnp.ones(5)}
    scale, bias = draw.normal(size=(2, 5)).astype(np.float32)
    theirs.load_state_dict(
        {"weight": torch.from_numpy(scale), "bias": torch.from_numpy(bias)}, strict=False
    )
    norm, params = BatchNorm(), {"params": {"scale": scale, "bias": bias}}
    for lengths in ([7, 7, 7], [7, 7, 7], [7, 4, 0]):
        x = draw.normal(2, 3, size=(3, 7, 5)).astype(np.float32)
        real = valid(lengths, 7)
        y, stats = norm.apply(params, jnp.asarray(x), jnp.asarray(real), stats, True)
        expected = theirs(torch.from_numpy(x[real])).detach().numpy()
        np.testing.assert_allclose(y[real], expected, atol=1e-5)  # sums of 21 terms of size 5
        np.testing.assert_allclose(stats["mean"], theirs.running_mean, rtol=1e-5)
        np.testing.assert_allclose(stats["var"], theirs.running_var, rtol=1e-5)
