"""``python -m blsp_plugin`` is the ``blsp`` command.

Authors
 * The blsp_plugin team 2026
"""

import sys

from blsp_plugin.cli import main

if __name__ == "__main__":
    sys.exit(main())
