"""Tab-separated files as Common Voice has them: no quoting, a header.

Authors
 * The blsp_plugin team 2026
"""

from blsp_plugin.errors import BadInput

__all__ = ["read_tsv"]


def read_tsv(path, needed):
    r"""Read a tab-separated file row by row.

    Quotes are characters like any other, so that a sentence may begin with
    one that is never closed.

    Arguments
    ---------
    path : str or os.PathLike
        The file, UTF-8; its first row names the columns.
    needed : sequence of str
        Columns that it must have.

    Yields
    ------
    row : int
        Line in the file; the header is line 1.
    record : dict of str
        All columns; of a bad row those that are there, which may be none.
    reason : str or None
        Why the row is bad.

    Raises
    ------
    BadInput
        Missing, empty, not UTF-8, or a column is missing.

    Example
    -------
    >>> path = getfixture("tmp_path") / "train.tsv"
    >>> _ = path.write_text('path\tsentence\na.mp3\t"Oh\n')
    >>> list(read_tsv(path, ["path"]))
    [(2, {'path': 'a.mp3', 'sentence': '"Oh'}, None)]
    """
    header, row = None, 0
    try:
        # Only "\n" ends a row: a stray "\r" is white space of its sentence.
        with open(path, encoding="utf-8-sig", newline="\n") as stream:
            for row, line in enumerate(stream, 1):
                fields = line.rstrip("\r\n").split("\t")
                if header is None:
                    header = fields
                    _check_header(path, header, needed)
                elif len(fields) == len(header):
                    yield row, dict(zip(header, fields, strict=True)), None
                elif any(fields):
                    reason = (
                        f"{len(fields)} columns where the header has "
                        f"{len(header)}; restore the row"
                    )
                    yield row, dict(zip(header, fields, strict=False)), reason
    except FileNotFoundError as error:
        raise BadInput(
            f"{path}: no such file; download or extract the corpus again"
        ) from error
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path}: not UTF-8 after row {row}; download it again"
        ) from error
    if header is None:
        raise BadInput(f"{path}: is empty; download it again")


def _check_header(path, header, needed):
    for name in needed:
        if name not in header:
            raise BadInput(
                f"{path}, row 1: no column {name!r}, it has "
                f"{', '.join(header)}; it is not a file of this corpus"
            )
