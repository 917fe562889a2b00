"""Flite, CMU's small speech synthesiser, from Debian's packages.

Nothing is installed: the program lies in the kit, with the libraries that it
needs beside it.

Authors
 * The blsp_plugin team 2026
"""

import glob
import os
import shutil

from blsp_plugin.errors import BadInput
from blsp_plugin.starter import debian

__all__ = ["build"]

_ELSEWHERE = "or install the program flite (brew install flite, say)"
# The sound library has another name in newer releases.
_SOUND = ("libasound2", "libasound2t64")
_SCRIPT = """\
#!/bin/sh
here=$(dirname "$0")
LD_LIBRARY_PATH="$here/lib" exec "$here/bin/flite" "$@"
"""


def build(folder):
    """Fetch the program and its libraries.

    Arguments
    ---------
    folder : str
        An empty folder; gets ``flite``, which can be run wherever it lies.

    Raises
    ------
    BadInput
        When the packages can't be fetched.
    """
    for number, sound in enumerate(_SOUND, 1):
        work = os.path.join(folder, "work")
        os.makedirs(work)
        try:
            files = debian.fetch(
                ["flite", "libflite1", sound], work, "flite", _ELSEWHERE
            )
            break
        except BadInput:
            shutil.rmtree(work)
            if number == len(_SOUND):
                raise
    shutil.copytree(os.path.join(files, "usr/bin"), f"{folder}/bin")
    os.mkdir(f"{folder}/lib")
    for name in ("flite", "asound"):
        for path in glob.glob(f"{glob.escape(files)}/usr/lib/*/lib{name}*.so*"):
            shutil.copy(path, f"{folder}/lib")
    shutil.copy(f"{files}/usr/share/doc/flite/copyright", folder)
    shutil.rmtree(work)
    script = os.path.join(folder, "flite")
    with open(script, "w", encoding="utf-8") as file:
        file.write(_SCRIPT)
    os.chmod(script, 0o755)
