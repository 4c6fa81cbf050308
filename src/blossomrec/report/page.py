"""The look of a report: one HTML page without outside resources, light or dark as the reader's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fcfcfa; --ink: #1d2329; --muted: #5d6872; --rule: #dcdfe2; --wash: #f1f2f0;
  --series-1: #1c64ab; --series-2: #c0501a; --series-3: #23805a;
  --series-4: #8a4fa3; --series-5: #857000; --series-6: #55606b;
  --series-7: #b3305a; --series-8: #0b7a8a; --series-9: #5b4fb8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181b; --ink: #e4e7ea; --muted: #99a4ae; --rule: #343b42; --wash: #1d2226;
    --series-1: #6fb0ee; --series-2: #f0935c; --series-3: #62c79a;
    --series-4: #c897e0; --series-5: #d3bd4e; --series-6: #aab4bd;
    --series-7: #f08cab; --series-8: #58c3d3; --series-9: #a79df0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 68rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word;
}
header { border-bottom: 2px solid var(--ink); padding-bottom: 1.1rem; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3.2rem 0 0.5rem; letter-spacing: -0.01em; }
h3 { font-size: 1rem; margin: 1.8rem 0 0.3rem; }
p, .lead, ul.plain { max-width: 42rem; margin: 0.5rem 0 1rem; }
.lead { font-size: 1.125rem; line-height: 1.5; }
.kicker, .note, figcaption, .interval, caption { color: var(--muted); font-size: 0.875rem; }
.kicker { margin: 0 0 0.35rem; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; list-style: none; padding: 0;
  margin: 1rem 0 0; font-size: 0.9rem; }
a { color: var(--series-1); text-underline-offset: 0.2em; }
:focus-visible { outline: 2px solid var(--series-1); outline-offset: 2px; }
.scroll { overflow-x: auto; margin: 1rem 0 0.5rem; }
table { border-collapse: collapse; font-size: 0.9375rem; min-width: min(100%, 30rem); }
caption { text-align: left; padding-bottom: 0.5rem; caption-side: top; }
th, td { padding: 0.45rem 1.25rem 0.45rem 0; text-align: right; vertical-align: top;
  white-space: nowrap; }
th { font-weight: 600; }
thead th { border-bottom: 1px solid var(--ink); vertical-align: bottom; white-space: normal;
  min-width: 4rem; line-height: 1.3; }
tbody tr { border-bottom: 1px solid var(--rule); }
tbody th, thead th:first-child { text-align: left; position: sticky; left: 0;
  background: var(--paper); }
.interval { display: block; font-size: 0.8125rem; font-weight: 400; }
.best { font-weight: 700; }
.mark { font-weight: 400; }
.better { color: var(--series-3); }
.worse { color: var(--series-2); }
.sampled { border-left: 4px solid var(--series-2); padding-left: 1rem; }
.figures { display: grid; gap: 2rem 3rem; margin: 1.25rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); align-items: start; }
figure { margin: 0; max-width: 32rem; }
figure h3 { margin-top: 0; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figure svg text { font-family: inherit !important; }
figure svg image { image-rendering: pixelated; }
figcaption { margin-top: 0.4rem; }
.key { display: flex; flex-wrap: wrap; gap: 0.1rem 1.1rem; list-style: none; padding: 0;
  margin: 0.2rem 0 0.6rem; font-size: 0.875rem; }
.key span { display: inline-block; width: 1.1em; }
details { margin: 1rem 0; }
summary { cursor: pointer; color: var(--muted); font-size: 0.9375rem; padding: 0.3rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1.5rem; margin: 0.75rem 0;
  max-width: 46rem; font-size: 0.9375rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
.groups { display: grid; gap: 0 3rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); }
@media (max-width: 34rem) {
  body { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.5rem; }
  h2 { margin-top: 2.4rem; }
  th, td { padding-right: 0.9rem; }
  tbody th { white-space: normal; min-width: 6.5rem; line-height: 1.35; }
  dl { grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); gap: 0.4rem 1rem; }
  dt { overflow-wrap: anywhere; }
}
@media print {
  body { max-width: none; padding: 0; }
  nav { display: none; }
  figure, tr { break-inside: avoid; }
}
"""
SWATCHES = "●■◆▲▼✚✖◀▶"


def page(title: str, kicker: str, lead: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """A whole document. ``lead`` and the bodies of the sections (id, heading, body) are HTML."""
    links = "".join(f'<li><a href="#{name}">{escape(head)}</a></li>' for name, head, _ in sections)
    bodies = "\n".join(
        f'<section id="{name}" aria-labelledby="{name}-heading">'
        f'<h2 id="{name}-heading">{escape(head)}</h2>\n{body}</section>'
        for name, head, body in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<header><p class="kicker">{escape(kicker)}</p><h1>{escape(title)}</h1>\n'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        f'<main>\n<p class="lead" style="margin-top:1.5rem">{lead}</p>\n{bodies}\n</main>\n'
        "</body>\n</html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """A table whose first column names its rows; cells are HTML, ``head`` and caption text."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = "\n".join(
        f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        for name, *cells in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0">'
        f"<table><caption>{escape(caption)}</caption>"
        f"<thead><tr>{columns}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>\n"
    )


def figure(heading: str, svg: str, caption: str) -> str:
    return (
        f"<figure><h3>{escape(heading)}</h3>{svg}"
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def figures(parts: Iterable[str]) -> str:
    return f'<div class="figures">{"".join(parts)}</div>\n'


def key(names: Sequence[tuple[int, str]]) -> str:
    """What colours and marks mean: number of the colour, and name."""
    entries = "".join(
        f'<li><span aria-hidden="true" style="color:var(--series-{number % len(SWATCHES) + 1})">'
        f"{SWATCHES[number % len(SWATCHES)]}</span>{escape(name)}</li>"
        for number, name in names
    )
    return f'<ul class="key">{entries}</ul>' if entries else ""


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values, both text."""
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
    return f"<dl>{entries}</dl>\n"


def details(heading: str, body: str) -> str:
    """Something folded away until it is asked for."""
    return f"<details><summary>{escape(heading)}</summary>\n{body}</details>\n"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>\n"
