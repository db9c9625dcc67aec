"""The CNN-RNN against the same network put together from PyTorch's own layers, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.models.encoders.cnn_rnn import CnnRnn

torch = pytest.importorskip("torch")
nn = torch.nn
torch.set_num_threads(1)
FIELDS = {"cnn_layers": 2, "rnn_layers": 2, "channels": 4, "latent_dim": 6, "units": 5, "heads": 2}
LENGTHS = [27, 16]


def put(module, **values):
    """Gives a module's parameters the values, transposed as torch has them."""
    for name, value in values.items():
        getattr(module, name).data = torch.tensor(np.asarray(value, np.float64))
    return module.double()


def linear(p):
    kernel = np.asarray(p["kernel"])
    return put(nn.Linear(*kernel.shape), weight=kernel.T, bias=p["bias"])


def conv(p, stride=1):
    kernel = np.transpose(p["kernel"], (3, 2, 1, 0))  # torch: out, in, band, time
    layer = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, stride, padding=1)
    return put(layer, weight=kernel, bias=p["bias"])


def norm(p):
    return put(nn.LayerNorm(len(p["scale"]), eps=1e-5), weight=p["scale"], bias=p["bias"])


def recurrent(kind, p):
    inputs = np.shape(p["forward"]["input"]["kernel"])[0]
    units = np.shape(p["forward"]["recurrent"]["kernel"])[0]
    layer = {"gru": nn.GRU, "lstm": nn.LSTM}[kind](inputs, units, bidirectional=True)
    values = {}
    for direction, end in (("forward", ""), ("backward", "_reverse")):
        for ours, theirs in (("input", "ih"), ("recurrent", "hh")):
            cell = p[direction][ours]
            values[f"weight_{theirs}_l0{end}"] = np.transpose(cell["kernel"])
            values[f"bias_{theirs}_l0{end}"] = cell["bias"]
    return put(layer, **values)


def block(p, x, heads):
    """A residual block of x [1, C, M, T]."""
    channels, bands, frames = x.shape[1:]
    attention = nn.MultiheadAttention(channels, heads, batch_first=True)
    values = {"in_proj_weight": np.transpose(p["attention"]["input"]["kernel"])}
    put(attention, in_proj_bias=p["attention"]["input"]["bias"], **values)
    attention.out_proj = linear(p["attention"]["out"])
    grid = x.reshape(1, channels, -1).transpose(1, 2)
    mixed = attention(grid, grid, grid, need_weights=False)[0]
    branch = x + mixed.transpose(1, 2).reshape(1, channels, bands, frames)
    for n in range(1, 5):
        branch = norm(p[f"norm{n}"])(branch.transpose(2, 3)).transpose(2, 3)
        branch = conv(p[f"conv{n}"])(nn.functional.gelu(branch))
    return x + branch


def torch_network(model, params, x):
    """Output [T, D] of one utterance [T, M]."""
    y = conv(params["stem"], 2)(torch.tensor(x).T[None, None])
    for i in range(model.cnn_layers):
        p = params[f"cnn{i + 1}"]
        gru = model.kind == "gru"
        y = block(p, y, model.heads) if gru else conv(p["conv"])(nn.functional.gelu(y))
    y = linear(params["linear"])(y[0].permute(2, 1, 0).flatten(1))
    for i in range(model.rnn_layers):
        p = params[f"rnn{i + 1}"]
        y = recurrent(model.kind, p)(nn.functional.gelu(norm(p["norm"])(y)))[0]
    return nn.functional.gelu(linear(params["proj"])(y)) if model.proj else y


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_both_networks_are_pytorchs_layers(kind):
    model = CnnRnn(n_mels=8, kind=kind, proj=7 if kind == "gru" else 0, dtype="float64", **FIELDS)
    draw = np.random.default_rng(3)
    params, _ = model.init(jax.random.key(0))
    params = jax.tree.map(lambda p: np.asarray(p) + draw.normal(0, 0.1, p.shape), params)
    x = draw.normal(size=(2, 27, 8))
    with jax.enable_x64(True):
        exact = jax.tree.map(jnp.asarray, params)
        output = jax.jit(lambda p, x, n: model.apply(p, x, n)[0])(
            exact, jnp.asarray(x), jnp.array(LENGTHS, jnp.int32)
        )
    for row, n in enumerate(LENGTHS):
        with torch.no_grad():
            expected = torch_network(model, params, x[row, :n]).numpy()
        # float64 on both sides; the masked softmax and the norms sum in another order
        np.testing.assert_allclose(output[row, : len(expected)], expected, atol=1e-12)
        assert not np.any(output[row, len(expected) :])
