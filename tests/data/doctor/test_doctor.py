"""The data doctor finds each planted fault, and nothing in clean recordings."""

import json
import pathlib

import pytest

from bljust_jax import doctor
from bljust_jax.data.doctor.checks import CHECKS
from tests.helpers import planted

# a fault that cannot be without another finding on the same utterance
WITH = {
    "speaking rate": {"infeasible"},
}


@pytest.fixture(scope="module")
def corpus(speech, tmp_path_factory):
    """(folder, entries of train, entries of dev) of clean recordings."""
    folder = tmp_path_factory.mktemp("planted")
    return folder, *planted.clean(speech, folder)


def examine(folder: pathlib.Path, name: str, train, dev, capsys, *options):
    """(exit code, report) for these entries; measurements of all calls are shared."""
    uris = [planted.write(folder / f"{name}.jsonl", train)]
    uris += ["--dev", planted.write(folder / f"{name}_dev.jsonl", dev)]
    code = doctor.main([*uris, "--json", "--cache", str(folder / "cache.jsonl"), *options])
    return code, json.loads(capsys.readouterr().out)


def test_every_check_has_a_planted_fault():
    assert [check.name for check in CHECKS] == list(planted.FAULTS)


def test_nothing_is_found_in_clean_recordings(corpus, capsys):
    folder, train, dev = corpus
    code, report = examine(folder, "clean", train[:-1], dev, capsys)
    assert (code, report["findings"], report["fit"]) == (0, [], True)
    assert report["splits"]["train"]["utterances"] == planted.TRAIN


@pytest.mark.parametrize("kind", planted.FAULTS)
def test_a_planted_fault_is_found_alone(kind, corpus, capsys):
    """It is named with the line of its entry, and neither another kind nor another entry is."""
    folder, train, dev = corpus
    fault = planted.Planted(folder, train, dev, kind)
    name = kind.replace(" ", "_")
    parts = {"train": train[:-1], "dev": dev}
    parts[fault.split] = [*parts[fault.split], fault.spare]
    code, report = examine(folder, name, parts["train"], parts["dev"], capsys)
    assert code == 1
    found = {f["kind"]: f for f in report["findings"]}
    assert kind in found
    assert found.keys() - WITH.get(kind, set()) == {kind}
    for finding in found.values():
        (example,) = finding["examples"]
        assert example["id"] == fault.spare["id"]
        suffix = "" if fault.split == "train" else "_dev"
        assert example["where"].endswith(f"{name}{suffix}.jsonl:{len(parts[fault.split])}")
    assert found[kind]["cure"]


def test_all_planted_faults_are_found_together(corpus, capsys):
    folder, train, dev = corpus
    faults = [planted.Planted(folder, train, dev, kind) for kind in planted.FAULTS]
    parts = {"train": train[:-1], "dev": list(dev)}
    parts = {s: [*own, *(f.spare for f in faults if f.split == s)] for s, own in parts.items()}
    code, report = examine(folder, "all", parts["train"], parts["dev"], capsys)
    assert code == 1
    found = {f["kind"]: {e["id"] for e in f["examples"]} for f in report["findings"]}
    for fault in faults:
        assert fault.spare["id"] in found[fault.kind], fault.kind


@pytest.mark.daily("nl", "zh")
@pytest.mark.parametrize("language", ["en", "nl", "digits_ar", "zh"])
def test_shared_recordings_are_fit(language, speech, tmp_path, capsys):
    cache = ["--cache", str(tmp_path / "cache.jsonl")]
    assert doctor.main([str(speech / language / "dev.jsonl"), "--json", *cache]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []
