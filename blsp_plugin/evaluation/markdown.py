"""A report as Markdown that also reads as plain text.

Authors
 * The blsp_plugin team 2026
"""

import re

from blsp_plugin.evaluation.blocks import Clips, Heading, Paragraph, Table

__all__ = ["render_markdown"]

_WIDEST = 160  # characters of an answer; a system that babbles fills a screen
# What would turn the rest of a line around, or is no text.
_UNSEEN = re.compile(
    "[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069"
    "\ud800-\udfff]"
)
# What makes elements, links, code or cells of a text; "->" stays readable.
_SPECIAL = re.compile(r"([\\`*<|]|(?<=\])[(:\[])")


def render_markdown(blocks):
    """Write the blocks of a report; plots are left out, their tables are not.

    Arguments
    ---------
    blocks : list
        From `make_document`.

    Returns
    -------
    str
        With a newline at the end.

    Example
    -------
    >>> print(render_markdown([Heading(1, "Report"), Paragraph("a <b>")]))
    # Report
    <BLANKLINE>
    a \\<b>
    <BLANKLINE>
    """
    parts = [_render(block) for block in blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def _render(block):
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_escape(block.text)}"
    if isinstance(block, Paragraph):
        return _escape(block.text)
    if isinstance(block, Table):
        return f"{_escape(block.caption)}:\n\n{_table(block)}"
    if isinstance(block, Clips):
        return "\n\n".join(_clip(item) for item in block.items)
    return ""


def _line(text):
    """One line, in which nothing is hidden."""
    return " ".join(_UNSEEN.sub(" ", text).split())


def _escape(text):
    return _SPECIAL.sub(r"\\\1", _line(text))


def _table(table):
    lines = [
        [_escape(cell) for cell in row] for row in [table.head, *table.rows]
    ]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = [
        "-" * width if i < table.names else "-" * (width - 1) + ":"
        for i, width in enumerate(widths)
    ]
    lines.insert(1, rule)
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if i < table.names else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )


def _clip(item):
    record = item["record"]
    head = _escape(record["id"])
    if isinstance(record.get("duration"), int | float):
        head += f" ({record['duration']:.1f} s)"
    said = [("reference", record["reference"], ""), *item["said"]]
    said = [(_line(who), _line(text), score) for who, text, score in said]
    width = max(len(who) for who, _, _ in said)
    lines = [
        f"    {who.ljust(width)}  {score:>6}  {_shorten(text)}".rstrip()
        for who, text, score in said
    ]
    return "\n".join([head, "", *lines])


def _shorten(text):
    return text if len(text) <= _WIDEST else text[:_WIDEST] + " ..."
