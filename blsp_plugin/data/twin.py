"""The Arrow twin of a Parquet file: any row at once, without memory.

A row of a Parquet file can't be read without its row group. So the columns
that training needs are written once to an Arrow stream, which is then mapped
into memory: opening it reads next to nothing, a row is a few pages of the
disk's cache, and processes share them.

Authors
 * The blsp_plugin team 2026
"""

import glob
import hashlib
import itertools
import os

import filelock
import numpy
import pyarrow
import pyarrow.compute
import pyarrow.parquet
from tqdm import tqdm

from blsp_plugin.errors import BadInput
from blsp_plugin.files import atomic_write, disk_errors, sync_folder

__all__ = ["FIRST_LIKE", "arrow_twin"]

# A column of the twin: the first row with the same instruction. A few numbers
# say what all instructions are, and no text is read to count tokens.
FIRST_LIKE = "first_like"
_INSTRUCTION = "instruction"
_BEHAVIOUR = "behaviour"
_ROWS_READ = 10_000  # at once
_ROWS_A_BATCH = 100_000  # of the twin: opening it reads something of each
_VERSION = 1  # of what a twin holds; another one is another name


def arrow_twin(
    path, cache_dir, schema, optional=(), quiet=False, behaviours=None
):
    """The twin of a Parquet file, made if there is none.

    Its name tells the Parquet's path, size and time of change, so another
    Parquet never has the same; it appears whole or not at all. Of several
    processes one makes it, while the others wait. Older twins of the same
    path are deleted.

    Arguments
    ---------
    path : str
        The Parquet file.
    cache_dir : str
        Folder of the twin; made if need be.
    schema : pyarrow.Schema
        Columns to keep and their types, ``instruction`` among them.
    optional : sequence of str
        Columns that may be missing, and may have nulls.
    quiet : bool
        No progress bar.
    behaviours : sequence of str, optional
        Only rows whose ``behaviour`` is one of these; all if not given.

    Returns
    -------
    str
        Path of the twin, an Arrow stream with the columns of ``schema`` that
        there are, and `FIRST_LIKE`, int32.

    Raises
    ------
    BadInput
        If the Parquet is unreadable or empty, lacks a column or a value, or
        changes in the meantime.
    OSError
        If the disk is full.
    """
    place = hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:12]
    stem = os.path.join(
        cache_dir, f"{os.path.splitext(os.path.basename(path))[0]}.{place}"
    )
    kept = (schema, optional, behaviours and sorted(behaviours))
    twin = f"{stem}.{_identity(path, *kept)}.arrow"
    if os.path.exists(twin):
        return twin
    os.makedirs(cache_dir, exist_ok=True)
    # The system frees the lock of a process that was killed.
    with filelock.FileLock(f"{stem}.lock"):
        if not os.path.exists(twin):
            for old in glob.glob(f"{glob.escape(stem)}.*.arrow*"):
                os.remove(old)
            with disk_errors(twin), atomic_write(twin, "wb") as stream:
                _convert(path, stream, *kept, quiet)
                if twin != f"{stem}.{_identity(path, *kept)}.arrow":
                    raise BadInput(
                        f"{path}: changed while it was read; run the same "
                        "command again"
                    )
            sync_folder(twin)
    return twin


def _identity(path, schema, optional, behaviours):
    """Which file it is, and what is kept of it, in a few letters."""
    facts = os.stat(path)
    facts = (facts.st_size, facts.st_mtime_ns, str(schema), optional, _VERSION)
    if behaviours:
        facts += tuple(behaviours)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _convert(path, stream, schema, optional, behaviours, quiet):
    """Write the twin, some rows at a time."""
    batches = _batches(path, schema, optional, behaviours)
    rows = next(batches)
    bar = tqdm(
        total=rows,
        desc=f"opening {os.path.basename(path)}",
        unit=" rows",
        unit_scale=True,
        delay=2,
        disable=quiet,
    )
    first = next(batches)
    with bar, pyarrow.ipc.new_stream(stream, first.schema) as writer:
        for batch in itertools.chain([first], batches):
            writer.write_batch(batch)
            bar.update(len(batch))
    # Arrow keeps what it freed; nothing else here will need it.
    pyarrow.default_memory_pool().release_unused()


def _batches(path, schema, optional, behaviours):
    """The number of rows, then the rows, checked, in the types of the twin."""
    try:
        # Reading ahead would keep a whole row group.
        parquet = pyarrow.parquet.ParquetFile(
            path, read_dictionary=[_INSTRUCTION], pre_buffer=False
        )
        with parquet:
            names = parquet.schema_arrow.names
            for name in schema.names:
                if name not in names and name not in optional:
                    raise BadInput(
                        f"{path}: lacks the column {name!r} (it has "
                        f"{', '.join(names)}); it must come from "
                        "recipes/continuation/generate.py"
                    )
            rows = parquet.metadata.num_rows
            if not rows:
                raise BadInput(f"{path}: has no rows")
            yield rows
            fields = [field for field in schema if field.name in names]
            batches = parquet.iter_batches(
                _ROWS_READ, columns=[field.name for field in fields]
            )
            batches = _cast(path, batches, fields, optional, behaviours)
            batches = _joined(batches)
            first = next(batches, None)
            if first is None:
                raise BadInput(
                    f"{path}: has no rows of the behaviours "
                    f"{', '.join(behaviours)}"
                )
            yield first
            yield from batches
    except (OSError, pyarrow.ArrowException) as error:
        raise BadInput(
            f"{path}: not a readable Parquet file ({error}); delete it and "
            "run recipes/continuation/generate.py again"
        ) from error


def _cast(path, batches, fields, optional, behaviours):
    """Batches of the Parquet -> batches of the twin."""
    schema = pyarrow.schema([*fields, (FIRST_LIKE, pyarrow.int32())])
    start, kept, first = 0, 0, {}
    for batch in batches:
        columns = []
        for field in fields:
            column = batch[field.name]
            if column.null_count and field.name not in optional:
                row = start + column.is_null().index(True).as_py()
                raise BadInput(
                    f"{path}, row {row}: no value in column {field.name!r}; "
                    "run recipes/continuation/generate.py again"
                )
            try:
                columns.append(column.cast(field.type))
            except pyarrow.ArrowException as error:
                raise BadInput(
                    f"{path}: column {field.name!r} is {column.type} instead "
                    f"of {field.type} ({error}); it must come from "
                    "recipes/continuation/generate.py"
                ) from error
        start += len(batch)
        instructions = batch[_INSTRUCTION]
        if behaviours:
            place = schema.get_field_index(_BEHAVIOUR)
            if place < 0:
                raise BadInput(
                    f"{path}: has no column {_BEHAVIOUR!r} to choose rows by"
                )
            wanted = pyarrow.compute.is_in(
                columns[place], pyarrow.array(behaviours)
            )
            columns = [column.filter(wanted) for column in columns]
            instructions = instructions.filter(wanted)
        if len(instructions):
            columns.append(_first_like(instructions, kept, first))
            yield pyarrow.record_batch(columns, schema=schema)
        kept += len(instructions)


def _joined(batches):
    """Small batches -> large ones."""
    some = []
    for batch in batches:
        some.append(batch)
        if sum(map(len, some)) >= _ROWS_A_BATCH:
            yield pyarrow.concat_batches(some)
            some = []
    if some:
        yield pyarrow.concat_batches(some)


def _first_like(column, start, first):
    """For each row the number of the first one with the same text.

    ``first`` has those of all texts so far, and gets the new ones.
    """
    if not pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    codes = column.indices.to_numpy()
    numbers = numpy.zeros(len(column.dictionary), numpy.int32)
    for code, place in zip(
        *numpy.unique(codes, return_index=True), strict=True
    ):
        text = column.dictionary[code].as_py()
        numbers[code] = first.setdefault(text, start + int(place))
    return pyarrow.array(numbers[codes])
