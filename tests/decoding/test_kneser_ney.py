"""Estimated models sum to 1, equal a slow reading of the paper, and small texts do not break
them."""

import collections
import itertools
import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bljust_jax import ngram as command
from bljust_jax.common.errors import UserError
from bljust_jax.decoding import arpa, kneser_ney
from tests.helpers.sentences import sentence_score

WORDS = list("abcdefgh")


def zipf_texts(seed, sentences, words=WORDS):
    rng = random.Random(seed)
    weights = [1 / n for n in range(1, len(words) + 1)]
    return [rng.choices(words, weights, k=rng.randint(1, 7)) for _ in range(sentences)]


def read(tmp_path, model):
    arpa.write(tmp_path / "x.arpa", model.orders)
    return arpa.Arpa.read(tmp_path / "x.arpa")


def after(lm, history, sentence_start):
    """The state after a history, of a sentence's first words or from the middle of one."""
    state = lm.start() if sentence_start else (-1,) * (lm.order - 1)
    for word in history:
        _, state = lm.score(state, word)
    return state


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from("abc"), max_size=5), min_size=1, max_size=6))
@pytest.mark.parametrize("order", [1, 2, 4])
def test_every_history_sums_to_one_however_small_the_text(tmp_path_factory, texts, order):
    if not any(texts):
        with pytest.raises(UserError, match="no word to learn"):
            kneser_ney.estimate(texts, order)
        return
    model = kneser_ney.estimate(texts, order)
    lm = read(tmp_path_factory.mktemp("lm"), model)
    outcomes = [w for (w,) in model.orders[0] if w != arpa.START]
    assert arpa.UNKNOWN in outcomes
    for length in range(order):
        for history in itertools.product(["a", "b", "unheard"], repeat=length):
            for from_start in (True, False):
                state = after(lm, history, from_start)
                total = sum(math.exp(lm.score(state, word)[0]) for word in outcomes)
                # the file keeps seven digits of log10, 1e-6 of a probability
                assert total == pytest.approx(1, abs=1e-5)


def by_definition(texts, order, discounts):
    """p(word, history), Chen & Goodman's formulas as they stand, from the padded texts alone."""
    padded = [("<s>", *t, "</s>") for t in texts]
    grams = {
        n: collections.Counter(p[i : i + n] for p in padded for i in range(len(p) - n + 1))
        for n in range(1, order + 1)
    }
    vocabulary = {g[0] for g in grams[1]} - {"<s>"} | {"<unk>"}

    def count(gram):
        if len(gram) == order or gram[0] == "<s>":
            return grams[len(gram)][gram]
        return sum(longer[1:] == gram for longer in grams[len(gram) + 1])

    def p(word, history):
        n = len(history) + 1
        following = {w: count((*history, w)) for w in vocabulary}
        total = sum(following.values())
        lower = p(word, history[1:]) if history else 1 / len(vocabulary)
        if not total:
            return lower
        d = (0.0, *discounts[n - 1])
        freed = sum(d[min(c, 3)] for c in following.values())
        c = following[word]
        return max(c - d[min(c, 3)], 0) / total + freed / total * lower

    return p, vocabulary


@pytest.mark.parametrize("order", [2, 3])
def test_equals_the_formulas(tmp_path, order):
    texts = zipf_texts(1, 80)
    model = kneser_ney.estimate(texts, order)
    lm = read(tmp_path, model)
    p, vocabulary = by_definition(texts, order, model.discounts)
    for history in [(), ("a",), ("b", "a"), ("h", "g"), ("c", "a", "b")]:
        state, context = after(lm, history, True), ("<s>", *history)[-(order - 1) :]
        for word in sorted(vocabulary):
            # seven digits of log10
            assert math.exp(lm.score(state, word)[0]) == pytest.approx(p(word, context), rel=1e-5)


def test_discounts_by_hand():
    """n1 = 4, n2 = 2, n3 = 1, n4 = 1: Y = 1/2."""
    counts = {(c,): n for c, n in zip("abcdefgh", [1, 1, 1, 1, 2, 2, 3, 4], strict=True)}
    assert kneser_ney.discounts(counts) == pytest.approx((0.5, 2 - 3 * 0.5 / 2, 3 - 4 * 0.5))
    assert kneser_ney.discounts({("a",): 1, ("b",): 2}) is None
    few_twos = {(str(i),): n for i, n in enumerate([1] * 9 + [2] + [3] * 9 + [4])}
    assert kneser_ney.discounts(few_twos) is None  # D2 would be far below 0


def test_what_was_said_is_likelier_than_what_was_not(tmp_path):
    texts = zipf_texts(2, 300)
    lm = read(tmp_path, kneser_ney.estimate(texts[:200], 3))
    shuffled = [random.Random(n).sample(WORDS, len(t)) for n, t in enumerate(texts[200:])]
    said, unsaid = (
        np.mean([sentence_score(lm, t) for t in group]) for group in (texts[200:], shuffled)
    )
    assert said > unsaid + 1


def test_marks_of_the_model_are_refused_in_texts():
    with pytest.raises(UserError, match="</s>"):
        kneser_ney.estimate([["a", "</s>"]], 2)
    with pytest.raises(UserError, match="--order 0"):
        kneser_ney.estimate([["a"]], 0)


# The command


def test_command_reads_text_and_says_what_it_did(tmp_path, capsys):
    (tmp_path / "texts").write_text("We call it  Bear\n\nwe CALL\n", encoding="utf-8")
    out = tmp_path / "made" / "x.arpa"
    flags = [f"--text={tmp_path / 'texts'}", f"--out={out}", "--order=2", "--json"]
    assert command.main(flags) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert (summary["sentences"], summary["tokens"], summary["fallback"]) == (2, 6, [1, 2])
    assert "too little text" in captured.err
    lm = arpa.Arpa.read(out)
    assert "bear" in lm
    assert "Bear" not in lm


def test_command_over_the_units_of_a_run(tmp_path, capsys):
    from bljust_jax.data.tokenizer import CharTokenizer

    CharTokenizer("ab ", ("lower",)).save(tmp_path)
    (tmp_path / "texts").write_text("AB a\nb é\n", encoding="utf-8")
    out = tmp_path / "x.arpa.gz"
    flags = [f"--text={tmp_path / 'texts'}", f"--workdir={tmp_path}", "--over=units"]
    assert command.main([*flags, f"--out={out}"]) == 0
    assert "1 sentences, 4 units" in capsys.readouterr().out  # "b é" cannot be spelt
    lm = arpa.Arpa.read(out)
    assert all(unit in lm for unit in ("a", "b", "▁"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--out"),
        (["--out=x.arpa"], "--data URI or --text FILE"),
        (["--out=x.arpa", "--text=none"], "none"),
        (["--out=x.arpa", "--data=none.jsonl"], "none.jsonl"),
        (["--out=x.arpa", "--text=none", "--over=units"], "--model"),
        (["--out=x.arpa", "--text=none", "--normalise=lowr"], "lower"),
    ],
)
def test_mistakes_are_one_line(flags, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(flags) == 2
    captured = capsys.readouterr()
    assert not captured.out
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert not list(tmp_path.iterdir())
