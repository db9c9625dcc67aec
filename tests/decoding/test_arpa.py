"""ARPA models by hand, against kenlm, and as others wrote them; what is wrong is named by line."""

import gzip
import importlib.util
import json
import math
import pathlib
import random

import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.decoding import arpa, kneser_ney
from tests.helpers.sentences import sentence_score

LINES = r"""a preamble that the format allows
\data\
ngram 1=5
ngram 2=3
ngram 3=1

\1-grams:
-99	<s>	-0.5
-1.0	</s>
-2.0	<unk>	-0.125
-0.5	a	-0.25
-0.75	b

\2-grams:
-0.1	<s> a	-0.0625
-0.2	a b	-0.03125
-0.3	b </s>

\3-grams:
-0.01	<s> a b

\end\
""".splitlines()

# log10 by hand: what is listed, and back-off weights of the contexts that are listed
BY_HAND = {
    "a b": -0.1 + -0.01 + (-0.03125 - 0.3),
    "b": (-0.5 - 0.75) - 0.3,  # (b </s>) after <s> b, a context that is not listed
    "a a": -0.1 + (-0.0625 - 0.25 - 0.5) + (-0.25 - 1.0),
    "": -0.5 - 1.0,
    "a zzz b": -0.1 + (-0.0625 - 0.25 - 2.0) + (-0.125 - 0.75) - 0.3,
}


def write(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_scores_by_hand(tmp_path, suffix, ending):
    path = tmp_path / f"x.arpa{suffix}"
    opener = gzip.open if suffix else open
    with opener(path, "wb") as file:
        file.write((ending.join(LINES) + ending).encode())
    lm = arpa.Arpa.read(path)
    assert lm.order == 3
    assert "a" in lm
    assert "zzz" not in lm
    for sentence, expected in BY_HAND.items():
        score = sentence_score(lm, sentence.split())
        assert score / math.log(10) == pytest.approx(expected, abs=1e-12), sentence


def test_states_hold_all_that_the_future_depends_on(tmp_path):
    """Histories that end in the same listed words share a state."""
    lm = arpa.Arpa.read(write(tmp_path / "x.arpa", LINES))
    states = {}
    for history in ("a b", "a a b", "b a b", "b", "b b"):
        state = lm.start()
        for word in history.split():
            _, state = lm.score(state, word)
        states[history] = state
    assert states["a a b"] == states["b a b"]
    assert len(set(states.values())) == 2  # "a b" is listed, "b b" and "<s> b" are not
    assert all(hash(s) is not None for s in states.values())


def test_a_word_outside_a_model_without_unk_costs_a_hundred_decades(tmp_path):
    lines = [line for line in LINES if "<unk>" not in line]
    lines[2] = "ngram 1=4"
    lm = arpa.Arpa.read(write(tmp_path / "x.arpa", lines))
    score, state = lm.score(lm.start(), "zzz")
    assert score / math.log(10) == pytest.approx(-0.5 - 100, abs=1e-9)
    assert lm.score(state, "b")[0] / math.log(10) == pytest.approx(-0.75, abs=1e-12)


@pytest.mark.parametrize(
    ("line", "new", "at", "words"),
    [
        ("\\data\\", "data", 22, "no line \\data\\"),
        ("ngram 2=3", "ngram 3=3", 4, "'ngram 2=COUNT'"),
        ("ngram 2=3", "ngram 2=many", 4, "'ngram 2=COUNT'"),
        ("ngram 2=3", "ngram 2=2", 17, "expected \\3-grams:"),
        ("ngram 2=3", "ngram 2=4", 19, "is not a probability"),
        ("\\3-grams:", "\\4-grams:", 19, "expected \\3-grams:"),
        ("-0.75\tb", "-0.75\ta", 12, "'a' is listed twice"),
        ("-0.2\ta b\t-0.03125", "-0.2\ta c", 16, "'c' is not among the 1-grams"),
        ("-0.2\ta b\t-0.03125", "-0.2\t<s> a", 17, "2-gram above is listed twice"),
        ("-0.3\tb </s>", "-0.3\tb", 17, "is not a probability, 2 words"),
        ("-0.3\tb </s>", "0.3\tb </s>", 17, "above 0"),
        ("-0.3\tb </s>", "nan\tb </s>", 17, "not a number"),
        ("-0.3\tb </s>", "x\tb </s>", 17, "not a number"),
        ("-1.0\t</s>", "-1.0\tc", 12, "lack </s>"),
        ("-0.01\t<s> a b", "-0.01\tb a b", 20, "context 'b a' is not listed"),
        ("\\end\\", "", 22, "expected \\end\\"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_number(tmp_path, line, new, at, words):
    lines = [new if line == each else each for each in LINES]
    path = write(tmp_path / "x.arpa", lines)
    with pytest.raises(UserError) as raised:
        arpa.Arpa.read(path)
    message = str(raised.value)
    number = int(message.removeprefix(f"{path}:").split(":")[0])
    assert number == at
    assert words in message
    assert "\n" not in message


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "x.arpa").write_bytes(b"\xff\xfe\x00 not text")
    (tmp_path / "x.arpa.gz").write_bytes(b"not gzip")
    (tmp_path / "cut.arpa.gz").write_bytes(gzip.compress("\n".join(LINES).encode())[:60])
    for name in ("x.arpa", "x.arpa.gz", "cut.arpa.gz"):
        with pytest.raises(UserError, match=f"{name}:.*cannot be read as UTF-8"):
            arpa.Arpa.read(tmp_path / name)
    with pytest.raises(UserError, match="no such language model"):
        arpa.open_lm(tmp_path / "none.arpa")


def test_a_real_model_of_others(speech):
    """AN4's: a preamble, <UNK> in capitals, tabs and blanks mixed."""
    path = speech / "layouts" / "an4" / "etc" / "an4.ug.lm"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    lm = arpa.open_lm(path)
    assert lm.order == 2
    assert "EIGHT" in lm
    for word in ("EIGHT", "not a word of it"):  # all 106 words share a probability
        score = lm.score(lm.start(), word)[0]
        assert score / math.log(10) == pytest.approx(-2.0253, abs=1e-9)


def test_writing_and_reading_changes_no_score(tmp_path):
    """Seven digits of log10 are kept: a word's score is within 1e-6."""
    random.seed(0)
    texts = [random.choices(["a", "b", "ć", "d'd"], k=random.randint(1, 6)) for _ in range(50)]
    model = kneser_ney.estimate(texts, 3)
    for name in ("x.arpa", "x.arpa.gz"):
        arpa.write(tmp_path / name, model.orders)
    plain, packed = (arpa.Arpa.read(tmp_path / n) for n in ("x.arpa", "x.arpa.gz"))
    for words in texts[:10]:
        assert sentence_score(plain, words) == sentence_score(packed, words)
    state = plain.start()
    for n, word in enumerate(texts[0][:3], start=1):
        score, state = plain.score(state, word)
        listed = ("<s>", *texts[0][:n])[-3:]
        assert score == pytest.approx(math.log(model.orders[len(listed) - 1][listed][0]), abs=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("kenlm") is None, reason="kenlm is not installed")
def test_kenlm_agrees_on_a_thousand_random_sentences(tmp_path, speech):
    """To 1e-4 in log10 of a sentence, as KenLM keeps float32; half of them hold unknown words."""
    texts = [line.split() for line in read_texts(speech / "en" / "train.jsonl")]
    path = tmp_path / "x.arpa"
    arpa.write(path, kneser_ney.estimate(texts, 3).orders)
    ours, theirs = arpa.Arpa.read(path), arpa.open_lm(path)
    assert isinstance(theirs, arpa.KenLM)
    assert theirs.order == 3
    random.seed(0)
    words = sorted({w for line in texts for w in line}) + ["unheard", "of"] * 100
    for n in range(1000):
        sentence = random.choices(words, k=random.randint(0, 12))
        sentence += random.choice(texts)[: n % 5]
        scores = [sentence_score(lm, sentence) for lm in (ours, theirs)]
        assert abs(scores[0] - scores[1]) / math.log(10) < 1e-4, sentence


def read_texts(manifest: pathlib.Path) -> list[str]:
    with open(manifest, encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]
