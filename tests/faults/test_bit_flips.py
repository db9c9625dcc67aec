"""F4: a flipped bit in the newest checkpoint is detected, and the step before it is restored."""

import random
import shutil

import pytest

from tests.helpers.checkpoints import assert_whole, files, flip, restore, save
from tests.helpers.own_warnings import own_messages


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, 1, 2)
    return workdir


@pytest.mark.daily("5")
@pytest.mark.parametrize("trials", [5, 50])
def test_one_flipped_bit_in_any_file_is_found(saved, tmp_path, caplog, trials):
    names = [path.relative_to(saved) for path in files(saved / "checkpoints" / "2")]
    flipped, draw = set(), random.Random(0)
    for trial in range(trials):
        workdir = shutil.copytree(saved, tmp_path / str(trial))
        name = draw.choice(names)
        bit = draw.randrange(8 * (workdir / name).stat().st_size)
        flip(workdir / name, bit)
        caplog.clear()
        assert_whole(restore(workdir), 1)
        (line,) = own_messages(caplog)
        assert f"is damaged: {name.relative_to('checkpoints/2')} was changed" in line, (name, bit)
        flipped.add(name)
    assert len(flipped) > min(trials / 2, len(names) / 3), "files of every kind"
