"""The sample sheet: what it shows, and that nothing in it can act."""

import re
from html.parser import HTMLParser

import pyarrow
import pyarrow.parquet
import pytest

from blsp_plugin.continuation.sheet import write_sheet
from blsp_plugin.continuation.table import COLUMNS

HOSTILE = [
    "<script>alert(1)</script>",
    "</td></table><img src=x onerror=alert(1)>",
    "\"'><svg onload='x'> &amp; &lt;",
    "turned \u202e round \u2066 and \x00 \x1b[31m",
    "two\nlines, 👩\u200d🚀",
]


class Cells(HTMLParser):
    """Rows of cells of an HTML file, and the names of its tags."""

    def __init__(self):
        super().__init__()
        self.tags, self.rows, self.in_cell = set(), [], False

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.in_cell:
            self.rows[-1][-1] += data


def row(number, behaviour="continue", **values):
    return {
        "ID": f"clip{number}-{behaviour}",
        "clip_id": f"clip{number}",
        "wav": "/a.flac",
        "duration": 1.0,
        "transcript": "IT RAINED",
        "text": "It rained.",
        "behaviour": behaviour,
        "instruction": "Go on.",
        "response": f"Then {number}.",
        "response_ids": [1, 2],
        "ended": True,
        **values,
    }


def sheet(folder, rows, group=8, **options):
    table = pyarrow.Table.from_pylist(rows, COLUMNS)
    pyarrow.parquet.write_table(
        table, folder / "train.parquet", row_group_size=group
    )
    path = folder / "sample.html"
    write_sheet(path, folder / "train.parquet", **options)
    return path.read_text(encoding="utf-8")


def parse(text):
    cells = Cells()
    cells.feed(text)
    return cells


def test_random_rows_of_each_behaviour(tmp_path):
    rows = [row(i, "repeat" if i % 10 == 3 else "continue") for i in range(400)]
    text = sheet(tmp_path, rows, per_behaviour=50)
    assert "continue: 50 of 360" in text and "repeat: 40 of 40" in text
    found = parse(text).rows
    ids = [cells[0] for cells in found if cells[0].startswith("clip")]
    assert len(ids) == len(set(ids)) == 90
    # In the table's order, from all of it.
    numbers = [int(re.search(r"\d+", i)[0]) for i in ids if "continue" in i]
    assert numbers == sorted(numbers)
    assert numbers[0] < 80 and numbers[-1] > 320
    for cells in found:
        if cells[0].startswith("clip"):
            number = re.search(r"\d+", cells[0])[0]
            assert cells[4] == f"Then {number}."
    # The same file again; other rows by another seed.
    assert sheet(tmp_path, rows, per_behaviour=50) == text
    assert sheet(tmp_path, rows, per_behaviour=50, seed=1) != text


def test_one_row_group_or_many(tmp_path):
    rows = [row(i, "abc"[i % 3]) for i in range(60)]
    sheets = {sheet(tmp_path, rows, n, per_behaviour=5) for n in (1, 7, 60)}
    assert len(sheets) == 1


def test_what_a_row_shows(tmp_path):
    rows = [
        row(0),
        row(1, transcript="It rained.", ended=False),
    ]
    text = sheet(tmp_path, rows)
    assert parse(text).rows[1:] == [
        ["clip0-continue", "IT RAINED", "It rained.", "Go on.", "Then 0."],
        ["clip1-continue", "", "It rained.", "Go on.", "Then 1.cut"],
    ]
    assert text.count("<mark>cut</mark>") == 1


def test_rejected_by_reason(tmp_path):
    rejected = [
        {
            "id": f"bad{i}-continue",
            "split": "train",
            "behaviour": "continue",
            "text": "It rained.",
            "response": "" if i % 2 else "It rained.",
            "reason": "empty response" if i % 2 else "echo",
        }
        for i in range(30)
    ] + [
        {"id": f"x{i}", "file": "a.csv", "row": i, "reason": f"no wav {i}"}
        for i in range(50)
    ]
    text = sheet(tmp_path, [row(0)], rejected=iter(rejected))
    assert "rejected, echo: 15 of 15" in text
    assert "rejected, empty response: 15 of 15" in text
    assert "rejected, unusable input: 20 of 50" in text
    found = parse(text).rows
    assert ["bad0-continue", "continue", "It rained.", "It rained."] in found
    inputs = [cells for cells in found if cells[0].startswith("x")]
    assert len(inputs) == 20
    for name, _, place, reason in inputs:
        assert place == f"a.csv, row {name[1:]}"
        assert reason == f"no wav {name[1:]}"
    assert inputs[-1][0] > "x3"  # not merely the first ones


@pytest.mark.parametrize("field", ["ID", "transcript", "text", "behaviour"])
def test_hostile_texts_stay_text(tmp_path, field):
    tame = parse(sheet(tmp_path, [row(i) for i in range(5)])).tags
    rows = [
        row(i, **{field: bad, "response": bad, "instruction": bad})
        for i, bad in enumerate(HOSTILE)
    ]
    rejected = [
        {
            "id": bad,
            "split": "train",
            "behaviour": bad,
            "text": bad,
            "response": f"\ud800 {bad}",
            "reason": bad,
        }
        for bad in HOSTILE
    ]
    text = sheet(tmp_path, rows, rejected=rejected)
    assert parse(text).tags == tame
    assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text)
    assert "⟨U+202E⟩" in text and "⟨U+D800⟩" in text
    shown = [cell for cells in parse(text).rows for cell in cells]
    for bad in HOSTILE[:3] + HOSTILE[4:]:
        assert bad in shown


def test_an_empty_table_is_a_sheet_too(tmp_path):
    assert sheet(tmp_path, []).endswith("</style>\n")
