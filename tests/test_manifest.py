"""Manifests: good rows through, bad rows named, bad files refused."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from blsp_plugin.data.manifest import (
    Rejected,
    check_rejected,
    read_manifest,
    write_csv,
    write_rejected,
)
from blsp_plugin.errors import BadInput
from blsp_plugin.files import atomic_write

HEADER = "ID,duration,wav,spk_id,wrd\n"


@pytest.fixture
def corpus(tmp_path):
    """A folder with two clips of 1 s and a writer of CSV text."""
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(16000), 16000)

    def write(body, header=HEADER, encoding="utf-8"):
        path = tmp_path / "train.csv"
        path.write_bytes((header + body).encode(encoding))
        return path

    return write


def refusal(*args, **kwargs):
    with pytest.raises(BadInput) as caught:
        read_manifest(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(args[0]))
    assert ";" in message, "no mend after the reason"
    return message


def test_rows(corpus, tmp_path):
    path = corpus(
        'a,1.0,$data_root/a.wav,s1," TWO\nLINES,  ""quoted"" "\n'
        f"b, 1,{tmp_path}/b.wav,s2,CAFE\u0301\n\n"
    )
    manifest = read_manifest(path, keep=["spk_id"])
    assert manifest.rejected == []
    assert manifest.rows == [
        {
            "id": "a",
            "wav": f"{tmp_path}/a.wav",
            "duration": 1.0,
            "text": 'TWO LINES, "quoted"',
            "spk_id": "s1",
        },
        {
            "id": "b",
            "wav": f"{tmp_path}/b.wav",
            "duration": 1.0,
            "text": "CAFÉ",
            "spk_id": "s2",
        },
    ]


def test_data_root_and_text_column_by_name(corpus, tmp_path):
    header = "\ufeffID,duration,wav,translation\n"
    path = corpus("a,1,$data_root/a.wav,hallo\n", header)
    os.makedirs(tmp_path / "sub")
    moved = path.rename(tmp_path / "sub" / "x.csv")
    assert len(read_manifest(moved, "translation").rejected) == 1
    [row] = read_manifest(moved, "translation", data_root=tmp_path).rows
    assert row["text"] == "hallo"


BAD_ROWS = [
    ("c,1,$data_root/a.wav,s, \t ", "empty transcript in column 'wrd'"),
    ("a,1,$data_root/b.wav,s,again", "already that of row 2"),
    ("c,one,$data_root/a.wav,s,x", "'one' is not a number of seconds"),
    ("c,nan,$data_root/a.wav,s,x", "'nan' is not a number of seconds"),
    ("c,-1,$data_root/a.wav,s,x", "'-1' is not a number of seconds"),
    ("c,1,$data_root/gone.wav,s,x", "gone.wav: no such audio file"),
    ("c,1,,s,x", "empty wav"),
    (",1,$data_root/a.wav,s,x", "empty ID"),
    ("c,1,$data_root/a.wav,s,x,y", "6 fields where the header has 5"),
    ("c,1", "2 fields where the header has 5"),
    ('c,1,$data_root/a.wav,s,"x"y', "not CSV"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_ROWS)
def test_a_bad_row_is_rejected_and_the_rest_goes_on(corpus, bad, reason):
    good = 'a,1,$data_root/a.wav,s,"first\nrow"\n'
    path = corpus(good + bad + "\nz,1,$data_root/b.wav,s,last\n")
    manifest = read_manifest(path)
    assert [row["id"] for row in manifest.rows] == ["a", "z"]
    [rejected] = manifest.rejected
    assert rejected.file == str(path)
    assert rejected.row == 4  # the first row takes lines 2 and 3
    assert reason in rejected.reason
    assert ";" in rejected.reason
    assert "\n" not in rejected.reason


def test_an_id_is_free_again_if_its_row_was_rejected(corpus):
    path = corpus("a,1,$data_root/a.wav,s,\na,1,$data_root/a.wav,s,x\n")
    manifest = read_manifest(path)
    assert [row["text"] for row in manifest.rows] == ["x"]


def test_probe(corpus, tmp_path):
    broken = tmp_path / "broken.flac"
    broken.write_bytes(b"no audio")
    path = corpus(
        "a,7.5,$data_root/a.wav,s,wrong duration\n"
        "x,1,$data_root/broken.flac,s,not audio\n"
        "y,1,$data_root/gone.wav,s,missing\n"
        "z,1,$data_root/a.wav,s,\n"
        "b,0.95,$data_root/b.wav,s,rounded duration\n"
    )
    manifest = read_manifest(path, probe=True)
    found = [(r["id"], r["duration"], r["samples"]) for r in manifest.rows]
    assert found == [("a", 1.0, 16000), ("b", 0.95, 16000)]
    assert [bad.row for bad in manifest.rejected] == [3, 4, 5]
    assert "not readable as audio" in manifest.rejected[0].reason
    assert "no such audio file" in manifest.rejected[1].reason


def test_text_alone_needs_no_audio(corpus):
    path = corpus("a,hello\n", "ID,wrd\n")
    assert "no column 'wav', it has ID, wrd" in refusal(path)
    manifest = read_manifest(path, need_audio=False)
    assert manifest.rows == [{"id": "a", "text": "hello"}]


def test_file_that_cannot_be_used(corpus, tmp_path):
    assert "no such manifest" in refusal(tmp_path / "nowhere.csv")
    assert "is empty" in refusal(corpus("", ""))
    assert "is empty" in refusal(corpus("\n\n", ""))
    assert "has no rows" in refusal(corpus(""))
    path = corpus("a,1,x,s,words\n")
    has = "it has ID, duration, wav, spk_id, wrd"
    assert f"no column 'text', {has}" in refusal(path, "text")
    assert f"no column 'lang', {has}" in refusal(path, keep=["lang"])
    path = corpus("a,1,x,s,words\n", HEADER.replace("ID", "name"))
    assert "row 1: no column 'ID', it has name" in refusal(path)


def test_not_utf8_names_the_row(corpus):
    path = corpus("a,1,x,s,words\nb,1,x,s,été\n", encoding="latin-1")
    assert "row 3: not UTF-8" in refusal(path)
    path = corpus("a,1,x,s,words\n", encoding="utf-16")
    assert "row 1: not UTF-8" in refusal(path)


def test_quote_that_swallows_the_rest_of_the_file(corpus):
    path = corpus('a,1,x,s,ok\nb,1,x,s,"open\n' + "c,1,x,s,lost\n" * 9)
    assert "row 3: a quote opens there" in refusal(path)


def test_quote_that_swallows_some_rows_counts_them_all(corpus):
    good = "{},1,$data_root/a.wav,s,words\n"
    path = corpus(
        'a,1,$data_root/a.wav,s,"open\n'
        + good.format("b")
        + 'c,1,$data_root/a.wav,s,"closed, well"\n'
        + good.format("d")
    )
    manifest = read_manifest(path)
    assert [row["id"] for row in manifest.rows] == ["d"]
    assert [bad.row for bad in manifest.rejected] == [2, 3, 4]


def test_parquet(corpus, tmp_path):
    path = tmp_path / "train.parquet"
    columns = {
        "ID": ["a", "b", "a"],
        "duration": [1.0, 1.0, None],
        "wav": ["$data_root/a.wav", "$data_root/b.wav", "x"],
        "wrd": ["one", None, "three"],
        "turns": [[1, 2], [3], []],
    }
    pq.write_table(pa.table(columns), path)
    manifest = read_manifest(path, keep=["turns"], probe=True)
    [row] = manifest.rows
    assert row["turns"] == [1, 2]
    assert row["samples"] == 16000
    assert [bad.row for bad in manifest.rejected] == [2, 3]
    assert "empty transcript" in manifest.rejected[0].reason
    assert "None is not a number of seconds" in manifest.rejected[1].reason
    assert "it has ID, duration, wav, wrd, turns" in refusal(path, "text")
    pq.write_table(pa.table({"ID": [], "wrd": []}), path)
    assert "has no rows" in refusal(path, need_audio=False)
    path.write_bytes(b"ID,wrd\na,b\n")
    assert "not a readable Parquet file" in refusal(path)


def test_write_csv_and_read_again(tmp_path):
    path = tmp_path / "deep" / "er" / "a.csv"
    texts = ['say "yes", or no', "<|im_end|>", "a\u00e9", "'\\n"]
    rows = [{"ID": str(i), "wrd": t, "x": 0} for i, t in enumerate(texts)]
    write_csv(rows, path, ["ID", "wrd"])
    read = read_manifest(path, need_audio=False).rows
    assert [row["text"] for row in read] == texts


def test_atomic_write_leaves_the_old_file_or_the_new(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old")
    with pytest.raises(KeyError):
        write_csv([{"ID": "a"}], path, ["ID", "wrd"])
    assert path.read_text() == "old"
    with atomic_write(path) as stream:
        stream.write("new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.csv"]


def test_write_and_check_rejected(tmp_path):
    path = tmp_path / "rejected.jsonl"
    bad = [Rejected("é", "a.csv", 7, "empty wav; mend")]
    write_rejected(bad, path)
    [line] = path.read_text(encoding="utf-8").splitlines()
    assert Rejected(**json.loads(line)) == bad[0]
    write_rejected([], path)
    assert path.read_text() == ""
    check_rejected(0, 0)
    check_rejected(10, 1000)
    with pytest.raises(BadInput) as caught:
        check_rejected(11, 1000, what="clips", path=path)
    message = str(caught.value)
    assert "11 of 1000 clips" in message
    assert str(path) in message
