"""LibriSpeech in its true layout, and the entry that recipes call."""

import csv
import json
import sys
import types

import pytest

import blsp_plugin
from blsp_plugin.data.corpora import prepare_corpus
from blsp_plugin.data.librispeech import find_splits, prepare_librispeech
from blsp_plugin.data.manifest import read_manifest
from blsp_plugin.errors import BadInput
from tests.miniatures import CHAPTERS, librispeech


@pytest.fixture
def libri(tmp_path):
    return librispeech(tmp_path / "LibriSpeech")


def read(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_columns_and_rows(libri, tmp_path):
    save = tmp_path / "save"
    prepare_librispeech(libri, save)
    first = read(save / "train.csv")[0]
    assert first == {
        "ID": "103-1240-0000",
        "duration": "0.5",
        "wav": "$data_root/train-clean-100/103/1240/103-1240-0000.flac",
        "spk_id": "103-1240",
        "wrd": "IT'S NUMBER 0 OF 103-1240",
    }
    header = (save / "train.csv").read_text().splitlines()[0]
    assert header == "ID,duration,wav,spk_id,wrd"
    lengths = [len(read(save / f"{n}.csv")) for n in ("train", "valid", "test")]
    assert lengths == [7, 2, 2]
    assert (save / "rejected.jsonl").read_text() == ""
    manifest = read_manifest(save / "train.csv", data_root=libri, probe=True)
    assert manifest.rejected == []
    assert manifest.rows[1]["samples"] == 8001


def test_splits_are_merged_in_order_and_done_once(libri, tmp_path):
    save = tmp_path / "save"
    both = ["train-clean-360", "train-clean-100"]
    prepare_librispeech(libri, save, both, ["dev-clean"], [])
    train = save / "train.csv"
    ids = [row["ID"] for row in read(train)]
    assert ids[:3] == ["100-121669-0000", "100-121669-0001", "103-1240-0000"]
    assert len(ids) == 9
    assert not (save / "test.csv").exists()

    content = train.read_text()
    train.write_text("mine")
    prepare_librispeech(libri, save, both, ["dev-clean"], [])
    assert train.read_text() == "mine"  # not done again
    prepare_librispeech(libri, save, both, [], [])  # another order
    assert train.read_text() == content
    train.unlink()
    prepare_librispeech(libri, save, both, [], [])
    assert train.read_text() == content


def test_missing_split_lists_what_is_there(libri, tmp_path):
    with pytest.raises(BadInput) as caught:
        prepare_librispeech(libri, tmp_path / "save", ["train-other-500"])
    message = str(caught.value)
    assert message.startswith(
        f"{libri}: no LibriSpeech split 'train-other-500'"
    )
    assert ", ".join(sorted(CHAPTERS)) in message
    assert find_splits(libri) == sorted(CHAPTERS)
    with pytest.raises(BadInput, match="nowhere: no such folder"):
        prepare_librispeech(tmp_path / "nowhere", tmp_path / "save")


def test_bad_clips_are_listed(libri, tmp_path):
    save = tmp_path / "save"
    folder = libri / "train-clean-100/103/1240"
    (folder / "103-1240-0000.flac").unlink()
    (folder / "103-1240-0001.flac").write_bytes(b"no audio")
    (folder / "103-1240-0007.flac").write_bytes(b"no transcript")
    text = folder / "103-1240.trans.txt"
    text.write_text("103-1240-0000 A\n103-1240-0001 B\n\n103-1240-0002 \n")
    order = (["train-clean-100"], [], [])
    with pytest.raises(BadInput) as caught:
        prepare_librispeech(libri, save, *order)
    assert "4 of 8 LibriSpeech clips" in str(caught.value)
    assert str(save / "rejected.jsonl") in str(caught.value)
    assert not (save / "train.csv").exists()

    prepare_librispeech(libri, save, *order, max_rejected=0.5)
    assert len(read(save / "train.csv")) == 4
    lines = (save / "rejected.jsonl").read_text().splitlines()
    reasons = {}
    for line in lines:
        bad = json.loads(line)
        reasons[bad["id"], bad["row"]] = bad["reason"]
    assert "no 103-1240-0000.flac" in reasons["103-1240-0000", 1]
    assert "not readable as audio" in reasons["103-1240-0001", 2]
    assert "empty transcript" in reasons["103-1240-0002", 4]
    assert "no line in 103-1240.trans.txt" in reasons["103-1240-0007", 0]


def test_transcripts_that_are_not_utf8(libri, tmp_path):
    text = libri / "dev-clean/84/121123/84-121123.trans.txt"
    text.write_bytes("84-121123-0000 ÉTÉ".encode("latin-1"))
    with pytest.raises(BadInput, match="84-121123.trans.txt: not UTF-8"):
        prepare_librispeech(libri, tmp_path / "save", [], ["dev-clean"], [])


def test_prepare_corpus_of_librispeech(libri, tmp_path):
    save = tmp_path / "save"
    files = prepare_corpus(libri, save)
    assert files.train_csv == str(save / "train.csv")
    assert files.data_root == str(libri)
    rows = read_manifest(files.test_csv, data_root=files.data_root).rows
    assert len(rows) == 2
    files = prepare_corpus(libri, tmp_path / "other", skip_prep=True)
    assert not (tmp_path / "other").exists()
    with pytest.raises(BadInput, match="name a save_folder"):
        prepare_corpus(libri)


def test_prepare_corpus_of_csv_files(tmp_path):
    (tmp_path / "train.csv").write_text("ID\n")
    files = prepare_corpus(tmp_path, tmp_path / "save")
    assert files.train_csv == str(tmp_path / "train.csv")
    assert files.data_root == str(tmp_path)
    assert (tmp_path / "train.csv").read_text() == "ID\n"
    with pytest.raises(BadInput, match="test.csv: no such manifest"):
        read_manifest(files.test_csv)


def test_prepare_corpus_of_nothing(tmp_path):
    with pytest.raises(BadInput, match="holds neither train.csv"):
        prepare_corpus(tmp_path, tmp_path)
    with pytest.raises(BadInput, match="no such folder"):
        prepare_corpus(tmp_path / "nowhere", tmp_path)


@pytest.mark.parametrize("name", [None, "starter"])
def test_prepare_corpus_of_the_starter_kit(tmp_path, monkeypatch, name):
    starter = types.ModuleType("blsp_plugin.starter")
    starter.corpus = lambda: tmp_path
    monkeypatch.setitem(sys.modules, "blsp_plugin.starter", starter)
    monkeypatch.setattr(blsp_plugin, "starter", starter, raising=False)
    files = prepare_corpus(name, tmp_path / "save")
    assert files.valid_csv == str(tmp_path / "valid.csv")
    assert files.data_root == str(tmp_path)
