"""Manifests: the toolkit's CSV, or Parquet with the same columns, as rows.

A file that cannot be used as a whole raises `BadInput`. A row that cannot be
used is rejected with its reason and the rest goes on.

Authors
 * The blsp_plugin team 2026
"""

import csv
import functools
import math
import os
from typing import NamedTuple

import numpy
from speechbrain.utils.logger import get_logger

from blsp_plugin.data.audio import (
    find_stretch,
    probe_many,
    probe_speech,
    resampled_length,
)
from blsp_plugin.data.text import normalise_transcript
from blsp_plugin.data.writers import open_manifest
from blsp_plugin.errors import BadInput
from blsp_plugin.files import write_jsonl

__all__ = [
    "Manifest",
    "Rejected",
    "check_rejected",
    "first_places",
    "iter_manifest",
    "read_csv",
    "read_manifest",
    "write_csv",
    "write_rejected",
]

logger = get_logger(__name__)

# A CSV's duration may be rounded; further off than this, the header is right.
DURATION_SLACK = 0.1
REPEATED = "ID {} is already that of row {}; give each row its own"

# What the toolkit's scripts for CoVoST and GigaSpeech call the columns.
ALIASES = {
    "wrd": ("transcription", "text"),
    "wav": ("audio_path",),
    "spk_id": ("speaker",),
}
# From where to where in the recording, in samples or, as the toolkit's script
# for GigaSpeech has it, in seconds. Optional.
STRETCH = ("start", "stop", "begin_time", "end_time")


class Rejected(NamedTuple):
    """A row that could not be used.

    Arguments
    ---------
    id : str
        The row's ID, as far as it has one.
    file : str
        The file that holds the row.
    row : int
        Line of the row in a text file (a CSV's header is line 1), or its
        number in a Parquet file (the first is 1); 0 if the file is meant.
    reason : str
        One line that says what is wrong and how to mend it.
    """

    id: str
    file: str
    row: int
    reason: str


class Manifest(NamedTuple):
    """What `read_manifest` found.

    Arguments
    ---------
    rows : list of dict
        The good rows, in file order.
    rejected : list of Rejected
        The others, in file order.
    """

    rows: list
    rejected: list


def _find_columns(path, has, needed):
    """Which column of the file each needed one is; optional ones may lack."""
    found = {}
    for name in needed:
        names = [n for n in (name, *ALIASES.get(name, ())) if n in has]
        if names:
            found[name] = names[0]
        elif name not in STRETCH:
            raise BadInput(
                f"{path}, row 1: no column {name!r}, it has "
                f"{', '.join(has)}; name the right column or add it"
            )
    return found


def _find_line(path):
    """Return the first line of ``path`` that is not UTF-8."""
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number


def read_csv(path, needed):
    r"""Read some columns of a CSV file row by row, whatever is in its quotes.

    Arguments
    ---------
    path : str or os.PathLike
        The file, UTF-8; its first row names the columns.
    needed : sequence of str
        The columns.

    Yields
    ------
    row : int
        Line where the row starts; the header's is 1.
    record : dict of str or None
        Those columns; None if the row is bad.
    reason : str or None
        Why it is.

    Raises
    ------
    BadInput
        Empty, not UTF-8, a column is missing, a quote is never closed.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.csv"
    >>> _ = path.write_text('n,text\n1,"yes, no"\n')
    >>> list(read_csv(path, ["text"]))
    [(2, {'text': 'yes, no'}, None)]
    """
    header = None
    with open(path, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, skipinitialspace=True, strict=True)
        while True:
            # Where the row starts; with newlines in quotes it ends elsewhere.
            number = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                break
            except UnicodeDecodeError as error:
                raise BadInput(
                    f"{path}, row {_find_line(path)}: not UTF-8; convert the "
                    "file, for example with iconv -t utf-8"
                ) from error
            except csv.Error as error:
                if "unexpected end" in str(error):
                    raise BadInput(
                        f"{path}, row {number}: a quote opens there that is "
                        "never closed; double the quotes inside a field"
                    ) from error
                reason = f"not CSV ({error}); mend its quotes"
                # A stray quote takes the lines down to the next one with it.
                for lost in range(number, reader.line_num + 1):
                    yield lost, None, reason
                continue
            if not fields:
                continue
            if header is None:
                header = fields
                columns = _find_columns(path, header, needed)
            elif len(fields) != len(header):
                reason = (
                    f"{len(fields)} fields where the header has "
                    f"{len(header)}; quote the fields that hold commas"
                )
                for lost in range(number, reader.line_num + 1):
                    yield lost, None, reason
            else:
                record = dict(zip(header, fields, strict=True))
                record = {name: record[at] for name, at in columns.items()}
                yield number, record, None
    if header is None:
        raise BadInput(f"{path}: is empty; prepare the data again")


def _parquet_records(path, needed):
    """Yield (number, record, None) of a Parquet file."""
    # Users of CSV files need not wait for this import.
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            columns = _find_columns(path, file.schema_arrow.names, needed)
            for batch in file.iter_batches(columns=list(columns.values())):
                # By column: three times as fast as the batch's to_pylist.
                values = [batch[at].to_pylist() for at in columns.values()]
                for fields in zip(*values, strict=True):
                    number += 1
                    yield number, dict(zip(columns, fields, strict=True)), None
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(
            f"{path}: not a readable Parquet file ({error}); write it again"
        ) from error


def _as_text(value):
    return "" if value is None else str(value)


def _parse_duration(value):
    try:
        duration = float(value)
    except (TypeError, ValueError):
        duration = math.nan
    if not (math.isfinite(duration) and duration > 0):
        raise BadInput(
            f"duration {value!r} is not a number of seconds; correct it"
        )
    return duration


def _add_audio(row, record, root, check):
    """Fill in ``wav`` and ``duration``, or raise BadInput."""
    row["wav"] = _as_text(record["wav"]).strip().replace("$data_root", root)
    if not row["wav"]:
        raise BadInput("empty wav; give the path of the clip")
    row["duration"] = _parse_duration(record["duration"])
    if check and not os.path.isfile(row["wav"]):
        raise BadInput(
            f"{row['wav']}: no such audio file; correct the path or data_root"
        )
    row.update(_find_stretch(row["wav"], record))


# Rows of one recording follow each other: one look at its header.
_probe = functools.lru_cache(maxsize=64)(probe_speech)


def _parse_sample(text):
    """A number of samples; pandas writes "8000.0" where some are missing."""
    number = float(text)
    if not number.is_integer():
        raise ValueError
    return int(number)


def _find_stretch(wav, record):
    """{"start", "stop"} in samples; {} if the clip is the whole file."""
    given = {name: _as_text(record.get(name)) for name in STRETCH}
    given = {k: "" if v == "nan" else v for k, v in given.items()}
    start, stop, begin, end = given.values()
    try:
        if start or stop:
            start, stop = _parse_sample(start), _parse_sample(stop)
        elif begin or end:
            begin, end = float(begin), float(end)
            start, stop = find_stretch(wav, _probe(wav), begin, end)
        else:
            return {}
    except BadInput:
        raise
    except ValueError:
        start = stop = -1
    if not 0 <= start < stop:
        given = ", ".join(f"{k} {v!r}" for k, v in given.items() if v)
        raise BadInput(f"{given}: no stretch of a recording; correct it")
    return {"start": start, "stop": stop}


def _heard(row, info):
    """What of the file a row is about: samples at 16 kHz, seconds."""
    if "stop" not in row:
        return info.samples_16k, info.duration
    length = round(info.duration * info.sample_rate)
    if row["stop"] > length:
        raise BadInput(
            f"{row['wav']}: stop {row['stop']} is behind its {length} "
            "samples; correct it or drop the row"
        )
    samples = row["stop"] - row["start"]
    rate = info.sample_rate
    return resampled_length(samples, rate), samples / rate


def _probe_rows(path, numbered):
    """Give each row its header's length; return the good, the rejected."""
    good, rejected = [], []
    results = probe_many([row["wav"] for _, row in numbered])
    for (number, row), info in zip(numbered, results, strict=True):
        try:
            if isinstance(info, BadInput):
                raise info
            row["samples"], duration = _heard(row, info)
        except BadInput as error:
            rejected.append(Rejected(row["id"], path, number, str(error)))
            continue
        if abs(row["duration"] - duration) > DURATION_SLACK:
            logger.warning(
                "%s, row %d: duration %.2f s, but %s has %.2f s",
                path,
                number,
                row["duration"],
                row["wav"],
                duration,
            )
            row["duration"] = duration
        good.append((number, row))
    return good, rejected


def iter_manifest(
    path,
    text_key="wrd",
    data_root=None,
    keep=(),
    need_audio=True,
    check_audio=True,
):
    """Read a manifest row by row: any number of rows, little memory.

    Repeated IDs are not noticed here; see `first_places`.

    Arguments
    ---------
    path, text_key, data_root, keep, need_audio
        As those of `read_manifest`.
    check_audio : bool
        Whether a row whose clip is not there is bad.

    Yields
    ------
    number : int
        Line of the row in a text file, its number in a Parquet file.
    row : dict
        As `read_manifest` describes; of a bad row only ``id`` is sure.
    reason : str or None
        What is wrong with it.

    Raises
    ------
    BadInput
        As `read_manifest`.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise BadInput(
            f"{path}: no such manifest; correct the path or prepare the data"
        )
    root = os.fspath(data_root or os.path.dirname(os.path.abspath(path)))
    needed = ["ID", *keep] if text_key is None else ["ID", text_key, *keep]
    if need_audio:
        needed += ["wav", "duration", *STRETCH]
    parquet = path.endswith(".parquet")
    read_records = _parquet_records if parquet else read_csv
    number = 0
    for number, record, reason in read_records(
        path, list(dict.fromkeys(needed))
    ):
        row = {"id": _as_text(record["ID"]).strip() if record else ""}
        try:
            if reason:
                raise BadInput(reason)
            if not row["id"]:
                raise BadInput("empty ID; give the row one")
            if need_audio:
                _add_audio(row, record, root, check_audio)
            row["text"] = ""
            if text_key is not None:
                row["text"] = normalise_transcript(_as_text(record[text_key]))
            if text_key is not None and not row["text"]:
                raise BadInput(
                    f"empty transcript in column {text_key!r}; fill it in or "
                    "drop the row"
                )
        except BadInput as error:
            reason = str(error)
        else:
            row.update({name: record[name] for name in keep if name not in row})
        yield number, row, reason
    if not number:
        raise BadInput(f"{path}: has no rows; prepare the data again")


def first_places(hashes):
    """For each row the place of the first one with its hash.

    Arguments
    ---------
    hashes : sequence of int
        Of the rows' IDs, 64 bits: two of ten million different IDs share one
        in three of a million cases.

    Returns
    -------
    numpy.ndarray
        Shape (rows,), int64; rows that point to themselves are no repeats.

    Example
    -------
    >>> first_places([7, 8, 7, 9, 8]).tolist()
    [0, 1, 0, 3, 1]
    """
    hashes = numpy.asarray(hashes, dtype=numpy.int64)
    order = numpy.argsort(hashes, kind="stable")
    new = numpy.ones(len(hashes), dtype=bool)
    new[1:] = hashes[order[1:]] != hashes[order[:-1]]
    first = numpy.empty(len(hashes), dtype=numpy.int64)
    first[order] = order[new][numpy.cumsum(new) - 1]
    return first


def read_manifest(
    path, text_key="wrd", data_root=None, keep=(), probe=False, need_audio=True
):
    """Read a CSV or Parquet manifest into checked rows.

    Arguments
    ---------
    path : str or os.PathLike
        ``*.parquet``, or else a CSV as the toolkit's preparers write it:
        columns ``ID``, ``duration``, ``wav`` and a text, optionally ``start``
        and ``stop``; the toolkit's other names for them will do.
    text_key : str or None
        The column that holds the text: wrd, transcription, translation, ...;
        None: texts are empty, and need not be there.
    data_root : str, optional
        Takes the place of ``$data_root`` in ``wav``. Default: the folder
        that holds the manifest.
    keep : sequence of str
        Further columns to carry through, as they are.
    probe : bool
        Read every clip's header too (in threads, with a progress bar). It
        overrules a ``duration`` that is more than 0.1 s off.
    need_audio : bool
        False for work on text alone: ``wav`` and ``duration`` are not read.

    Returns
    -------
    Manifest
        Rows are dicts: ``id``, ``wav``, ``duration`` (float, seconds),
        ``text`` (normalised, never empty), the ``keep`` columns, ``start``
        and ``stop`` (int, samples at the file's own rate) of a clip that is a
        stretch of its file, and with ``probe`` also ``samples`` (int, at
        16 kHz).

    Raises
    ------
    BadInput
        No such file, empty, no rows, not UTF-8, not Parquet, a column is
        missing, a quote is never closed.

    Example
    -------
    >>> path = getfixture("tmp_path") / "train.csv"
    >>> rows = [{"ID": "a", "wrd": "HELLO"}, {"ID": "b", "wrd": " "}]
    >>> write_csv(rows, path, ["ID", "wrd"])
    >>> manifest = read_manifest(path, need_audio=False)
    >>> manifest.rows
    [{'id': 'a', 'text': 'HELLO'}]
    >>> manifest.rejected[0].row, manifest.rejected[0].reason
    (3, "empty transcript in column 'wrd'; fill it in or drop the row")
    """
    numbered, rejected = [], []
    rows = iter_manifest(
        path, text_key, data_root, keep, need_audio, check_audio=not probe
    )
    for number, row, reason in rows:
        if reason is None:
            numbered.append((number, row))
        else:
            rejected.append(
                Rejected(row["id"], os.fspath(path), number, reason)
            )
    first = first_places([hash(row["id"]) for _, row in numbered])
    for place in numpy.flatnonzero(first != numpy.arange(len(first))):
        number, row = numbered[place]
        reason = REPEATED.format(row["id"], numbered[first[place]][0])
        rejected.append(Rejected(row["id"], os.fspath(path), number, reason))
    numbered = [numbered[place] for place in numpy.unique(first)]
    rejected.sort(key=lambda bad: bad.row)
    if probe and need_audio:
        numbered, unreadable = _probe_rows(os.fspath(path), numbered)
        rejected = sorted(rejected + unreadable, key=lambda bad: bad.row)
    return Manifest([row for _, row in numbered], rejected)


def write_csv(rows, path, columns):
    """Write rows as a CSV that the toolkit reads, atomically.

    Arguments
    ---------
    rows : iterable of dict
        Each with all the columns; other keys are left out.
    path : str or os.PathLike
        The file.
    columns : sequence of str
        Its header.

    Raises
    ------
    KeyError
        If a row lacks a column.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.csv"
    >>> write_csv([{"ID": "a", "wrd": "yes, no"}], path, ["ID", "wrd"])
    >>> path.read_text().splitlines()
    ['ID,wrd', 'a,"yes, no"']
    """
    with open_manifest(path, columns) as write_row:
        for row in rows:
            write_row(row)


def write_rejected(rejected, path):
    r"""Write rejected rows as JSON lines, atomically; also when there is none.

    Arguments
    ---------
    rejected : iterable of Rejected
        The rows.
    path : str or os.PathLike
        Usually ``rejected.jsonl`` in the output folder.

    Example
    -------
    >>> path = getfixture("tmp_path") / "rejected.jsonl"
    >>> write_rejected([Rejected("a", "a.csv", 2, "empty wav")], path)
    >>> path.read_text()
    '{"id": "a", "file": "a.csv", "row": 2, "reason": "empty wav"}\n'
    """
    write_jsonl((bad._asdict() for bad in rejected), path)


def check_rejected(
    n_bad, n_all, max_rejected=0.01, what="rows", path="rejected.jsonl"
):
    """Stop the work if too much of its input was bad.

    Arguments
    ---------
    n_bad : int
        Rejected rows.
    n_all : int
        All rows, the rejected among them.
    max_rejected : float
        The fraction that may be bad.
    what : str
        What was counted, for the message.
    path : str or os.PathLike
        Where the reasons are, for the message.

    Raises
    ------
    BadInput
        If more than the fraction was bad.

    Example
    -------
    >>> check_rejected(1, 100)
    >>> check_rejected(2, 100)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    blsp_plugin.errors.BadInput: 2 of 100 rows were rejected (2.0%), more ...
    """
    if n_bad > max_rejected * n_all:
        raise BadInput(
            f"{n_bad} of {n_all} {what} were rejected "
            f"({n_bad / n_all:.1%}), more than max_rejected "
            f"({max_rejected:.1%}); {path} has the reasons, mend the rows or "
            "raise max_rejected"
        )
