"""Hours of audio in the splits of public corpora, to plan a run before its data are there."""

from __future__ import annotations

# {scheme: {ending of the URI: hours}}, as the corpora's own descriptions state them.
HOURS = {
    "librispeech": {
        **{"train-clean-100": 100.6, "train-clean-360": 363.6, "train-other-500": 496.7},
        **{"dev-clean": 5.4, "dev-other": 5.3, "test-clean": 5.4, "test-other": 5.1},
    },
    "tedlium": {"train": 207.0, "dev": 1.6, "test": 2.6},  # release 2
    "aishell": {"train": 150.9, "dev": 18.1, "test": 10.0},
    # with both 150 h, as BiRQ's paper has it
    "ami": {"ihm/train": 77.9, "sdm/train": 74.3},
    "yodas": {"en000": 5000.0},  # the hours that BiRQ's paper takes
    "covost": {
        **{"en_de/train": 364.0, "fr_en/train": 180.0, "de_en/train": 119.0, "es_en/train": 97.0},
        **{"en_ca/train": 364.0, "en_zh-CN/train": 364.0},
        **{"ca_en/train": 81.0, "nl_en/train": 2.0, "mn_en/train": 3.0, "ar_en/train": 2.0},
    },
}


def published_hours(uri: str) -> float | None:
    """Hours of the sources of a URI together; None if one of them is not in `HOURS`."""
    total = 0.0
    for part in uri.split("+"):
        scheme, _, rest = part.strip().partition(":")
        found = (h for end, h in HOURS.get(scheme, {}).items() if f"/{rest}".endswith(f"/{end}"))
        hours = next(found, None)
        if hours is None:
            return None
        total += hours
    return total
