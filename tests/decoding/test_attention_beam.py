"""Beam search over an attention decoder: against all texts, against greedy by hand, its limits."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.decoding import attention_beam
from bljust_jax.models.decoder import Decoder

CLASSES, WIDTH = 4, 5


class Recurrent:
    """A small decoder whose logits depend on the whole text: h <- tanh(A h + E[token] + row)."""

    def __init__(self, seed: int, rows: int):
        draw = np.random.default_rng(seed)
        self.weights = {
            "mix": draw.normal(size=(WIDTH, WIDTH)),
            "embedding": 2 * draw.normal(size=(CLASSES, WIDTH)),
            "row": draw.normal(size=(rows, WIDTH)),
            "output": 1.5 * draw.normal(size=(WIDTH, CLASSES)),
        }

    @staticmethod
    def begin(weights, max_len, beam):
        return jnp.zeros((len(weights["row"]), beam, WIDTH), jnp.float32)

    @staticmethod
    def extend(weights, hidden, tokens, position, parents):
        del position
        if parents is not None:
            hidden = jnp.take_along_axis(hidden, parents[..., None], axis=1)
        inputs = weights["embedding"][tokens] + weights["row"][:, None]
        hidden = jnp.tanh(hidden @ weights["mix"] + inputs)
        return hidden @ weights["output"], hidden

    def log_probs(self, row, text):
        """[n + 1, K]: of what follows each beginning of a text, in float64."""
        w, hidden, out = self.weights, np.zeros(WIDTH), []
        for token in (0, *text):
            hidden = np.tanh(hidden @ w["mix"] + w["embedding"][token] + w["row"][row])
            logits = hidden @ w["output"]
            out.append(logits - np.log(np.sum(np.exp(logits))))
        return np.array(out)

    def score(self, row, text, alpha):
        target = (*text, 0)
        total = self.log_probs(row, text)[np.arange(len(target)), target].sum()
        return total / ((5 + len(target)) / 6) ** alpha


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def search(kind, weights, lengths, frames, how):
    begin, extend = (functools.partial(f, weights) for f in (kind.begin, kind.extend))
    return attention_beam.search(begin, extend, lengths, frames, **dict(how))


def run(model, lengths, frames, **how):
    """One program for all models of a kind."""
    weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), model.weights)
    how = tuple(sorted(how.items()))
    return np.asarray(search(type(model), weights, jnp.asarray(lengths), frames, how))


def texts(ids):
    """Rows of tokens; nothing but -1 follows the first -1."""
    found = []
    for row in ids.tolist():
        n = row.index(-1) if -1 in row else len(row)
        assert row[n:] == [-1] * (len(row) - n)
        assert 0 not in row
        found.append(tuple(row[:n]))
    return found


def greedy(model, row, limit):
    text = ()
    while len(text) < limit:
        best = int(model.log_probs(row, text)[-1].argmax())
        if best == 0:
            break
        text = (*text, best)
    return text


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_beam_that_drops_nothing_finds_the_best_of_all_texts(alpha):
    """Rows of 3, 2, 1 and 0 frames, as many tokens at most: 40 texts of up to three of 3 tokens."""
    model, lengths = Recurrent(3, 4), [3, 2, 1, 0]
    ids = run(model, lengths, 3, beam=40, alpha=alpha, max_ratio=1.0, max_extra=0)
    best = []
    for row, limit in enumerate(lengths):
        every = [
            text
            for n in range(limit + 1)
            for text in itertools.product(range(1, CLASSES), repeat=n)
        ]
        best.append(max(every, key=lambda text, row=row: model.score(row, text, alpha)))
    assert texts(ids) == best
    assert ids.shape == (4, 3)
    assert ids.dtype == np.int32


def test_the_length_exponent_matters_and_favours_long_texts():
    """The cases above are not all the same text."""
    model, lengths = Recurrent(3, 4), [3, 3, 3, 3]
    words = [
        sum(map(len, texts(run(model, lengths, 3, beam=40, alpha=a, max_extra=0))))
        for a in (0.0, 0.6, 2.0)
    ]
    assert words == sorted(words)
    assert words[0] < words[2]


@pytest.mark.parametrize("seed", range(4))
def test_a_beam_of_one_is_greedy(seed):
    model, lengths = Recurrent(seed, 6), [8, 8, 5, 2, 1, 0]
    found = texts(run(model, lengths, 8, beam=1, max_ratio=1.0, max_extra=1))
    limits = [n + 1 if n else 0 for n in lengths]
    assert found == [greedy(model, row, limit) for row, limit in enumerate(limits)]


def test_beams_score_better_than_greedy_on_the_whole():
    """No law for one text, as a beam may lose what greedy kept; on 60 the sum must rise."""
    sums = {
        beam: sum(
            model.score(row, text, 0.6)
            for model in (Recurrent(seed, 10) for seed in range(6))
            for row, text in enumerate(texts(run(model, [6] * 10, 6, beam=beam)))
        )
        for beam in (1, 4)
    }
    assert sums[1] < sums[4]


class Always:
    """The same logits after every text."""

    def __init__(self, logits):
        self.weights = {"logits": np.array(logits)}

    @staticmethod
    def begin(weights, max_len, beam):
        return ()

    @staticmethod
    def extend(weights, cache, tokens, position, parents):
        return jnp.broadcast_to(weights["logits"], (*tokens.shape, CLASSES)), cache


@pytest.mark.parametrize("beam", [1, 3])
def test_a_decoder_that_never_ends_stops_at_the_limit(beam):
    ids = run(Always([-50.0, 0, 1, 0]), [5], 7, beam=beam, max_ratio=0.5, max_extra=2)
    assert ids.tolist() == [[2] * 5 + [-1]]  # ceil(2.5) + 2 of at most ceil(3.5) + 2


@pytest.mark.parametrize("beam", [1, 2, 5])
def test_ties_go_to_the_smaller_id(beam):
    """All classes alike: the end comes first; where it is unlikely, class 1 does."""
    assert run(Always([0.0] * 4), [4], 4, beam=beam, alpha=0.0).tolist() == [[-1] * 14]
    ids = run(Always([-9.0, 0, 0, 0]), [2], 2, beam=beam, alpha=0.0, max_extra=0)
    assert set(ids.ravel()) <= {1, -1}


@pytest.mark.parametrize("beam", [1, 3])
def test_the_search_is_over_when_nothing_better_can_come(beam):
    """A step a token and one for the end of the longest row, counted on the device; the texts that
    miss their end would go on to the limit. A text that has ended stays as it is while others go
    on."""
    steps = []

    def extend(cache, tokens, position, parents):
        jax.debug.callback(lambda t: steps.append(int(t)), position)
        ends = jnp.arange(1, 4) == position  # row n ends after n + 1 tokens
        likely = jnp.where(ends, 0, 3)
        logits = 9.0 * jax.nn.one_hot(likely, CLASSES)[:, None]
        return jnp.broadcast_to(logits, (*tokens.shape, CLASSES)), cache

    begin = lambda max_len, beam: ()  # noqa: E731
    ids = jax.jit(lambda n: attention_beam.search(begin, extend, n, 9, beam=beam))(jnp.full(3, 9))
    jax.effects_barrier()
    assert texts(ids) == [(3,), (3, 3), (3, 3, 3)]
    assert sorted(steps) == [0, 1, 2, 3]


def test_a_text_that_gains_by_length_is_waited_for():
    """ln 0.6 for no token at all; ln 0.4 for eight, of which it scores ln 0.4 / (14 / 6)."""
    first, later, last = np.log([[0.6, 1e-9, 1e-9, 0.4], [1e-9] * 3 + [1], [1] + [1e-9] * 3])

    def extend(cache, tokens, position, parents):
        logits = jnp.where(position == 0, first, jnp.where(position == 8, last, later))
        return jnp.broadcast_to(logits, (*tokens.shape, CLASSES)), cache

    run = jax.jit(
        lambda n: attention_beam.search(lambda *_: (), extend, n, 8, beam=2, alpha=1.0, max_extra=0)
    )
    assert texts(run(jnp.array([8]))) == [(3,) * 8]


LENGTHS = jnp.array([3, 2, 0])
MODEL = Decoder(dim=16, layers=2, heads=2, vocab_size=CLASSES, memory_dim=6)


class Transformer(Recurrent):
    """The package's decoder, scored by whole passes over a text."""

    def __init__(self):
        params = jax.jit(MODEL.init)(jax.random.key(1))
        params["output"]["kernel"] *= 3
        memory = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 6)), jnp.float32)
        self.weights, self.apply = (params, memory), jax.jit(MODEL.apply)

    @staticmethod
    def begin(weights, max_len, beam):
        return MODEL.begin(*weights, LENGTHS, max_len, beam)

    @staticmethod
    def extend(weights, *state):
        return MODEL.extend(weights[0], *state)

    def log_probs(self, row, text):
        tokens, counts = np.zeros((3, 4), np.int32), np.zeros(3, np.int32)
        tokens[row, 1 : 1 + len(text)], counts[row] = text, 1 + len(text)
        logits = self.apply(*self.weights, LENGTHS, jnp.asarray(tokens), jnp.asarray(counts))
        return np.asarray(jax.nn.log_softmax(logits[row, : counts[row]]), np.float64)


def test_the_transformer_is_searched_as_by_whole_passes():
    """Greedy by full passes a step, and the best of all 40 texts by a beam that drops nothing."""
    model = Transformer()
    how = {"max_ratio": 1.0, "max_extra": 0}
    found = texts(run(model, LENGTHS, 3, beam=1, **how))
    assert found == [greedy(model, row, int(n)) for row, n in enumerate(LENGTHS)]
    found = texts(run(model, LENGTHS, 3, beam=40, **how))
    for row, limit in enumerate(LENGTHS.tolist()):
        every = (itertools.product(range(1, CLASSES), repeat=n) for n in range(limit + 1))
        scores = {t: model.score(row, t, 0.6) for t in itertools.chain(*every)}
        # As good as the best up to float32, should two texts score alike.
        assert scores[found[row]] >= max(scores.values()) - 1e-4


def test_limits_are_exact_and_grow_with_the_frames():
    assert attention_beam.limits(4, 0.1, 3).tolist() == [0, 4, 4, 4, 4]
    assert attention_beam.limits(3, 1.5, 0).tolist() == [0, 2, 3, 5]
    assert all(
        attention_beam.limits(50, 0.5, 1)[n] == math.ceil(n / 2) + 1 for n in range(1, 51)
    )  # fmt: skip


@pytest.mark.parametrize(
    "how", [{"beam": 0}, {"alpha": -0.1}, {"max_ratio": -1.0}, {"max_extra": -1}]
)
def test_impossible_settings_are_refused(how):
    with pytest.raises(ValueError, match=next(iter(how))):
        run(Recurrent(0, 1), [3], 3, **how)
