"""Parse the text of an optimised XLA program: computations, instructions, sizes of arrays.

The text is that of `compiled.as_text()`, for any device.
"""

import math
import re
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}  # else 4, or
BYTES |= {"f64": 8, "s64": 8, "u64": 8, "c64": 8, "c128": 16, "token": 0, "s4": 0.5, "u4": 0.5}
BYTES |= {"f8e4m3fn": 1, "f8e5m2": 1, "opaque": 0}
ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
COMMENT = re.compile(r"/\*.*?\*/")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*->.*\{\s*$")
INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")


class Array(NamedTuple):
    """The type of an array; `near`: held in another memory than that of the device (on a TPU, in
    the memory of the core)."""

    dtype: str
    dims: tuple[int, ...]
    near: bool = False

    @property
    def size(self) -> float:
        """Bytes in the memory of the device."""
        return 0.0 if self.near else float(BYTES.get(self.dtype, 4) * math.prod(self.dims))


class Instruction(NamedTuple):
    """One instruction; `arrays` are its results, `op_name` is the jax operation that it is of."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    op_name: str
    root: bool

    @property
    def size(self) -> float:
        """Bytes of its results in the memory of the device."""
        return sum((a.size for a in self.arrays), 0.0)

    def computation(self, role: str) -> str:
        """The name of the computation of a role such as "body", "" if there is none."""
        found = re.search(rf"\b{role}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""

    @property
    def branches(self) -> list[str]:
        """Computations of a conditional."""
        found = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if found:
            return re.findall(r"[\w.\-]+", found[1])
        return [self.computation(role) for role in ("true_computation", "false_computation")]

    @property
    def trips(self) -> int | None:
        """Trip count of a loop, None if the compiler does not know it."""
        found = re.search(r'known_trip_count"?:\{"n":"(\d+)"', self.attributes)
        return int(found[1]) if found else None


Computation = dict[str, Instruction]


class Module(NamedTuple):
    """Computations by name, and the name of the entry."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """The computations of a program. ValueError for a text without an entry."""
    computations: dict[str, Computation] = {}
    current, entry = None, ""
    for line in text.splitlines():
        if current is None:
            if found := COMPUTATION.match(line):
                current = computations.setdefault(found[2], {})
                entry = found[2] if found[1] else entry
        elif line.startswith("}"):
            current = None
        elif found := INSTRUCTION.match(line):
            made = instruction(found[2], line[found.end() :], bool(found[1]))
            current[made.name] = made
    if not entry:
        raise ValueError("no ENTRY computation in the text of the program")
    return Module(computations, entry)


def instruction(name: str, text: str, root: bool) -> Instruction:
    """The instruction `name = text`. ValueError for a text that is none."""
    end = closing(text, 0) if text.startswith("(") else text.find(" ")
    opcode, bracket, _ = text[end:].lstrip().partition("(")
    if not bracket:
        raise ValueError(f"not an instruction of an XLA program: {text[:100]}")
    start = text.index("(", end)
    stop = closing(text, start)
    inside = COMMENT.sub("", text[start + 1 : stop - 1])
    operands = () if opcode == "constant" else tuple(re.findall(r"%([\w.\-]+)", inside))
    attributes = text[stop:]
    op_name = re.search(r'op_name="([^"]*)"', attributes)
    return Instruction(
        name,
        opcode,
        arrays(text[:end]),
        operands,
        attributes,
        op_name[1] if op_name else "",
        root,
    )


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type, those of a tuple in order."""
    found = ARRAY.findall(COMMENT.sub("", text))
    return tuple(
        Array(dtype, tuple(int(n.lstrip("<=")) for n in dims.split(",") if n), "S(" in layout)
        for dtype, dims, layout in found
    )


def closing(text: str, start: int) -> int:
    """The position after the bracket that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position + 1
    raise ValueError(f"unbalanced brackets: {text[:100]}")
