"""Recipes one after the other, each as a user would run it.

Authors
 * The blsp_plugin team 2026
"""

import os
import subprocess
import sys

__all__ = ["run_recipe"]


def run_recipe(script, preset, options=()):
    """Run a recipe in a process of its own; leave with its status if it fails.

    Arguments
    ---------
    script : str
        The recipe.
    preset : str
        Its hyper-parameters.
    options : sequence of str
        What else stands on its command line.
    """
    # Spinning threads make torch crawl where something else uses a core.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    sys.stderr.write(f"\n== {script} {preset}\n")
    done = subprocess.run([sys.executable, script, preset, *options])
    if done.returncode:
        sys.exit(done.returncode)
