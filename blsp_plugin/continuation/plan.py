"""The plan of a split: its checked rows on the disk, and who is asked what.

Ten million transcripts as Python objects take ten gigabytes. Here they are an
Arrow file, of which a window at a time is read; in memory are a few numbers a
row. Requests are numbered: row by row, behaviour by behaviour.

Authors
 * The blsp_plugin team 2026
"""

import contextlib
import hashlib
import itertools
import os
from array import array

import numpy
import pyarrow

from blsp_plugin.data.manifest import REPEATED, first_places
from blsp_plugin.files import disk_errors

__all__ = ["CLIP", "COLUMNS", "Plan", "write_plan"]

ROWS_A_BATCH = 8192
CLIP = [  # what a row says of its clip, here and in the table
    ("wav", pyarrow.string()),
    ("duration", pyarrow.float64()),
    ("start", pyarrow.int64()),
    ("stop", pyarrow.int64()),
    ("transcript", pyarrow.string()),
    ("text", pyarrow.string()),
]
COLUMNS = [
    ("id", pyarrow.string()),
    *CLIP,
    ("asks", pyarrow.list_(pyarrow.int16())),
]
_INPUT = ("id", "transcript")  # what of a row decides the texts


class Plan:
    """The rows of a split and their requests.

    Arguments
    ---------
    path : str
        From `write_plan`.

    Attributes
    ----------
    schema : pyarrow.Schema
        Of the rows.
    keep : list of str
        Columns that are merely carried along.
    n_rows : int
        Rows.
    asks : numpy.ndarray
        Shape (requests,), int16: which of the behaviours' instructions.
    first : numpy.ndarray
        Shape (rows + 1,), int64: number of each row's first request.
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        with pyarrow.ipc.open_file(self.path) as file:
            self.schema = file.schema
        self.keep = self.schema.names[len(COLUMNS) :]
        options = pyarrow.ipc.IpcReadOptions(
            included_fields=[self.schema.get_field_index("asks")]
        )
        asks, counts = [], []
        with pyarrow.ipc.open_file(self.path, options=options) as file:
            for i in range(file.num_record_batches):
                column = file.get_batch(i)["asks"]
                asks.append(column.flatten().to_numpy())
                counts.append(column.value_lengths().to_numpy())
        self.asks = _joined(asks, numpy.int16)
        counts = _joined(counts, numpy.int32)
        self.n_rows = len(counts)
        self.first = numpy.zeros(self.n_rows + 1, dtype=numpy.int64)
        numpy.cumsum(counts, out=self.first[1:])
        self._file = None

    @property
    def n_requests(self):
        """Number of requests."""
        return len(self.asks)

    def rows(self, start, stop):
        """Read some rows.

        Arguments
        ---------
        start : int
            The first.
        stop : int
            One past the last.

        Returns
        -------
        pyarrow.Table
        """
        if self._file is None:
            self._file = pyarrow.ipc.open_file(self.path)
        first = start // ROWS_A_BATCH
        batches = [
            self._file.get_batch(i)
            for i in range(first, (stop - 1) // ROWS_A_BATCH + 1)
        ]
        table = pyarrow.Table.from_batches(batches, self._file.schema)
        return table.slice(start - first * ROWS_A_BATCH, stop - start)

    def window(self, start, stop):
        """Read the requests of some rows.

        Arguments
        ---------
        start : int
            The first row.
        stop : int
            One past the last.

        Yields
        ------
        n : int
            Number of the request.
        row : dict
            Its row.
        ask : int
            What is asked.
        """
        rows = self.rows(start, stop).drop_columns(["asks"]).to_pylist()
        for row, number in zip(rows, range(start, stop), strict=True):
            for n in range(self.first[number], self.first[number + 1]):
                yield n, row, self.asks[n]


def write_plan(path, rows, choose, keep=()):
    """Write the plan of a split.

    Arguments
    ---------
    path : str
        Where to.
    rows : iterable of (int, dict, str or None)
        As from `iter_manifest`, with ``transcript`` and ``text`` (None: of
        another shard). May have ``start`` and ``stop``.
    choose : callable
        Row -> list of int: what is asked about it.
    keep : sequence of str
        Further columns, as text.

    Returns
    -------
    facts : dict
        ``rows``, and the hashes ``content`` (of what decides the responses)
        and ``table`` (of all columns).
    rejected : list of (str, int, str)
        ID, number and reason of rows that cannot be used, in their order.
    """
    names = [name for name, _ in COLUMNS]
    schema = pyarrow.schema(
        [*COLUMNS, *((name, pyarrow.string()) for name in keep)]
    )
    hashes, numbers, rejected = array("q"), array("q"), []

    def good():
        for number, row, reason in rows:
            if reason is not None:
                rejected.append((row["id"], number, reason))
                continue
            hashes.append(hash(row["id"]))
            numbers.append(number)
            row["asks"] = choose(row)
            yield row

    with disk_errors(path):
        with _writer(path, schema) as writer:
            for group in _groups(good(), ROWS_A_BATCH):
                columns = {
                    name: [row.get(name) for row in group] for name in names
                }
                for name in keep:
                    columns[name] = [
                        None if row[name] is None else str(row[name])
                        for row in group
                    ]
                writer.write_batch(
                    pyarrow.RecordBatch.from_pydict(columns, schema)
                )
        first = first_places(hashes)
        repeats = numpy.flatnonzero(first != numpy.arange(len(first)))
        if len(repeats):
            removed = _remove(path, repeats)
            for row_id, place in zip(removed, repeats, strict=True):
                reason = REPEATED.format(row_id, numbers[first[place]])
                rejected.append((row_id, numbers[place], reason))
            rejected.sort(key=lambda bad: bad[1])
    return _facts(path), rejected


@contextlib.contextmanager
def _writer(path, schema):
    options = pyarrow.ipc.IpcWriteOptions(compression="lz4")
    with open(path, "wb") as stream:
        with pyarrow.ipc.new_file(stream, schema, options=options) as writer:
            yield writer
        stream.flush()
        os.fsync(stream.fileno())


def _groups(items, size):
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group


def _batches(path):
    with pyarrow.ipc.open_file(path) as file:
        for i in range(file.num_record_batches):
            yield file.get_batch(i)


def _remove(path, places):
    """Rewrite a plan without some rows; return their IDs."""
    removed, start = [], 0
    table = pyarrow.Table.from_batches([], pyarrow.ipc.open_file(path).schema)
    with _writer(f"{path}.tmp", table.schema) as writer:
        for batch in _batches(path):
            keep = numpy.ones(len(batch), dtype=bool)
            here = places[(places >= start) & (places < start + len(batch))]
            keep[here - start] = False
            start += len(batch)
            removed += batch["id"].filter(pyarrow.array(~keep)).to_pylist()
            batch = batch.filter(pyarrow.array(keep))
            table = pyarrow.concat_tables(
                [table, pyarrow.Table.from_batches([batch])]
            )
            # All batches but the last have the same size: see `Plan.rows`.
            while len(table) >= ROWS_A_BATCH:
                head = table.slice(0, ROWS_A_BATCH).combine_chunks()
                writer.write_table(head)
                table = table.slice(ROWS_A_BATCH)
        if len(table):
            writer.write_table(table.combine_chunks())
    os.replace(f"{path}.tmp", path)
    return removed


def _facts(path):
    """Count the rows and hash them."""
    n_rows, content, table = 0, hashlib.sha256(), hashlib.sha256()
    for batch in _batches(path):
        n_rows += len(batch)
        for name in batch.schema.names:
            if name != "asks":
                for part in _bytes_of(batch[name]):
                    table.update(part)
                    if name in _INPUT:
                        content.update(part)
    return {
        "rows": n_rows,
        "content": content.hexdigest()[:16],
        "table": table.hexdigest()[:16],
    }


def _bytes_of(column):
    """A column's nulls, lengths and values as bytes, whatever its layout."""
    yield numpy.packbits(column.is_null().to_numpy(zero_copy_only=False))
    if pyarrow.types.is_string(column.type):
        _, offsets, data = column.buffers()
        offsets = numpy.frombuffer(offsets, numpy.int32, len(column) + 1)
        yield numpy.diff(offsets)
        yield memoryview(data or b"")[: offsets[-1]]
    else:
        values = column.fill_null(0)
        yield values.to_numpy(zero_copy_only=False)


def _joined(parts, dtype):
    return numpy.concatenate([numpy.empty(0, dtype), *parts]).astype(dtype)
