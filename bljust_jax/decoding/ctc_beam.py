"""CTC prefix beam search on the host, with an n-gram language model over words or units.

    score(y) = ln P_ctc(y | x) + alpha ln P_lm(y) + beta n(y),     n words (units) in y

after Hannun et al. (arXiv 1408.2873) and Graves (2012, section 7.5.3). Each prefix has two masses:
of its paths that end in a blank, and of those that end in its last unit. These halves are pruned
separately and `beam` counts halves, so a beam of 1 without a language model follows the best class
of each frame (ties to the smaller id): its result equals the collapsed best path. A beam that
prunes nothing sums all paths of every prefix. Equal prefixes are always merged.

A word is scored when it is complete: at the space, at a piece that begins with "▁", and at the end,
where ln P_lm(</s>) is added; a unit is scored when it is emitted.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bljust_jax.decoding.arpa import SPACE_UNIT, LanguageModel, unit_word

NONE = -math.inf
WORDS, UNITS = "words", "units"
BLANK = 0


class Hypothesis(NamedTuple):
    """units: ids without blanks; score = ctc + alpha lm + beta count; ctc: ln of the mass of the
    paths in the beam; lm: ln P_lm with the end of sentence, 0 without a model; count: number of
    words or units."""

    units: tuple[int, ...]
    score: float
    ctc: float
    lm: float
    count: int


class Fusion(NamedTuple):
    """A language model and its weights; `over`: kind of its tokens, "words" or "units"."""

    lm: LanguageModel
    alpha: float
    beta: float
    over: str = WORDS


class BeamSearch:
    """Beam search for one vocabulary; `symbols[n]` has id n + 1, id 0 is the blank.

    beam: halves kept per frame. prune: at each frame, classes less probable than `prune` times the
    most probable one are dropped, except the blank; 0 drops none. Scores of the language model are
    cached in the object.
    """

    def __init__(
        self,
        symbols: Sequence[str],
        *,
        beam: int = 16,
        prune: float = 1e-3,
        fusion: Fusion | None = None,
    ):
        if beam < 1 or not 0 <= prune < 1:
            raise ValueError(f"beam {beam} must be at least 1 and prune {prune} in [0, 1)")
        self._size, self._beam = len(symbols) + 1, beam
        self._margin = math.log(prune) if prune else NONE
        self._scorer = SCORERS[fusion.over](symbols, fusion) if fusion else _Scorer()

    def __call__(self, log_probs: Float[np.ndarray, "t k"], nbest: int = 1) -> list[Hypothesis]:
        """The `nbest` best hypotheses of log-probabilities [T, K], best first; fewer if the beam
        holds fewer. Raises ValueError if K is not the number of classes, and for a frame with NaN
        or with all classes at -inf."""
        if log_probs.shape[1] != self._size:
            raise ValueError(f"log_probs are {log_probs.shape}, not [T, {self._size}]")
        frames = log_probs.astype(np.float64)
        best = frames.max(axis=1, keepdims=True)
        if not (best > NONE).all():
            raise ValueError("a frame holds NaN, or no class that is possible")
        kept = (frames >= best + self._margin) & (frames > NONE)
        kept[:, BLANK] = False
        tree = _Prefixes(self._scorer, self._size)
        live = _Live(np.zeros(1, np.int64), np.zeros(1), np.full(1, NONE))
        for frame, keep in zip(frames, kept, strict=True):
            live = self._advance(tree, live, frame, np.flatnonzero(keep))
        return self._finish(tree, live)[:nbest]

    def _advance(
        self, tree: _Prefixes, live: _Live, frame: np.ndarray, classes: np.ndarray
    ) -> _Live:
        """The beam after one frame [K] with the kept `classes` [C]. Candidates: each of P prefixes
        followed by a blank [P], by its last unit again [P], by one more unit [P, C]; candidates of
        the same half are summed."""
        both = np.logaddexp(live.blank, live.unit)
        blank = both + frame[BLANK]
        if not len(classes):
            return _Live(live.nodes, blank, np.full(len(blank), NONE))
        last = tree.unit[live.nodes]
        column = np.minimum(classes.searchsorted(last), len(classes) - 1)
        kept = np.flatnonzero(classes[column] == last)  # prefixes whose last unit is among them
        again = np.full(len(blank), NONE)
        again[kept] = live.unit[kept] + frame[last[kept]]
        longer = both[:, None] + frame[classes][None, :]
        longer[kept, column[kept]] = live.blank[kept] + frame[last[kept]]
        place = {node: n for n, node in enumerate(live.nodes.tolist())}
        for child, parent in zip(kept, tree.parent[live.nodes[kept]].tolist(), strict=True):
            if parent in place:
                at = place[parent], column[child]
                again[child] = np.logaddexp(again[child], longer[at])
                longer[at] = NONE
        fused, gains = tree.fused[live.nodes], self._scorer.gains(tree, live.nodes, classes)
        extended = longer + fused[:, None] + gains
        scores = np.concatenate([blank + fused, again + fused, extended.ravel()])
        kinds = np.concatenate([np.full(len(blank), BLANK), last, np.tile(classes, len(blank))])
        chosen = _best(scores, kinds, self._beam)
        mass = np.concatenate([blank, again, longer.ravel()])[chosen]
        return _collect(tree, live.nodes.tolist(), classes.tolist(), chosen.tolist(), mass.tolist())

    def _finish(self, tree: _Prefixes, live: _Live) -> list[Hypothesis]:
        """All prefixes of the last beam with the end of sentence scored, best first."""
        made = []
        for node, ctc in zip(live.nodes, np.logaddexp(live.blank, live.unit), strict=True):
            lm, count = self._scorer.finish(tree, int(node))
            score = float(ctc) + self._scorer.alpha * lm + self._scorer.beta * count
            made.append(Hypothesis(tree.units(int(node)), score, float(ctc), lm, count))
        return sorted(made, key=lambda h: (-h.score, h.units))


def _best(scores: np.ndarray, kinds: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` greatest finite scores, best first; ties go to the smaller class."""
    if len(scores) > count:
        floor = np.partition(scores, len(scores) - count)[len(scores) - count]
        places = np.flatnonzero((scores >= floor) & (scores > NONE))
    else:
        places = np.flatnonzero(scores > NONE)
    return places[np.lexsort((kinds[places], -scores[places]))][:count]


def _collect(
    tree: _Prefixes, nodes: list[int], classes: list[int], chosen: list[int], mass: list[float]
) -> _Live:
    """The beam of the chosen candidates: their prefixes and the masses of the chosen halves."""
    found: dict[int, list[float]] = {}
    for at, value in zip(chosen, mass, strict=True):
        half, row = divmod(at, len(nodes))
        if half < 2:
            node = nodes[row]
        else:
            row, column = divmod(at - 2 * len(nodes), len(classes))
            node, half = tree.child(nodes[row], classes[column]), 1
        found.setdefault(node, [NONE, NONE])[half] = value
    halves = np.array(list(found.values()))
    return _Live(np.array(list(found), np.int64), halves[:, 0], halves[:, 1])


class _Live(NamedTuple):
    """The beam: prefixes [P], ln mass of paths ending in a blank [P] and in the last unit [P]."""

    nodes: np.ndarray
    blank: np.ndarray
    unit: np.ndarray


class _Prefixes:
    """A tree of prefixes: node 0 is empty; each node has a parent and a last unit.

    state, lm, count: language-model state, score and number of tokens so far; fused = alpha lm +
    beta count.
    """

    def __init__(self, scorer: _Scorer, size: int):
        self._scorer, self._size = scorer, size
        self._children: dict[int, int] = {}
        self.length = 1
        self.parent, self.unit = np.full(256, -1), np.zeros(256, np.int64)
        self.fused = np.zeros(256)
        self.state = [scorer.start]
        self.lm, self.count = [0.0], [0]
        self.completion: dict[int, tuple[float, object]] = {}

    def child(self, node: int, unit: int) -> int:
        """The prefix `node` + `unit`, added if it is new."""
        key = node * self._size + unit
        if key not in self._children:
            self._children[key] = self._add(node, unit)
        return self._children[key]

    def _add(self, node: int, unit: int) -> int:
        if self.length == len(self.parent):
            grow = functools.partial(np.resize, new_shape=2 * self.length)
            self.parent, self.unit, self.fused = map(grow, (self.parent, self.unit, self.fused))
        new, self.length = self.length, self.length + 1
        self.parent[new], self.unit[new] = node, unit
        lm, state, tokens = self._scorer.step(self, node, unit)
        self.state.append(state)
        self.lm.append(self.lm[node] + lm)
        self.count.append(self.count[node] + tokens)
        self.fused[new] = self._scorer.alpha * self.lm[new] + self._scorer.beta * self.count[new]
        return new

    def units(self, node: int) -> tuple[int, ...]:
        """The ids of a prefix."""
        ids = []
        while node:
            ids.append(int(self.unit[node]))
            node = self.parent[node]
        return tuple(reversed(ids))


# Scoring of prefixes by a language model


class _Scorer:
    """No language model."""

    start: object = None
    alpha = beta = 0.0

    def step(self, tree: _Prefixes, node: int, unit: int) -> tuple[float, object, int]:
        """(ln p of the tokens that `unit` completes, state after them, their number)."""
        return 0.0, None, 0

    def gains(self, tree: _Prefixes, nodes: np.ndarray, classes: np.ndarray) -> np.ndarray | float:
        """alpha lm + beta count of the tokens that each class would complete."""
        return 0.0

    def finish(self, tree: _Prefixes, node: int) -> tuple[float, int]:
        """(ln P_lm, tokens) of the whole prefix as a sentence."""
        return 0.0, 0


class _UnitScorer(_Scorer):
    """A language model over units."""

    def __init__(self, symbols: Sequence[str], fusion: Fusion):
        lm, self.alpha, self.beta = fusion.lm, fusion.alpha, fusion.beta
        words = ["", *map(unit_word, symbols)]
        self.start, self._end = lm.start(), functools.lru_cache(1 << 18)(lm.end)
        self._score = functools.lru_cache(1 << 20)(lambda state, u: lm.score(state, words[u]))

    def step(self, tree, node, unit):
        return *self._score(tree.state[node], unit), 1

    def gains(self, tree, nodes, classes):
        states, units = [tree.state[n] for n in nodes.tolist()], classes.tolist()
        lm = np.array([[self._score(state, unit)[0] for unit in units] for state in states])
        return self.alpha * lm + self.beta

    def finish(self, tree, node):
        return tree.lm[node] + self._end(tree.state[node]), tree.count[node]


class _WordScorer(_Scorer):
    """A language model over words; a space, or a piece that begins with "▁", completes a word."""

    def __init__(self, symbols: Sequence[str], fusion: Fusion):
        lm, self.alpha, self.beta = fusion.lm, fusion.alpha, fusion.beta
        self._text = ["", *(s.removeprefix(SPACE_UNIT).strip() for s in symbols)]
        begins = [s.startswith((" ", SPACE_UNIT)) for s in symbols]
        self._begins: np.ndarray = np.array([False, *begins])
        self.start, self._end = lm.start(), functools.lru_cache(1 << 18)(lm.end)
        self._score = functools.lru_cache(1 << 20)(lm.score)

    def step(self, tree, node, unit):
        if not self._begins[unit]:
            return 0.0, tree.state[node], 0
        return self._complete(tree, node)

    def gains(self, tree, nodes, classes):
        begins = self._begins[classes]
        if not begins.any():
            return 0.0
        found = (self._complete(tree, node) for node in nodes.tolist())
        gain = np.array([self.alpha * lm + self.beta * words for lm, _, words in found])
        return np.where(begins[None, :], gain[:, None], 0.0)

    def _complete(self, tree: _Prefixes, node: int) -> tuple[float, object, int]:
        """`step` for the last word of `node`, cached."""
        if node not in tree.completion:
            word, state = self._word(tree, node), tree.state[node]
            tree.completion[node] = (*self._score(state, word), 1) if word else (0.0, state, 0)
        return tree.completion[node]

    def _word(self, tree: _Prefixes, node: int) -> str:
        parts = []
        while node:
            unit = int(tree.unit[node])
            parts.append(self._text[unit])
            if self._begins[unit]:
                break
            node = int(tree.parent[node])
        return "".join(reversed(parts))

    def finish(self, tree, node):
        lm, state, words = self._complete(tree, node)
        return tree.lm[node] + lm + self._end(state), tree.count[node] + words


SCORERS = {WORDS: _WordScorer, UNITS: _UnitScorer}
