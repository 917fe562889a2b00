"""Text files of corpora: lines, and tab-separated ones without quoting.

Authors
 * The blsp_plugin team 2026
"""

from blsp_plugin.errors import BadInput

__all__ = ["read_lines", "read_tsv"]


def read_lines(path):
    r"""Read a text file of a corpus line by line.

    Only "\n" ends a line: a stray "\r" or U+2028 is white space of its
    sentence, and files that belong together line by line stay together.

    Arguments
    ---------
    path : str or os.PathLike
        The file, UTF-8.

    Yields
    ------
    row : int
        Of the line; the first is 1.
    line : str
        Without its end.

    Raises
    ------
    BadInput
        Missing, empty or not UTF-8.

    Example
    -------
    >>> path = getfixture("tmp_path") / "dev.en"
    >>> _ = path.write_text("One\u2028line\r\nAnother\n", "utf-8")
    >>> list(read_lines(path))
    [(1, 'One\u2028line'), (2, 'Another')]
    """
    row = 0
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as stream:
            for row, line in enumerate(stream, 1):
                yield row, line.rstrip("\r\n")
    except FileNotFoundError as error:
        raise BadInput(
            f"{path}: no such file; download or extract the corpus again"
        ) from error
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path}: not UTF-8 after row {row}; download it again"
        ) from error
    if row == 0:
        raise BadInput(f"{path}: is empty; download it again")


def read_tsv(path, needed, header=None):
    r"""Read a tab-separated file row by row.

    Quotes are characters like any other, so that a sentence may begin with
    one that is never closed.

    Arguments
    ---------
    path : str or os.PathLike
        The file, UTF-8.
    needed : sequence of str
        Columns that it must have.
    header : sequence of str, optional
        Names of the columns. Default: the first row has them.

    Yields
    ------
    row : int
        Line in the file; the first is 1.
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
    for row, line in read_lines(path):
        fields = line.split("\t")
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


def _check_header(path, header, needed):
    for name in needed:
        if name not in header:
            raise BadInput(
                f"{path}, row 1: no column {name!r}, it has "
                f"{', '.join(header)}; it is not a file of this corpus"
            )
