"""wav2vec 2.0's loss and its gradients with the weights of transformers', given the same features,
masks, negatives and Gumbel noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from bljust_jax.bilevel.types import Extras
from bljust_jax.objectives import wav2vec2
from bljust_jax.ops import quantizer
from bljust_jax.ops.masking import wav2vec2_spans
from tests.helpers.batches import ToyEncoder

torch = pytest.importorskip("torch")
theirs = pytest.importorskip("transformers.models.wav2vec2.modeling_wav2vec2")

FRAMES, CONV, DIM, WIDTH = 30, 7, 10, 9
KEY, STEP, TAU = jax.random.key(0), 4, 2.0 * 0.9**4
LENGTHS = [30, 22, 17]  # frames


def their_model(groups, codes):
    config = theirs.Wav2Vec2Config(
        hidden_size=DIM, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        conv_dim=(CONV,), conv_kernel=(2,), conv_stride=(1,), num_feat_extract_layers=1,
        num_conv_pos_embeddings=2, num_conv_pos_embedding_groups=1, feat_quantizer_dropout=0.0,
        num_codevector_groups=groups, num_codevectors_per_group=codes, codevector_dim=8,
        proj_codevector_dim=WIDTH, contrastive_logits_temperature=0.1, diversity_loss_weight=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = theirs.Wav2Vec2ForPreTraining(config).train()
    # some codes are chosen more often: a diversity loss near 0 is a difference of rounding errors
    model.quantizer.weight_proj.bias.data = torch.linspace(0.0, 3.0, groups * codes)
    return model


def our_head(model, groups, codes):
    def array(tensor):
        return jnp.asarray(tensor.detach().numpy())

    def linear_map(module):
        return {"kernel": array(module.weight).T, "bias": array(module.bias)}

    vectors = array(model.quantizer.codevectors).reshape(groups, codes, -1)
    return {
        "quantizer": {"project": linear_map(model.quantizer.weight_proj), "codevectors": vectors},
        "project_q": linear_map(model.project_q),
        "project_hid": linear_map(model.project_hid),
    }


def our_objective(groups, codes):
    def encode(params, x, lengths, **_):
        given = params["encoder"]
        return given["output"], lengths, {"latents": given["latents"]}, {}

    own = {
        "mask_prob": 0.6, "mask_length": 4, "negatives": 6, "temperature": 0.1, "diversity": 0.1,
        "feature_penalty": 10.0, "groups": groups, "codes": codes, "code_dim": 8, "width": WIDTH,
        "tau_start": 2.0, "tau_end": 0.5, "tau_decay": 0.9,
    }  # fmt: skip
    config = ConfigDict({"encoder": "", "data": {"sample_rate": 1}, "wav2vec2": own})
    encoder = ToyEncoder(
        lambda audio, lengths, **_: (audio, lengths, None),
        encode,
        masks_input=True,
        dim=DIM,
        frames=lambda samples: samples,
    )
    return wav2vec2.build(config, encoder)


def run_theirs(model, given, mask, negatives, noise, monkeypatch):
    output, latents = (torch.from_numpy(given[k]).requires_grad_() for k in ("output", "latents"))
    heard = theirs.Wav2Vec2BaseModelOutput(last_hidden_state=output, extract_features=latents)
    monkeypatch.setattr(model.wav2vec2, "forward", lambda *_, **__: heard)

    def gumbel_softmax(logits, tau, hard):
        soft = torch.softmax((logits + torch.from_numpy(noise).reshape(logits.shape)) / tau, -1)
        best = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
        return best - soft.detach() + soft

    monkeypatch.setattr(torch.nn.functional, "gumbel_softmax", gumbel_softmax)
    model.set_gumbel_temperature(TAU)
    rows = np.arange(len(LENGTHS))[:, None, None] * FRAMES
    sums = model(
        input_values=None,
        mask_time_indices=torch.from_numpy(mask),
        sampled_negative_indices=torch.from_numpy(negatives + rows),
    )
    sums.loss.backward()
    return sums, {"output": output.grad.numpy(), "latents": latents.grad.numpy()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("groups", "codes"), [(2, 5), (1, 3)])
def test_loss_equals_that_of_transformers(groups, codes, monkeypatch):
    model = their_model(groups, codes)
    rng = np.random.default_rng(1)
    sizes = {"output": DIM, "latents": CONV}
    valid = (np.arange(FRAMES)[None] < np.array(LENGTHS)[:, None])[..., None]
    given = {
        k: np.where(valid, rng.normal(size=(len(LENGTHS), FRAMES, d)), 0).astype(np.float32)
        for k, d in sizes.items()
    }
    params = {
        "encoder": jax.tree.map(jnp.asarray, given),
        "wav2vec2_head": our_head(model, groups, codes),
    }
    ids = jnp.arange(3, dtype=jnp.uint32)
    lengths = jnp.array(LENGTHS)
    data = {"audio": jnp.zeros((3, FRAMES), jnp.int16), "audio_lengths": lengths, "ids": ids}
    objective = our_objective(groups, codes)
    extras = Extras(STEP, {}, {}, {}, {"wav2vec2": jnp.float32(1)})

    def loss(params):
        losses, aux = objective.apply(params, extras, {"unlabelled": data}, KEY)
        return losses["wav2vec2"][0], (losses["wav2vec2"], aux.metrics)

    gradient, ((total, count), metrics) = jax.jit(jax.grad(loss, has_aux=True))(params)

    mask_keys, noise_keys, negative_keys, _ = wav2vec2._keys(KEY, ids)
    mask = wav2vec2_spans(mask_keys, lengths, FRAMES, probability=0.6, span=4)
    negatives = wav2vec2.draw_negatives(negative_keys, mask, 6)
    positions = jnp.broadcast_to(jnp.arange(FRAMES)[None], (3, FRAMES))
    noise = quantizer.gumbel(noise_keys, positions, (groups, codes))
    sums, their_gradient = run_theirs(
        model, given, *map(np.array, (mask, negatives, noise)), monkeypatch
    )

    # theirs are sums over the masked frames; ours a sum, and a mean that the step weighs by them
    assert count == np.sum(mask)
    assert float(metrics["wav2vec2/contrastive"][0]) == pytest.approx(
        sums.contrastive_loss.item(), rel=1e-5
    )
    diversity = metrics["wav2vec2/diversity"][0] * count
    assert float(diversity) == pytest.approx(sums.diversity_loss.item(), rel=1e-5)
    assert float(total) == pytest.approx(sums.loss.item(), rel=1e-5)
    # their perplexity is the sum over the groups of that of the soft choices
    soft = groups * codes * (1 - float(metrics["wav2vec2/diversity"][0]))
    assert soft == pytest.approx(sums.codevector_perplexity.item(), rel=1e-5)

    expected = {"encoder": their_gradient, "wav2vec2_head": gradients_of(model, groups, codes)}

    def close(a, b):
        # float32 sums of some 50 frames, against the largest entry
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())

    jax.tree.map(close, gradient, expected)


def gradients_of(model, groups, codes):
    """Their gradients in our tree."""

    def linear_map(module):
        return {"kernel": module.weight.grad.numpy().T, "bias": module.bias.grad.numpy()}

    vectors = model.quantizer.codevectors.grad.numpy().reshape(groups, codes, -1)
    return {
        "quantizer": {"project": linear_map(model.quantizer.weight_proj), "codevectors": vectors},
        "project_q": linear_map(model.project_q),
        "project_hid": linear_map(model.project_hid),
    }
