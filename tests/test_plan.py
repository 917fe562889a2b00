"""Plans and tables: any number of rows, in the order of the input."""

import pyarrow.parquet
import pytest

from blsp_plugin.continuation import plan as plan_module
from blsp_plugin.continuation.behaviours import Behaviour, row_key
from blsp_plugin.continuation.pipeline import Continuation
from blsp_plugin.continuation.plan import Plan, write_plan
from blsp_plugin.continuation.shards import Shard, scan_shards, shard_path
from blsp_plugin.continuation.table import COLUMNS, write_table
from blsp_plugin.errors import BadInput
from tests.disk import file_size_limit

WORK = Continuation(
    None,
    None,
    [
        Behaviour("continue", "Go on.", paraphrases=["Write more."]),
        Behaviour("repeat", "Say it.", share=0.5),
    ],
)
ASKS = [(behaviour.name, said) for behaviour, said in WORK.asks]


def row(name, **changes):
    return {
        "id": name,
        "wav": f"/clips/{name}.flac",
        "duration": 1.5,
        "transcript": name.upper(),
        "text": name,
        **changes,
    }


def make_plan(path, rows, keep=()):
    """Write and open; rows may be (row, reason)."""
    rows = [r if isinstance(r, tuple) else (r, None) for r in rows]
    numbered = [(i, *pair) for i, pair in enumerate(rows, 1)]
    facts, rejected = write_plan(path, numbered, WORK.choose, keep)
    return Plan(path), facts, rejected


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(plan_module, "ROWS_A_BATCH", 4)


def test_windows_hold_every_request_once(tmp_path, small_batches):
    rows = [row(f"clip{i}", spk_id=i) for i in range(15)]
    plan, facts, rejected = make_plan(tmp_path / "a.arrow", rows, ["spk_id"])
    assert facts["rows"] == plan.n_rows == 15 and not rejected
    assert 15 < plan.n_requests < 30
    for size in (1, 3, 4, 15, 100):
        seen = []
        for start in range(0, 15, size):
            seen += plan.window(start, min(start + size, 15))
        assert [n for n, _, _ in seen] == list(range(plan.n_requests))
        got = [(item["id"], int(ask)) for _, item, ask in seen]
        assert got == [(r["id"], a) for r in rows for a in WORK.choose(r)]
        assert {item["spk_id"] for _, item, _ in seen} == set(
            map(str, range(15))
        )
    assert {ASKS[a][1] for _, a in got} == {"Go on.", "Write more.", "Say it."}


def test_repeated_ids_are_rejected_wherever_they_stand(tmp_path, small_batches):
    names = ["a", "b", "c", "d", "a", "e", "f", "b", "g", "a", "h", "i", "j"]
    rows = [row(name) for name in names]
    rows[5] = (rows[5], "no such audio file")
    plan, facts, rejected = make_plan(tmp_path / "a.arrow", rows)
    assert [(name, number) for name, number, _ in rejected] == [
        ("a", 5),
        ("e", 6),
        ("b", 8),
        ("a", 10),
    ]
    assert "already that of row 1" in rejected[0][2]
    assert "already that of row 2" in rejected[2][2]
    assert facts["rows"] == plan.n_rows == 9
    left = [item["id"] for _, item, ask in plan.window(0, 9) if ask < 2]
    assert left == list("abcdfghij")
    # The same as if they had never been there.
    good = [row(name) for name in left]
    assert make_plan(tmp_path / "b.arrow", good)[1] == facts


def test_hashes_tell_what_changed(tmp_path):
    def facts(rows):
        return make_plan(tmp_path / "a.arrow", rows, ["n"])[1]

    rows = [row("a", n=1), row("b", n=2)]
    before = facts(rows)
    assert facts(rows) == before
    other = facts([row("a", n=1), row("b", n=2, wav="elsewhere.flac")])
    assert other["content"] == before["content"]
    assert other["table"] != before["table"]
    for rows in (
        [row("b", n=2), row("a", n=1)],
        [row("ab", n=1), row("", n=2)],
        [row("a", n=1, transcript="AB"), row("b", n=2, transcript="")],
    ):
        assert facts(rows)["content"] != before["content"]
    recased = facts([row("a", n=1, text="A."), row("b", n=2)])
    assert recased["content"] == before["content"]
    assert recased["table"] != before["table"]


def fill(folder, plan, skip=(), **changes):
    """Shards with a record of every request, in no order."""
    records = [
        {
            "n": n,
            "ID": row_key(item, WORK.asks[ask][0]),
            "response": f"to {item['id']}",
            "response_ids": [n, 2, 3],
            "ended": n % 2 == 0,
            "reason": None,
            **changes.get(f"r{n}", {}),
        }
        for n, item, ask in plan.window(0, plan.n_rows)
        if n not in skip
    ]
    for rank in (0, 1):
        with Shard(shard_path(folder, "train", rank)) as shard:
            shard.append(records[rank::2][::-1])
    return scan_shards(folder, "train", plan.n_requests)


def test_table_in_input_order_with_all_columns(tmp_path, small_batches):
    rows = [row(f"clip{i}", spk_id=i) for i in range(20)]
    rows[7]["start"], rows[7]["stop"] = 100, 900
    plan, _, _ = make_plan(tmp_path / "a.arrow", rows, ["spk_id"])
    index = fill(tmp_path, plan, r3={"reason": "echo"})
    rejected = []
    path = tmp_path / "train.parquet"
    counts = write_table(path, plan, index, ASKS, rejected.extend)
    table = pyarrow.parquet.read_table(path)
    assert table.schema.names == [*COLUMNS.names, "spk_id"]
    everything = list(plan.window(0, 20))
    keys = [row_key(r, WORK.asks[ask][0]) for _, r, ask in everything]
    bad = keys.pop(3)
    assert table["ID"].to_pylist() == keys
    said = [ASKS[ask] for n, _, ask in everything if n != 3]
    assert table["behaviour"].to_pylist() == [name for name, _ in said]
    assert table["instruction"].to_pylist() == [text for _, text in said]
    assert table["start"].drop_null().to_pylist()[0] == 100
    first = table.slice(0, 1).to_pylist()[0]
    assert first == {
        "ID": "clip0-continue",
        "clip_id": "clip0",
        "wav": "/clips/clip0.flac",
        "duration": 1.5,
        "start": None,
        "stop": None,
        "transcript": "CLIP0",
        "text": "clip0",
        "behaviour": "continue",
        "instruction": said[0][1],
        "response": "to clip0",
        "response_ids": [0, 2, 3],
        "ended": True,
        "spk_id": "0",
    }
    assert [r["id"] for r in rejected] == [bad]
    assert rejected[0]["reason"] == "echo" and rejected[0]["text"]
    n = plan.n_requests
    assert counts["rows"] == n and counts["written"] == n - 1
    assert counts["written_continue"] + counts["written_repeat"] == n - 1
    assert counts["tokens"] == 3 * n
    assert counts["truncated"] == sum(not e for e in table["ended"].to_pylist())
    assert counts["rejected", "echo"] == 1


def test_missing_and_foreign_responses_are_named(tmp_path):
    plan, _, _ = make_plan(tmp_path / "a.arrow", [row("clip0"), row("clip1")])
    path = tmp_path / "train.parquet"
    (tmp_path / "some").mkdir()
    index = fill(tmp_path / "some", plan, skip=[0])
    with pytest.raises(BadInput, match="clip0-continue: no response"):
        write_table(path, plan, index, ASKS, list)
    index = fill(tmp_path / "other", plan, r0={"ID": "clip9-continue"})
    with pytest.raises(BadInput, match="have clip9-continue in its place"):
        write_table(path, plan, index, ASKS, list)
    assert not path.exists() and not list(tmp_path.glob("*.tmp"))


def test_full_disk_keeps_the_old_table(tmp_path):
    plan, _, _ = make_plan(
        tmp_path / "a.arrow", [row(f"clip{i}") for i in range(50)]
    )
    index = fill(tmp_path / "shards", plan)
    path = tmp_path / "train.parquet"
    path.write_text("old")
    with pytest.raises(OSError, match="train.parquet"), file_size_limit(100):
        write_table(path, plan, index, ASKS, list)
    assert path.read_text() == "old"
    assert not list(tmp_path.glob("*.tmp"))


def test_split_in_which_nobody_is_asked(tmp_path):
    rows = [(i, row(f"clip{i}"), None) for i in range(3)]
    write_plan(tmp_path / "a.arrow", rows, lambda row: [])
    plan = Plan(tmp_path / "a.arrow")
    assert (plan.n_rows, plan.n_requests) == (3, 0)
    (tmp_path / "shards").mkdir()
    index = scan_shards(tmp_path / "shards", "train", 0)
    path = tmp_path / "train.parquet"
    counts = write_table(path, plan, index, ASKS, list)
    assert counts["rows"] == counts["written"] == 0
    assert pyarrow.parquet.read_table(path).schema.names == COLUMNS.names


def test_missing_value_of_a_kept_column_stays_missing(tmp_path):
    rows = [row("a", spk_id=None), row("b", spk_id=7)]
    plan, _, _ = make_plan(tmp_path / "a.arrow", rows, ["spk_id"])
    assert plan.rows(0, 2)["spk_id"].to_pylist() == [None, "7"]
