"""wav2vec 2.0 with the weights of transformers', where torch and it are installed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.export import hf_wav2vec2 as table
from bljust_jax.models import heads
from bljust_jax.models.encoders.wav2vec2 import Wav2Vec2
from bljust_jax.ops.masking import InputMask

VOCABULARY = 11
LENGTHS = np.array([5200, 4000, 2500], np.int32)
SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16, 16, 24, 16, 16, 16, 20],
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": VOCABULARY,
    "num_codevectors_per_group": 8,
    "codevector_dim": 12,
    "proj_codevector_dim": 10,
}
SHAPES = {
    "base": SMALL | {"feat_extract_norm": "group"},
    "large": SMALL
    | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
}
# A convolution, the projection, the gain of the positions, attention of the first block, a norm of
# the last one; and the embedding that masks.
GRADIENTS = (
    "feature_extractor.conv_layers.0.conv.weight",
    "feature_projection.projection.weight",
    "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
    "encoder.layers.0.attention.q_proj.weight",
    "encoder.layers.1.final_layer_norm.weight",
    "masked_spec_embed",
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")


@functools.cache
def theirs(kind, name="Wav2Vec2ForCTC"):
    """A model of theirs in float64 whose every tensor is random: no bias is 0, no scale 1."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = getattr(transformers, name)(transformers.Wav2Vec2Config(**SHAPES[kind]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@functools.cache
def state(kind, name="Wav2Vec2ForCTC"):
    """Their float32 tensors."""
    return {
        key: value.float().numpy().copy() for key, value in theirs(kind, name).state_dict().items()
    }


def ours(kind, **options):
    """(model, parameters) in our form."""
    hf = transformers.Wav2Vec2Config(**SHAPES[kind]).to_dict()
    fields = table.model_fields(hf)
    return Wav2Vec2(**fields, **options), table.parameters(state(kind), fields)


@functools.cache
def inputs():
    """Padded waveforms, frames to mask, and a weight for every logit."""
    rng = np.random.default_rng(1)
    valid = np.arange(LENGTHS.max())[None, :] < LENGTHS[:, None]
    x = np.where(valid, rng.normal(size=valid.shape), 0.0)
    frames = Wav2Vec2(8, 1, 1, 8, pos_groups=1).frames(int(LENGTHS.max()))
    hidden = rng.random((len(LENGTHS), frames)) < 0.3
    return x, valid, hidden, rng.normal(size=(len(LENGTHS), frames, VOCABULARY))


def run_theirs(kind, dtype):
    """(logits, latents, gradients of the weighted sum of valid logits)."""
    x, valid, hidden, weights = inputs()
    model = theirs(kind).to(dtype)
    model.zero_grad()
    encoded = model.wav2vec2(
        torch.tensor(x, dtype=dtype),
        attention_mask=torch.tensor(valid),
        mask_time_indices=torch.tensor(hidden),
    )
    logits = model.lm_head(encoded.last_hidden_state)
    (logits * torch.tensor(weights * real_frames()[..., None], dtype=dtype)).sum().backward()
    named = dict(model.wav2vec2.named_parameters())
    grads = {name: named[name].grad.numpy().copy() for name in GRADIENTS}
    return logits.detach().numpy(), encoded.extract_features.detach().numpy(), grads


def real_frames():
    model = Wav2Vec2(8, 1, 1, 8, pos_groups=1)
    frames = np.arange(model.frames(int(LENGTHS.max())))
    return frames[None, :] < np.array([model.frames(int(n)) for n in LENGTHS])[:, None]


def run_ours(kind, dtype):
    model, params = ours(kind, dtype=dtype, hf_compat=True)
    x, _, hidden, weights = inputs()
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    input_mask = InputMask(jnp.asarray(hidden))

    def loss(params, x, weights):
        output, lengths, features, _ = model.apply(
            params["encoder"], x, jnp.asarray(LENGTHS), input_mask=input_mask
        )
        logits = heads.apply(params["ctc_head"], output)
        real = jnp.arange(logits.shape[1])[None, :] < lengths[:, None]
        return jnp.sum(logits * weights * real[..., None]), (logits, features["latents"])

    args = params, jnp.asarray(x, dtype), jnp.asarray(weights, dtype)
    (_, (logits, latents)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(*args)
    rows = table.rows(jax.tree.map(np.shape, grads))
    found = {}
    for row in rows:
        node = grads
        for key in row.path.split("/"):
            node = node[key]
        own = np.asarray(node if row.block is None else node[row.block])
        found[row.name.removeprefix("wav2vec2.")] = row.layout.write(own)
    return np.asarray(logits), np.asarray(latents), found


@pytest.mark.parametrize(
    ("dtype", "tolerance", "gradient_tolerance"),
    # Rounding of two orders of summation through nine layers: 1e-16 and 1e-7 a sum.
    [("float64", 1e-8, 1e-8), ("float32", 1e-4, 1e-4)],
)
@pytest.mark.parametrize("kind", SHAPES)
def test_logits_latents_and_gradients_are_those_of_transformers(
    kind, dtype, tolerance, gradient_tolerance
):
    expected, expected_latents, expected_grads = run_theirs(kind, getattr(torch, dtype))
    with jax.enable_x64(dtype == "float64"):
        logits, latents, grads = run_ours(kind, dtype)
    real = real_frames()
    assert logits.dtype == latents.dtype == expected.dtype == dtype
    scale = np.abs(expected[real]).max()
    assert np.abs(logits - expected)[real].max() <= tolerance * scale
    np.testing.assert_allclose(
        latents[real], expected_latents[real], atol=tolerance * np.abs(expected_latents).max()
    )
    for name, grad in expected_grads.items():
        error = np.abs(grads[name] - grad).max()
        assert np.abs(grad).max() > 0, name
        assert error <= gradient_tolerance * np.abs(grad).max(), name


def test_a_padded_batch_of_ours_equals_theirs_one_at_a_time():
    """Group norm over valid frames: what theirs gives without padding."""
    model, params = ours("base")
    x = inputs()[0].astype(np.float32)
    encode = jax.jit(lambda p, x, n: model.apply(p, x, n)[0])
    output = np.asarray(encode(params["encoder"], x, LENGTHS))
    peer = theirs("base").float()
    for row, samples in enumerate(LENGTHS):
        with torch.no_grad():
            expected = peer.wav2vec2(torch.tensor(x[row : row + 1, :samples]))[0][0].numpy()
        np.testing.assert_allclose(output[row, : len(expected)], expected, atol=1e-4)  # as above


@pytest.mark.parametrize(
    ("name", "part"), [("Wav2Vec2ForCTC", "ctc_head"), ("Wav2Vec2ForPreTraining", "wav2vec2_head")]
)
@pytest.mark.parametrize("kind", SHAPES)
def test_weights_go_in_and_out_bit_equal(kind, name, part):
    hf = transformers.Wav2Vec2Config(**SHAPES[kind]).to_dict()
    fields = table.model_fields(hf)
    params = table.parameters(state(kind, name), fields)
    assert set(params) == {"encoder", part}
    written = table.tensors(params, ctc=part == "ctc_head")
    assert written.keys() == state(kind, name).keys()
    for key, value in written.items():
        assert value.tobytes() == state(kind, name)[key].tobytes(), key
    head = {"groups": 2, "codes": 8, "code_dim": 12, "width": 10}
    config = table.hf_config(Wav2Vec2(**fields), VOCABULARY, None if part == "ctc_head" else head)
    assert config["architectures"] == [name]
    fresh = getattr(transformers, name)(transformers.Wav2Vec2Config(**config))
    fresh.load_state_dict({k: torch.tensor(v) for k, v in written.items()}, strict=True)
    again = {k: v.numpy() for k, v in fresh.state_dict().items()}
    reread = table.parameters(again, table.model_fields(fresh.config.to_dict()))
    jax.tree.map(np.testing.assert_array_equal, reread, params)


def test_codevectors_keep_their_groups():
    """Entry v of group g is row g V + v of theirs."""
    hf = transformers.Wav2Vec2Config(**SHAPES["base"]).to_dict()
    params = table.parameters(state("base", "Wav2Vec2ForPreTraining"), table.model_fields(hf))
    ours = params["wav2vec2_head"]["quantizer"]["codevectors"]
    theirs = state("base", "Wav2Vec2ForPreTraining")["quantizer.codevectors"]
    assert ours.shape == (2, 8, 6)
    np.testing.assert_array_equal(ours[1, 3], theirs[0, 8 + 3])
