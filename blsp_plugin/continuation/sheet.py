"""A sheet for the eye: some of what the LLM was asked, and what it wrote.

Whether the responses are any good is seen in minutes by reading fifty of each
behaviour, and in no table of figures. One HTML file without scripts.

Authors
 * The blsp_plugin team 2026
"""

import collections
import html
import itertools
import random
import unicodedata

import numpy
import pyarrow.parquet

from blsp_plugin.files import atomic_write, disk_errors

__all__ = ["write_sheet"]

_PER_REASON = 20
_COLUMNS = (
    "ID",
    "transcript",
    "text",
    "behaviour",
    "instruction",
    "response",
    "ended",
)
# The policy: even if an escape were forgotten, no script would run.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>Sample of the responses</title>
<style>
:root { color-scheme: light dark; font-family: sans-serif }
table { border-collapse: collapse }
th, td { border: 1px solid gray; padding: .3em .5em; text-align: left;
 vertical-align: top; white-space: pre-wrap; overflow-wrap: anywhere }
mark { margin-left: .5em }
</style>
"""


def write_sheet(path, table_path, rejected=(), per_behaviour=50, seed=0):
    """Write random rows of a finished table, and rejected ones, as HTML.

    Only the row groups of the chosen rows are read. The same arguments give
    the same file.

    Arguments
    ---------
    path : str
        The HTML file; appears whole or not at all.
    table_path : str
        A finished Parquet table, see `blsp_plugin.continuation.table`.
    rejected : iterable of dict
        Lines of ``rejected.jsonl``: responses by their reason, and unusable
        input rows; up to 20 of each are shown.
    per_behaviour : int
        Rows of each behaviour.
    seed : int
        Another seed chooses other rows.

    Example
    -------
    >>> import pyarrow
    >>> folder = getfixture("tmp_path")
    >>> row = {"ID": "a-continue", "transcript": "HOW IS <B>", "ended": True,
    ...     "text": "How is <b>", "behaviour": "continue",
    ...     "instruction": "Go on.", "response": "spelt?"}
    >>> pyarrow.parquet.write_table(
    ...     pyarrow.Table.from_pylist([row]), folder / "train.parquet")
    >>> write_sheet(folder / "sample.html", folder / "train.parquet")
    >>> "<td>How is &lt;b&gt;</td>" in (folder / "sample.html").read_text()
    True
    """
    with pyarrow.parquet.ParquetFile(
        table_path, read_dictionary=["behaviour"]
    ) as table:
        chosen, totals = _choose(table, per_behaviour, seed)
        rows = collections.defaultdict(list)
        for row in _read(table, chosen):
            rows[row["behaviour"]].append(row)
    bad, bad_totals = _sample(rejected, seed)
    with disk_errors(path), atomic_write(path) as stream:
        stream.write(_HEAD)
        for name, total in totals.items():
            some = rows[name]
            stream.write(f"<h1>{_show(name)}: {len(some)} of {total}</h1>\n")
            _write_table(
                stream,
                ("ID", "as given", "text", "instruction", "response"),
                map(_row_cells, some),
            )
        for reason, some in sorted(bad.items()):
            stream.write(
                f"<h1>rejected, {_show(reason)}: {len(some)} of "
                f"{bad_totals[reason]}</h1>\n"
            )
            _write_table(
                stream,
                ("ID", "behaviour", "text", "response"),
                map(_rejected_cells, some),
            )


def _choose(table, size, seed):
    """Numbers of some random rows of each behaviour, and all its rows."""
    draws = numpy.random.default_rng(seed)
    best, totals = {}, collections.Counter()
    start = 0
    for group in range(table.num_row_groups):
        column = table.read_row_group(group, columns=["behaviour"])[0]
        column = column.unify_dictionaries().combine_chunks()
        codes = column.indices.to_numpy()
        # Each row draws a number; the smallest of each behaviour are chosen.
        drawn = draws.random(len(codes))
        for code, name in enumerate(column.dictionary.to_pylist()):
            (here,) = numpy.nonzero(codes == code)
            totals[name] += len(here)
            numbers, rows = best.get(name, (drawn[:0], here[:0]))
            numbers = numpy.concatenate([numbers, drawn[here]])
            rows = numpy.concatenate([rows, here + start])
            smallest = numpy.argsort(numbers)[:size]
            best[name] = numbers[smallest], rows[smallest]
        start += len(codes)
    chosen = itertools.chain(*(rows.tolist() for _, rows in best.values()))
    return sorted(chosen), totals


def _read(table, numbers):
    """Yield the rows of some sorted row numbers."""
    numbers, start = collections.deque(numbers), 0
    for group in range(table.num_row_groups):
        end = start + table.metadata.row_group(group).num_rows
        here = []
        while numbers and numbers[0] < end:
            here.append(numbers.popleft() - start)
        if here:
            rows = table.read_row_group(group, columns=list(_COLUMNS))
            yield from rows.take(here).to_pylist()
        start = end


def _sample(rejected, seed):
    """Some random records of each reason, in their order, and the totals."""
    draws = random.Random(seed)
    some, totals = collections.defaultdict(list), collections.Counter()
    for record in rejected:
        # Input rows have a reason each.
        answered = "response" in record
        reason = record["reason"] if answered else "unusable input"
        totals[reason] += 1
        if len(some[reason]) < _PER_REASON:
            some[reason].append(record)
        elif (place := draws.randrange(totals[reason])) < _PER_REASON:
            some[reason][place] = record
    return some, totals


def _row_cells(row):
    given = row["transcript"] if row["transcript"] != row["text"] else ""
    cells = [row["ID"], given, row["text"], row["instruction"], row["response"]]
    cells = list(map(_show, cells))
    if not row["ended"]:
        cells[-1] += "<mark>cut</mark>"
    return cells


def _rejected_cells(record):
    if "response" in record:
        keys = ("id", "behaviour", "text", "response")
        return [_show(record[key]) for key in keys]
    place = f"{record['file']}, row {record['row']}"
    return [_show(cell) for cell in (record["id"], "", place, record["reason"])]


def _write_table(stream, names, rows):
    stream.write("<table>\n<tr>")
    stream.writelines(f"<th>{name}</th>" for name in names)
    stream.write("</tr>\n")
    for cells in rows:
        stream.write("<tr>")
        stream.writelines(f"<td>{cell}</td>" for cell in cells)
        stream.write("</tr>\n")
    stream.write("</table>\n")


def _show(text):
    """Any text as HTML that shows what is in it, and does nothing else."""
    return html.escape("".join(map(_visible, str(text))))


def _visible(letter):
    """Controls, such as those that turn the writing direction, get a name."""
    # The joiners are a part of some scripts' and emojis' spelling.
    if letter in "\n\u200c\u200d":
        return letter
    if unicodedata.category(letter) in ("Cc", "Cf", "Co", "Cs"):
        return f"⟨U+{ord(letter):04X}⟩"
    return letter
