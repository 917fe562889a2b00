"""The table and the example clips, as Markdown that also reads as plain text.

Authors
 * The blsp_plugin team 2026
"""

__all__ = ["examples", "report", "table"]

_WIDEST = 160  # characters of an answer; a system that babbles fills a screen


def table(results, task, systems):
    """Rows are systems, columns are figures with their intervals.

    Arguments
    ---------
    results : Results
        From `Evaluation`.
    task : Task
        Its metric names the columns.
    systems : list of System
        Rows, in this order.

    Returns
    -------
    str
        A Markdown table, aligned.
    """
    lines = [["system", *task.metric.columns.values(), "RTF"]]
    for system in systems:
        figures = results.figures[system.name]
        cells = [_cell(figures, name) for name in task.metric.columns]
        lines.append([system.label, *cells, f"{figures['rtf']:.3f}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * (width - 1) + ":" for width in widths]
    lines.insert(1, ["-" * widths[0], *rule[1:]])
    return "\n".join(
        "| "
        + " | ".join(
            [line[0].ljust(widths[0])]
            + [
                cell.rjust(width)
                for cell, width in zip(line[1:], widths[1:], strict=True)
            ]
        )
        + " |"
        for line in lines
    )


def _cell(figures, name):
    """A figure, with its interval if it has one."""
    text = f"{figures[name]:.1f}"
    if f"{name}_low" in figures:
        low, high = figures[f"{name}_low"], figures[f"{name}_high"]
        text += f" [{low:.1f}, {high:.1f}]"
    return text


def examples(results, systems, n=5):
    """What every system said of some clips, spread over the corpus.

    Arguments
    ---------
    results : Results
        From `Evaluation`.
    systems : list of System
        In this order.
    n : int
        Number of clips.

    Returns
    -------
    str
        Markdown.
    """
    clips = results.clips
    n = min(n, len(clips))
    blocks = []
    for i in range(n):
        clip = clips[i * len(clips) // n]
        said = [("reference", clip["reference"])]
        said += [(s.label, clip["answers"][s.name]) for s in systems]
        width = max(len(label) for label, _ in said)
        lines = [
            f"    {label.ljust(width)}  {_shorten(text)}"
            for label, text in said
        ]
        head = f"{clip['id']} ({clip['duration']:.1f} s)"
        blocks.append("\n".join([head, "", *lines]))
    return "\n\n".join(blocks)


def _shorten(text):
    return text if len(text) <= _WIDEST else text[:_WIDEST] + " ..."


def report(results, task, systems, n=5):
    """The table, how to read it, and example clips.

    Arguments
    ---------
    results : Results
        From `Evaluation`.
    task : Task
        What was done.
    systems : list of System
        Rows, in this order.
    n : int
        Number of example clips.

    Returns
    -------
    str
        Markdown, with a newline at the end.
    """
    hours = sum(clip["duration"] for clip in results.clips) / 3600
    facts = (
        f"{len(results.clips)} clips, {hours:.2f} h, "
        f"{len(results.rejected)} rejected; {task.metric}; brackets: 95 % "
        "bootstrap interval over clips; RTF: seconds of computing per second "
        f'of audio; instruction: "{task.instruction}"'
    )
    parts = [f"# {task.name}", table(results, task, systems), facts]
    if n:
        parts += ["## Example clips", examples(results, systems, n)]
    return "\n\n".join(parts) + "\n"
