"""Sphinx settings: README.md, docs/, results/ and launch/ as a site, and the API from docstrings.

The source folder is the repository's root, so that links between these folders work both on the
site and where the repository is browsed.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bljust_jax"
sys.path.insert(0, str(ROOT))

project = "bljust_jax"
author = "The bljust_jax authors"
copyright = author
root_doc = "docs/index"
include_patterns = ["docs/**", "results/*.md", "launch/README.md", "README.md"]
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "bljust_jax"
html_copy_source = False
templates_path = []

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_mock_imports = ["torch", "transformers", "kenlm", "tensorflow", "apache_beam", "wandb"]
# names of dataclass fields and classes that several modules share need no link in a signature
suppress_warnings = ["ref.python"]

# Modules whose import needs a peer, or which are copied elsewhere as single files.
EXCLUDED = {"bljust_jax.export.torch_model", "bljust_jax.benchmarks.torch_peer"}


def write_reference(app) -> None:
    """docs/reference/<folder>.rst for each folder of the package: its modules and their members."""
    out = ROOT / "docs" / "reference"
    out.mkdir(exist_ok=True)
    for old in out.glob("*.rst"):
        old.unlink()
    folders = [PACKAGE, *sorted(p for p in PACKAGE.rglob("*") if (p / "__init__.py").is_file())]
    names = []
    for folder in folders:
        name = ".".join(folder.relative_to(ROOT).parts)
        modules = [f"{name}.{p.stem}" for p in sorted(folder.glob("[a-z]*.py"))]
        lines = [name, "=" * len(name), ""]
        for module in [name, *modules]:
            if module in EXCLUDED:
                continue
            if module != name:
                lines += [module, "-" * len(module), ""]
            members = [] if folder == PACKAGE and module != name else ["   :members:"]
            lines += [f".. automodule:: {module}", *members, ""]
        (out / f"{name}.rst").write_text("\n".join(lines))
        names.append(name)
    index = ["Reference", "=========", "", ".. toctree::", ""]
    (out / "index.rst").write_text("\n".join([*index, *(f"   {name}" for name in names), ""]))


def literal_paragraphs(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text: prose becomes paragraphs, and what is indented, such as formulas
    and lists of arguments, keeps its layout."""
    out: list[str] = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        rows = paragraph.strip("\n").split("\n")
        if not any(rows) or rows[0].startswith("Alias for field number"):
            continue
        if any(row.startswith(" ") for row in rows) or (len(rows) > 1 and ragged(rows)):
            out += ["::", "", *(f"    {row}" for row in rows), ""]
        else:
            out += [escaped(" ".join(rows)), ""]
    lines[:] = out


def ragged(rows: list[str]) -> bool:
    """Whether lines are entries rather than wrapped prose: a short one is not the last."""
    return any(len(row) < 60 for row in rows[:-1])


def escaped(text: str) -> str:
    """Text in which nothing but `code` has a meaning to reStructuredText."""
    parts = re.split(r"`([^`]+)`", text)
    return (
        "".join(
            f" ``{part.strip()}`` " if n % 2 else re.sub(r"([*_|\\`<>:])", r"\\\1", part)
            for n, part in enumerate(parts)
        )
        .replace("``  ", "`` ")
        .strip()
    )


def setup(app) -> None:
    app.connect("builder-inited", write_reference)
    app.connect("autodoc-process-docstring", literal_paragraphs)
