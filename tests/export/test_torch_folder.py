"""The tensors and the file of PyTorch, without it (with it: tests/peers/test_export.py)."""

import ast
import json
import pathlib
import sys

import numpy as np
import pytest

from bljust_jax.export import tensors, torch_folder
from tests.helpers import runs

MODELING = pathlib.Path(torch_folder.__file__).with_name(torch_folder.SOURCE)


def test_the_file_imports_torch_and_nothing_else():
    tree = ast.parse(MODELING.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.partition(".")[0])
    assert {name for name in found if name not in sys.stdlib_module_names} == {"torch"}


def test_the_folder(tmp_path):
    config = runs.make_config()
    weights = runs.draw_weights(config)
    torch_folder.write_folder(tmp_path, config, runs.CHARACTERS, *weights)
    assert (tmp_path / "modeling.py").read_bytes() == MODELING.read_bytes()
    facts = json.loads((tmp_path / "config.json").read_text())
    assert facts["tokens"] == ["", *runs.CHARACTERS.symbols]
    assert facts["model"] == config.model.to_dict()
    found = tensors.read(tmp_path)
    assert found["ctc_head.weight"].shape == (29, 48)
    assert not any("cpc" in name for name in found)


def test_kernels_are_turned_as_torch_has_them():
    weights = runs.draw_weights(runs.make_config())
    found = torch_folder.tensors(*weights, stored=False)
    blocks, frontend = (weights.params["encoder"][k] for k in ("blocks", "frontend"))
    up = blocks["ff1"]["up"]["kernel"]
    np.testing.assert_array_equal(found["encoder.blocks.1.ff1.up.weight"], up[1].T)
    taps = blocks["conv"]["depthwise"]["kernel"]  # [L, K, D]
    np.testing.assert_array_equal(
        found["encoder.blocks.0.conv.depthwise.weight"][5, 0], taps[0, :, 5]
    )
    kernel = frontend["conv2"]["kernel"]  # [3, 3, in, out]
    weight = found["encoder.frontend.conv2.weight"]
    assert weight[4, 7, 2, 1] == kernel[2, 1, 7, 4]
    norm = blocks["norm"]
    np.testing.assert_array_equal(found["encoder.blocks.1.norm.weight"], norm["scale"][1])
    assert "encoder.blocks.0.attention.content_bias" in found


@pytest.mark.parametrize(
    ("change", "extra"),
    [
        (runs.causal, {"features.mean", "features.std"}),
        (runs.plain, set()),
    ],
)
def test_statistics_of_features_belong_to_causal_models(change, extra):
    config = runs.make_config(change)
    stored = config.ctc.context == "causal"
    found = torch_folder.tensors(*runs.draw_weights(config), stored=stored)
    assert {name for name in found if name.startswith("features")} == extra


def test_running_moments_lie_with_their_norm():
    weights = runs.draw_weights(runs.make_config(runs.parakeet))
    found = torch_folder.tensors(*weights, stored=False)
    name = "encoder.blocks.1.conv.norm.running_{}"
    for theirs in ("mean", "var"):
        own = weights.stats["encoder"][theirs][1]
        np.testing.assert_array_equal(found[name.format(theirs)], own)
