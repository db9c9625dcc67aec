"""Scores by hand, a run opened from disk, and the command on it: best path, beam, n-gram model."""

import json
import pathlib

import jax
import numpy as np
import pytest

from bljust_jax import evaluate as command
from bljust_jax.bilevel.types import Task
from bljust_jax.common.errors import UserError
from bljust_jax.data.splits import load_splits
from bljust_jax.data.tokenizer import load_tokenizer
from bljust_jax.decoding import arpa, kneser_ney
from bljust_jax.decoding.greedy import collapse
from bljust_jax.decoding.lm_weights import ALPHAS, BETAS, Trial, tune
from bljust_jax.inference import measures, scoring
from bljust_jax.inference.decode_split import compute_ctc_output
from bljust_jax.inference.trained_run import load_trained_run
from tests.helpers.runs import UNTRAINED_STEP, save_untrained
from tests.helpers.workdirs import read_samples

TASK = Task("", "labelled", "wer", "ctc_head", predict=lambda *_: None)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def language_model(workdir):
    opened = load_trained_run(workdir)
    references = opened.load_split("dev", "").references("dev")
    path = workdir / "dev.arpa"
    arpa.write(path, kneser_ney.estimate([r.split() for r in references], 2).orders)
    return path


# Scores


def test_scores_by_hand():
    """Errors of the corpus over words of the corpus, not a mean over sentences."""
    found = measures.recognition(["a b c d", "e", ""], ["a x c", "e f", "unheard"])
    assert (found["substitutions"], found["deletions"], found["insertions"]) == (1, 1, 1)
    assert (found["words"], found["utterances"], found["without_reference"]) == (5, 2, 1)
    assert found["wer"] == pytest.approx(3 / 5)
    assert found["cer"] == pytest.approx((3 + 2) / 8)  # b -> x, " d" gone; " f" too much
    with pytest.raises(ValueError, match="no reference"):
        measures.recognition([""], ["a"])


def test_bad_audio_is_left_out_of_the_score(workdir):
    config = load_trained_run(workdir).config
    tokenizer = load_tokenizer(workdir)
    uri = "synthetic:tiny/dev+synthetic:tiny/test"
    splits = load_splits(config.data, {"dev": uri}, {"labelled": tokenizer})
    names = [u.id for u in splits.utterances("dev")]
    references = splits.references("dev")
    texts = dict(zip(names[1:], references[1:], strict=True))
    found = scoring.score_split(TASK, "dev", splits, texts)
    assert found.scores["dev/utterances"] == len(names) - 1
    assert [p["id"] for p in found.pairs] == names[1:]
    assert {k: v for k, v in found.scores.items() if k.endswith("wer")} == {
        "dev/wer": 0.0,
        "dev/dev/wer": 0.0,
        "dev/test/wer": 0.0,
    }


def two_parts(workdir):
    """(splits of which dev has the parts dev and test, ids of each part, texts by id)."""
    config = load_trained_run(workdir).config
    uri = "synthetic:tiny/dev+synthetic:tiny/test"
    splits = load_splits(config.data, {"dev": uri}, {"labelled": load_tokenizer(workdir)})
    names = [u.id for u in splits.utterances("dev")]
    texts = dict(zip(names, splits.references("dev"), strict=True))
    parts = {part: [names[i] for i in own] for part, own in splits.parts("dev").items()}
    return splits, parts, texts


def test_a_part_without_sound_audio_is_left_out_and_said(workdir):
    splits, parts, texts = two_parts(workdir)
    kept = {name: texts[name] for name in parts["dev"]}
    found = scoring.score_split(TASK, "dev", splits, kept)
    assert {k for k in found.scores if k.endswith("wer")} == {"dev/wer", "dev/dev/wer"}
    assert found.scores["dev/utterances"] == len(parts["dev"])
    (note,) = found.notes
    assert note.startswith("dev/test: not scored")
    scores = found.scores | {"dev/blank_share": 0.0}
    assert f"  {note}" in scoring.describe("dev", found._replace(scores=scores), 0)
    assert scoring.score_split(TASK, "dev", splits, texts).notes == ()


def test_a_split_without_any_reference_is_a_mistake(workdir):
    splits, _, _ = two_parts(workdir)
    with pytest.raises(UserError, match=r"dev: all \d+ utterances have bad audio or no text"):
        scoring.score_split(TASK, "dev", splits, {})


@pytest.mark.parametrize(
    ("wer", "blanks", "warned"), [(1.0, 0.5, True), (0.9, 0.995, True), (0.9, 0.9, False)]
)
def test_nothing_recognised_is_said_with_its_causes(wer, blanks, warned):
    scores = {"wer": wer, "cer": 0.5, "blank_share": blanks}
    scores |= dict.fromkeys(("substitutions", "deletions", "insertions", "words"), 1)
    result = scoring.Result({f"dev/{k}": v for k, v in scores.items()}, [])
    assert any("learning rate" in line for line in scoring.describe("dev", result, 3)) == warned


# A run


def test_a_run_opens_with_its_weights_and_without_its_training_data(workdir):
    opened = load_trained_run(workdir)
    assert opened.step == UNTRAINED_STEP
    assert opened.tokenizer.vocab_size == 29
    params, _, stats = jax.eval_shape(opened.recipe.init, jax.random.key(1))
    for made, loaded in ((params, opened.weights.params), (stats, opened.weights.stats)):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(
            lambda x: (x.shape, x.dtype), loaded
        )
    with pytest.raises(UserError, match=r"gone\.jsonl"):
        opened.load_split("train", "")


def test_a_beam_of_one_is_the_best_path_and_only_that(workdir, capsys):
    out = workdir / "one.jsonl"
    assert command.main([f"--workdir={workdir}", "--beam=1", f"--out={out}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step"] == UNTRAINED_STEP
    assert found["normalise"] == ["invisible", "lower"]
    plain, beam = found["best_path"], found["beam_search"]
    assert plain["dev/blank_share"] >= 0
    assert beam == {k: v for k, v in plain.items() if k in beam}
    samples = read_samples(out)
    assert len(samples) == plain["dev/utterances"] == 8
    assert all(s["hypothesis"] == s["best_path"] for s in samples)
    assert any(s["hypothesis"] for s in samples)


def test_tuning_with_a_language_model(workdir, language_model, capsys):
    """The tuned weights are the best of those tried, and what is scored last."""
    flags = [f"--workdir={workdir}", f"--lm={language_model}", "--beam=4", "--nbest=3", "--tune"]
    assert command.main([*flags, "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    trials = found["tuned"]
    best = min(trials, key=lambda t: (t["wer"], t["cer"]))
    assert (best["wer"], best["cer"]) == tuple(
        found["beam_search"][f"dev/{k}"] for k in ("wer", "cer")
    )
    assert (found["alpha"], found["beta"]) in {(t["alpha"], t["beta"]) for t in trials}
    assert "100.0% of the words of the references" in captured.err
    for pair in read_samples(workdir / "samples" / "dev-beam.jsonl"):
        scores = [h["score"] for h in pair["nbest"]]
        assert scores == sorted(scores, reverse=True)
        assert 1 <= len(scores) <= 3
        assert pair["nbest"][0]["text"] == pair["hypothesis"]
        for h in pair["nbest"]:
            total = h["ctc"] + found["alpha"] * h["lm"] + found["beta"] * h["count"]
            assert h["score"] == pytest.approx(total, abs=1e-6)


def test_distributions_are_of_the_frames_that_are_there(workdir):
    opened = load_trained_run(workdir)
    splits = opened.load_split("dev", "synthetic:tiny/dev")
    frames = compute_ctc_output(opened, splits, "dev")
    for name, log_probs in frames.log_probs.items():
        path = frames.paths[name]
        assert log_probs.shape == ((path >= 0).sum(), 29)
        # float32: a frame's probabilities sum to 1 within 1e-5
        np.testing.assert_allclose(np.exp(log_probs).sum(1), 1, atol=1e-5)
        assert collapse(log_probs.argmax(1)) == collapse(path)


# Tuning


def test_tuning_walks_to_the_best_of_the_grid_and_tries_nothing_twice():
    calls = []

    def bowl(alpha, beta):
        calls.append((alpha, beta))
        return Trial(alpha, beta, (alpha - 0.8) ** 2 + 0.1 * (beta - 1.4) ** 2, 0.0)

    best, trials = tune(bowl, (0.3, 0.3))
    assert best[:2] == (0.75, 1.5)
    assert len(calls) == len(set(calls)) == len(trials)
    assert len(calls) < len(ALPHAS) * len(BETAS)


def test_equal_word_errors_are_decided_by_characters():
    best, _ = tune(lambda a, b: Trial(a, b, 0.5, abs(a - 1.0) + abs(b)), (0.0, 0.0))
    assert best[:2] == (1.0, 0.0)


# Mistakes


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--beam=0"], "--beam"),
        (["--beam=four"], "--beam"),
        (["--nbest=17"], "--nbest"),
        (["--prune=1"], "--prune"),
        (["--tune"], "--lm"),
        (["--split=tset"], "no split 'tset': there are dev, test, train"),
        (["--split=test"], "config.data.test"),
        (["--data=none.jsonl"], "none.jsonl"),
        (["--lm=none.arpa"], "none.arpa"),
        (["--lm=CAPITALS.arpa"], "upper or lower case"),
        (["--lm=CAPITALS.arpa", "--lm_over=units"], "over units"),
        (["--unknown"], "--unknown"),
    ],
)
def test_mistakes_are_one_line(flags, words, workdir, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arpa.write(pathlib.Path("CAPITALS.arpa"), kneser_ney.estimate([["ONE", "TWO"]], 2).orders)
    check_mistake([f"--workdir={workdir}", *flags], words, capsys)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "--workdir of a training run"),
        (lambda folder: (folder / "config.json").write_text("{}"), "of another version"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: None, "no checkpoint yet"),
    ],
)
def test_a_folder_that_is_no_finished_run(break_it, words, workdir, capsys, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((workdir / name).read_bytes())
    if words != "no checkpoint yet":
        (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    break_it(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    check_mistake([f"--workdir={tmp_path}"], words, capsys)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


def check_mistake(flags, words, capsys):
    assert command.main(flags) == 2
    captured = capsys.readouterr()
    assert not captured.out
    (line,) = [x for x in captured.err.splitlines() if x.startswith("error: ")]
    assert captured.err.splitlines()[-1] == line
    assert words in line


def test_saying_nothing_is_not_better_than_inserting_words():
    def rank(wer, cer):
        result = scoring.Result({"dev/wer": wer, "dev/cer": cer}, [])
        return scoring.Scored("dev", (TASK,), {"": result}).rank

    assert rank(1.04, 0.5) < rank(0.97, 0.97)
    assert rank(0.4, 0.5) < rank(0.5, 0.1) < rank(1.2, 0.1)
