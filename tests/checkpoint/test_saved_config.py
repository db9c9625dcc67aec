"""Configs of earlier runs: fields that were added since take their defaults."""

import json

import pytest

from bljust_jax.checkpoint import saved_config
from bljust_jax.common.errors import UserError
from bljust_jax.train.workdir import check_config
from configs import m2asr, quickstart
from tests.helpers.own_warnings import own_messages


@pytest.fixture
def workdir(tmp_path):
    """A workdir with a checkpoint, and write(config, without): its config.json without fields."""
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)

    def write(config, *without):
        fields = json.loads(config.to_json())
        for name in without:
            *groups, last = name.split(".")
            node = fields
            for group in groups:
                node = node[group]
            del node[last]
        (tmp_path / "config.json").write_text(json.dumps(fields))
        return tmp_path

    return write


def test_added_fields_and_groups_do_not_refuse_an_old_workdir(workdir, caplog):
    config = quickstart.get_config("smoke")
    folder = workdir(config, "optim.b2", "collapse")
    check_config(config, folder)
    (line,) = own_messages(caplog)
    assert "config.json lacks fields that were added since; defaults: " in line
    assert "optim.b2=0.98" in line
    assert "collapse.share=" in line


def test_an_added_field_with_another_value_than_its_default_is_another_config(workdir, monkeypatch):
    config = quickstart.get_config("smoke")
    folder = workdir(config, "optim.b2")
    monkeypatch.setattr(saved_config, "ADDED", {"optim.b2": 0.98, "birq.none": 3})
    check_config(config, folder)
    config.optim.b2 = 0.9
    with pytest.raises(UserError, match=r"another config \(optim.b2 0.98 -> 0.9\)"):
        check_config(config, folder)


def test_fields_that_are_gone_and_streams_that_are_new_are_another_config(workdir):
    config = m2asr.get_config("smoke")
    name = min(config.data.streams)
    folder = workdir(config, f"data.streams.{name}")
    with pytest.raises(UserError, match=rf"another config \(data.streams.{name}\.\w+"):
        check_config(config, folder)
    folder = workdir(config)
    with config.unlocked():
        del config.optim.b2
    with pytest.raises(UserError, match=r"another config \(optim.b2 0.98 -> None\)"):
        check_config(config, folder)


def test_a_config_is_read_with_the_defaults_of_added_fields(workdir, monkeypatch):
    monkeypatch.setattr(saved_config, "ADDED", {"optim.b2": 0.5, "optim.b3": 1, "none.b4": 2})
    folder = workdir(quickstart.get_config("smoke"))
    fields = saved_config.read_config(folder / "config.json")
    assert (fields["optim"]["b2"], fields["optim"]["b3"]) == (0.98, 1)
    assert "none" not in fields


def test_a_field_that_one_recipe_has_is_added_to_its_configs_alone(workdir):
    """`phases.supervised` of M2ASR; BL-JUST has no such field."""
    config = m2asr.get_config("smoke")
    folder = workdir(config, "phases.supervised", "decoder.kind")
    check_config(config, folder)
    assert saved_config.read_config(folder / "config.json")["phases"]["supervised"] == 0.0
    config.phases.supervised = 8.0
    with pytest.raises(UserError, match=r"another config \(phases.supervised 0.0 -> 8.0\)"):
        check_config(config, folder)
    folder = workdir(quickstart.get_config("smoke"))
    assert "supervised" not in saved_config.read_config(folder / "config.json")["phases"]


def test_an_encoder_takes_the_added_fields_that_it_has(workdir):
    """A run older than rotary positions has relative ones; an LSTM has neither field."""
    config = quickstart.get_config("smoke")
    folder = workdir(config, "model.positions", "model.attention")
    check_config(config, folder)
    model = saved_config.read_config(folder / "config.json")["model"]
    assert (model["positions"], model["attention"]) == ("relative", "auto")
    config.model.positions = "rope"
    with pytest.raises(UserError, match=r"another config \(model.positions 'relative' -> 'rope'\)"):
        check_config(config, folder)
    folder = workdir(quickstart.get_config("lstm,smoke"))
    model = saved_config.read_config(folder / "config.json")["model"]
    assert not {"positions", "attention"} & model.keys()


@pytest.mark.parametrize("unlabelled", ["", "more.jsonl"])
def test_an_older_run_read_data_unlabelled_alone_where_it_was_given(workdir, unlabelled):
    config = quickstart.get_config("smoke")
    config.data.update(unlabelled=unlabelled, unlabelled_with_train=not unlabelled)
    folder = workdir(config, "data.unlabelled_with_train")
    check_config(config, folder)
    data = saved_config.read_config(folder / "config.json")["data"]
    assert data["unlabelled_with_train"] == (not unlabelled)
    config.data.unlabelled_with_train = bool(unlabelled)
    with pytest.raises(UserError, match=r"another config \(data.unlabelled_with_train "):
        check_config(config, folder)
