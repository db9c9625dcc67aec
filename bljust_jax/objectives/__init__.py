"""Objectives, a file each. The self-supervised ones are found by file name: `config.ssl = "cpc"` is
`objectives/cpc.py`, whose `bind` gives a `system.SelfSupervised`. A new loss is a new file here."""

from __future__ import annotations

from collections.abc import Callable

from bljust_jax.bilevel.types import SelfSupervised
from bljust_jax.common import plugins


def load(name: str) -> Callable[..., SelfSupervised]:
    """`bind` of `objectives/<name>.py`. UserError where there is none."""
    return plugins.load(__name__, name, "bind", "config.ssl")
