"""Prefix beam search against sums over all paths, against the best path, and in speed."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bljust_jax.decoding import arpa, kneser_ney
from bljust_jax.decoding.ctc_beam import BeamSearch, Fusion
from bljust_jax.decoding.greedy import collapse
from tests.helpers.sentences import sentence_score

SPEECH = ("a", "b", " ")
PIECES = ("▁a", "b", "▁")
WIDE = 1000  # more halves than prefixes of 5 frames and 3 units have


def random_frames(seed, frames, classes, sharpness=1.5):
    logits = sharpness * np.random.default_rng(seed).standard_normal((frames, classes))
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def all_prefixes(log_probs):
    """{units: ln of the sum over all its paths}."""
    masses = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        logp = sum(float(log_probs[t, k]) for t, k in enumerate(path))
        units = tuple(collapse(path))
        masses[units] = np.logaddexp(masses.get(units, -math.inf), logp)
    return masses


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """(path, words) -> a bigram model of a few sentences."""

    def make(sentences):
        path = tmp_path_factory.mktemp("lm") / "tiny.arpa"
        arpa.write(path, kneser_ney.estimate(sentences, 2).orders)
        return arpa.Arpa.read(path)

    return make


def check_against(found, masses, tokens_of, fusion):
    """Every prefix is there, with the scores that definitions give it, best first."""
    assert {h.units for h in found} == set(masses)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    for h in found:
        tokens = tokens_of(h.units)
        lm = sentence_score(fusion.lm, tokens) if fusion else 0.0
        # float64 sums of a few hundred paths in another order: 1e-9
        assert h.ctc == pytest.approx(masses[h.units], abs=1e-9)
        assert h.lm == pytest.approx(lm, abs=1e-9)
        assert h.count == (len(tokens) if fusion else 0)
        expected = h.ctc + (fusion.alpha * lm + fusion.beta * h.count if fusion else 0.0)
        assert h.score == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("frames", "seed"), [(1, 0), (3, 1), (5, 2), (5, 3)])
def test_a_wide_beam_sums_all_paths(frames, seed):
    log_probs = random_frames(seed, frames, 4)
    found = BeamSearch(SPEECH, beam=WIDE, prune=0.0)(log_probs, WIDE)
    check_against(found, all_prefixes(log_probs), lambda units: [], None)
    # all prefixes together have probability 1; float32 inputs sum to 1 within 1e-6 a frame
    assert np.logaddexp.reduce([h.ctc for h in found]) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("symbols", [SPEECH, PIECES])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_wide_beam_with_words_equals_brute_force(symbols, seed, language_model):
    lm = language_model([["a", "b"], ["ab"], ["a", "b", "b"], ["abb", "a"]])
    fusion = Fusion(lm, alpha=0.7, beta=1.3)
    log_probs = random_frames(seed, 5, 4)
    found = BeamSearch(symbols, beam=WIDE, prune=0.0, fusion=fusion)(log_probs, WIDE)

    def words(units):
        return "".join(symbols[u - 1] for u in units).replace("▁", " ").split()

    check_against(found, all_prefixes(log_probs), words, fusion)


def test_a_wide_beam_with_units_equals_brute_force(language_model):
    lm = language_model([["a", "b", "▁", "a"], ["b", "a"], ["a", "▁", "b"]])
    fusion = Fusion(lm, alpha=0.4, beta=-0.2, over="units")
    log_probs = random_frames(5, 5, 4)
    found = BeamSearch(SPEECH, beam=WIDE, prune=0.0, fusion=fusion)(log_probs, WIDE)
    spelled = {1: "a", 2: "b", 3: "▁"}
    check_against(found, all_prefixes(log_probs), lambda us: [spelled[u] for u in us], fusion)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    frames=st.integers(0, 30),
    classes=st.integers(2, 8),
    sharpness=st.floats(0, 6),
    prune=st.sampled_from([0.0, 1e-3, 0.5]),
)
def test_a_beam_of_one_is_the_best_path(seed, frames, classes, sharpness, prune):
    """Ties included: logits are rounded, so that equal classes are common."""
    logits = np.round(sharpness * np.random.default_rng(seed).standard_normal((frames, classes)))
    log_probs = (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)
    (found,) = BeamSearch(tuple("abcdefg"[: classes - 1]), beam=1, prune=prune)(log_probs)
    assert list(found.units) == collapse(log_probs.argmax(axis=1))
    assert found.ctc == pytest.approx(float(log_probs.max(axis=1).sum()), abs=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), beam=st.integers(1, 12))
def test_no_prefix_gets_more_than_its_mass(seed, beam):
    """What a beam drops is lost, never counted twice; the first of an N-best is the best."""
    log_probs = random_frames(seed, 5, 4)
    masses = all_prefixes(log_probs)
    found = BeamSearch(SPEECH, beam=beam, prune=0.0)(log_probs, nbest=beam)
    assert len(found) <= beam
    assert len({h.units for h in found}) == len(found)
    assert all(h.ctc <= masses[h.units] + 1e-9 for h in found)
    assert found[0].score == max(h.score for h in found)


def test_the_beam_finds_what_the_best_path_misses():
    """Graves' example: the empty labelling has the best path (0.36), "a" the most mass (0.64)."""
    log_probs = np.log(np.array([[0.6, 0.4], [0.6, 0.4]], np.float32))
    best = [BeamSearch(("a",), beam=beam)(log_probs)[0] for beam in (1, 4)]
    assert [b.units for b in best] == [(), (1,)]
    assert math.exp(best[1].ctc) == pytest.approx(0.64, abs=1e-6)  # float32 inputs


def test_the_language_model_decides_between_equal_sounds(language_model):
    lm = language_model([["a", "b"]] * 5 + [["b"]])
    log_probs = np.log(np.array([[0.02, 0.49, 0.49, 0], [1, 0, 0, 0]], np.float32) + 1e-9)
    for alpha, expected in ((0.0, (1,)), (5.0, (2,))):  # </s> follows "b" and never "a"
        search = BeamSearch(SPEECH, beam=8, fusion=Fusion(lm, alpha, 0.0))
        assert search(log_probs)[0].units == expected


def test_pruning_drops_classes_far_below_the_best_and_never_the_blank():
    log_probs = np.log(np.array([[0.05, 0.9, 0.04, 0.01], [0.001, 0.9, 0.05, 0.049]], np.float32))
    found = BeamSearch(SPEECH, beam=WIDE, prune=0.1)(log_probs, WIDE)
    assert {h.units for h in found} == {(), (1,)}
    assert math.exp(found[-1].ctc) == pytest.approx(0.05 * 0.001, rel=1e-5)  # two blanks


class Words:
    """A language model of one word: ln p of a word, and of the end after it."""

    def __init__(self, words, ends):
        self._words, self._ends = words, ends

    def start(self):
        return ""

    def score(self, state, word):
        return self._words[word], word

    def end(self, state):
        return self._ends[state]


def test_equal_hypotheses_are_ordered_by_their_units():
    """b is ahead of a until their ends are scored; the sums -1 - 2 and -2 - 1 are equal."""
    lm = Words({"a": -2.0, "b": -1.0}, {"": -9.0, "a": -1.0, "b": -2.0})
    frame = np.array([[-5.0, -1.0, -1.0]])
    first, second, *_ = BeamSearch(("a", "b"), fusion=Fusion(lm, 1.0, 0.0, "units"))(frame, nbest=3)
    assert first.score == second.score == -4.0
    assert (first.units, second.units) == ((1,), (2,))


def test_a_class_at_the_margin_is_kept():
    frame = np.array([[0.0, math.log(0.5), math.log(0.49)]])
    found = BeamSearch(("a", "b"), prune=0.5)(frame, nbest=3)
    assert [h.units for h in found] == [(), (1,)]


def test_words_count_when_they_are_complete():
    """With a beam of one half the space is taken for its bonus, against a likelier blank."""
    lm = Words({"a": 0.0}, {"": 0.0, "a": 0.0})
    frames = np.log(np.array([[0.01, 0.98, 0.01], [0.6, 0.01, 0.39]]))
    for beta, units in ((0.0, (1,)), (1.0, (1, 2))):
        (best,) = BeamSearch(("a", " "), beam=1, fusion=Fusion(lm, 1.0, beta))(frames)
        assert best.units == units


def test_nothing_to_decode_is_the_empty_hypothesis(language_model):
    lm = language_model([["a"], ["b", "a"]])
    found = BeamSearch(SPEECH, fusion=Fusion(lm, 0.5, 1.0))(np.zeros((0, 4), np.float32))
    assert [h.units for h in found] == [()]
    assert found[0].score == pytest.approx(0.5 * lm.end(lm.start()), abs=1e-12)


def test_wrong_inputs_are_refused():
    search = BeamSearch(SPEECH)
    with pytest.raises(ValueError, match=r"not \[T, 4\]"):
        search(np.zeros((2, 3), np.float32))
    for bad in (np.nan, -np.inf):
        with pytest.raises(ValueError, match="NaN"):
            search(np.full((2, 4), bad, np.float32))
    for settings_ in ({"beam": 0}, {"prune": 1.0}):
        with pytest.raises(ValueError, match="must be"):
            BeamSearch(SPEECH, **settings_)


@pytest.mark.parametrize("classes", [30, 500])
def test_five_seconds_take_well_under_a_tenth_of_a_second(classes, language_model):
    """1,000 utterances a minute on two cores are 120 ms of a core each, and 100,000 updates of a
    dict 20 ms: at most three times those, in CPU time, so that no slow or busy machine fails it."""
    rng = np.random.default_rng(0)
    text = [["".join(rng.choice(list("ab"), 3)) for _ in range(8)] for _ in range(200)]
    symbols = (" ", "a", "b", *(chr(0x4E00 + n) for n in range(classes - 4)))
    logits = 2.0 * rng.standard_normal((125, classes))
    logits[:, 0] += 8.0
    peaks = rng.integers(1, 4, 40)
    logits[np.arange(40) * 3, peaks] += 10.0
    log_probs = (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)
    search = BeamSearch(symbols, fusion=Fusion(language_model(text), 0.5, 1.0))

    def seconds(work):
        started = time.process_time()
        work()
        return time.process_time() - started

    def update_a_dict():
        counts = {}
        for n in range(100_000):
            key = n % 997, n & 7
            counts[key] = counts.get(key, 0.0) + 1.0

    pairs = [(seconds(lambda: search(log_probs)), seconds(update_a_dict)) for _ in range(3)]
    found, reference = map(min, zip(*pairs, strict=True))
    assert found < 3 * reference
