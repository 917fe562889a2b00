"""What a report is made of, before it is HTML or Markdown.

Authors
 * The blsp_plugin team 2026
"""

from typing import NamedTuple

__all__ = ["Clips", "Heading", "Paragraph", "Plots", "Table"]


class Heading(NamedTuple):
    """Begins a section; ``level`` is 1 for the page's title."""

    level: int
    text: str


class Paragraph(NamedTuple):
    """Running text."""

    text: str


class Table(NamedTuple):
    """A table: texts, and how dark a cell is.

    Arguments
    ---------
    caption : str
        What it shows.
    head : list of str
        One a column; may have several lines.
    rows : list of list of str
        Cells.
    names : int
        So many columns at the left name the row.
    shades : list of list of float, optional
        Of the cells right of the names, 0 to 1.
    folded : bool
        Whether a page that can shows it on demand only.
    """

    caption: str
    head: list
    rows: list
    names: int = 1
    shades: list = None
    folded: bool = False


class Plots(NamedTuple):
    """Plots beside each other: (what is seen, ``<svg>``)."""

    items: list


class Clips(NamedTuple):
    """Clips to listen to.

    Arguments
    ---------
    items : list of dict
        ``record`` (a line of the predictions) and ``said``, a list of
        (who, answer, score or "").
    """

    items: list
