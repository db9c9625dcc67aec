"""Checkpoints are restored exactly as saved; damaged, incomplete and newer ones are refused."""

import json
import pathlib
import shutil
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.checkpoint import integrity, manager
from bljust_jax.checkpoint.manager import Checkpoints, has_checkpoint
from bljust_jax.common.errors import UserError
from bljust_jax.common.trees import digest
from bljust_jax.parallel import mesh as mesh_module
from bljust_jax.parallel.mesh import make_mesh, state_sharding
from bljust_jax.train.save_timer import SaveTimer
from tests.helpers.checkpoints import (
    abstract,
    assert_whole,
    contents,
    files,
    flip,
    make_state,
    opened,
    restore,
    save,
)
from tests.helpers.own_warnings import own_messages, own_records


def steps(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def test_the_newest_is_restored_and_the_last_stay(tmp_path):
    assert restore(tmp_path) is None
    save(tmp_path, 1, 2, 3, 4)
    assert steps(tmp_path) == ["2", "3", "4"]
    assert_whole(restore(tmp_path), 4)


@pytest.mark.slow
def test_multiples_of_keep_every_stay_for_good(tmp_path):
    save(tmp_path, 0, 1, 2, 3, 4, 5, 6, 7, keep=1, keep_every=3)
    assert steps(tmp_path) == ["0", "3", "6", "7"]
    save(tmp_path, 8, 9, 10, keep=2, keep_every=3)
    assert steps(tmp_path) == ["0", "10", "3", "6", "9"]


def test_the_ends_of_phases_stay_for_good(tmp_path):
    save(tmp_path, *range(8), keep=1, keep_steps=(2, 5))
    assert steps(tmp_path) == ["2", "5", "7"]
    save(tmp_path, 8, 9, keep=1, keep_every=4, keep_steps=(2,))
    assert steps(tmp_path) == ["2", "8", "9"], "5 is the end of no phase any more"


def test_the_best_weights_are_those_of_the_step_that_is_named(tmp_path):
    save(tmp_path, 1, 2)
    with opened(tmp_path, read_only=True) as checkpoints:
        for step in (1, 2):
            state = make_state(step)
            found = checkpoints.restore_best(step, abstract(state.weights))
            assert digest(found) == digest(state.weights)


def test_metadata_may_change_while_a_save_runs(tmp_path, monkeypatch):
    state, meta, given = make_state(1), {"window": {"loss": [1.0]}}, []
    with opened(tmp_path) as checkpoints:
        save_later = checkpoints._manager.save
        monkeypatch.setattr(
            checkpoints._manager,
            "save",
            lambda step, args, **how: given.append(args) or save_later(step, args=args, **how),
        )
        checkpoints.save(1, state, state.weights, meta)
        meta["window"]["loss"].append(2.0)
        (args,) = given
        assert args.meta.item["meta"] == {"window": {"loss": [1.0]}}


def test_every_file_has_its_sum(tmp_path):
    save(tmp_path, 1)
    step = tmp_path / "checkpoints" / "1"
    lines = (step / integrity.SUMS).read_text().splitlines()
    assert [line.partition("  ")[2] for line in lines[:-1]] == [
        str(path.relative_to(step)) for path in files(step) if path.name != integrity.SUMS
    ]
    assert len(lines) > 10
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", integrity.SUMS], cwd=step, check=True)


def truncate(step):
    path = max(files(step / "state"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-100])
    return path.name, "was changed or cut short"


def empty_a_file(step):
    (step / "meta" / "metadata").write_bytes(b"")
    return "meta/metadata", "was changed or cut short"


def delete(step):
    (step / "best" / "manifest.ocdbt").unlink()
    return "best/manifest.ocdbt", "is missing"


def delete_a_folder(step):
    shutil.rmtree(step / "best")
    return "best/", "is missing"


def delete_the_sums(step):
    (step / integrity.SUMS).unlink()
    return integrity.SUMS, "is missing"


def change_the_sums(step):
    flip(step / integrity.SUMS, 8 * 70 + 2)
    return integrity.SUMS, "was changed"


def change_the_sum_of_the_sums(step):
    flip(step / integrity.SUMS, 8 * (len((step / integrity.SUMS).read_bytes()) - 1))
    return integrity.SUMS, "was changed"


def empty(step):
    shutil.rmtree(step)
    step.mkdir()
    return "", "it is empty"


def make_unreadable(step):
    path = step / "meta" / "metadata"
    path.unlink()
    path.symlink_to(path.name)  # a loop
    return "meta/metadata", "is missing"


DAMAGE = [
    *(truncate, empty_a_file, delete, delete_a_folder, delete_the_sums, change_the_sums),
    *(change_the_sum_of_the_sums, empty, make_unreadable),
]


@pytest.mark.daily("change_the_sums", "delete_a_folder")
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_step_is_named_and_the_one_before_it_taken(damage, tmp_path, caplog):
    """F5. The damaged one is moved, so that its step can be saved again."""
    save(tmp_path, 1, 2, 3)
    file, reason = damage(tmp_path / "checkpoints" / "3")
    assert_whole(restore(tmp_path), 2)
    (line,) = own_messages(caplog)
    assert f"checkpoint {tmp_path}/checkpoints/3 is damaged: " in line
    assert file in line
    assert line.endswith(f"{reason}, moved to 3.bad")
    assert steps(tmp_path) == ["1", "2", "3.bad"]
    save(tmp_path, 3)
    assert_whole(restore(tmp_path), 3)


def test_several_damaged_steps_are_passed_over(tmp_path, caplog):
    save(tmp_path, 1, 2, 3)
    empty(tmp_path / "checkpoints" / "2")
    delete(tmp_path / "checkpoints" / "3")
    (tmp_path / "checkpoints" / "3.bad").mkdir()  # of an earlier time
    assert_whole(restore(tmp_path), 1)
    assert [record.args[0].name for record in own_records(caplog)] == ["3", "2"]
    assert steps(tmp_path) == ["1", "2.bad", "3.bad"]
    assert files(tmp_path / "checkpoints" / "3.bad")


def test_where_none_is_whole_nothing_starts_afresh(tmp_path):
    """F5: refused each time, with what is wrong, and nothing is touched."""
    save(tmp_path, 1, 2)
    empty(tmp_path / "checkpoints" / "1")
    delete(tmp_path / "checkpoints" / "2")
    before = contents(tmp_path)
    said = r"no whole checkpoint \(step 2: best/manifest.ocdbt is missing; step 1: it is empty\)"
    for _ in range(2):
        with pytest.raises(UserError, match=said):
            restore(tmp_path)
        with pytest.raises(UserError, match=said):
            Checkpoints(tmp_path, read_only=True)
    assert contents(tmp_path) == before
    for path in (tmp_path / "checkpoints").iterdir():
        path.rename(path.with_suffix(".bad"))
    with pytest.raises(UserError, match="no whole checkpoint"):
        restore(tmp_path)


def test_what_a_killed_save_left_is_no_checkpoint(tmp_path):
    """F2: at whatever point it was killed; a run that was killed in its first save starts again."""
    folder = tmp_path / "checkpoints"
    save(tmp_path / "other", 5)
    for name in ("5.orbax-checkpoint-tmp", "5.orbax-checkpoint-tmp-whole"):
        shutil.copytree(tmp_path / "other" / "checkpoints" / "5", folder / name)
    assert not has_checkpoint(tmp_path)
    assert restore(tmp_path) is None
    deadline = time.monotonic() + 20  # a thread of Orbax's removes them
    while list(folder.glob("*tmp*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    save(tmp_path, 4)
    (folder / "5.orbax-checkpoint-tmp-whole").mkdir()
    assert_whole(restore(tmp_path), 4)


def test_read_only_finds_the_newest_whole_one_and_changes_nothing(tmp_path, caplog):
    """It looks into what it reads: not into the optimizer's state."""
    save(tmp_path, 1, 2, 3)
    weights = abstract(make_state(0)).weights

    def newest():
        with opened(tmp_path, read_only=True) as checkpoints:
            return int(checkpoints.restore_best(checkpoints.latest(), weights).stats["seen"])

    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir()
    flip(max(files(tmp_path / "checkpoints" / "3" / "state")), 9)
    assert newest() == 3
    flip(max(files(tmp_path / "checkpoints" / "3" / "best" / "ocdbt.process_0")), 9)
    before = contents(tmp_path)
    assert newest() == 2
    (line,) = own_messages(caplog)
    assert "checkpoints/3 is damaged: best/ocdbt.process_0" in line
    assert "moved" not in line
    assert contents(tmp_path) == before


def test_arrays_that_are_not_those_on_the_devices_are_found(tmp_path, monkeypatch, caplog):
    """A change between the device and the sums of the files: the fingerprints tell."""
    fingerprints = integrity.fingerprints

    def of_another(tree):
        params = tree["state"].params
        other = params | {"w": params["w"].at[2, 7, 15].add(1e-6)}
        return fingerprints(tree | {"state": tree["state"]._replace(params=other)})

    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(integrity, "fingerprints", of_another)
        save(tmp_path, 2)
    assert_whole(restore(tmp_path), 1)
    (line,) = own_messages(caplog)
    assert "array ['state'].params['w'] is not the one that was saved, moved to 2.bad" in line
    shutil.rmtree(tmp_path / "checkpoints" / "1")
    with pytest.raises(UserError, match="no whole checkpoint"):
        restore(tmp_path)


def test_a_state_of_another_shape_is_refused(tmp_path):
    save(tmp_path, 1)
    state = make_state(0)
    wider = state._replace(params=state.params | {"w": jnp.zeros((3, 8, 17))})
    with opened(tmp_path) as checkpoints, pytest.raises(UserError, match=r"1 is of another config"):
        checkpoints.restore_newest(abstract(wider))
    assert steps(tmp_path) == ["1"]


@pytest.mark.daily("before2-*")
@pytest.mark.parametrize(
    ("before", "after"), [((1, 1), (1, 8)), ((1, 8), (1, 1)), ((8, 1), (2, 4))]
)
def test_another_mesh_restores_the_same_bits(before, after, tmp_path):
    def place(state, mesh):
        return state_sharding(state, make_mesh(*mesh))

    state = make_state(7)
    laid = jax.device_put(state, place(state, before))
    with opened(tmp_path) as checkpoints:
        checkpoints.save(7, laid, laid.weights, {"heard": [7]})
    wanted = place(state, after)
    with opened(tmp_path) as checkpoints:
        found = checkpoints.restore_newest(mesh_module.with_shardings(abstract(state), wanted))
    assert_whole(found, 7)
    assert jax.tree.map(lambda x: x.sharding, found.state) == wanted
    split = found.state.params["w"].sharding.shard_shape((3, 8, 16))
    assert split == {1: (3, 8, 16), 4: (3, 8, 4), 8: (3, 8, 2)}[after[1]]


# Fingerprints


KINDS = ("float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8", "bool")


@pytest.mark.parametrize("kind", KINDS)
def test_any_bit_changes_the_fingerprint(kind):
    array = np.asarray(jnp.asarray(np.arange(24).reshape(2, 3, 4) % 2, kind))
    size = array.dtype.itemsize
    seen = set(integrity.fingerprints(array).values())
    for bit in [0, size * 8 * 5 + 3, size * 8 * 24 - 1] if kind != "bool" else [0, 40, 184]:
        content = bytearray(array.tobytes())
        content[bit // 8] ^= 1 << bit % 8
        changed = np.frombuffer(bytes(content), array.dtype).reshape(array.shape)
        seen |= set(integrity.fingerprints(changed).values())
    assert len(seen) == 4


def test_fingerprints_tell_places_apart_and_are_what_they_were():
    array = np.zeros(1024, np.float32)
    array[[0, 512]] = 1, 2
    swapped = array[np.r_[512, 1:512, 0, 513:1024]]
    found = integrity.fingerprints({"a": array, "b": swapped, "c": np.int32(7)})
    assert found["['a']"] != found["['b']"]
    assert found["['c']"] == mix(7)
    expected = sum(
        mix(int(bits) ^ i * 0x9E3779B1 % 2**32) for i, bits in enumerate(array.view("u4"))
    )
    assert found["['a']"] == expected % 2**32


def mix(word):
    for odd in (0x85EBCA6B, 0xC2B2AE35):
        word = (word ^ word >> 15) * odd % 2**32
    return word ^ word >> 16


# When to save


def test_the_timer_looks_at_each_so_manieth_step(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    timer, never = SaveTimer(2, every=5), SaveTimer(0, every=1)
    now[0] += 119
    assert not timer.is_due(10)
    now[0] += 1
    assert [step for step in range(11, 22) if timer.is_due(step)] == [15, 20]
    timer.restart()
    assert not timer.is_due(25)
    now[0] += 1e9
    assert timer.is_due(30)
    assert not never.is_due(30)


def test_a_workdir_that_holds_no_steps_holds_no_checkpoint(tmp_path):
    assert not has_checkpoint(tmp_path)
    for name in ("notes", "3.orbax-checkpoint-tmp", "3x"):
        pathlib.Path(tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert not has_checkpoint(tmp_path)
    (tmp_path / "checkpoints" / "3.bad").mkdir()
    assert has_checkpoint(tmp_path)


def test_a_newer_format_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(manager, "FORMAT", manager.FORMAT + 1)
    save(tmp_path, 1)
    monkeypatch.undo()
    said = r"/1 has checkpoint format 3, but this version .* up to 2: update it, or name a new"
    with pytest.raises(UserError, match=said):
        restore(tmp_path)
    with opened(tmp_path) as checkpoints, pytest.raises(UserError, match=said):
        checkpoints.restore_best(1, abstract(make_state(1)).weights)


def test_a_checkpoint_has_the_current_format(tmp_path):
    save(tmp_path, 1)
    described = json.loads((tmp_path / "checkpoints" / "1" / "meta" / "metadata").read_text())
    assert described["format"] == manager.FORMAT == 2
    assert_whole(restore(tmp_path), 1)
