"""Stage 1's writer: nothing lost, nothing twice, nothing mixed."""

import contextlib
import json
import os
import resource

import pyarrow.parquet
import pytest

from blsp_plugin.continuation.behaviours import Behaviour, assign, row_key
from blsp_plugin.continuation.writer import (
    COLUMNS,
    Shard,
    check_settings,
    hash_rows,
    read_shard,
    scan_shards,
    write_table,
)
from blsp_plugin.errors import BadInput, one_line_errors
from blsp_plugin.files import write_json

CONTINUE = Behaviour("continue", "Go on.")
REPEAT = Behaviour("repeat", "Say it.", share=0.5)


def record(key, **changes):
    return {
        "ID": key,
        "response": f"to {key}",
        "response_ids": [1, 2, 3],
        "ended": True,
        "reason": None,
        **changes,
    }


def row(name, **changes):
    return {
        "id": name,
        "wav": f"/clips/{name}.flac",
        "duration": 1.5,
        "transcript": name.upper(),
        "text": name,
        **changes,
    }


@contextlib.contextmanager
def file_size_limit(size):
    """Files of this process cannot grow beyond ``size``: a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_torn_line_is_dropped_and_written_again(tmp_path):
    path = tmp_path / "train-0000.jsonl"
    with Shard(path) as shard:
        shard.append([record("a"), record("b")])
    whole = path.read_bytes()
    for torn in (b'{"ID": "c", "resp', b"{", b"\x00" * 70000):
        path.write_bytes(whole + torn)
        assert list(scan_shards(tmp_path, "train")) == ["a", "b"]
        with Shard(path) as shard:
            assert path.read_bytes() == whole
            shard.append([record("c")])
        assert list(scan_shards(tmp_path, "train")) == ["a", "b", "c"]
    path.write_bytes(b'{"no newline yet')
    with Shard(path) as shard:
        assert path.read_bytes() == b""


def test_damaged_line_counts_as_not_written(tmp_path):
    path = tmp_path / "train-0000.jsonl"
    with Shard(path) as shard:
        shard.append([record("a"), record("b")])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0][:20] + b"\n" + b"[]\n" + lines[1])
    assert list(scan_shards(tmp_path, "train")) == ["b"]


def test_one_owner_a_shard(tmp_path):
    path = tmp_path / "train-0000.jsonl"
    with Shard(path):
        with pytest.raises(BadInput, match="another process"):
            Shard(path)
    Shard(path).close()


def test_scan_keeps_splits_and_other_files_apart(tmp_path):
    names = ("train-0000", "train-0001", "train-other-0000", "train")
    for name in names:
        with Shard(tmp_path / f"{name}.jsonl") as shard:
            shard.append([record(name)])
    (tmp_path / "train-0000.jsonl~").write_text("not ours")
    assert list(scan_shards(tmp_path, "train")) == ["train-0000", "train-0001"]


def test_full_disk_loses_nothing(tmp_path, capsys):
    path = tmp_path / "train-0000.jsonl"
    with Shard(path) as shard:
        shard.append([record("a")])
        size = path.stat().st_size

        @one_line_errors
        def fill():
            shard.append([record("b"), record("c")])

        with pytest.raises(SystemExit) as stop, file_size_limit(size + 20):
            fill()
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "no space left" in error
        assert str(path) in error
        assert path.stat().st_size == size  # no half line is left behind
        shard.append([record("b"), record("c")])
    assert [r["ID"] for _, r in read_shard(path)] == ["a", "b", "c"]


def test_full_disk_keeps_the_old_table(tmp_path):
    rows = [row(f"clip{i}") for i in range(50)]
    with Shard(tmp_path / "train-0000.jsonl") as shard:
        shard.append([record(f"{r['id']}-continue") for r in rows])
    index = scan_shards(tmp_path, "train")
    path = tmp_path / "train.parquet"
    path.write_text("old")
    with pytest.raises(OSError, match="train.parquet"), file_size_limit(100):
        write_table(str(path), assign(rows, [CONTINUE]), index)
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "train-0000.jsonl",
        "train.parquet",
    ]


def test_table_in_input_order_with_all_columns(tmp_path):
    rows = [row(f"clip{i}", spk_id=i) for i in range(20)]
    items = list(assign(rows, [CONTINUE, REPEAT]))
    keys = [row_key(*item) for item in items]
    assert 20 < len(keys) < 40
    bad = keys[3]
    records = [
        record(key, ended=i % 2 == 0, reason="echo" if key == bad else None)
        for i, key in enumerate(keys)
    ]
    for rank in (0, 1):  # in no order, over two shards
        with Shard(tmp_path / f"train-{rank:04d}.jsonl") as shard:
            shard.append(records[rank::2][::-1])
    path = tmp_path / "train.parquet"
    rejected, counts = write_table(
        path, items, scan_shards(tmp_path, "train"), keep=["spk_id"]
    )
    table = pyarrow.parquet.read_table(path)
    assert table.column("ID").to_pylist() == [k for k in keys if k != bad]
    assert table.schema.names == [*COLUMNS.names, "spk_id"]
    first = table.slice(0, 1).to_pylist()[0]
    assert first == {
        "ID": "clip0-continue",
        "clip_id": "clip0",
        "wav": "/clips/clip0.flac",
        "duration": 1.5,
        "transcript": "CLIP0",
        "text": "clip0",
        "behaviour": "continue",
        "instruction": "Go on.",
        "response": "to clip0-continue",
        "response_ids": [1, 2, 3],
        "ended": True,
        "spk_id": "0",
    }
    assert [r["ID"] for r in rejected] == [bad]
    assert counts["rows"] == len(keys)
    assert counts["written"] == len(keys) - 1
    assert (
        counts["written_continue"] + counts["written_repeat"] == len(keys) - 1
    )
    assert counts["tokens"] == 3 * len(keys)
    assert counts["truncated"] == sum(not e for e in table["ended"].to_pylist())


def test_missing_response_is_named(tmp_path):
    with pytest.raises(BadInput, match="clip0-continue: no response"):
        write_table(
            tmp_path / "a.parquet", assign([row("clip0")], [CONTINUE]), {}
        )
    assert not os.listdir(tmp_path)


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


def test_hash_of_rows_is_of_what_counts():
    rows = [row("a"), row("b")]
    same = [row("a", wav="elsewhere.flac"), row("b")]
    assert hash_rows(rows, ["id", "text"]) == hash_rows(same, ["id", "text"])
    assert hash_rows(rows, ["id", "wav"]) != hash_rows(same, ["id", "wav"])
    assert hash_rows(rows, ["id"]) != hash_rows(rows[::-1], ["id"])
