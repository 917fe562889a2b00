"""Build the starter kit beforehand: ``python -m blsp_plugin.starter``.

Without arguments everything a demo and the tests use; with names, those
parts (``python -m blsp_plugin.starter corpus-fr``); ``--list`` shows all.

Authors
 * The blsp_plugin team 2026
"""

import argparse
import sys

from blsp_plugin.errors import one_line_errors
from blsp_plugin.starter import PARTS, is_ready, root
from blsp_plugin.starter.store import ensure

# The corpora of other languages are built when a task asks for them.
_DEFAULT = (
    "whisper-base",
    "whisper-tiny.en",
    "smollm2-135m-instruct",
    "gemma3-270m",
    "corpus-en",
)


@one_line_errors
def main(arguments=None):
    """Build the named parts, or list them.

    Arguments
    ---------
    arguments : list
        Command line (default: the process' own).
    """
    parser = argparse.ArgumentParser(
        prog="python -m blsp_plugin.starter",
        description=f"Build the starter kit in {root()} ($BLSP_STARTER).",
    )
    parser.add_argument("parts", nargs="*", metavar="part", default=_DEFAULT)
    parser.add_argument("--list", action="store_true", help="list the parts")
    asked = parser.parse_args(arguments)
    if asked.list:
        for part in PARTS.values():
            state = "ready" if is_ready(part) else "missing"
            sys.stdout.write(f"{part.name:24} {state}\n")
        return
    for name in asked.parts:
        if name not in PARTS:
            parser.error(f"no part {name!r}; there are: {', '.join(PARTS)}")
    for name in asked.parts:
        sys.stdout.write(ensure(PARTS[name]) + "\n")


if __name__ == "__main__":
    main()
