"""Start the server: ``python -m blsp_plugin.serving ADAPTER``.

Authors
 * The blsp_plugin team 2026
"""

import argparse

from blsp_plugin.errors import one_line_errors
from blsp_plugin.serving.command import DESCRIPTION, add_arguments, run


@one_line_errors
def main(arguments=None):
    """Serve an adapter until somebody ends it.

    Arguments
    ---------
    arguments : list
        Command line (default: the process' own).
    """
    parser = argparse.ArgumentParser(
        prog="python -m blsp_plugin.serving", description=DESCRIPTION
    )
    add_arguments(parser)
    run(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
