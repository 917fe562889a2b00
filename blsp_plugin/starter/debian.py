"""Debian packages without root: private apt folders, nothing installed.

The machine's own sources, keys and proxies are used; its package lists too
where it has them. Where it has none (most containers), only the lists of the
main archive are fetched, into a folder of ours.

Authors
 * The blsp_plugin team 2026
"""

import glob
import logging
import os
import re
import shutil
import subprocess

from blsp_plugin.errors import BadInput

logger = logging.getLogger(__name__)

_ELSEWHERE = (
    "any folder with LibriSpeech-style audio and CSV files serves as well: "
    "give it with --data_folder"
)
# Prompts never change in updates; these would only cost their lists.
_LATE_SUITE = re.compile(r"(-updates|-security|-backports|-proposed|/updates)$")
_COMPONENTS = ("main", "universe")


def fetch(packages, folder, what="starter corpus", elsewhere=_ELSEWHERE):
    """Download packages and unpack them, as an ordinary user.

    Arguments
    ---------
    packages : list
        Package names.
    folder : str
        An existing folder; ``apt/`` and ``files/`` are made in it.
    what : str
        They are for, in messages.
    elsewhere : str
        What one may do instead, in messages.

    Returns
    -------
    str
        ``folder/files``: the packages' files, as they would lie under "/".

    Raises
    ------
    BadInput
        One line, when there is no apt or the archive can't be reached.
    """
    for program in ("apt-get", "apt-config", "dpkg-deb"):
        if shutil.which(program) is None:
            raise BadInput(
                f"{what}: there is no {program} here, it needs Debian or "
                f"Ubuntu; {elsewhere}"
            )
    place = os.path.join(folder, "apt")
    debs = os.path.join(place, "debs")
    os.makedirs(debs)
    command = ["apt-get", "--quiet", "download", *packages]
    failed = None
    for setup in (_with_machine_lists, _with_own_lists):
        logger.info("starter kit: fetching %d packages by apt", len(packages))
        environment = setup(place)
        failed = _run(command, debs, environment)
        if failed is None:
            break
    else:
        raise BadInput(
            f"{what}: apt could not fetch {packages[0]} ({failed}); check the "
            f"network and run the same command again, or {elsewhere}"
        )
    files = os.path.join(folder, "files")
    for deb in sorted(glob.glob(os.path.join(glob.escape(debs), "*.deb"))):
        failed = _run(["dpkg-deb", "-x", deb, files], debs, os.environ)
        if failed is not None:
            raise BadInput(
                f"{os.path.basename(deb)}: can't be unpacked ({failed}); run "
                "the same command again"
            )
    return files


def _with_machine_lists(place):
    """Use the machine's package lists: no lists to fetch."""
    return _environment(place, {})


def _with_own_lists(place):
    """Fetch the main archive's lists into our folder."""
    sources = os.path.join(place, "sources.list.d")
    os.makedirs(sources, exist_ok=True)
    known = _copy_sources(_machine_sources(), sources)
    lists = os.path.join(place, "lists")
    os.makedirs(os.path.join(lists, "partial"), exist_ok=True)
    options = {
        "Dir::State::Lists": lists + "/",
        "Acquire::Languages": "none",
    }
    if known:  # else a mirror of a name we can't judge: take all sources
        options["Dir::Etc::SourceList"] = "/dev/null"
        options["Dir::Etc::SourceParts"] = sources + "/"
    environment = _environment(place, options)
    logger.info("starter kit: fetching apt's package lists")
    failed = _run(["apt-get", "--quiet", "update"], place, environment)
    if failed is not None:
        raise BadInput(
            f"starter corpus: apt could not fetch its lists ({failed}); check "
            f"the network and run the same command again, or {_ELSEWHERE}"
        )
    return environment


def _environment(place, options):
    """Write the machine's apt configuration anew, with folders of ours.

    The whole configuration is dumped and filtered because hooks (such as a
    container's "delete all caches") can't be unset on the command line, and
    would fail without root.
    """
    cache = os.path.join(place, "cache")
    os.makedirs(os.path.join(cache, "archives", "partial"), exist_ok=True)
    empty = os.path.join(place, "status")
    with open(empty, "w", encoding="utf-8"):
        pass
    ours = {
        "Dir::Cache": cache + "/",
        "Dir::Cache::archives": "archives/",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Dir::State::status": empty,
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": "/dev/null",
        "Debug::NoLocking": "true",
        # Root would hand downloads to a user who can't enter our folder.
        "APT::Sandbox::User": "",
        **options,
    }
    dump = subprocess.run(
        ["apt-config", "dump"], capture_output=True, text=True, errors="replace"
    ).stdout
    kept = [
        line for line in dump.splitlines() if not re.match(r"\S*Invoke", line)
    ]
    path = os.path.join(place, "apt.conf")
    with open(path, "w", encoding="utf-8") as fout:
        fout.write("\n".join(kept) + "\n")
        for key, value in ours.items():
            fout.write(f'{key} "{value}";\n')
    return {**os.environ, "APT_CONFIG": path, "LC_ALL": "C.UTF-8"}


def _machine_sources(etc="/etc/apt"):
    """Read the machine's sources, one-line and deb822, as (name, text)."""
    paths = [os.path.join(etc, "sources.list")]
    paths += sorted(glob.glob(os.path.join(etc, "sources.list.d", "*")))
    for path in paths:
        if path.endswith((".list", ".sources")) and os.path.isfile(path):
            with open(path, encoding="utf-8", errors="replace") as fin:
                yield os.path.basename(path), fin.read()


def _copy_sources(sources, folder):
    """Copy the main archive's entries only; return how many there were.

    Arguments
    ---------
    sources : iterable
        Pairs of file name and text.
    folder : str
        Where to write them.

    Returns
    -------
    int
        Entries written.
    """
    written = 0
    for name, text in sources:
        if name.endswith(".sources"):
            entries = [_stanza(part) for part in re.split(r"\n\s*\n", text)]
            glue = "\n\n"
        else:
            entries = [_line(line) for line in text.splitlines()]
            glue = "\n"
        entries = [entry for entry in entries if entry]
        if entries:
            written += len(entries)
            path = os.path.join(folder, name)
            with open(path, "w", encoding="utf-8") as fout:
                fout.write(glue.join(entries) + "\n")
    return written


def _is_archive(uri):
    """Tell Debian's and Ubuntu's archives and mirrors from third parties."""
    return re.search(r"debian|ubuntu", uri) and "security" not in uri


def _line(line):
    """Keep a one-line entry's archive, suite and needed components."""
    found = re.match(r"\s*deb\s+(\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)", line)
    if not found:
        return ""
    options, uri, suite, components = found.groups()
    kept = [c for c in components.split() if c in _COMPONENTS]
    if not kept or _LATE_SUITE.search(suite) or not _is_archive(uri):
        return ""
    return f"deb {options or ''}{uri} {suite} {' '.join(kept)}"


def _stanza(text):
    """Keep a deb822 entry's archive, suites and needed components."""
    lines = [x for x in text.splitlines() if not x.startswith("#")]
    fields = {}
    for line in lines:
        key, colon, value = line.partition(":")
        if colon and not line.startswith((" ", "\t")):
            fields[key.strip().lower()] = value.split()
    suites = [s for s in fields.get("suites", ()) if not _LATE_SUITE.search(s)]
    kept = [c for c in fields.get("components", ()) if c in _COMPONENTS]
    if (
        "deb" not in fields.get("types", ())
        or fields.get("enabled") == ["no"]
        or not any(_is_archive(uri) for uri in fields.get("uris", ()))
        or not suites
        or not kept
    ):
        return ""
    anew = {"types": "deb", "suites": suites, "components": kept}
    for index, line in enumerate(lines):
        key = line.partition(":")[0].strip().lower()
        if key in anew and not line.startswith((" ", "\t")):
            value = anew[key]
            value = value if isinstance(value, str) else " ".join(value)
            lines[index] = f"{key.title()}: {value}"
    return "\n".join(lines)


def _run(command, folder, environment):
    """Run a program; return None, or what it said last when it failed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode == 0:
        return None
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in said if line.startswith(("E:", "dpkg"))]
    return (errors or said or [f"exit status {done.returncode}"])[0]
