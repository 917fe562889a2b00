"""The store of what frozen models compute: whole, equal, nothing mixed."""

import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib

import numpy
import pytest
import torch

from blsp_plugin.data import cache_files
from blsp_plugin.data.cache import (
    ArrayCache,
    DamagedEntry,
    clip_key,
    text_key,
)
from blsp_plugin.errors import BadInput, one_line_errors
from tests.disk import file_size_limit, small_disk

MADE_BY = {"kind": "states", "encoder": "0123", "dtype": "bfloat16", "size": 8}
KEYS = [text_key("clip", n) for n in range(400)]


def value(n, size=40):
    generator = torch.Generator().manual_seed(n)
    return {
        "states": torch.randn(n % 7, size, generator=generator).bfloat16(),
        "n": torch.tensor(n),
    }


def fill(folder, numbers, rank=0, every=10, size=40):
    with ArrayCache(folder, MADE_BY).writer(rank) as writer:
        for i, n in enumerate(numbers):
            writer.put(KEYS[n], value(n, size))
            if i % every == every - 1:
                writer.flush()


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        bits = [t.reshape(-1).view(torch.uint8) for t in (found[name], tensor)]
        assert torch.equal(*bits), name


def numbers_in(cache):
    found = [n for n, key in enumerate(KEYS) if key in cache]
    for n in found:
        assert_equal(cache[KEYS[n]], value(n))
    return found


def only(folder, suffix):
    [path] = folder.rglob(f"*.{suffix}")
    return path


def test_bits_come_back(tmp_path):
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    values = {
        "all of bfloat16, NaN too": bits.view(torch.bfloat16).reshape(256, 256),
        "float16": bits.view(torch.float16),
        "float32": torch.tensor([float("nan"), -0.0, 1e-45, float("inf")]),
        "float64": torch.tensor([[0.1]], dtype=torch.float64),
        "int8": torch.tensor([-128, 127], dtype=torch.int8),
        "int32": torch.arange(24, dtype=torch.int32).reshape(2, 3, 4, 1),
        "int64": torch.tensor(-(2**63)),
        "uint8": torch.arange(3, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "no rows": torch.empty(0, 5, dtype=torch.bfloat16),
        "no columns": torch.empty(3, 0, 2, dtype=torch.int64),
        "transposed": torch.randn(3, 4).T,
        "needs a gradient": torch.randn(2, requires_grad=True),
        "über": torch.zeros(1),
    }
    cache = ArrayCache(tmp_path, MADE_BY)
    with cache.writer() as writer:
        writer.put(KEYS[0], values)
        writer.put(KEYS[1], {})
        with pytest.raises(ValueError, match="c: a tensor of complex64"):
            writer.put(KEYS[2], {"c": torch.zeros(1, dtype=torch.complex64)})
    for opened in (cache, ArrayCache(tmp_path, MADE_BY)):
        assert_equal(opened[KEYS[0]], values)
        assert opened[KEYS[1]] == {}
        assert len(opened) == 2
    again = cache[KEYS[0]]["float32"]
    again += 1  # its own memory
    assert_equal(cache[KEYS[0]], values)
    assert not list(cache[KEYS[0]].values())[-2].requires_grad
    sizes = [p.stat().st_size for p in tmp_path.rglob("0*")]
    assert cache.bytes == sum(sizes) > 2**18


def test_keys(tmp_path):
    awkward = [bytes(16), b"a" * 8 + bytes(8), b"a" * 15 + b"\0", b"\xff" * 16]
    cache = ArrayCache(tmp_path, MADE_BY)
    with cache.writer() as writer:
        for n, key in enumerate(awkward):
            writer.put(key, value(n))
    for opened in (cache, ArrayCache(tmp_path, MADE_BY)):
        for n, key in enumerate(awkward):
            assert_equal(opened[key], value(n))
    absent = b"a" * 9 + bytes(7)
    assert absent not in cache
    with pytest.raises(KeyError, match=absent.hex()):
        cache[absent]
    wanted = [KEYS[5], awkward[1], KEYS[2], absent, KEYS[5], awkward[3]]
    assert cache.missing(iter(wanted)) == [KEYS[5], KEYS[2], absent]
    assert cache.missing([]) == []
    assert ArrayCache(tmp_path, {"a": 1}).missing(wanted[:2]) == wanted[:2]
    for wrong in (b"short", "a" * 16, None):
        with pytest.raises(ValueError, match="a key is 16 bytes"):
            cache.missing([wrong])


def test_text_key():
    keys = [
        text_key("ab", "c"),
        text_key("a", "bc"),
        text_key("abc"),
        text_key(["ab", "c"]),
        text_key(1),
        text_key("1"),
        text_key(1.0),
        text_key(None),
        text_key(b"1"),
        text_key("\ud83d"),
        text_key(),
    ]
    assert len(set(keys)) == len(keys)
    assert text_key("a", (1, 2)) == text_key("a", [1, 2])
    with pytest.raises(TypeError, match="int64"):
        text_key(numpy.int64(1))


def test_other_configuration_sees_nothing(tmp_path):
    fill(tmp_path, range(5))
    for change in ({"size": 9}, {"dtype": "float32"}, {"more": 0.5}):
        assert len(ArrayCache(tmp_path, {**MADE_BY, **change})) == 0
    assert len(ArrayCache(tmp_path, {**MADE_BY, "kind": "targets"})) == 0
    assert len(list(tmp_path.glob("states-*"))) == 4
    assert len(list(tmp_path.glob("targets-*"))) == 1
    same = ArrayCache(tmp_path, dict(reversed(MADE_BY.items())))
    assert numbers_in(same) == [0, 1, 2, 3, 4]
    readable = os.path.join(same.folder, "configuration.json")
    with open(readable) as stream:
        assert json.load(stream) == MADE_BY
    with pytest.raises(ValueError, match="sizes: .* is no text or number"):
        ArrayCache(tmp_path, {"sizes": [1]})


def test_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="Not a directory; give the cache"):
        ArrayCache(tmp_path / "file", MADE_BY)


def test_read_only_disk(tmp_path):
    with small_disk(tmp_path / "disk", "300k") as folder:
        fill(folder, range(3))
        remount = ["mount", "-o", "remount,ro", str(folder)]
        subprocess.run(remount, check=True)
        cache = ArrayCache(folder, MADE_BY)
        assert numbers_in(cache) == [0, 1, 2]
        with pytest.raises(BadInput, match="Read-only .*; give the cache"):
            with cache.writer() as writer:
                writer.put(KEYS[3], value(3))
        with pytest.raises(BadInput, match="Read-only .*; give the cache"):
            ArrayCache(folder, {"kind": "other"})


def work_slowly(folder, log, seed):
    """What a rank does: look what is missing, compute it, put it."""
    lengths = random.Random(seed)
    cache = ArrayCache(folder, MADE_BY)
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, b"started\n")
    unflushed = []
    with cache.writer(seed) as writer:
        for key in cache.missing(KEYS):
            n = KEYS.index(key)
            os.write(file, b"computed %d\n" % n)
            time.sleep(lengths.choice((0, 0, 0, 0.008)))
            writer.put(key, value(n))
            unflushed.append(n)
            if len(unflushed) >= lengths.randint(1, 6):
                writer.flush()
                for n in unflushed:
                    os.write(file, b"flushed %d\n" % n)
                unflushed = []


def unfinished(folder, rank):
    """Whether a writer has left data that no record speaks of."""
    for data in folder.rglob(f"{rank:05d}-*.data"):
        index = data.with_suffix(".index")
        if index.exists():
            records = numpy.fromfile(index, cache_files.RECORD)
            return data.stat().st_size > int(records["length"].sum())
    return False


def test_cache_survives_kill(tmp_path):
    """SIGKILL at random moments: whole, equal, nothing flushed made again."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.test_cache"])
    log, moments = tmp_path / "log", random.Random(0)
    kills = resumed = torn = 0
    for attempt in range(500):
        before = len(ArrayCache(tmp_path / "cache", MADE_BY))
        lines = log.read_text().count("\n") if log.exists() else 0
        arguments = (tmp_path / "cache", log, attempt)
        process = processes.Process(target=work_slowly, args=arguments)
        process.start()
        while process.is_alive() and not (
            log.exists() and log.read_text().count("\n") > lines
        ):
            time.sleep(0.001)
        # On a busy machine a restart gets nowhere: the last one is let be.
        process.join(moments.uniform(0, 0.02) if attempt < 150 else None)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        resumed += 0 < before < len(KEYS)
        torn += unfinished(tmp_path / "cache", attempt)
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode == 0:
            break
    assert kills >= 20 and resumed >= 10 and torn >= 5, (kills, resumed, torn)
    cache = ArrayCache(tmp_path / "cache", MADE_BY)
    assert numbers_in(cache) == list(range(len(KEYS)))
    assert len(cache) == len(KEYS)
    flushed = set()
    for line in log.read_text().splitlines():
        word, _, n = line.partition(" ")
        assert word != "computed" or n not in flushed, f"{n} was made twice"
        if word == "flushed":
            flushed.add(n)


def fill_and_wait(folder, numbers, rank, barrier):
    barrier.wait()
    fill(folder, numbers, rank, every=3)


def test_writers_at_once(tmp_path):
    """Overlapping keys: files of their own, each key once, another sees all."""
    watcher = ArrayCache(tmp_path, MADE_BY)
    processes = multiprocessing.get_context("forkserver")
    barrier = processes.Barrier(2)
    ranks = [
        processes.Process(
            target=fill_and_wait, args=(tmp_path, numbers, rank, barrier)
        )
        for rank, numbers in enumerate((range(200), range(100, 300)))
    ]
    for process in ranks:
        process.start()
    sizes = [0]
    while any(process.is_alive() for process in ranks):
        watcher.refresh()
        sizes.append(len(watcher))
        numbers_in(watcher)  # whole at any moment
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    watcher.refresh()
    assert sizes == sorted(sizes)
    assert numbers_in(watcher) == list(range(300)) and len(watcher) == 300
    assert len(ArrayCache(tmp_path, MADE_BY)) == 300
    names = sorted(path.name[:5] for path in tmp_path.rglob("*.data"))
    assert names == ["00000", "00001"]


def test_data_are_on_the_disk_before_their_records(tmp_path, monkeypatch):
    calls = []

    def note(name, function):
        def noted(file, *arguments):
            path = os.readlink(f"/proc/self/fd/{file}")
            calls.append((name, path.rpartition(".")[2]))
            return function(file, *arguments)

        monkeypatch.setattr(os, name, noted)

    cache = ArrayCache(tmp_path, MADE_BY)
    with cache.writer() as writer:
        writer.put(KEYS[0], value(0))
        writer.flush()
        note("pwrite", os.pwrite)
        note("fsync", os.fsync)
        writer.put(KEYS[1], value(1))
        writer.put(KEYS[2], value(2))
    assert calls == [
        *(("pwrite", "data"), ("pwrite", "data"), ("fsync", "data")),
        *(("pwrite", "index"), ("fsync", "index")),
    ]


def test_batches_and_new_files(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_files, "_BATCH", 3000)
    monkeypatch.setattr(cache_files, "_FILE", 10000)
    cache, seen = ArrayCache(tmp_path, MADE_BY), []
    with cache.writer() as writer:
        for n in range(100):
            writer.put(KEYS[n], value(n))
            cache.refresh()
            seen.append(len(cache))
    assert numbers_in(cache) == list(range(100))
    assert 5 < len(set(seen)) < 30 and seen[-1] < 100
    data = list(tmp_path.rglob("*.data"))
    assert len(data) > 2 and max(d.stat().st_size for d in data) < 13500


def test_torn_index(tmp_path, caplog):
    """Cut anywhere, even while its writer lives: whole records count."""
    fill(tmp_path, range(6))
    index = only(tmp_path, "index")
    whole, size = index.read_bytes(), cache_files.RECORD.itemsize
    watcher = ArrayCache(tmp_path / "elsewhere", MADE_BY)
    watcher.folder = ArrayCache(tmp_path, MADE_BY).folder
    for cut in range(0, len(whole) + 1, 7):
        index.write_bytes(whole[:cut])
        count = cut // size
        cache = ArrayCache(tmp_path, MADE_BY)
        assert numbers_in(cache) == list(range(count))
        assert cache.missing(KEYS[:6]) == KEYS[count:6]
        watcher.refresh()
        assert len(watcher) == count
    assert not caplog.records
    for tail in (b"\0" * 4 * size, b"\xff" * 100, whole[:20]):
        index.write_bytes(whole[: 4 * size] + tail)
        cache = ArrayCache(tmp_path, MADE_BY)
        assert numbers_in(cache) == list(range(4))
        index.write_bytes(whole)  # the network was late
        cache.refresh()
        assert numbers_in(cache) == list(range(6))
    flipped = bytearray(whole)
    flipped[2 * size + 17] ^= 1
    index.write_bytes(flipped)
    caplog.clear()
    assert numbers_in(ArrayCache(tmp_path, MADE_BY)) == [0, 1, 3, 4, 5]
    assert "1 damaged entries" in caplog.text
    fill(tmp_path, [2], rank=1)
    assert numbers_in(ArrayCache(tmp_path, MADE_BY)) == list(range(6))


def test_truncated_data_are_absent(tmp_path, caplog):
    fill(tmp_path, range(6))
    data = only(tmp_path, "data")
    whole, counts = data.read_bytes(), []
    for cut in range(len(whole), -1, -100):
        data.write_bytes(whole[:cut])
        found = numbers_in(ArrayCache(tmp_path, MADE_BY))
        assert found == list(range(len(found)))
        counts.append(len(found))
    assert counts == sorted(counts, reverse=True)
    assert set(counts) == set(range(7))
    assert str(data) in caplog.text
    data.write_bytes(whole)
    cache = ArrayCache(tmp_path, MADE_BY)
    data.write_bytes(whole[:-1])  # behind its back
    with pytest.raises(DamagedEntry, match="cut short"):
        cache[KEYS[5]]
    assert_equal(cache[KEYS[4]], value(4))
    fill(tmp_path, [5], rank=1)
    assert numbers_in(ArrayCache(tmp_path, MADE_BY)) == list(range(6))


def test_flipped_byte_is_one_line(tmp_path, capsys):
    """Each byte of an entry is covered, and deleting the file is the mend."""
    fill(tmp_path, range(4))
    data = only(tmp_path, "data")
    whole = data.read_bytes()
    begin = whole.index(KEYS[2]) - 8
    end = whole.index(KEYS[3]) - 8
    cache = ArrayCache(tmp_path, MADE_BY)
    for place in range(begin, end):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        data.write_bytes(damaged)
        with pytest.raises(DamagedEntry) as error:
            cache[KEYS[2]]
        text = str(error.value)
        assert "\n" not in text and f"delete {data} and *.filled" in text
        assert_equal(cache[KEYS[3]], value(3))
    with pytest.raises(SystemExit):
        one_line_errors(lambda: cache[KEYS[2]])()
    assert capsys.readouterr().err.count("\n") == 1
    data.unlink()
    again = ArrayCache(tmp_path, MADE_BY)
    assert again.missing(KEYS[:4]) == KEYS[:4]
    with pytest.raises(DamagedEntry, match="has been deleted"):
        pickle.loads(pickle.dumps(cache))[KEYS[1]]
    fill(tmp_path, range(4))
    again.refresh()
    assert numbers_in(again) == list(range(4))


def check_full(folder, capsys):
    """Fill the disk, then free it: what was flushed stays, nothing is torn."""
    cache = ArrayCache(folder, MADE_BY)

    @one_line_errors
    def work():
        with cache.writer() as writer:
            for n in range(len(KEYS)):
                writer.put(KEYS[n], {"states": torch.full((5000,), n)})
                if n % 2:
                    writer.flush()

    with pytest.raises(SystemExit) as stop:
        work()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no space left" in error
    assert str(folder) in error and ".data" in error
    cache = ArrayCache(folder, MADE_BY)
    assert 2 <= len(cache) < 20
    for n in range(len(cache)):
        assert cache[KEYS[n]]["states"].tolist() == [n] * 5000


def test_full_disk(tmp_path, capsys):
    with small_disk(tmp_path / "disk", "300k") as folder:
        check_full(folder, capsys)


def test_file_size_limit(tmp_path, capsys):
    with file_size_limit(210000):
        check_full(tmp_path, capsys)
    fill(tmp_path, range(100, 110))
    assert len(ArrayCache(tmp_path, MADE_BY)) >= 12


def test_full_disk_does_not_end_the_writer(tmp_path):
    """Half an entry is given back, and the next one takes its place."""
    cache = ArrayCache(tmp_path, MADE_BY)
    with cache.writer() as writer:
        writer.put(KEYS[0], value(0))
        size = only(tmp_path, "data").stat().st_size
        with file_size_limit(size + 20), pytest.raises(OSError, match="data"):
            writer.put(KEYS[1], value(1))
        assert only(tmp_path, "data").stat().st_size == size
        writer.put(KEYS[2], value(2))
    assert numbers_in(cache) == [0, 2]


def test_failed_flush_promises_nothing(tmp_path, monkeypatch):
    """The system tells of lost data once: they must not be indexed later."""
    cache = ArrayCache(tmp_path, MADE_BY)
    with cache.writer() as writer:
        writer.put(KEYS[0], value(0))
        writer.flush()
        writer.put(KEYS[1], value(1))
        with monkeypatch.context() as broken:

            def fail(file):
                raise OSError(28, "No space left on device")

            broken.setattr(os, "fsync", fail)
            with pytest.raises(OSError, match="No space left"):
                writer.flush()
        writer.put(KEYS[2], value(2))
    assert numbers_in(cache) == [0, 2]


def test_reserve(tmp_path, monkeypatch):
    cache = ArrayCache(tmp_path, MADE_BY)
    usage = shutil.disk_usage(tmp_path)._replace(free=500 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    cache.reserve(495 * 10**9)
    with pytest.raises(BadInput) as error:
        cache.reserve(496 * 10**9)
    text = str(error.value)
    assert text.startswith(f"{cache.folder}: the cache needs 501.0 GB, 500.0 ")
    assert "free some" in text and "\n" not in text
    monkeypatch.undo()
    with small_disk(tmp_path / "disk", "300k") as folder:
        with pytest.raises(BadInput, match="0.0 GB are free"):
            ArrayCache(folder, MADE_BY).reserve(1)


class Clips(torch.utils.data.Dataset):
    def __init__(self, cache):
        self.cache = cache

    def __len__(self):
        return len(self.cache)

    def __getitem__(self, n):
        return {"pid": os.getpid(), **self.cache[KEYS[n]]}


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loader_workers_read(tmp_path, method):
    fill(tmp_path, range(40))
    cache = ArrayCache(tmp_path, MADE_BY)
    assert_equal(cache[KEYS[3]], value(3))  # its file is open already
    loader = torch.utils.data.DataLoader(
        Clips(cache),
        batch_size=None,
        num_workers=2,
        multiprocessing_context=method,
    )
    workers = set()
    for n, item in enumerate(loader):
        workers.add(item.pop("pid"))
        assert_equal(item, value(n))
    assert n == 39 and len(workers) == 2 and os.getpid() not in workers


def put_in_child(writer, found):
    try:
        writer.put(KEYS[1], value(1))
    except RuntimeError as error:
        found.put(str(error))


def test_forked_process_cannot_use_the_writer(tmp_path):
    fork = multiprocessing.get_context("fork")
    found = fork.SimpleQueue()
    with ArrayCache(tmp_path, MADE_BY).writer() as writer:
        writer.put(KEYS[0], value(0))
        child = fork.Process(target=put_in_child, args=(writer, found))
        child.start()
        assert "a writer of its own" in found.get()
        child.join()
        writer.put(KEYS[1], value(1))
    assert numbers_in(ArrayCache(tmp_path, MADE_BY)) == [0, 1]


def test_hundreds_of_files_and_threads(tmp_path):
    """Few descriptors; one that a thread still reads is not closed."""

    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    cache = ArrayCache(tmp_path, MADE_BY)
    for n in range(300):
        with cache.writer(n) as writer:
            writer.put(KEYS[n], value(n))
    assert descriptors() == before
    failures = []

    def read(cache, seed):
        numbers = random.Random(seed).choices(range(300), k=500)
        try:
            for n in numbers:
                assert_equal(cache[KEYS[n]], value(n))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(cache, i)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert before < descriptors() <= before + 64
    del cache, writer
    assert descriptors() == before


def test_clip_key_is_of_the_content(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(b"a" * 1000)
    key, facts = clip_key(path), path.stat()
    assert clip_key(str(path)) == clip_key(path, 0) == key
    stretches = [(0, 5), (5, None), (5, 9), (5, 10)]
    assert len({key, *(clip_key(path, *s) for s in stretches)}) == 5
    time.sleep(0.02)  # a clock that files are stamped with is coarse
    path.write_bytes(b"a" * 999 + b"b")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert path.stat().st_mtime_ns == facts.st_mtime_ns
    changed = clip_key(path)
    assert changed != key
    moved = path.rename(tmp_path / "moved.flac")
    os.utime(moved, (1, 1))
    assert clip_key(moved) == changed
    for absent in (path, tmp_path):
        with pytest.raises(BadInput, match="no such audio file; correct the"):
            clip_key(absent)


def test_clip_key_of_a_big_file(tmp_path, monkeypatch):
    path, size = tmp_path / "hour.wav", 5 * 2**20
    path.write_bytes(bytes(size))
    read, opened = [], open

    def counting(*arguments):
        read.append(arguments[0])
        return opened(*arguments)

    monkeypatch.setattr("builtins.open", counting)
    keys = {clip_key(path, n, n + 1) for n in range(1000)}
    monkeypatch.undo()
    assert len(keys) == 1000 and read == [str(path)]
    key, facts = clip_key(path), path.stat()

    def changed(place, same_time):
        with open(path, "r+b") as stream:
            stream.seek(place)
            stream.write(b"x")
        if same_time:
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        result = clip_key(path) != key
        with open(path, "wb") as stream:
            stream.write(bytes(size))
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        return result

    for place in (0, size // 2, size - 1):
        time.sleep(0.02)
        assert changed(place, same_time=True)
    time.sleep(0.02)
    assert changed(2**20, same_time=False)
    # A hash of the whole file would tell; its docstring says so.
    assert not changed(2**20, same_time=True)
    assert clip_key(path.rename(tmp_path / "moved.wav")) == key
    with open(tmp_path / "moved.wav", "ab") as stream:
        stream.write(b"\0")
    os.utime(tmp_path / "moved.wav", ns=(0, facts.st_mtime_ns))
    assert clip_key(tmp_path / "moved.wav") != key


MEASURE = """
import sys
from blsp_plugin.data.cache import ArrayCache
def peak():  # getrusage's is that of the process before exec
    with open("/proc/self/status") as stream:
        return 1024 * int(stream.read().split("VmHWM:")[1].split()[0])
before = peak()
cache = ArrayCache(sys.argv[1], {"kind": "states"})
print(len(cache), peak() - before)
"""


def test_memory_of_a_million_entries(tmp_path):
    """36 bytes an entry, and little more while they are read and sorted."""
    count = 10**6
    folder = ArrayCache(tmp_path, {"kind": "states"}).folder
    records = numpy.zeros(count, cache_files.RECORD)
    keys = numpy.random.default_rng(0).bytes(16 * count)
    records["key"] = numpy.frombuffer(keys, "S16")
    records["offset"] = numpy.arange(count) * 64
    records["length"] = 64
    records["check"] = cache_files.record_checks(records.tobytes())
    for rank in range(8):
        name = os.path.join(folder, f"{rank:05d}-0123")
        with open(f"{name}.data", "wb") as stream:
            stream.truncate(count * 64)
        records[rank::8].tofile(f"{name}.index")
    code = [sys.executable, "-c", MEASURE, str(tmp_path)]
    out = subprocess.run(code, check=True, capture_output=True, text=True)
    found, peak = map(int, out.stdout.split())
    assert found == count
    assert peak < 36 * count + 25 * 10**6, peak
    cache = ArrayCache(tmp_path, {"kind": "states"})
    assert cache._rows.nbytes == 36 * count
    some = [keys[i : i + 16] for i in range(0, len(keys), 16 * 1000)]
    assert cache.missing([KEYS[0], *some]) == [KEYS[0]]
    assert zlib.crc32(records[:1].tobytes()[:-4]) == records["check"][0]
