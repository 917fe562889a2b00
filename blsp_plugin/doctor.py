"""Explain the environment in ten lines: ``python -m blsp_plugin.doctor``.

``--mend`` makes the registry's torchaudio importable on a CPU-only torch: it
carries CUDA-linked libraries whose loading fails there, and works without
them (https://github.com/pytorch/audio: an extension that is absent is not
loaded). They are renamed, never deleted, and a CUDA install is not touched.

This runs where SpeechBrain can't be imported yet, so it imports none of the
packages it reports on: a subprocess tries them.

Authors
 * The blsp_plugin team 2026
"""

import argparse
import glob
import importlib.metadata
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections import namedtuple

from blsp_plugin.errors import BadInput, one_line_errors

_CUDA_LIBRARIES = (b"libcudart.so", b"libc10_cuda.so", b"libtorch_cuda.so")
_LEAST_PYTHON = (3, 10)
_LEAST_DISK_GB = 3
# As in setup.py: at least, and below.
_RANGES = {
    "torch": ((2, 7), (99,)),
    "speechbrain": ((1, 1, 2), (99,)),
    "transformers": ((5, 23), (6,)),
}
_IMPORTS = ("torch", "torchaudio", "speechbrain", "transformers")

# One JSON line a package, so that a crash in one leaves the others' lines.
_PROBE = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
for name in sys.argv[1:]:
    said = {"name": name, "error": None}
    try:
        module = importlib.import_module(name)
        said["version"] = str(module.__version__)
        if name == "torch":
            said["cuda"] = module.version.cuda
            said["devices"] = [
                module.cuda.get_device_name(i)
                for i in range(module.cuda.device_count())
            ]
    except BaseException as error:
        text = str(error).strip().splitlines() or [""]
        said["error"] = f"{type(error).__name__}: {text[-1]}"
    print("\\n" + json.dumps(said), flush=True)
"""

Finding = namedtuple("Finding", ["subject", "text", "problem"])
Finding.__doc__ = """One line of the report.

Arguments
---------
subject : str
    What was looked at.
text : str
    What was found.
problem : str
    What is to be done about it; empty when all is well.
"""


def examine():
    """Look at everything.

    Returns
    -------
    list
        A `Finding` a subject, the verdict last.
    """
    probed = _probe()
    findings = [
        _python(),
        _torch(probed["torch"]),
        _torchaudio(probed["torchaudio"], torch_build()),
        _package(probed["speechbrain"]),
        _package(probed["transformers"]),
        _pins(),
        *_starter_and_disk(),
        _machine(),
    ]
    problems = [f.problem for f in findings if f.problem]
    if problems:
        verdict = "not ready: " + "; ".join(dict.fromkeys(problems))
    else:
        verdict = "ready"
    return [*findings, Finding("verdict", verdict, "")]


def mend_torchaudio(library_folder, build):
    """Move torchaudio's CUDA-linked libraries aside on a CPU-only torch.

    Arguments
    ---------
    library_folder : str
        ``torchaudio/lib``.
    build : dict
        Of `torch_build`.

    Returns
    -------
    list
        Names of the files moved to ``NAME.cuda``; empty on any torch built
        for an accelerator, and when there is nothing left to move.

    Raises
    ------
    BadInput
        When they can't be moved.
    """
    if build["accelerator"]:
        return []
    moved = []
    for path in cuda_linked(library_folder):
        try:
            os.replace(path, path + ".cuda")
        except FileNotFoundError:  # another process was faster
            continue
        except OSError as error:
            raise BadInput(
                f"{path}: can't be renamed ({error.strerror}); run this as "
                "the user who installed torchaudio"
            ) from error
        moved.append(os.path.basename(path))
    return moved


def cuda_linked(library_folder):
    """List the shared libraries of a folder that need CUDA's.

    Arguments
    ---------
    library_folder : str
        The folder; it may be missing.

    Returns
    -------
    list
        Paths, sorted.
    """
    found = []
    pattern = os.path.join(glob.escape(library_folder), "*.so")
    for path in sorted(glob.glob(pattern)):
        try:
            with open(path, "rb") as fin:
                content = fin.read()
        except OSError:
            continue
        if any(name in content for name in _CUDA_LIBRARIES):
            found.append(path)
    return found


def torch_build():
    """Tell for what the installed torch was built, without importing it.

    Returns
    -------
    dict
        "version": str, or None where torch is missing; "accelerator": such
        as "CUDA 13.0", or None for a CPU-only build.
    """
    folder = _package_folder("torch")
    if folder is None:
        return {"version": None, "accelerator": None}
    try:
        said = runpy.run_path(os.path.join(folder, "version.py"))
    except OSError:
        return {"version": None, "accelerator": None}
    accelerator = None
    for key, name in (("cuda", "CUDA"), ("hip", "ROCm"), ("xpu", "XPU")):
        if said.get(key):
            accelerator = f"{name} {said[key]}"
            break
    return {"version": said["__version__"], "accelerator": accelerator}


def _package_folder(name):
    """Find a package's folder without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return list(spec.submodule_search_locations)[0]


def _library_folder():
    """Find torchaudio's libraries; "" where it isn't installed."""
    folder = _package_folder("torchaudio")
    return os.path.join(folder, "lib") if folder else ""


def _probe():
    """Import the packages in a subprocess."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *_IMPORTS],
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
    )
    ended = f"its import ended Python (status {done.returncode})"
    said = {name: {"name": name, "error": ended} for name in _IMPORTS}
    for line in done.stdout.splitlines():
        if line.startswith('{"name"'):
            one = json.loads(line)
            said[one["name"]] = one
    return said


def _python():
    version = ".".join(map(str, sys.version_info[:3]))
    problem = ""
    if sys.version_info < _LEAST_PYTHON:
        least = ".".join(map(str, _LEAST_PYTHON))
        problem = f"Python {least} or newer is needed"
    return Finding("python", f"{version}, {sys.executable}", problem)


def _package(said, extra=""):
    """Report one import."""
    name = said["name"]
    if said["error"] is None:
        text = f"{said['version']}, imports{extra}"
        return Finding(name, text, _range_problem(name, said["version"]))
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "not installed", "run: make install")
    return Finding(
        name,
        f"{version}, does not import: {said['error']}",
        f"{name} can't be imported",
    )


def _range_problem(name, version):
    """Compare a version with what the package asks for."""
    numbers = tuple(map(int, re.findall(r"\d+", version.split("+")[0])[:3]))
    least, below = _RANGES.get(name, ((), (99999,)))
    if least <= numbers < below:
        return ""
    text = ".".join(map(str, least))
    if below != (99,):
        text += f" to below {'.'.join(map(str, below))}"
    else:
        text += " or newer"
    return f"{name} {version} is installed, {text} is needed: run: make install"


def _torch(said):
    if said["error"] is not None:
        return _package(said)
    if said["cuda"]:
        devices = ", ".join(said["devices"]) or "no device found"
        return _package(said, f", CUDA {said['cuda']}: {devices}")
    return _package(said, ", CPU only")


def _torchaudio(said, build):
    finding = _package(said)
    if not finding.problem or finding.text == "not installed":
        return finding
    if not build["accelerator"] and cuda_linked(_library_folder()):
        problem = "run: python -m blsp_plugin.doctor --mend"
    else:
        problem = "install the torchaudio that belongs to your torch"
    return finding._replace(problem=problem)


def _pins(path=None):
    """Compare the installed versions with constraints.txt."""
    if path is None:
        here = os.path.dirname(os.path.abspath(__file__))
        path = os.path.join(os.path.dirname(here), "constraints.txt")
    if not os.path.isfile(path):
        return Finding("pins", "no constraints.txt beside the package", "")
    with open(path, encoding="utf-8") as fin:
        pins = re.findall(r"^([\w.-]+)==(\S+)", fin.read(), re.MULTILINE)
    differing, missing = [], []
    for name, pinned in pins:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if version.split("+")[0] != pinned:
            differing.append(f"{name} {version} (pinned {pinned})")
    text = f"{len(pins) - len(differing) - len(missing)} of {len(pins)} hold"
    if differing:
        text += "; other: " + ", ".join(differing)
    if missing:
        text += "; not installed: " + ", ".join(missing)
    return Finding("pins", text, "")


def _starter_and_disk():
    """Report the starter kit's parts and the disk they lie on."""
    from blsp_plugin.starter import PARTS, is_ready, root

    ready = [part.name for part in PARTS.values() if is_ready(part)]
    missing = [name for name in PARTS if name not in ready]
    place = root()
    text = f"in {place}: {', '.join(ready) or 'nothing yet'}"
    if missing:
        text += f"; built on first use: {', '.join(missing)}"
    yield Finding("starter kit", text, "")
    exists = place
    while not os.path.isdir(exists):
        exists = os.path.dirname(exists)
    free = shutil.disk_usage(exists).free / 1e9
    problem = ""
    if missing and free < _LEAST_DISK_GB:
        problem = f"free {_LEAST_DISK_GB} GB for the starter kit"
    yield Finding("disk", f"{free:.0f} GB free in {exists}", problem)


def _machine():
    """Count the cores and the memory this process may use."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="utf-8") as fin:
            memory = min(memory, int(fin.read()))
    except (OSError, ValueError):
        pass  # no limit, or not Linux
    return Finding(
        "machine", f"{cores} cores, {memory / 1e9:.0f} GB memory", ""
    )


@one_line_errors
def main(arguments=None):
    """Print the report, or mend.

    Arguments
    ---------
    arguments : list
        Command line (default: the process' own).

    Returns
    -------
    int
        0 when all is well, 1 when something is to be done.
    """
    parser = argparse.ArgumentParser(
        prog="python -m blsp_plugin.doctor",
        description="Explain the environment; mend torchaudio on CPU.",
    )
    parser.add_argument(
        "--mend",
        action="store_true",
        help="move torchaudio's CUDA-linked libraries aside on CPU-only torch",
    )
    if parser.parse_args(arguments).mend:
        return _mend()
    findings = examine()
    for finding in findings:
        print(f"{finding.subject:13}{finding.text}")
    return int(findings[-1].text != "ready")


def _mend():
    """Mend torchaudio and say what was done."""
    build = torch_build()
    if build["version"] is None:
        raise BadInput("torch is not installed; run: make install")
    folder = _library_folder()
    if build["accelerator"]:
        print(
            f"torchaudio: left as it is, torch {build['version']} is built "
            f"for {build['accelerator']}"
        )
        return 0
    moved = mend_torchaudio(folder, build)
    if moved:
        print(
            f"torchaudio: torch {build['version']} has no CUDA, so its "
            f"CUDA-linked libraries in {folder} were renamed to NAME.cuda: "
            + ", ".join(moved)
        )
    else:
        print("torchaudio: nothing to mend")
    return 0


if __name__ == "__main__":
    sys.exit(main())
