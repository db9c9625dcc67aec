"""Items of an epoch against a loop over speakers that draws and joins one item after another."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bljust_jax.data.batch_plan import Plan
from bljust_jax.data.buckets import Bucket
from bljust_jax.data.item_draws import ranks
from bljust_jax.data.strings import Coded, Strings

TABLE = (Bucket(1.0, 2, 9), Bucket(3.0, 1, 21))
GAP = 0.15


def by_loop(plan, epoch, durations, labels, speakers, texts, drawing):
    """[(members, speed)] of the items of an epoch."""
    join, share, balance, speed = (drawing[n] for n in ("join", "join_share", "balance", "speed"))
    rng = np.random.default_rng([plan.seed, epoch, 0])
    times = plan._repeats(epoch)
    excluded = {i for i, _ in plan.excluded}
    groups = {}
    for i, (speaker, text) in enumerate(zip(speakers, texts, strict=True)):
        if i not in excluded:
            groups.setdefault(speaker, {}).setdefault(text, []).append(i)
    items = []
    for _, by_text in sorted(groups.items()):
        runs = [by_text[text] for text in sorted(by_text)]
        sizes = np.array([len(run) for run in runs])
        starts, own = np.cumsum(sizes) - sizes, np.array([i for run in runs for i in run])
        order = rng.permutation(np.repeat(own, times[own]))
        n = len(order)
        if balance:
            text = rng.integers(len(sizes), size=n)
            uniform = own[starts[text] + rng.integers(sizes[text])]
            order = np.where(rng.random(n) < balance, uniform, order)
        joined = rng.random(n) < share
        wanted = np.where(joined, rng.integers(join[0], join[1] + 1, size=n), 1)
        drawn = np.round(rng.uniform(*speed, size=n), 2).clip(*speed)
        position = piece = 0
        while position < n:
            members, factor = order[position : position + wanted[piece]].tolist(), drawn[piece]
            fit = fitting(members, factor, durations, labels)
            if fit == 0:
                fit, factor = 1, factor if plan.crop else 1.0
            items.append((tuple(members[:fit]), float(factor)))
            position += fit
            piece += 1
    return items


def fitting(members, speed, durations, labels):
    seconds, length = -GAP, -1
    for n, i in enumerate(members):
        seconds += durations[i] / speed + GAP
        length += labels[i] + 1
        if seconds > TABLE[-1].seconds + 1e-6 or length > TABLE[-1].max_labels:
            return n
    return len(members)


DRAWINGS = st.fixed_dictionaries(
    {
        "join": st.sampled_from([(1, 1), (1, 3), (2, 2), (2, 5)]),
        "join_share": st.sampled_from([0.0, 0.4, 1.0]),
        "balance": st.sampled_from([0.0, 0.5]),
        "speed": st.sampled_from([(1.0, 1.0), (0.88, 1.12), (0.5, 2.0)]),
    }
)


@settings(deadline=None, max_examples=60)
@given(st.data(), DRAWINGS, st.booleans(), st.sampled_from([1.0, 3.0]), st.integers(0, 2**31))
def test_items_are_those_of_a_loop_over_speakers(data, drawing, crop, temperature, seed):
    n = data.draw(st.integers(1, 40))
    names = data.draw(st.sampled_from(["abc", "zé\u4e00a", [f"s{i}" for i in range(40)]]))
    draw = np.random.default_rng(seed)
    durations = draw.choice([0.2, 0.5, 1.0, 1.4, 2.9, 3.0, 3.3], n).tolist()
    labels = draw.integers(1, 23, n).tolist()
    speakers = draw.choice(list(names), n).tolist()
    texts = draw.choice(["", "b", "a", "ab", "é"], n).tolist()
    if not any(d <= 3.0 and u <= 21 for d, u in zip(durations, labels, strict=True)):
        durations[0], labels[0] = 1.0, 3
    drawing |= {"crop": crop, "languages": ["x", "y"] * n, "temperature": temperature}
    plan = Plan(
        *(durations, labels, speakers, texts, [f"u{i}" for i in range(n)], TABLE, seed),
        **{**drawing, "languages": drawing["languages"][:n]},
    )
    for epoch in range(2):
        wanted = by_loop(plan, epoch, durations, labels, speakers, texts, drawing)
        assert [(item.members, item.speed) for item in plan.items(epoch)] == wanted


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=30))
def test_ranks_are_those_of_sorted_strings(texts):
    places = {text: n for n, text in enumerate(sorted(set(texts)))}
    wanted = [places[text] for text in texts]
    assert ranks(texts).tolist() == wanted
    names, codes = np.unique(np.array(texts, object), return_inverse=True)
    coded = Coded(codes[::-1].astype(np.int32), Strings.of(names.tolist()))
    assert ranks(coded).tolist() == wanted[::-1]
