#!/usr/bin/env python3
"""All evaluations under a folder, side by side on one page.

Writes report.html, one file to look at and to listen to without a network, and
report.md, the same in text.

To run this recipe (after recipes/asr/evaluate.py):
> python recipes/report/report.py results/

Authors
 * The blsp_plugin team 2026
"""

import argparse
import sys

from blsp_plugin.errors import one_line_errors
from blsp_plugin.evaluation.html import write_report


@one_line_errors
def main(argv):
    """Find the evaluations and write the two files."""
    parser = argparse.ArgumentParser(
        description="Report all evaluations under a folder side by side."
    )
    parser.add_argument("folder", help="searched for evaluations")
    parser.add_argument(
        "--output_folder", help="for report.html and report.md; default: folder"
    )
    parser.add_argument(
        "--clips",
        type=int,
        default=20,
        help="clips to listen to, for each task (%(default)s)",
    )
    options = parser.parse_args(argv)
    paths = write_report(options.folder, options.output_folder, options.clips)
    print("\n".join(paths))


if __name__ == "__main__":
    main(sys.argv[1:])
