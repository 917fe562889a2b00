"""``python -m blsp_plugin.webpage ADAPTER``: see `command`.

Authors
 * The blsp_plugin team 2026
"""

import argparse

from blsp_plugin.errors import one_line_errors
from blsp_plugin.webpage.command import add_arguments, run


@one_line_errors
def main(arguments=None):
    """Serve the page until it is interrupted.

    Arguments
    ---------
    arguments : list
        Command line (default: the process' own).
    """
    parser = argparse.ArgumentParser(
        prog="python -m blsp_plugin.webpage",
        description="Talk with a trained adapter in the browser.",
    )
    add_arguments(parser)
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
