"""A report as one HTML page that needs nothing but itself.

No script and no link to elsewhere: style, plots and audio are in the page, and
its security policy forbids browsers to fetch anything. Answers are whatever a
model said, so every text is escaped, and isolated from the direction of the
text around it.

Authors
 * The blsp_plugin team 2026
"""

import base64
import io
import itertools
import os
import re
from html import escape

import soundfile
from speechbrain.utils.logger import get_logger

from blsp_plugin.data.audio import SAMPLE_RATE, probe_speech, read_speech
from blsp_plugin.errors import BadInput
from blsp_plugin.evaluation.blocks import (
    Clips,
    Heading,
    Paragraph,
    Plots,
    Table,
)
from blsp_plugin.evaluation.document import make_document
from blsp_plugin.evaluation.markdown import render_markdown
from blsp_plugin.evaluation.plots import check_matplotlib
from blsp_plugin.evaluation.runs import find_runs
from blsp_plugin.files import atomic_write, disk_errors

__all__ = ["render_html", "write_report"]

logger = get_logger(__name__)

_AUDIO_SECONDS = 15
_WIDEST = 1500  # characters of an answer; a system that babbles fills a screen
# No characters at all: HTML has no way to write them.
_UNWRITABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]"
)

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; media-src data:; "
    "img-src data:; base-uri 'none'; form-action 'none'"
)

_STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --ink: #1c1e21; --quiet: #5b6067; --line: #d5d8dc;
  --band: #f4f5f7; --accent: #2f6fb2;
  --series-0: #c2410c; --series-1: #1d64ad; --series-2: #14804a;
  --series-3: #6b7280; --series-4: #8b3fa8; --series-5: #a16207;
  --series-6: #0e7490; --series-7: #be185d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171a; --ink: #e6e8ea; --quiet: #a3a9b1; --line: #3a3f45;
    --band: #1e2125; --accent: #5aa0e6;
    --series-0: #fb8c4e; --series-1: #6fb1f2; --series-2: #4fc584;
    --series-3: #a3a9b1; --series-4: #d08be8; --series-5: #dfb24a;
    --series-6: #4cc3d9; --series-7: #f57fb0;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1rem 1.25rem 4rem; max-width: 84rem;
  background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif;
}
h1, h2, h3, h4 { line-height: 1.25; }
h2 { margin-top: 2.5rem; border-top: 1px solid var(--line);
     padding-top: 1.25rem; }
h3 { margin-top: 2rem; }
h4 { margin: 0 0 .35rem; font-size: 1rem; overflow-wrap: anywhere; }
p { max-width: 60rem; overflow-wrap: anywhere; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.skip { position: absolute; left: -100vw; }
.skip:focus { position: static; }
nav ul { padding-left: 1.25rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--quiet); padding: .25rem 0 .5rem; }
th, td { padding: .35rem .75rem; border-bottom: 1px solid var(--line);
         text-align: right; vertical-align: top; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom;
           white-space: pre; font-size: .9rem; }
th.name, .said th, .said td { text-align: left; }
th.name { font-weight: 600; white-space: nowrap; }
tbody tr:hover { background: var(--band); }
td { white-space: nowrap; }
.matrix th, .matrix td { padding: .3rem .45rem; font-size: .85rem; }
.matrix thead th:not(.name) { writing-mode: vertical-rl; text-align: left;
  rotate: 180deg; max-height: 14rem; }
.matrix td { text-align: center; background: color-mix(in srgb,
  var(--accent) calc(var(--shade) * 60%), transparent); }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--quiet); }
.plots { display: flex; flex-wrap: wrap; gap: 1rem 2rem; }
figure { margin: 0; flex: 1 1 24rem; max-width: 38rem; }
figure svg { width: 100%; height: auto; display: block; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
.clip { border: 1px solid var(--line); border-radius: .5rem;
        padding: .75rem 1rem; margin: 1rem 0; }
.clip audio { width: 100%; max-width: 32rem; display: block; }
.clip .scroll { margin: .5rem 0 0; }
.said { width: 100%; min-width: 36rem; table-layout: fixed; }
.said th { overflow-wrap: anywhere; }
.said thead th:first-child { width: 17rem; }
.said .score { text-align: right; width: 5.5rem; }
.said .text { white-space: pre-wrap; overflow-wrap: anywhere; }
.said tr:last-child > * { border-bottom: 0; }
.quiet { color: var(--quiet); margin: 0 0 .5rem; }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<h1>{title}</h1>
<nav aria-label="Sections">
{contents}
</nav>
</header>
<main id="content">
{body}
</main>
</body>
</html>
"""


def write_report(folder, output_folder=None, clips=20):
    """Report all evaluations under a folder side by side.

    Arguments
    ---------
    folder : str
        Searched for evaluation folders.
    output_folder : str, optional
        Gets ``report.html`` and ``report.md``; the folder itself when not
        given.
    clips : int
        Clips to listen to, for each task.

    Returns
    -------
    list of str
        The two files.

    Raises
    ------
    BadInput
        No evaluation there, a damaged one, or no matplotlib.
    """
    check_matplotlib()
    output_folder = folder if output_folder is None else output_folder
    runs = find_runs(folder)
    logger.info("%d runs: %s", len(runs), ", ".join(run.name for run in runs))
    blocks = make_document(runs, clips)
    paths = []
    for name, render in (
        ("report.html", render_html),
        ("report.md", render_markdown),
    ):
        path = os.path.join(output_folder, name)
        with disk_errors(path), atomic_write(path) as stream:
            stream.write(render(blocks))
        paths.append(path)
    return paths


def render_html(blocks):
    """Write the blocks of a report as one page.

    Arguments
    ---------
    blocks : list
        From `make_document`; the audio of its clips is read now.

    Returns
    -------
    str
        HTML.

    Example
    -------
    >>> page = render_html([Heading(1, "Report"), Paragraph("a <b>")])
    >>> "<p>a &lt;b&gt;</p>" in page
    True
    """
    title = next((b.text for b in blocks if isinstance(b, Heading)), "Report")
    numbers = itertools.count(1)
    body, contents = [], []
    for block in blocks:
        if not isinstance(block, Heading):
            body.append(_RENDER[type(block)](block))
        elif block.level > 1:
            key = f"s{next(numbers)}"
            contents.append((block.level, key, block.text))
            level = block.level
            text = _inline(block.text)
            body.append(f'<h{level} id="{key}">{text}</h{level}>')
    return _PAGE.format(
        policy=_POLICY,
        title=_text(title),
        style=_STYLE,
        contents=_contents(contents),
        body="\n".join(body),
    )


def _text(text):
    """Any text as HTML."""
    return escape(_UNWRITABLE.sub("\ufffd", text), quote=True)


def _inline(text):
    """A text that somebody else wrote, kept apart from those around it."""
    return f"<bdi>{_text(text)}</bdi>"


def _contents(headings):
    """Links to the sections, those of a task below it."""
    lines, depth = [], 1
    for level, key, text in headings:
        while depth < level:
            lines.append("<ul>")
            depth += 1
        while depth > level:
            lines.append("</ul>")
            depth -= 1
        lines.append(f'<li><a href="#{key}">{_inline(text)}</a></li>')
    return "\n".join(lines + ["</ul>"] * (depth - 1))


def _paragraph(block):
    return f"<p>{_text(block.text)}</p>"


def _table(block):
    """A table with heads for both directions, which the keyboard scrolls."""
    head = "".join(
        f'<th scope="col"{_name_class(i, block.names)}>{_text(cell)}</th>'
        for i, cell in enumerate(block.head)
    )
    shades = block.shades or [None] * len(block.rows)
    rows = "\n".join(
        f"<tr>{_row(row, block.names, shade)}</tr>"
        for row, shade in zip(block.rows, shades, strict=True)
    )
    kind = ' class="matrix"' if block.shades else ""
    table = (
        f'<div class="scroll" role="region" tabindex="0" '
        f'aria-label="{_text(block.caption)}">\n'
        f"<table{kind}>\n<caption>{_text(block.caption)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n"
        "</table>\n</div>"
    )
    if block.folded:
        summary = f"<summary>Numbers: {_text(block.caption)}</summary>"
        table = f"<details>{summary}\n{table}\n</details>"
    return table


def _name_class(column, names):
    return ' class="name"' if column < names else ""


def _row(row, names, shades):
    cells = [
        f'<th scope="row" class="name">{_inline(cell)}</th>'
        for cell in row[:names]
    ]
    for i, cell in enumerate(row[names:]):
        style = f' style="--shade: {shades[i]:.2f}"' if shades else ""
        cells.append(f"<td{style}>{_text(cell)}</td>")
    return "".join(cells)


def _plots(block):
    figures = [
        f'<figure role="img" aria-label="{_text(title)}; its numbers are in '
        f'the table below">\n{svg}\n</figure>'
        for title, svg in block.items
    ]
    return '<div class="plots">\n' + "\n".join(figures) + "\n</div>"


def _clips(block):
    return "\n".join(_clip(item) for item in block.items)


def _clip(item):
    """A clip with its player and what everybody said of it."""
    record = item["record"]
    facts = []
    if isinstance(record.get("duration"), int | float):
        facts.append(f"{record['duration']:.1f} s")
    audio, note = _audio(record)
    facts.append(note)
    said = [("reference", record["reference"], "")]
    if record.get("text") not in (None, record["reference"]):
        said.insert(0, ("transcript", str(record["text"]), ""))
    rows = "\n".join(
        f'<tr><th scope="row">{_inline(who)}</th>'
        f'<td class="text" dir="auto">{_text(_shorten(text))}</td>'
        f'<td class="score">{_text(score)}</td></tr>'
        for who, text, score in [*said, *item["said"]]
    )
    name = _text(record["id"])
    return (
        f'<article class="clip" aria-label="clip {name}">\n'
        f"<h4>{_inline(record['id'])}</h4>\n"
        f'<p class="quiet">{_text(", ".join(filter(None, facts)))}</p>\n'
        f'{audio}<div class="scroll" role="region" tabindex="0" '
        f'aria-label="answers to {name}">\n<table class="said">\n'
        '<thead><tr><th scope="col">system</th><th scope="col">said</th>'
        '<th scope="col" class="score">score</th></tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n</article>"
    )


def _shorten(text):
    return text if len(text) <= _WIDEST else text[:_WIDEST] + " ..."


def _audio(record):
    """A player with the first seconds of a clip in it, and what to note."""
    wav = record.get("wav")
    if not isinstance(wav, str) or not wav:
        return "", "the predictions name no audio file"
    try:
        url, cut = _encode(wav, record.get("start"), record.get("stop"))
    except (BadInput, OSError, RuntimeError, TypeError, ValueError) as error:
        logger.warning("%s is not in the report: %s", record["id"], error)
        return "", "its audio could not be read"
    label = f'aria-label="play {_text(record["id"])}"'
    player = f'<audio controls preload="metadata" {label} src="{url}"></audio>'
    return player + "\n", f"the first {_AUDIO_SECONDS} s" if cut else ""


def _encode(path, start, stop):
    """The beginning of a clip as a data: URL, and whether it was cut."""
    info = probe_speech(path)
    start = 0 if start is None else start
    stop = round(info.duration * info.sample_rate) if stop is None else stop
    end = min(stop, start + _AUDIO_SECONDS * info.sample_rate)
    wav = read_speech(path, start, end).clamp(-1, 1).numpy()
    opus = "OPUS" in soundfile.available_subtypes("OGG")
    kind = ("OGG", "OPUS") if opus else ("FLAC", "PCM_16")
    stream = io.BytesIO()
    soundfile.write(stream, wav, SAMPLE_RATE, format=kind[0], subtype=kind[1])
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return f"data:audio/{kind[0].lower()};base64,{data}", end < stop


_RENDER = {
    Paragraph: _paragraph,
    Table: _table,
    Plots: _plots,
    Clips: _clips,
}
