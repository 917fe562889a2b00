"""Stage 1's table opened for training: whole, fresh, and of any size."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys

import numpy
import pyarrow
import pyarrow.compute
import pyarrow.parquet
import pytest

from blsp_plugin.continuation.table import COLUMNS
from blsp_plugin.data import twin
from blsp_plugin.data.dataset import (
    MelFeatures,
    continuation_dataset,
    open_continuations,
    row_frames,
    row_lengths,
)
from blsp_plugin.errors import BadInput
from blsp_plugin.lengths import encoder_frames, mel_frames, stacked_conv_frames
from tests.disk import file_size_limit
from tests.training import ROOT, write_continuations

INSTRUCTIONS = ["Please repeat the following words.", "Go on.", "Sum it up."]


def made_up(n, first=0):
    """Rows of stage 1's columns, all of them told by their number."""
    numbers = numpy.arange(first, first + n)
    text = pyarrow.array(numbers).cast(pyarrow.string())

    def named(before, after):
        join = pyarrow.compute.binary_join_element_wise
        return join(before, text, after, "")

    sizes = numbers % 40
    offsets = numpy.concatenate([[0], numpy.cumsum(sizes)])
    columns = {
        "ID": named("row", ""),
        "clip_id": text,
        "wav": named("/some/folder/clip", ".flac"),
        "duration": (numbers % 3000 + 50) / 100,
        "start": pyarrow.nulls(n, pyarrow.int64()),
        "stop": pyarrow.nulls(n, pyarrow.int64()),
        "transcript": named("THE WORDS OF CLIP NUMBER ", ""),
        "text": named("The words of clip number ", "."),
        "behaviour": pyarrow.array(["some"] * n),
        "instruction": pyarrow.array(INSTRUCTIONS).take(
            pyarrow.array(numbers % 3)
        ),
        "response": named("What is said of clip number ", "."),
        "response_ids": pyarrow.ListArray.from_arrays(
            pyarrow.array(offsets, pyarrow.int32()),
            pyarrow.array(numpy.repeat(numbers, sizes), pyarrow.int32()),
        ),
        "ended": numbers % 5 > 0,
    }
    return pyarrow.table(columns, schema=COLUMNS)


def write(path, rows, **columns):
    """A small Parquet, with other columns (None: without)."""
    table = made_up(rows)
    for name, column in columns.items():
        place = table.column_names.index(name)
        table = table.remove_column(place)
        if column is not None:
            table = table.add_column(place, name, column)
    pyarrow.parquet.write_table(table, path)
    return str(path)


def twins(folder):
    return sorted(n for n in os.listdir(folder) if not n.endswith(".lock"))


class Words:
    """A prompt of an LLM whose tokens are letters."""

    def ids(self, instruction):
        return [1] * len(instruction), [2] * 3


def tokens(samples):
    return stacked_conv_frames(encoder_frames(mel_frames(samples)))


def expected(n):
    """(LLM tokens, mel frames) of a made-up row."""
    samples = 160 * (n % 3000 + 50)
    around = len(INSTRUCTIONS[n % 3]) + 3
    ended = n % 5 > 0
    return around + tokens(samples) + n % 40 + ended, mel_frames(samples)


def test_lengths_are_those_of_the_packed_rows(
    corpus, llm_folder, tmp_path, model, prompt
):
    folder = write_continuations(corpus, llm_folder, str(tmp_path))
    table = open_continuations(f"{folder}/train.parquet", str(tmp_path / "a"))
    data = continuation_dataset(
        table, prompt, MelFeatures(model.encoder.mel), model.speech_tokens
    )
    examples = [item["example"] for item in data]
    assert [e.id for e in examples] == table["ID"][:]
    expected = [
        len(row.prefix)
        + row.slot
        + len(row.suffix)
        + len(row.response)
        + row.ended
        for row in (e.row for e in examples)
    ]
    lengths = row_lengths(table, prompt, model.speech_tokens)
    assert lengths.tolist() == expected
    assert row_frames(table).tolist() == [len(e.features) for e in examples]
    # Of any part of the table, in its order.
    some = table.select([5, 2, 7])
    lengths = row_lengths(some, prompt, model.speech_tokens)
    assert lengths.tolist() == [expected[i] for i in (5, 2, 7)]


# What a process of its own does: its memory is that of these lines.
MEASURE = """
import json, sys
from tests.test_dataset import *
from blsp_plugin.data.sampler import TokenBudgetSampler

def status():
    with open("/proc/self/status") as stream:
        fields = [line.split() for line in stream if "kB" in line]
    return {name[:-1]: int(size) / 1024 for name, size, _ in fields}

before = status()
path, cache, rows = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
table = open_continuations(path, cache, quiet=True)
lengths, frames = row_lengths(table, Words(), tokens), row_frames(table)
sampler = TokenBudgetSampler(lengths, 2000, frames=frames, max_frames=12000)
data = continuation_dataset(table, Words(), None, tokens)
data.set_output_keys(["ID", "wav", "response_ids"])
result = {"batches": len(sampler), "rows": len(data)}
result["read"] = [data[row] for row in rows]
result["lengths"] = [[int(lengths[r]), int(frames[r])] for r in rows]
after = status()
result["resident"] = after["VmRSS"] - before["VmRSS"]
result["peak"] = after["VmHWM"] - before["VmRSS"]
print(json.dumps(result))
"""


def test_manifest_of_a_million_rows(tmp_path):
    path = str(tmp_path / "train.parquet")
    with pyarrow.parquet.ParquetWriter(path, COLUMNS) as writer:
        for first in range(0, 1_000_000, 50_000):
            table = made_up(50_000, first)
            writer.write_table(table, row_group_size=16384)
    rng = numpy.random.default_rng(0)
    rows = [0, 999_999, *rng.integers(0, 1_000_000, 200).tolist()]
    # The first time it is converted, the second time merely opened.
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE]
            + [path, str(tmp_path / "cache"), json.dumps(rows)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": ROOT},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["rows"] == 1_000_000
        assert result["lengths"] == [list(expected(n)) for n in rows]
        for n, row in zip(rows, result["read"], strict=True):
            assert row == {
                "ID": f"row{n}",
                "wav": f"/some/folder/clip{n}.flac",
                "response_ids": [n] * (n % 40),
            }
        assert result["peak"] < 300  # MB
    assert len(twins(tmp_path / "cache")) == 1


def test_random_rows_beyond_one_mapping(tmp_path):
    path = write(tmp_path / "a.parquet", 3000)
    table = open_continuations(path, str(tmp_path / "cache"))
    data = continuation_dataset(table, Words(), None, tokens)
    data.set_output_keys(["id", "text"])
    rows = numpy.random.default_rng(0).permutation(3000).tolist()
    assert all(
        data[n] == {"id": n, "text": f"The words of clip number {n}."}
        for n in rows
    )


def test_only_a_fresh_twin_is_used(tmp_path):
    path, cache = write(tmp_path / "a.parquet", 4), str(tmp_path / "cache")
    other = write(tmp_path / "b.parquet", 7)
    assert len(open_continuations(path, cache)) == 4
    [stale] = twins(cache)
    assert len(open_continuations(other, cache)) == 7
    assert len(open_continuations(path, cache)) == 4
    facts = os.stat(path)
    # Another size at the same time, then another time and the same size.
    write(path, 5)
    os.utime(path, ns=(0, facts.st_mtime_ns))
    assert len(open_continuations(path, cache)) == 5
    write(path, 5, text=made_up(6).slice(1)["text"])
    os.utime(path, ns=(0, facts.st_mtime_ns + 1))
    table = open_continuations(path, cache)
    assert table[0]["text"] == "The words of clip number 1."
    # Stale ones are gone, that of the other file is not.
    assert len(twins(cache)) == 2 and stale not in twins(cache)


def in_child(target, *args):
    """Run in a child; its exit status."""
    child = multiprocessing.get_context("fork").Process(
        target=target, args=args
    )
    child.start()
    child.join()
    return child.exitcode


def killed_while_writing(path, cache):
    real, twin._ROWS_A_BATCH, twin._ROWS_READ = twin._joined, 10, 10

    def joined(batches):
        for number, batch in enumerate(real(batches)):
            if number == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    twin._joined = joined
    open_continuations(path, cache)


def test_killed_conversion_is_done_again(tmp_path):
    path, cache = write(tmp_path / "a.parquet", 100), str(tmp_path / "cache")
    assert in_child(killed_while_writing, path, cache) == -signal.SIGKILL
    [left] = twins(cache)
    assert left.endswith(".tmp")
    assert len(open_continuations(path, cache)) == 100
    [left] = twins(cache)
    assert left.endswith(".arrow")


def test_full_disk_leaves_nothing(tmp_path):
    path, cache = write(tmp_path / "a.parquet", 2000), str(tmp_path / "cache")
    with file_size_limit(50_000), pytest.raises(OSError) as caught:
        open_continuations(path, cache)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename.startswith(cache)
    assert not twins(cache)


def count_conversions(path, cache, barrier, counter):
    real = twin._convert

    def convert(*args):
        with counter.get_lock():
            counter.value += 1
        real(*args)

    twin._convert = convert
    barrier.wait()
    assert len(open_continuations(path, cache)) == 20_000


def test_one_of_many_processes_converts(tmp_path):
    path, cache = write(tmp_path / "a.parquet", 20_000), str(tmp_path / "c")
    context = multiprocessing.get_context("fork")
    barrier, counter = context.Barrier(4), context.Value("i", 0)
    children = [
        context.Process(
            target=count_conversions, args=(path, cache, barrier, counter)
        )
        for _ in range(4)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert counter.value == 1


def test_parquet_that_changes_while_it_is_read(tmp_path, monkeypatch):
    path, cache = write(tmp_path / "a.parquet", 10), str(tmp_path / "cache")
    real = twin._joined

    def joined(batches):
        yield from real(batches)
        os.utime(path, ns=(0, 0))

    monkeypatch.setattr(twin, "_joined", joined)
    with pytest.raises(BadInput, match="a.parquet: changed while"):
        open_continuations(path, cache)
    assert not twins(cache)


@pytest.mark.parametrize(
    ["rows", "columns", "complaint"],
    [
        (3, {"duration": None}, "lacks the column 'duration' .it has ID, cl"),
        (0, {}, "has no rows"),
        (
            3,
            {"duration": pyarrow.array(["a", "b", "c"])},
            "column 'duration' is string instead of double",
        ),
        (
            3,
            {"ended": pyarrow.array([True, None, True])},
            "row 1: no value in column 'ended'",
        ),
    ],
)
def test_bad_tables_are_one_line(tmp_path, rows, columns, complaint):
    path = write(tmp_path / "a.parquet", rows, **columns)
    with pytest.raises(BadInput, match=f"a.parquet.*{complaint}"):
        open_continuations(path, str(tmp_path / "cache"))
    assert not twins(tmp_path / "cache")


def test_what_is_no_parquet(tmp_path):
    path, cache = tmp_path / "a.parquet", str(tmp_path / "cache")
    with pytest.raises(BadInput, match="no such file"):
        open_continuations(str(path), cache)
    path.write_text("ID,wav\n")
    with pytest.raises(BadInput, match="not a readable Parquet file"):
        open_continuations(str(path), cache)
    write(path, 1000)
    os.truncate(path, os.path.getsize(path) - 100)
    with pytest.raises(BadInput, match="not a readable Parquet file"):
        open_continuations(str(path), cache)
    write(path, 1000)
    open_continuations(str(path), cache)
    [name] = twins(cache)
    os.truncate(f"{cache}/{name}", 10)
    with pytest.raises(BadInput, match=f"{name}: not readable"):
        open_continuations(str(path), cache)


def test_rows_of_some_behaviours(tmp_path):
    """As a table of these alone; each choice has a twin of its own."""
    kinds = ["continue", "repeat", "topic"]
    column = pyarrow.array([kinds[n % 3] for n in range(30)])
    path = write(tmp_path / "all.parquet", 30, behaviour=column)
    whole = open_continuations(path, tmp_path / "a")
    some = open_continuations(path, tmp_path / "b", behaviours=["topic"])
    assert some["ID"] == whole["ID"][2::3]
    assert open_continuations(path, tmp_path / "a")["ID"] == whole["ID"]
    two = ["repeat", "continue"]
    pair = open_continuations(path, tmp_path / "b", behaviours=two)
    assert [kind != "topic" for kind in pair["behaviour"]] == [True] * 20
    # Lengths look up the first row with the same instruction.
    few = column.filter(pyarrow.compute.not_equal(column, "topic"))
    rows = [n for n in range(30) if n % 3 != 2]
    table = made_up(30).take(rows)
    place = table.column_names.index("behaviour")
    table = table.set_column(place, "behaviour", few)
    pyarrow.parquet.write_table(table, tmp_path / "pair.parquet")
    alone = open_continuations(tmp_path / "pair.parquet", tmp_path / "c")
    assert pair.to_dict() == alone.to_dict()
    lengths = row_lengths(pair, Words(), tokens)
    assert numpy.array_equal(lengths, row_lengths(alone, Words(), tokens))
    with pytest.raises(BadInput, match="has no rows of the behaviours sing"):
        open_continuations(path, tmp_path / "d", behaviours=["sing"])
    bare = write(tmp_path / "bare.parquet", 5, behaviour=None)
    with pytest.raises(BadInput, match="no column 'behaviour' to choose"):
        open_continuations(bare, tmp_path / "e", behaviours=["repeat"])
