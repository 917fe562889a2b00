"""Errors that a user can act on: one line, naming the file, the row, the mend.

Authors
 * The blsp_plugin team 2026
"""

import functools
import logging
import sys

__all__ = ["BadInput", "one_line_errors"]


class BadInput(ValueError):
    """Something the user gave us is wrong.

    The message is one line that names the file, the row where there is one,
    and what to do about it. Recipes print it without a traceback.
    """

    def __init__(self, message):
        super().__init__(" ".join(str(message).split()))


def one_line_errors(main):
    """Decorate a program's ``main``: `BadInput` ends it with one line.

    A full disk (``ENOSPC``) is the user's to mend as well, wherever it hits.

    Arguments
    ---------
    main : callable
        The program. Its return value is the exit status (None counts as 0).

    Returns
    -------
    callable
        The program, ending with status 2 and one line on bad input.

    Example
    -------
    >>> @one_line_errors
    ... def main():
    ...     raise BadInput("train.csv, row 3: no wav; add a path")
    >>> try:
    ...     main()
    ... except SystemExit as stop:
    ...     stop.code
    2
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        # A log file on a full disk must not show a traceback for each line.
        logging.raiseExceptions = False
        try:
            return main(*args, **kwargs)
        except BadInput as error:
            sys.stderr.write(f"error: {error}\n")
        except OSError as error:
            import errno

            if error.errno != errno.ENOSPC:
                raise
            where = error.filename or "the output folder"
            sys.stderr.write(
                f"error: {where}: no space left on the disk; free some and "
                "run the same command again, what is written is kept\n"
            )
        raise SystemExit(2)

    return wrapped
