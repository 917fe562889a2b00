"""Writing manifests row by row: CSV as the toolkit reads it, or Parquet.

Authors
 * The blsp_plugin team 2026
"""

import contextlib
import csv
import os

from blsp_plugin.files import atomic_write, disk_errors

__all__ = ["open_manifest"]

# Columns of numbers; all others are text.
NUMBERS = {"duration": "float64", "start": "int64", "stop": "int64"}
ROW_GROUP = 16384


@contextlib.contextmanager
def open_manifest(path, columns):
    r"""Open a manifest for writing; it appears whole or not at all.

    Arguments
    ---------
    path : str or os.PathLike
        ``*.parquet`` (memory stays small however many rows there are), or
        else a CSV.
    columns : sequence of str
        Its columns, in order.

    Yields
    ------
    callable
        Writes one row, a dict with all the columns; other keys are left out.

    Raises
    ------
    KeyError
        If a row lacks a column.

    Example
    -------
    >>> path = getfixture("tmp_path") / "train.csv"
    >>> with open_manifest(path, ["ID", "wrd"]) as write_row:
    ...     _ = write_row({"ID": "a", "wrd": "yes, no"})
    >>> path.read_text()
    'ID,wrd\na,"yes, no"\n'
    """
    parquet = os.fspath(path).endswith(".parquet")
    opened = _open_parquet if parquet else _open_csv
    with disk_errors(path), opened(path, columns) as write_row:
        yield write_row


@contextlib.contextmanager
def _open_csv(path, columns):
    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        yield lambda row: writer.writerow([row[name] for name in columns])


@contextlib.contextmanager
def _open_parquet(path, columns):
    # Users of CSV files need not wait for this import.
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema(
        [(name, NUMBERS.get(name, "string")) for name in columns]
    )
    waiting = []

    def flush():
        table = pyarrow.Table.from_pylist(waiting, schema)
        writer.write_table(table)
        waiting.clear()

    def write_row(row):
        waiting.append({name: row[name] for name in columns})
        if len(waiting) == ROW_GROUP:
            flush()

    with (
        atomic_write(path, "wb") as stream,
        pyarrow.parquet.ParquetWriter(stream, schema) as writer,
    ):
        yield write_row
        flush()
