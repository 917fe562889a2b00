"""Shards and settings: nothing lost, nothing twice, nothing mixed."""

import json

import numpy
import pytest

from blsp_plugin.continuation.settings import check_settings
from blsp_plugin.continuation.shards import (
    RECORD,
    Shard,
    read_records,
    scan_shards,
    shard_path,
)
from blsp_plugin.errors import BadInput, one_line_errors
from blsp_plugin.files import write_json
from tests.disk import file_size_limit


def record(n, **changes):
    return {
        "n": n,
        "ID": f"clip{n}",
        "response": f'to {n}: \u201cüber\u201d\u2028 \\ "q"\n',
        "response_ids": [n, 2, 3],
        "ended": True,
        "reason": None,
        **changes,
    }


def done(folder, size=6):
    return numpy.flatnonzero(scan_shards(folder, "train", size).done).tolist()


def test_torn_line_is_dropped_and_written_again(tmp_path):
    path = tmp_path / "train-00000-00000.jsonl"
    with Shard(path) as shard:
        shard.append([record(0), record(1)])
    whole = path.read_bytes()
    for torn in (b'{"n": 2, "resp', b"{", b"\x00" * 70000):
        path.write_bytes(whole + torn)
        assert done(tmp_path) == [0, 1]
        with Shard(path) as shard:
            assert path.read_bytes() == whole
            shard.append([record(2)])
        assert done(tmp_path) == [0, 1, 2]
    path.write_bytes(b'{"no newline yet')
    assert done(tmp_path) == []
    with Shard(path) as shard:
        assert path.read_bytes() == b""


def test_damaged_line_counts_as_not_written(tmp_path, caplog):
    path = tmp_path / "train-00000-00000.jsonl"
    with Shard(path) as shard:
        shard.append([record(n) for n in range(4)])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[0] = lines[0][:20] + b"\n"
    lines[2] = b"[]\n"
    path.write_bytes(b"".join(lines) + json.dumps(record(99)).encode() + b"\n")
    assert done(tmp_path) == [1, 3]
    for row in (1, 3, 5):
        assert f"{path}, row {row}: damaged" in caplog.text
    records = read_records(scan_shards(tmp_path, "train", 6), 0, 6)
    assert (
        records["ID"].to_pylist() == [None, "clip1", None, "clip3"] + [None] * 2
    )


def test_line_is_whole_or_none(tmp_path):
    path = tmp_path / "train-00000-00000.jsonl"
    with Shard(path) as shard:
        shard.append([record(n) for n in range(3)])
        shard.append([{"n": 3}, record(4, response="\ud83d half a pair")])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"to 1", b"to \xff")
    path.write_bytes(b"".join(lines))
    assert done(tmp_path) == [0, 2, 4]
    index = scan_shards(tmp_path, "train", 6)
    assert read_records(index, 4, 5)["response"][0].as_py() == "? half a pair"


def test_one_owner_a_shard(tmp_path):
    path = tmp_path / "train-00000-00000.jsonl"
    with Shard(path):
        with pytest.raises(BadInput, match="another process"):
            Shard(path)
    Shard(path).close()


def test_scan_keeps_splits_and_other_files_apart(tmp_path):
    for n, split in enumerate(("train", "train-other", "train")):
        with Shard(shard_path(tmp_path, split, n)) as shard:
            shard.append([record(n)])
    (tmp_path / "train-00000-00000.jsonl~").write_text("not ours")
    assert done(tmp_path) == [0, 2]


@pytest.mark.parametrize("block", [1, 500, 1 << 20])
def test_records_in_any_order_over_any_shards(tmp_path, monkeypatch, block):
    """The first of two with one number stays; reading is in request order."""
    monkeypatch.setattr("blsp_plugin.continuation.shards._BLOCK", block)
    numbers = numpy.random.default_rng(0).permutation(50).tolist()
    for rank in range(3):
        with Shard(shard_path(tmp_path, "train", rank)) as shard:
            shard.append([record(n) for n in numbers[rank::3]])
            shard.append([record(n, response="late") for n in numbers[:9]])
    index = scan_shards(tmp_path, "train", 60)
    assert done(tmp_path, 60) == list(range(50))
    expected = [record(n) for n in range(50)]
    late = {n for i, n in enumerate(numbers[:9]) if i % 3}
    for n in late:  # rank 0 has all of the first nine, before their owners
        expected[n]["response"] = "late"
    for start, stop in ((0, 50), (7, 8), (13, 44)):
        records = read_records(index, start, stop)
        assert records.schema == RECORD
        assert records.to_pylist() == expected[start:stop]
    nothing = dict.fromkeys(RECORD.names)
    assert read_records(index, 49, 52).to_pylist()[1:] == [nothing] * 2


def test_full_disk_loses_nothing(tmp_path, capsys):
    path = tmp_path / "train-00000-00000.jsonl"
    with Shard(path) as shard:
        shard.append([record(0)])
        size = path.stat().st_size

        @one_line_errors
        def fill():
            shard.append([record(1), record(2)])

        with pytest.raises(SystemExit) as stop, file_size_limit(size + 20):
            fill()
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "no space left" in error
        assert str(path) in error
        assert path.stat().st_size == size  # no half line is left behind
        shard.append([record(1), record(2)])
    assert done(tmp_path) == [0, 1, 2]


def test_refuses_mixed_settings(tmp_path):
    path = tmp_path / "settings.json"
    settings = {
        "llm": "0123 in float32",
        "behaviours": {"continue": {"max_new_tokens": 64, "stop": None}},
        "filters": {"Echo": {"behaviours": ["continue"]}},
    }
    check_settings(path, settings)
    write_json(settings, path)
    check_settings(path, settings)
    changed = json.loads(json.dumps(settings))
    changed["behaviours"]["continue"]["max_new_tokens"] = 32
    with pytest.raises(
        BadInput, match="behaviours.continue.max_new_tokens was 64 and is 32"
    ):
        check_settings(path, changed)
    changed["llm"] = "4567 in bfloat16"
    changed["filters"] = {}
    with pytest.raises(BadInput, match="filters.Echo.* is missing now") as e:
        check_settings(path, changed)
    assert "'0123 in float32' and is '4567 in bfloat16' now" in str(e.value)
    assert "\n" not in str(e.value)
    path.write_text("{")
    with pytest.raises(BadInput, match="not readable"):
        check_settings(path, settings)
