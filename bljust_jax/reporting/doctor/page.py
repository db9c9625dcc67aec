"""Self-contained HTML page of the data doctor: findings, histograms, audio, proposed settings."""

import base64
import html
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from bljust_jax.common.files import write_text
from bljust_jax.data.doctor.checks import CHECKS, Finding
from bljust_jax.data.doctor.survey import Item
from bljust_jax.data.doctor.worst import clip, worst
from bljust_jax.reporting.doctor import histogram, summary
from bljust_jax.reporting.doctor.summary import Report
from bljust_jax.reporting.plots.style import BLUE, RED

SHOWN = 100  # examples per finding on the page
LOGARITHMIC = ("samples at the peak",)
# {histogram: the checks whose items are red in it}
MARKS = {
    "duration": ("duration", "header length", "empty"),
    "speaking rate": ("speaking rate", "infeasible"),
    "level": ("silent",),
    "samples at the peak": ("clipped",),
}
LEGEND = (
    f'<p><span style="color:{BLUE}">\u25a0</span> utterances;'
    f' <span style="color:{RED}">\u25a0</span> those with a finding that this figure explains</p>'
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1120px; margin: 2em auto;
  padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0; } h2 { font-size: 1.15em; margin-top: 2em; }
.path { color: #555; overflow-wrap: anywhere; margin-top: .2em; }
.verdict { padding: .6em 1em; border-radius: 6px; font-weight: 600; }
.fit { background: #e3f4ec; } .ill { background: #fdeee2; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .4em .7em .4em 0;
  border-bottom: 1px solid #ddd; }
td.number, th.number { text-align: right; }
.error { color: #a83a00; font-weight: 600; } .warning { color: #6b5200; font-weight: 600; }
.where, .detail { font-size: .87em; color: #444; overflow-wrap: anywhere; }
ul { margin: .3em 0; padding-left: 1.2em; } summary { cursor: pointer; color: #0072b2; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(430px, 1fr)); gap: 1.5em; }
figure { margin: 0; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; } svg text { font: 13px system-ui, sans-serif; fill: #333; }
svg .grid { stroke: #ddd; } svg .axis { stroke: #333; fill: none; }
audio { width: 260px; height: 34px; } code { background: #f2f2f2; padding: .1em .3em; }
"""


def write(path: pathlib.Path, report: Report) -> None:
    """Write the page, which loads nothing from elsewhere."""
    title = f"Data doctor: {html.escape(pathlib.PurePath(report.uri).name)}"
    sections = {
        "Findings": _findings(report.findings),
        "Histograms": _histograms(report),
        "Listen to these first": _worst(report),
        "Lengths of batches": _buckets(report),
        "Text normalisation": [f"<p>{_escaped(summary.normalise(report.normalise))}</p>"],
    }
    body = [f"<h1>{title}</h1>", f'<p class="path">{_escaped(report.uri)}</p>', *_head(report)]
    for heading, lines in sections.items():
        body += [f"<h2>{heading}</h2>", *lines] if lines else []
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    parts = ["<!DOCTYPE html>", '<html lang="en">', f"<head>{head}</head>", "<body>", *body]
    write_text(path, "\n".join([*parts, "</body>", "</html>", ""]))


def _head(report: Report) -> list[str]:
    number, checks = len(report.findings), len(CHECKS)
    kind, text = "fit", f"All {checks} checks passed: fit to train on."
    if number:
        kind, text = "ill", f"{number} of {checks} checks have findings."
    rows = []
    for split, items in summary.splits(report.survey).items():
        rows.append((split, *summary.sizes(items)))
    sizes = [f"<p>{_escaped(row[0])}: {_escaped(', '.join(row[1:]))}</p>" for row in rows]
    assumed = report.survey.assumption
    note = [f'<p class="detail">{_escaped(assumed)}</p>'] if assumed else []
    return [f'<p class="verdict {kind}">{text}</p>', *sizes, *note]


def _findings(findings: Sequence[Finding]) -> list[str]:
    rows = []
    for check, found in findings:
        examples = "".join(
            f"<li>{_where(item)}<br>"
            f'{_escaped(item.utterance.id)}: <span class="detail">{_escaped(detail)}</span></li>'
            for item, detail in found[:SHOWN]
        )
        more = f"<li>and {len(found) - SHOWN} more</li>" if len(found) > SHOWN else ""
        several = f"{len(found)} examples" if len(found) > 1 else "1 example"
        shown = f"<details><summary>{several}</summary><ul>{examples}{more}</ul></details>"
        what = f"{_escaped(check.what)}{shown}"
        severity = f'<span class="{check.severity}">{check.severity}</span>'
        rows.append((severity, check.name, len(found), what, _escaped(check.cure)))
    head = ("severity", "finding", "utterances", "what, and where", "cure")
    return _table(head, rows) if rows else ["<p>None.</p>"]


def _histograms(report: Report) -> list[str]:
    measures = summary.measures(report.survey)
    kept = {"speaking rate": report.survey.spoken}
    figures = []
    for name, (unit, values) in measures.items():
        if not len(values):
            continue
        flagged = {
            id(item)
            for check, found in report.findings
            if check.name in MARKS[name]
            for item, _ in found
        }
        items = kept.get(name, report.survey.readable)
        marked = np.array([id(item) in flagged for item in items])
        drawn = histogram.svg(values, marked, f"{name}, {unit}", log=name in LOGARITHMIC)
        caption = f"<figcaption>{name.capitalize()}</figcaption>"
        figures.append(f"<figure>{caption}{drawn}</figure>")
    return [LEGEND, '<div class="plots">', *figures, "</div>"] if figures else []


def _worst(report: Report) -> list[str]:
    rows = []
    for item, reasons in worst(report.survey, report.findings):
        name = f"{_escaped(item.utterance.id)}<br>{_where(item)}"
        listed = "".join(f"<li>{_escaped(reason)}</li>" for reason in reasons)
        rows.append((_player(item), name, _escaped(item.text), f"<ul>{listed}</ul>"))
    return _table(("audio", "utterance", "text", "why"), rows) if rows else []


def _where(item: Item) -> str:
    """File and line; the path of the file is shown under the pointer."""
    full = summary.where(item)
    title, shown = _escaped(full), _escaped(pathlib.PurePath(full).name)
    return f'<span class="where" title="{title}">{shown}</span>'


def _player(item: Item) -> str:
    found = clip(item)
    if found is None:
        return "its samples cannot be played"
    source = f'src="data:{found[0]};base64,{base64.b64encode(found[1]).decode()}"'
    return f'<audio controls preload="metadata" {source}></audio>'


def _buckets(report: Report) -> list[str]:
    rows = []
    for table in report.buckets:
        setting = ",".join(f"{seconds:g}" for seconds in table.lengths)
        number = len(table.lengths)
        setting = f"<code>--config.data.buckets={setting}</code>"
        rows.append((number, f"{table.padding:.1%}", setting))
    return _table(("lengths", "padding", "setting"), rows) if rows else []


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = ["<table>", "<tr>", *(f"<th>{cell}</th>" for cell in head), "</tr>"]
    for row in rows:
        cells = (
            f'<td class="number">{c}</td>' if isinstance(c, int) else f"<td>{c}</td>" for c in row
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return [*lines, "</table>"]


def _escaped(text: str) -> str:
    """The text as HTML."""
    return html.escape(text)
