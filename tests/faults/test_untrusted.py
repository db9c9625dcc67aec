"""F17, F18: untrusted files run no code and access no path outside their folder."""

import pathlib
import pickle
import re
import sys
import tarfile
import types

import numpy as np
import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.data.sources import open_source
from bljust_jax.export import tensors
from bljust_jax.reporting import page
from tests.helpers.yodas_shards import IDS, write_shard

PACKAGE = pathlib.Path(page.__file__).parents[1]


@pytest.mark.parametrize("folder", ["../../audio", "/audio", "audio/../../x"])
def test_a_tar_that_points_outside_itself_is_refused(tmp_path, folder):
    """F17; valid members are read at their offsets in the file; nothing is extracted."""
    tar = write_shard(tmp_path / "en000", folder=folder)
    with pytest.raises(UserError, match=re.escape(f"{tar}: holds {folder}, outside of itself")):
        open_source(f"yodas:{tmp_path}/en000")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_in_a_tar_is_no_recording(tmp_path, kind):
    """F17."""
    tar = write_shard(tmp_path / "en000", ids=IDS[:2])
    with tarfile.open(tar, "a") as archive:
        link = tarfile.TarInfo(f"{IDS[2]}.wav")
        link.type, link.linkname = kind, "/etc/hostname"
        archive.addfile(link)
    with (tmp_path / "en000" / "text" / "00000000.txt").open("a") as file:
        file.write(f"{IDS[2]} Caption\n")
    with pytest.raises(UserError, match=re.escape(f"{tar}: {IDS[2]}.wav is a ")):
        open_source(f"yodas:{tmp_path}/en000")


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self._path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_a_pickle_is_not_opened(tmp_path, name):
    """F18."""
    (tmp_path / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(UserError, match=r"is a pickle.*config\.init_from_pickle=True"):
        tensors.read(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_objects_in_an_npz_are_not_opened(tmp_path):
    """F18."""
    path = tmp_path / "example.npz"
    np.savez(path, audio=np.array([Trap(tmp_path / "sprung")], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"example\.npz is damaged .*allow_pickle=False"):
        page.read_example(path)
    assert not (tmp_path / "sprung").exists()


def test_one_place_unpickles_and_by_flag_alone():
    """F18."""
    risky = re.compile(r"allow_pickle=True|pickle\.loads?\(|torch\.load\(|yaml\.(unsafe_)?load\(")
    found = [path for path in PACKAGE.rglob("*.py") if risky.search(path.read_text())]
    assert [path.relative_to(PACKAGE).as_posix() for path in found] == ["export/tensors.py"]


def test_a_pickle_that_is_allowed_is_read_as_weights_alone(tmp_path, monkeypatch):
    """F18, with a torch that unpickles whatever it may; tests/peers has the true one."""

    def load(path, map_location=None, weights_only=False):
        if weights_only:
            raise pickle.UnpicklingError("Unsupported global")
        return pickle.loads(path.read_bytes())

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=load, __version__="2.10"))
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(UserError, match=r"model\.pt holds more than weights"):
        tensors.read(tmp_path / "model.pt", allow_pickle=True)
    assert not (tmp_path / "sprung").exists()
