"""Quarantine of utterances with corrupt audio: skipped, counted, listed, and limited in number."""

import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from bljust_jax.common.errors import UserError
from bljust_jax.data.sources import write_json_lines
from bljust_jax.data.utterances import Utterance, Utterances


class Quarantine:
    """Utterances of corrupt audio, each once, in the order in which they were read.

    An entry is {id, path, line ("file:line" that declared it), reason, splits}. `max_fraction`: the
    largest share of a split's utterances that may be corrupt.
    """

    def __init__(self, max_fraction: float):
        self.max_fraction = max_fraction
        self._entries: dict[tuple[str, str], dict] = {}
        self._sizes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[dict]:
        return iter(self._entries.values())

    def count(self, split: str) -> int:
        """Number of quarantined utterances of a split."""
        return sum(split in entry["splits"] for entry in self)

    def sift(self, split: str, utterances: Sequence[Utterance]) -> Utterances:
        """Open a split: returns its utterances without a known fault and lists the others."""
        return self.sift_parts(split, {"": Utterances.of(utterances)})[""]

    def sift_parts(self, split: str, parts: Mapping[str, Utterances]) -> dict[str, Utterances]:
        """`sift` of a split that has several parts."""
        self._sizes[split] = sum(map(len, parts.values()))
        found = {}
        for name, part in parts.items():
            faulty = part.faulty
            for u in part.select(faulty):
                self.add(split, u, u.fault)
            found[name] = part.select(~faulty) if faulty.any() else part
        return found

    def add(self, split: str, u: Utterance, reason: str) -> None:
        """List an utterance of an open split; log a warning if it is new.

        Raises UserError once more than `max_fraction` of the split is listed.
        """
        entry = {"id": u.id, "path": u.path, "line": u.line, "reason": reason, "splits": []}
        new = (u.id, u.path) not in self._entries
        entry = self._entries.setdefault((u.id, u.path), entry)
        if split in entry["splits"]:
            return
        entry["splits"].append(split)
        bad, size = self.count(split), self._sizes[split]
        if bad > self.max_fraction * size:
            raise UserError(
                f"{reason}; so {bad} of {size} utterances of {split} are bad, more than"
                f" config.data.max_bad_fraction={self.max_fraction:g} allows: repair or remove"
                " them, or raise it to go on without them"
            )
        if new:
            logging.warning("quarantined: %s", reason)

    def state(self) -> list[dict]:
        """All entries, as JSON types, for a checkpoint."""
        return [{**entry, "splits": list(entry["splits"])} for entry in self]

    def restore(self, state: list[dict]) -> None:
        """Load entries of `state`; entries found by this process come after them."""
        found, self._entries = self._entries, {}
        for entry in [*state, *found.values()]:
            known = self._entries.setdefault((entry["id"], entry["path"]), {**entry, "splits": []})
            known["splits"] += [s for s in entry["splits"] if s not in known["splits"]]

    def write(self, path: pathlib.Path) -> None:
        """Write one JSON object per line, atomically; without entries the file is removed."""
        if not self._entries:
            path.unlink(missing_ok=True)
            return
        write_json_lines(path, self)
