"""Where the starter kit's parts lie, and how one is built safely.

A part is a folder that either stands complete, with a marker inside, or does
not exist: it is built in a temporary sibling, synced to disk and renamed. A
lock file per part lets one process build while others wait; the kernel drops
the lock of a process that dies, and the next builder sweeps up after it.

Authors
 * The blsp_plugin team 2026
"""

import contextlib
import errno
import importlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections import namedtuple

# The toolkit's logger costs seconds to import; a ready part must cost none.
logger = logging.getLogger(__name__)

MARKER = "COMPLETE.json"

Part = namedtuple("Part", ["name", "builder", "recipe", "needs_mb"])
Part.__doc__ = """A part of the kit.

Arguments
---------
name : str
    Its folder's name.
builder : str
    ``module:function``, called with an empty folder to fill.
recipe : int
    Grows when the builder's output changes.
needs_mb : int
    Free disk wanted to build it, downloads included, in megabytes.
"""


def root():
    """Tell where the starter kit lies; it need not exist yet.

    Returns
    -------
    str
        ``$BLSP_STARTER``, else ``$XDG_CACHE_HOME/blsp_plugin``, else
        ``~/.cache/blsp_plugin``, as an absolute path.

    Example
    -------
    >>> os.path.isabs(root())
    True
    """
    chosen = os.environ.get("BLSP_STARTER")
    if not chosen:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
        chosen = os.path.join(cache, "blsp_plugin")
    return os.path.abspath(os.path.expanduser(chosen))


def is_ready(part, folder=None):
    """Tell whether a part stands complete.

    The marker must be of the current recipe, and the files it lists must have
    their sizes (only those at the top of the folder: a look at each clip of a
    corpus would cost more than it finds).

    Arguments
    ---------
    part : Part
        The part.
    folder : str
        Where it lies (default: its place under `root`).

    Returns
    -------
    bool
        True when it may be used.
    """
    folder = folder or os.path.join(root(), part.name)
    try:
        with open(os.path.join(folder, MARKER), encoding="utf-8") as fin:
            marker = json.load(fin)
        return marker["recipe"] == part.recipe and all(
            os.path.getsize(os.path.join(folder, name)) == size
            for name, size in marker["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def ensure(part):
    """Return a part's folder; build it first where it is missing.

    Arguments
    ---------
    part : Part
        The part.

    Returns
    -------
    str
        Its folder.

    Raises
    ------
    BadInput
        One line with the mend: unreachable registry, damaged download, full
        or read-only disk. Nothing half made is left behind.
    """
    folder = os.path.join(root(), part.name)
    if is_ready(part, folder):
        return folder
    try:
        os.makedirs(root(), exist_ok=True)
        with _visible_log(), _locked(part):
            # Another process may have built it while this one waited.
            if not is_ready(part, folder):
                _build(part, folder)
    except Exception as error:
        line = _environment_error(error, part)
        if line is None:
            raise
        from blsp_plugin.errors import BadInput

        raise BadInput(line) from error
    return folder


def _build(part, folder):
    """Fill a temporary sibling, then put it in place in one step."""
    begun = time.monotonic()
    _sweep(part)
    free_mb = shutil.disk_usage(root()).free // 2**20
    if free_mb < part.needs_mb:
        raise OSError(errno.ENOSPC, f"only {free_mb} MB are free")
    logger.info("starter kit: building %s in %s", part.name, folder)
    module, function = part.builder.split(":")
    build = getattr(importlib.import_module(module), function)
    temporary = tempfile.mkdtemp(prefix=f".{part.name}.", dir=root())
    try:
        build(temporary)
        _finish(part, temporary)
        _set_aside(part, folder)
        os.rename(temporary, folder)
        _sync(root())
    finally:
        _sweep(part)
    logger.info(
        "starter kit: %s is ready (%.0f s)",
        part.name,
        time.monotonic() - begun,
    )


def _set_aside(part, folder):
    """Move an older recipe or a damaged part away; the sweep removes it."""
    if os.path.isdir(folder) and not os.path.islink(folder):
        aside = tempfile.mkdtemp(prefix=f".{part.name}.", dir=root())
        os.rename(folder, aside)
    elif os.path.lexists(folder):
        os.unlink(folder)


def _finish(part, folder):
    """Sync every file, write the marker, sync that too."""
    files = {}
    mask = _umask()
    for parent, _, names in os.walk(folder):
        # Temporary files and folders were made private to this user.
        os.chmod(parent, 0o777 & ~mask)
        for name in names:
            path = os.path.join(parent, name)
            runs = os.stat(path).st_mode & 0o100  # a program stays one
            os.chmod(path, (0o777 if runs else 0o666) & ~mask)
            _sync(path)
            if parent == folder:
                files[name] = os.path.getsize(path)
        _sync(parent)
    with open(os.path.join(folder, MARKER), "w", encoding="utf-8") as fout:
        json.dump({"recipe": part.recipe, "files": files}, fout, indent=1)
        fout.flush()
        os.fsync(fout.fileno())
    _sync(folder)


def _sync(path):
    """Flush a file's or a folder's entry to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(part):
    """Remove what an interrupted build left. Call it under the lock only."""
    for name in os.listdir(root()):
        if name.startswith(f".{part.name}.") and not name.endswith(".lock"):
            shutil.rmtree(os.path.join(root(), name), ignore_errors=True)


def _umask():
    """Read the process' umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def _locked(part):
    """Hold the part's lock; wait for another process that holds it."""
    import fcntl

    path = os.path.join(root(), f".{part.name}.lock")
    with open(path, "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info(
                "starter kit: waiting for another process to build %s",
                part.name,
            )
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _visible_log():
    """Show the build's steps even before a recipe has set logging up.

    YAML is read, and so the kit built, before the toolkit configures logging.
    """
    family = logging.getLogger("blsp_plugin.starter")
    handler, level = None, family.level
    if not family.hasHandlers():
        handler = logging.StreamHandler()
        family.addHandler(handler)
        family.setLevel(logging.INFO)
    try:
        yield
    finally:
        if handler is not None:
            family.removeHandler(handler)
            family.setLevel(level)


def _environment_error(error, part):
    """Word a fault of the machine as one line; None for any other fault."""
    where = f"starter kit, {part.name} in {root()}"
    if _is_disk_full(error):
        return (
            f"{where}: no space left on the disk ({part.needs_mb} MB are "
            "wanted while building); free some, or set BLSP_STARTER to a "
            "folder on another disk, and run the same command again"
        )
    if isinstance(error, PermissionError) or (
        isinstance(error, OSError) and error.errno == errno.EROFS
    ):
        return (
            f"{where}: {error.strerror}: {error.filename}; set BLSP_STARTER "
            "to a folder you can write to"
        )
    if isinstance(error, NotADirectoryError | FileExistsError):
        return f"{where}: {error.filename} is not a folder; set BLSP_STARTER"
    return None


def _is_disk_full(error):
    """Find a full disk or quota, also where a library wrapped it in text."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
        ):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
