"""A finished run with an example and run facts."""

import json

import numpy as np
import pytest

from tests.helpers.reported_runs import PHASES, example, make_run


@pytest.fixture
def run(tmp_path):
    folder = make_run(tmp_path / "run")
    facts = {"phases": PHASES, "command": "python -m it", "versions": {"jax": "1.2.3"}}
    (folder / "run.json").write_text(json.dumps(facts))
    np.savez(folder / "example.npz", **example())
    return folder
