"""The table of a split: its shards, in the order of its input, as Parquet.

Authors
 * The blsp_plugin team 2026
"""

import collections
import contextlib
import os

import numpy
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from blsp_plugin.continuation.plan import CLIP
from blsp_plugin.continuation.shards import read_records
from blsp_plugin.errors import BadInput
from blsp_plugin.files import disk_errors, sync_folder

__all__ = ["COLUMNS", "write_table"]

COLUMNS = pyarrow.schema(
    [
        ("ID", pyarrow.string()),
        ("clip_id", pyarrow.string()),
        *CLIP,
        ("behaviour", pyarrow.string()),
        ("instruction", pyarrow.string()),
        ("response", pyarrow.string()),
        ("response_ids", pyarrow.list_(pyarrow.int32())),
        ("ended", pyarrow.bool_()),
    ]
)
_ROWS_AT_ONCE = 16384


def write_table(path, plan, index, asks, reject):
    """Make one Parquet file of a split's shards.

    Arguments
    ---------
    path : str
        The Parquet file; appears whole or not at all.
    plan : Plan
        What was asked for.
    index : Index
        From `scan_shards`.
    asks : list of (str, str)
        Names of the behaviours and their instructions, by number.
    reject : callable
        Gets a list of dicts, of rows that have a reason instead of a place in
        the table: ``id``, ``behaviour``, ``text``, ``response``, ``reason``.

    Returns
    -------
    collections.Counter
        ``rows``, ``written``, ``truncated``, ``tokens``, written rows by
        behaviour as ``written_<name>``, and rejected ones by reason, as
        ("rejected", reason).

    Raises
    ------
    BadInput
        If a response is missing.
    """
    counts = collections.Counter()
    schema = pyarrow.schema(
        [*COLUMNS, *[f for f in plan.schema if f.name in plan.keep]]
    )
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with disk_errors(path), contextlib.ExitStack() as stack:
            # The footer is written on closing: the stream must outlive it.
            stream = stack.enter_context(open(temporary, "wb"))
            with pyarrow.parquet.ParquetWriter(stream, schema) as writer:
                for start in range(0, plan.n_rows, _ROWS_AT_ONCE):
                    stop = min(start + _ROWS_AT_ONCE, plan.n_rows)
                    table = _joined(plan, index, asks, start, stop)
                    counts["rows"] += len(table)
                    counts["tokens"] += _tokens(table)
                    good = table["reason"].is_null()
                    bad = pyarrow.compute.invert(good)
                    reject(_rejected(table.filter(bad), counts))
                    table = table.filter(good).select(schema.names)
                    _count(table, counts)
                    writer.write_table(table.cast(schema))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
    sync_folder(path)
    return counts


def _joined(plan, index, asks, start, stop):
    """Rows and records side by side, a row a request."""
    first, last = int(plan.first[start]), int(plan.first[stop])
    records = read_records(index, first, last)
    missing = numpy.flatnonzero(~index.done[first:last])
    per_row = numpy.diff(plan.first[start : stop + 1])
    rows = plan.rows(start, stop).take(
        pyarrow.array(numpy.repeat(numpy.arange(stop - start), per_row))
    )
    numbers = pyarrow.array(plan.asks[first:last])
    behaviours, instructions = (
        pyarrow.array(list(names), pyarrow.string()).take(numbers)
        for names in zip(*asks, strict=True)
    )
    keys = pyarrow.compute.binary_join_element_wise(rows["id"], behaviours, "-")
    if len(missing):
        total = int((~index.done).sum())
        raise BadInput(
            f"{keys[int(missing[0])]}: no response in the shards, and "
            f"{total - 1} more are missing; run the same command again to "
            "write them (of a cluster's job: with its --shard)"
        )
    written = records["ID"].fill_null("")
    same = pyarrow.compute.equal(keys, written).combine_chunks()
    if not pyarrow.compute.all(same, min_count=0).as_py():
        place = same.index(False).as_py()
        raise BadInput(
            f"{keys[place]}: the shards have {records['ID'][place]} in its "
            "place; they belong to another input, use another output_folder"
        )
    table = rows.drop_columns(["asks"]).append_column("clip_id", rows["id"])
    table = table.append_column("behaviour", behaviours)
    table = table.append_column("instruction", instructions)
    for name in ("ID", "response", "response_ids", "ended", "reason"):
        table = table.append_column(name, records[name])
    return table


def _rejected(table, counts):
    """The rejected rows, for people to read."""
    for reason in table["reason"].to_pylist():
        counts["rejected", reason] += 1
    names = ("behaviour", "text", "response", "reason")
    table = table.select(["ID", *names])
    return table.rename_columns(["id", *names]).to_pylist()


def _tokens(table):
    lengths = pyarrow.compute.list_value_length(table["response_ids"])
    return pyarrow.compute.sum(lengths).as_py() or 0


def _count(table, counts):
    """Add up what is written."""
    counts["written"] += len(table)
    ended = pyarrow.compute.sum(table["ended"]).as_py() or 0
    counts["truncated"] += len(table) - ended
    for pair in table["behaviour"].value_counts().to_pylist():
        counts[f"written_{pair['values']}"] += pair["counts"]
