"""The environment's report, and the mending of torchaudio."""

import os
import subprocess
import sys

import pytest

from blsp_plugin import doctor
from blsp_plugin.errors import BadInput

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CPU = {"version": "2.13.0+cpu", "accelerator": None}
LINKED = b"\x7fELF...libtorch.so\0libcudart.so.13\0libc10_cuda.so\0"
SUBJECTS = (
    "python torch torchaudio speechbrain transformers pins starter disk "
    "machine verdict"
).split()


@pytest.fixture
def lib(tmp_path):
    """A torchaudio/lib: two CUDA-linked libraries, one that is not."""
    folder = tmp_path / "lib"
    folder.mkdir()
    (folder / "_torchaudio.abi3.so").write_bytes(LINKED)
    (folder / "libtorchaudio.so").write_bytes(LINKED)
    (folder / "plain.so").write_bytes(b"\x7fELF...libtorch_cpu.so\0")
    (folder / "__init__.py").write_bytes(LINKED)
    return folder


def names(folder):
    return sorted(os.listdir(folder))


def test_mend_moves_cuda_libraries_aside_once(lib):
    moved = doctor.mend_torchaudio(str(lib), CPU)
    assert moved == ["_torchaudio.abi3.so", "libtorchaudio.so"]
    after = [
        "__init__.py",
        "_torchaudio.abi3.so.cuda",
        "libtorchaudio.so.cuda",
        "plain.so",
    ]
    assert names(lib) == after
    assert (lib / "libtorchaudio.so.cuda").read_bytes() == LINKED
    assert doctor.mend_torchaudio(str(lib), CPU) == []
    assert names(lib) == after


def test_mend_again_after_torchaudio_was_installed_again(lib):
    doctor.mend_torchaudio(str(lib), CPU)
    (lib / "libtorchaudio.so").write_bytes(LINKED + b"new")
    assert doctor.mend_torchaudio(str(lib), CPU) == ["libtorchaudio.so"]
    assert (lib / "libtorchaudio.so.cuda").read_bytes() == LINKED + b"new"


@pytest.mark.parametrize("accelerator", ["CUDA 13.0", "ROCm 6.4", "XPU 2025"])
def test_mend_never_touches_an_accelerated_install(lib, accelerator):
    before = names(lib)
    build = {"version": "2.13.0", "accelerator": accelerator}
    assert doctor.mend_torchaudio(str(lib), build) == []
    assert names(lib) == before


def test_mend_of_a_missing_folder_is_nothing(tmp_path):
    assert doctor.mend_torchaudio(str(tmp_path / "none"), CPU) == []
    assert doctor.mend_torchaudio("", CPU) == []


def test_mend_that_is_not_allowed_is_one_line(lib, monkeypatch):
    def refuse(source, target):
        raise PermissionError(13, "Permission denied", source)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(BadInput, match="can't be renamed") as caught:
        doctor.mend_torchaudio(str(lib), CPU)
    assert "\n" not in str(caught.value)


def test_this_torch_is_described_without_importing_it():
    import torch

    build = doctor.torch_build()
    assert build["version"] == torch.__version__
    assert (build["accelerator"] is None) == (
        torch.version.cuda is None and torch.version.hip is None
    )


def test_import_is_light():
    code = (
        "import sys, blsp_plugin.doctor; print(sorted({'torch', 'torchaudio', "
        "'numpy', 'speechbrain', 'transformers'} & set(sys.modules)))"
    )
    said = run("-c", code)
    assert said.stdout.strip() == "[]", said.stderr


def test_pins_are_compared(tmp_path):
    import torch

    version = torch.__version__.split("+")[0]
    path = tmp_path / "constraints.txt"
    path.write_text(
        f"# a comment\ntorch=={version}\nnumpy==0.0.1\nno-such-package==1\n"
    )
    finding = doctor._pins(str(path))
    assert finding.text.startswith("1 of 3 hold; other: numpy ")
    assert "(pinned 0.0.1)" in finding.text
    assert finding.text.endswith("not installed: no-such-package")
    assert "no constraints.txt" in doctor._pins(str(tmp_path / "none")).text


def test_versions_out_of_range_are_problems():
    assert doctor._range_problem("transformers", "5.23.0") == ""
    assert doctor._range_problem("torch", "2.13.0+cpu") == ""
    assert doctor._range_problem("anything", "0") == ""
    for version in ("4.57.6", "6.0.0"):
        problem = doctor._range_problem("transformers", version)
        assert version in problem and "5.23 to below 6" in problem
    assert "1.1.2 or newer" in doctor._range_problem("speechbrain", "1.1.0")


def run(*arguments, path=PROJECT, **variables):
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(path), **variables},
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )


def test_report_of_this_environment(tmp_path):
    said = run("-m", "blsp_plugin.doctor", BLSP_STARTER=str(tmp_path / "kit"))
    assert said.returncode == 0, said.stdout + said.stderr
    lines = said.stdout.splitlines()
    assert [line.split()[0] for line in lines] == SUBJECTS
    assert lines[-1].split() == ["verdict", "ready"]
    assert str(tmp_path / "kit") in lines[6] and "whisper-base" in lines[6]
    assert not (tmp_path / "kit").exists()  # looking builds nothing


TORCHAUDIO = """
import glob, os
__version__ = "2.11.0"
if glob.glob(os.path.join(os.path.dirname(__file__), "lib", "*.so")):
    raise OSError("libcudart.so.13: cannot open shared object file")
"""


@pytest.fixture
def shadow(tmp_path):
    """A folder of packages that come before the installed ones."""
    for name in ("torch", "torchaudio", "speechbrain", "transformers"):
        package = tmp_path / "shadow" / name
        package.mkdir(parents=True)
        version = {"speechbrain": "1.1.2", "transformers": "5.23.0"}.get(name)
        (package / "__init__.py").write_text(f"__version__ = {version!r}\n")
    shadow = tmp_path / "shadow"
    write_torch(shadow, None)
    (shadow / "torchaudio" / "__init__.py").write_text(TORCHAUDIO)
    lib = shadow / "torchaudio" / "lib"
    lib.mkdir()
    (lib / "libtorchaudio.so").write_bytes(LINKED)
    return shadow


def write_torch(shadow, cuda):
    local = "" if cuda else "+cpu"
    (shadow / "torch" / "version.py").write_text(
        f"__version__ = '2.13.0{local}'\ncuda = {cuda!r}\nhip = None\n"
    )
    (shadow / "torch" / "__init__.py").write_text(
        "from torch import version\n__version__ = version.__version__\n"
        "class cuda:\n"
        "    device_count = staticmethod(lambda: 1)\n"
        "    get_device_name = staticmethod(lambda i: 'Big GPU')\n"
    )


def test_doctor_finds_and_mends_a_fresh_cpu_install(shadow):
    def doctor_says(*arguments):
        path = os.pathsep.join((str(shadow), PROJECT))
        return run("-m", "blsp_plugin.doctor", *arguments, path=path)

    sick = doctor_says()
    assert sick.returncode == 1
    assert "does not import: OSError: libcudart.so.13" in sick.stdout
    verdict = sick.stdout.splitlines()[-1]
    assert verdict.endswith(
        "not ready: run: python -m blsp_plugin.doctor --mend"
    )
    mended = doctor_says("--mend")
    assert mended.returncode == 0
    assert "renamed to NAME.cuda: libtorchaudio.so" in mended.stdout
    assert names(shadow / "torchaudio" / "lib") == ["libtorchaudio.so.cuda"]
    again = doctor_says("--mend")
    assert (again.returncode, again.stdout) == (
        0,
        "torchaudio: nothing to mend\n",
    )
    well = doctor_says()
    assert well.returncode == 0, well.stdout
    assert "torch        2.13.0+cpu, imports, CPU only" in well.stdout


def test_doctor_leaves_a_cuda_install_alone(shadow):
    write_torch(shadow, "13.0")
    path = os.pathsep.join((str(shadow), PROJECT))
    said = run("-m", "blsp_plugin.doctor", "--mend", path=path)
    assert said.returncode == 0
    assert "left as it is" in said.stdout and "CUDA 13.0" in said.stdout
    assert names(shadow / "torchaudio" / "lib") == ["libtorchaudio.so"]
    said = run("-m", "blsp_plugin.doctor", path=path)
    assert said.returncode == 1
    assert "CUDA 13.0: Big GPU" in said.stdout
    assert "install the torchaudio that belongs" in said.stdout
    assert "--mend" not in said.stdout


def test_a_crash_in_one_import_leaves_the_others_reported(shadow):
    (shadow / "speechbrain" / "__init__.py").write_text(
        "import os\nos._exit(3)\n"
    )
    path = os.pathsep.join((str(shadow), PROJECT))
    said = run("-m", "blsp_plugin.doctor", path=path)
    assert said.returncode == 1
    assert "its import ended Python (status 3)" in said.stdout
    assert "torch        2.13.0+cpu, imports" in said.stdout
    assert "speechbrain can't be imported" in said.stdout
