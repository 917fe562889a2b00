"""Plots of a report: SVG without a link, in the colours of the page.

Authors
 * The blsp_plugin team 2026
"""

import io
import re
import warnings

from blsp_plugin.errors import BadInput

__all__ = ["check_matplotlib", "plot_lines"]

# Drawn in these, then named after the page's own: light and dark follow it.
_INK = "#010203"
_SERIES = [f"#a1b2{i:02x}" for i in range(8)]
_MARKERS = "osD^vPX*"
# Fixed places, so that a system looks the same in every plot.
_PLACES = ("speechllm", "cascade", "gold", "untrained", "whisper")

_STYLE = {
    "svg.fonttype": "none",  # text stays text, for readers of all kinds
    "svg.hashsalt": "report",  # the same plot is the same file
    "text.parse_math": False,  # a label may hold anything, "$" too
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def check_matplotlib():
    """Refuse early where plots cannot be drawn.

    Raises
    ------
    BadInput
        If matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BadInput(
            "the report's plots need matplotlib; run pip install "
            "blsp_plugin[plots]"
        ) from error


def plot_lines(key, x, series, labels, ticks=None, top=None, **axes):
    """Draw a line a system.

    Arguments
    ---------
    key : str
        Unique on the page: letters, digits and dashes.
    x : list of float
        Shared by all lines.
    series : dict
        System's name -> values.
    labels : dict
        System's name -> text in the legend.
    ticks : list of str, optional
        Texts at the values of ``x``.
    top : float, optional
        End of the vertical axis.
    **axes : dict
        For matplotlib's ``Axes.set``: title, xlabel, ylabel.

    Returns
    -------
    str
        An ``<svg>`` element for the inside of an HTML page that defines the
        colours ``--series-0`` to ``--series-7``.

    Raises
    ------
    BadInput
        If matplotlib is not installed.
    """
    check_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    stream = io.StringIO()
    places = _places(series)
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Its font lacks some scripts; the browser's does not.
        warnings.simplefilter("ignore", UserWarning)
        figure = Figure(figsize=(6.2, 3.8), layout="constrained")
        axis = figure.subplots()
        handles = []
        for name, values in series.items():
            place = places[name]
            handles += axis.plot(
                x,
                values,
                color=_SERIES[place % len(_SERIES)],
                marker=_MARKERS[place % len(_MARKERS)],
                markersize=4.5,
                linewidth=1.6,
            )
        axis.set(**axes)
        axis.set_ylim(0, top)
        if ticks is not None:
            axis.set_xticks(x, ticks)
        axis.grid(axis="y")
        figure.legend(
            handles,
            [labels.get(name, name) for name in series],
            loc="outside lower center",
            ncols=min(3, len(series)),
            frameon=False,
        )
        figure.savefig(
            stream,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(["Creator", "Date", "Format", "Type"]),
        )
    return _inline(stream.getvalue(), key)


def _places(names):
    """Number of each system's colour; the well-known have their own."""
    others = [name for name in names if name not in _PLACES]
    return {
        name: i for i, name in enumerate([*_PLACES, *others]) if name in names
    }


def _inline(svg, key):
    """Make a file of matplotlib a part of a page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # A style sheet in a page is the whole page's.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"<g id=\"[^\"]*\">", "<g>", svg)
    # Ids are a page's, not a plot's.
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{key}-", svg)
    svg = svg.replace("<svg ", '<svg aria-hidden="true" ', 1)
    svg = svg.replace(_INK, "currentColor")
    for i, colour in enumerate(_SERIES):
        svg = svg.replace(colour, f"var(--series-{i})")
    return svg.strip()
