"""Common Voice, CoVoST 2, GigaSpeech; and the toolkit's own scripts.

The scripts come from a clone of SpeechBrain's repository that the environment
variable SPEECHBRAIN_RECIPES names.
"""

import csv
import json
import os

import datasets
import pyarrow.parquet
import pytest
import soundfile

from blsp_plugin.data.audio import read_speech
from blsp_plugin.data.common_voice import prepare_common_voice
from blsp_plugin.data.corpora import CORPORA, prepare_corpus
from blsp_plugin.data.covost import prepare_covost
from blsp_plugin.data.dataset import MelFeatures, continuation_dataset
from blsp_plugin.data.gigaspeech import prepare_gigaspeech
from blsp_plugin.data.json_stream import stream_list
from blsp_plugin.data.manifest import read_manifest
from blsp_plugin.errors import BadInput
from tests import miniatures
from tests.miniatures import ENGLISH, FRENCH, clip_name

# What the toolkit's scripts write, and what of it has another name here.
TOOLKIT = ["ID", "duration", "wav", "spk_id", "wrd"]
MINIATURES = {
    "LibriSpeech": miniatures.librispeech,
    "Common Voice": miniatures.common_voice,
    "CoVoST 2": miniatures.covost,
    "GigaSpeech": miniatures.gigaspeech,
}


def read(folder, name):
    """Rows of a manifest as text, whichever form it has."""
    path = folder / f"{name}.csv"
    if not path.exists():
        table = pyarrow.parquet.read_table(folder / f"{name}.parquet")
        return [
            {key: str(value) for key, value in row.items()}
            for row in table.to_pylist()
        ]
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def rejected(folder):
    lines = (folder / "rejected.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def reasons(folder):
    return {(bad["id"], bad["row"]): bad["reason"] for bad in rejected(folder)}


def refusal(call, *args, **kwargs):
    with pytest.raises(BadInput) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def french_rows(split, root):
    """The rows of a Common Voice table that the CSV file must have."""
    rows = []
    for clip, speaker, sentence in FRENCH[split]:
        path = root / f"fr/clips/{clip_name(clip)}.mp3"
        row = {
            "ID": clip_name(clip),
            "duration": str(soundfile.info(path).duration),
            "wav": f"$data_root/fr/clips/{path.name}",
            "spk_id": speaker,
            "wrd": sentence,
        }
        assert abs(float(row["duration"]) - 1 - int(clip) / 10) < 0.1
        rows.append(row)
    return rows


def test_own_preparers_same_columns(tmp_path):
    """The toolkit's columns in its order, further ones after them."""
    expected = {
        "LibriSpeech": TOOLKIT,
        "Common Voice": TOOLKIT,
        "CoVoST 2": [*TOOLKIT, "translation"],
        "GigaSpeech": [*TOOLKIT, "start", "stop"],
    }
    for name, make in MINIATURES.items():
        root, save = make(tmp_path / name), tmp_path / "save" / name
        files = prepare_corpus(root, save)
        for split, path in zip(("train", "valid", "test"), files, strict=False):
            assert os.path.isfile(path)
            for row in read(save, split):
                assert list(row) == expected[name]
        rows = read_manifest(files.valid_csv, data_root=files.data_root).rows
        assert rows and all(os.path.isfile(row["wav"]) for row in rows)
        assert rejected(save) == []

        for row in rows:
            speech = read_speech(row["wav"], row.get("start"), row.get("stop"))
            assert abs(len(speech) / 16000 - row["duration"]) < 0.001

    save, root = tmp_path / "save/Common Voice", tmp_path / "Common Voice"
    assert read(save, "train") == french_rows("train", root)
    assert read(save, "test") == french_rows("test", root)
    save, root = tmp_path / "save/CoVoST 2", tmp_path / "CoVoST 2"
    for name, split in (("train", "train"), ("valid", "dev"), ("test", "test")):
        assert read(save, name) == [
            {**row, "translation": ENGLISH[clip]}
            for row, (clip, _, _) in zip(
                french_rows(split, root), FRENCH[split], strict=True
            )
        ]
    first, second, third = read(tmp_path / "save/GigaSpeech", "train")
    assert first == {
        "ID": "POD0000000001_S0000000",
        "duration": "1.0",
        "wav": "$data_root/audio/podcast/P0000/POD0000000001.opus",
        "spk_id": "N/A",
        "wrd": "AS THEY SAY, IT'S FINE.",
        "start": "0",
        "stop": "16000",
    }
    # Its end is 5 ms behind the recording's.
    assert (second["wrd"], second["stop"]) == ("IS IT?", "36000")
    assert third["ID"] == "AUD0000000002_S0000000"
    stamp = json.loads(
        (tmp_path / "save/GigaSpeech/prepared.json").read_text("utf-8")
    )
    assert stamp["left_out"] == {"train": 1, "valid": 1}
    assert stamp["clips"] == {"train": 3, "valid": 1, "test": 2}


def test_nothing_of_a_test_set_is_dropped_for_its_text(tmp_path):
    root = miniatures.covost(tmp_path / "cv")
    table = root / "fr/covost_v2.fr_en.tsv"
    text = table.read_text("utf-8")
    for clip in "35":
        text = text.replace(
            f"{clip_name(clip)}.mp3\t{ENGLISH[clip]}\t",
            f"{clip_name(clip)}.mp3\t\t",
        )
    table.write_text(text, "utf-8")
    prepare_covost(root, tmp_path / "st", max_rejected=0.5)
    test = read(tmp_path / "st", "test")
    assert [row["wrd"] for row in test] == [text for *_, text in FRENCH["test"]]
    assert [row["translation"] for row in test] == ["", ENGLISH["6"]]
    assert len(read(tmp_path / "st", "train")) == 2
    assert "empty translation" in rejected(tmp_path / "st")[0]["reason"]

    root = miniatures.common_voice(tmp_path / "asr")
    for split in ("train", "test"):
        table = root / f"fr/{split}.tsv"
        clip, _, sentence = FRENCH[split][-1]
        text = table.read_text("utf-8").replace(sentence, "")
        table.write_text(text, "utf-8")
    prepare_common_voice(root, tmp_path / "csv", max_rejected=0.5)
    assert [row["wrd"] for row in read(tmp_path / "csv", "test")] == ["Non", ""]
    assert len(read(tmp_path / "csv", "train")) == 2
    assert list(reasons(tmp_path / "csv")) == [(clip_name("3"), 4)]

    root = miniatures.gigaspeech(tmp_path / "giga")
    prepare_gigaspeech(root, tmp_path / "giga/save", [], [])
    test = read(tmp_path / "giga/save", "test")
    assert [row["wrd"] for row in test] == ["OH!", "<NOISE>"]


@pytest.mark.parametrize("name", MINIATURES)
def test_a_second_call_does_nothing(name, tmp_path):
    root = MINIATURES[name](tmp_path / "corpus")
    [corpus] = [corpus for corpus in CORPORA if corpus.name == name]
    save = tmp_path / "save"
    corpus.prepare(root, save)
    manifest = next(save.glob("train.*"))
    content = manifest.read_bytes()
    manifest.write_text("mine")
    corpus.prepare(root, save)
    assert manifest.read_text() == "mine"
    (save / "prepared.json").unlink()
    corpus.prepare(root, save)
    assert manifest.read_bytes() == content
    before = sorted(os.listdir(save))
    corpus.prepare(root, save, test_splits=[])  # another order
    assert sorted(os.listdir(save)) == before


def test_another_corpus_leaves_no_manifest_of_the_one_before(tmp_path):
    giga = miniatures.gigaspeech(tmp_path / "giga")
    voice = miniatures.common_voice(tmp_path / "cv")
    save = tmp_path / "save"
    assert prepare_corpus(giga, save).train_csv.endswith("train.parquet")
    assert prepare_corpus(voice, save).train_csv.endswith("train.csv")
    assert not list(save.glob("*.parquet"))
    files = prepare_corpus(giga, save)
    assert files.test_csv.endswith("test.parquet")
    assert prepare_corpus(giga, save, skip_prep=True) == files


def test_a_killed_preparation_is_not_taken_for_the_one_before(
    tmp_path, monkeypatch
):
    root, save = miniatures.gigaspeech(tmp_path / "giga"), tmp_path / "save"
    prepare_gigaspeech(root, save)
    with monkeypatch.context() as patch:
        patch.setattr("blsp_plugin.data.preparation.mark_prepared", None)
        with pytest.raises(TypeError):  # its files are there, no stamp is
            prepare_gigaspeech(root, save, subset="XS")
    assert len(read(save, "train")) == 1
    prepare_gigaspeech(root, save)
    assert len(read(save, "train")) == 3


def test_common_voice_of_other_releases(tmp_path):
    """Old headers, the locale's own folder, durations in a table."""
    root = miniatures.common_voice(tmp_path / "cv", miniatures.OLD_HEADER)
    folder = root / "fr"
    names = [clip_name(clip) for clip in "123"]
    (folder / "clip_durations.tsv").write_text(
        miniatures.table(
            "clip duration[ms]",
            [{"clip": f"{n}.mp3", "duration[ms]": "1250"} for n in names],
        )
    )
    files = prepare_corpus(folder, tmp_path / "save", test_splits=[])
    rows = read_manifest(files.train_csv, data_root=folder).rows
    assert [row["duration"] for row in rows] == [1.25] * 3
    assert [row["text"] for row in rows] == [
        text for *_, text in FRENCH["train"]
    ]
    assert rows[0]["wav"] == str(folder / f"clips/{names[0]}.mp3")
    [row] = read(tmp_path / "save", "valid")
    assert row["duration"] != "1.25"
    assert not (tmp_path / "save/test.csv").exists()

    options = {"train_splits": ["validated"]}
    files = prepare_corpus(root, tmp_path / "all", corpus_options=options)
    assert len(read_manifest(files.train_csv, data_root=root).rows) == 6

    # A duration does not make up for the clip.
    (folder / f"clips/{names[0]}.mp3").unlink()
    prepare_common_voice(root, tmp_path / "some", max_rejected=0.5)
    assert "no such audio file" in reasons(tmp_path / "some")[names[0], 2]

    (folder / "clip_durations.tsv").write_text("clip\tduration[ms]\na\tlong\n")
    message = refusal(prepare_common_voice, root, tmp_path / "new")
    assert "clip_durations.tsv, row 2: no number of milliseconds" in message


def test_common_voice_bad_input(tmp_path):
    root = miniatures.common_voice(tmp_path / "cv")
    folder, save = root / "fr", tmp_path / "save"
    table = folder / "train.tsv"
    lines = table.read_text("utf-8").splitlines()
    (folder / f"clips/{clip_name('1')}.mp3").unlink()
    (folder / f"clips/{clip_name('2')}.mp3").write_bytes(b"no audio")
    lines[3] = lines[3].replace("\tOui.\t", "\t \t")
    lines += [lines[1] + "\tmore", lines[1].replace(".mp3", "")]
    lines.append("")  # no row at all
    table.write_text("\n".join(lines) + "\n", "utf-8")
    message = refusal(prepare_common_voice, root, save, test_splits=[])
    assert "5 of 6 Common Voice clips were rejected" in message
    assert not (save / "train.csv").exists()
    found = reasons(save)
    assert "no such audio file" in found[clip_name("1"), 2]
    assert "not readable as audio" in found[clip_name("2"), 3]
    assert "empty transcript" in found[clip_name("3"), 4]
    assert "14 columns where the header has 13" in found[clip_name("1"), 5]
    assert "no such audio file" in found[clip_name("1"), 6]

    message = refusal(prepare_common_voice, root, save, ["other"])
    assert "no other.tsv, it has dev, test, train, validated" in message
    message = refusal(prepare_common_voice, root, save, language="de")
    assert "language 'de' asked, Common Voice is there in fr" in message
    table.write_text("client_id\tpath\n")
    message = refusal(prepare_common_voice, root, save)
    assert f"{table}, row 1: no column 'sentence'" in message
    table.write_text("")
    assert "is empty" in refusal(prepare_common_voice, root, save)
    table.write_bytes("client_id\tpath\tsentence\né".encode("latin-1"))
    assert "not UTF-8" in refusal(prepare_common_voice, root, save)


def test_covost_in_one_table_a_split(tmp_path):
    one = miniatures.covost(tmp_path / "one")
    many = miniatures.split_covost(tmp_path / "many")
    prepare_covost(one, one / "save")
    (many / "fr/validated.tsv").unlink()  # not needed
    with open(many / "fr/covost_v2.fr_en.train.tsv", "a") as stream:
        stream.write("cut.mp3\tWords\n")
    options = {"source": "fr", "target": "en", "max_rejected": 0.5}
    prepare_covost(many / "fr", many / "save", **options)
    [bad] = rejected(many / "save")
    assert (bad["id"], bad["row"]) == ("cut", 5)
    assert "2 columns where the header has 4" in bad["reason"]
    for name in ("train", "valid", "test"):
        rows = read(many / "save", name)
        for row in rows:
            row["wav"] = row["wav"].replace("$data_root/", "$data_root/fr/")
        assert rows == read(one / "save", name)


def test_covost_bad_input(tmp_path):
    root = miniatures.covost(tmp_path / "cv")
    folder, save = root / "fr", tmp_path / "save"
    (folder / f"clips/{clip_name('1')}.mp3").unlink()
    table = folder / "covost_v2.fr_en.tsv"
    text = table.read_text("utf-8")
    table.write_text(text + "x.mp3\tA lost one\ttrain\n\tNo clip\ttrain\n")
    message = refusal(prepare_covost, root, save)
    assert "3 of 8 CoVoST 2 clips" in message
    found = reasons(save)
    assert "no such audio file" in found[clip_name("1"), 2]
    assert "x.mp3 is not in validated.tsv" in found["x", 8]
    assert "empty path" in found["", 9]
    message = refusal(prepare_covost, root, save, target="de")
    assert "target 'de' asked, CoVoST is there in fr_en" in message
    (folder / "validated.tsv").unlink()
    message = refusal(prepare_covost, root, save)
    assert "validated.tsv: no such file" in message


def test_gigaspeech_subsets_and_bad_input(tmp_path):
    root, save = miniatures.gigaspeech(tmp_path / "giga"), tmp_path / "save"
    options = {"subset": "XS"}
    prepare_corpus(root, save, test_splits=[], corpus_options=options)
    assert [row["wrd"] for row in read(save, "train")] == ["IS IT?"]
    assert not (save / "test.parquet").exists()
    message = refusal(prepare_gigaspeech, root, save, subset="XXL")
    assert "no GigaSpeech subset 'XXL'" in message
    message = refusal(prepare_gigaspeech, root, save, ["validated"])
    assert "no GigaSpeech split 'validated'" in message

    file = root / "GigaSpeech.json"
    about = json.loads(file.read_text())
    (root / about["audios"][1]["path"]).unlink()
    first, second, third = about["audios"][0]["segments"]
    first["end_time"] = 9.0
    second["text_tn"] = ""
    del third["begin_time"]
    file.write_text(json.dumps(about))
    message = refusal(prepare_gigaspeech, root, save, test_splits=[])
    assert "4 of 5 GigaSpeech clips" in message
    found = reasons(save)
    assert "no stretch of its 2.25 s" in found[first["sid"], 1]
    assert "empty transcript" in found[second["sid"], 1]
    assert "it needs sid, begin_time" in found[third["sid"], 1]
    assert "no such audio file" in found["AUD0000000002_S0000000", 2]

    text = file.read_text()
    for broken in (text[: len(text) // 2], text.replace('"aid":', '"aid"')):
        file.write_text(broken)
        message = refusal(prepare_gigaspeech, root, save)
        assert "GigaSpeech.json: cut short, or not JSON, at item" in message
    file.write_text('{"audios": [{"path": "x"}]}')
    assert "audio 1: no 'subsets'" in refusal(prepare_gigaspeech, root, save)
    file.write_text('{"songs": []}')
    assert "has no list 'audios'" in refusal(prepare_gigaspeech, root, save)


def test_stream_list_over_many_blocks(tmp_path, monkeypatch):
    items = [{"n": n, "text": "é\\" * n, "deep": [[n]]} for n in range(40)]
    path = tmp_path / "a.json"
    text = json.dumps({"v": 12345, "l": items, "after": 1}, ensure_ascii=False)
    path.write_text(text, "utf-8")
    for block in (1, 7, 64):
        monkeypatch.setattr("blsp_plugin.data.json_stream.BLOCK", block)
        assert list(stream_list(path, "l")) == items
    path.write_text('{"l": [1,')
    assert "at item 2" in refusal(list, stream_list(path, "l"))
    path.write_text('{"l": [ ]}')
    assert list(stream_list(path, "l")) == []


def test_start_and_stop_reach_the_audio(tmp_path):
    """A manifest's stretch is what is read of the recording."""
    rate = 8000
    miniatures.tone(tmp_path / "a.wav", 3, rate)
    path = tmp_path / "a.csv"
    head = "ID,duration,wav,wrd,start,stop\n"
    path.write_text(
        head
        + "a,1.0,$data_root/a.wav,some,4000,12000\n"
        + "b,3.0,$data_root/a.wav,all,,\n"
        + "c,1.0,$data_root/a.wav,turned,5,3\n"
        + "d,1.0,$data_root/a.wav,half,5,\n"
        + "e,3.0,$data_root/a.wav,late,16000,24001\n"
    )
    manifest = read_manifest(path, probe=True)
    some, everything = manifest.rows
    assert (some["start"], some["stop"]) == (4000, 12000)
    assert some["samples"] == 16000
    assert "start" not in everything and everything["samples"] == 48000
    assert [bad.id for bad in manifest.rejected] == ["c", "d", "e"]
    assert "stop '3': no stretch" in manifest.rejected[0].reason
    assert "stop 24001 is behind its 24000" in manifest.rejected[2].reason
    assert len(read_speech(some["wav"], some["start"], some["stop"])) == 16000
    # What the toolkit's script for GigaSpeech calls the columns.
    path.write_text(
        "ID,audio_id,audio_path,speaker,begin_time,end_time,duration,text\n"
        "a,A,$data_root/a.wav,N/A,0.5,1.5,1.0,SOME\n"
        "b,A,$data_root/a.wav,N/A,2.5,4.5,2.0,LATE\n"
    )
    manifest = read_manifest(path, keep=["spk_id"])
    assert manifest.rows == [
        {
            "id": "a",
            "wav": some["wav"],
            "duration": 1.0,
            "start": 4000,
            "stop": 12000,
            "text": "SOME",
            "spk_id": "N/A",
        }
    ]
    assert "2.5 s to 4.5 s is no stretch" in manifest.rejected[0].reason


def test_training_reads_the_stretch(tmp_path, prompt):
    miniatures.tone(tmp_path / "a.wav", 3, 8000)
    row = {
        "ID": "a",
        "wav": str(tmp_path / "a.wav"),
        "text": "some",
        "instruction": "Say it.",
        "response_ids": [1],
        "ended": True,
        "start": 4000,
        "stop": 12000,
    }
    for stretch, samples in ((("start", "stop"), 16000), ((), 48000)):
        columns = set(row) - {"start", "stop"} | set(stretch)
        table = datasets.Dataset.from_list([{k: row[k] for k in columns}])
        dataset = continuation_dataset(
            table, prompt, MelFeatures(lambda wav: wav), lambda n: 1
        )
        assert dataset[0]["example"].samples == samples


def test_options_that_a_preparer_has_not(tmp_path):
    root = miniatures.common_voice(tmp_path / "cv")
    options = {"lang": "fr"}
    message = refusal(prepare_corpus, root, tmp_path, corpus_options=options)
    assert (
        "corpus_options: got an unexpected keyword argument 'lang'" in message
    )
    assert "Common Voice takes train_splits" in message


def test_ready_parquet_files(tmp_path):
    (tmp_path / "train.parquet").touch()
    files = prepare_corpus(tmp_path)
    assert files.train_csv == str(tmp_path / "train.parquet")
    assert files.test_csv == str(tmp_path / "test.csv")


def fake_clone(folder, text):
    script = folder / "recipes/CommonVoice/common_voice_prepare.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(text)
    return folder


def test_clones_that_cannot_be_used(tmp_path):
    root = miniatures.common_voice(tmp_path / "cv")

    def message(clone):
        return refusal(
            prepare_corpus, root, tmp_path / "save", speechbrain_recipes=clone
        )

    nothing = message(tmp_path / "nowhere")
    assert "common_voice_prepare.py: no such script" in nothing
    clone = fake_clone(tmp_path / "clone", "import no_such_package_here")
    assert "pip install no_such_package_here" in message(clone)
    fake_clone(clone, "def prepare(): pass")
    assert "has no prepare_common_voice" in message(clone)
    fake_clone(
        clone, "def prepare_common_voice(*_, **k): raise OSError('disk')"
    )
    assert "failed on" in message(clone) and "disk" in message(clone)
    assert not (tmp_path / "save/prepared.json").exists()


# Names of the toolkit's CSV files and columns, where they are others.
SCRIPT_COLUMNS = {
    "LibriSpeech": TOOLKIT,
    "Common Voice": TOOLKIT,
    "CoVoST 2": ["ID", "duration", "wav", "transcription", "translation"],
    "GigaSpeech": [
        *["ID", "audio_id", "audio_path", "speaker", "begin_time"],
        *["end_time", "duration", "text"],
    ],
}


@pytest.mark.parametrize("name", MINIATURES)
def test_toolkit_prepare_scripts(name, tmp_path):
    clone = os.environ.get("SPEECHBRAIN_RECIPES")
    if not clone:
        pytest.skip("SPEECHBRAIN_RECIPES names no clone of SpeechBrain")
    root, save = MINIATURES[name](tmp_path / "corpus"), tmp_path / "toolkit"
    files = prepare_corpus(root, save, speechbrain_recipes=clone)
    own = prepare_corpus(root, tmp_path / "own")
    made = sorted((save / "toolkit").glob("*.csv"))
    assert len(made) == 3
    for path in made:
        # As the script left it: it plugs in by its column names.
        with open(path, newline="") as stream:
            assert next(csv.reader(stream)) == SCRIPT_COLUMNS[name]
        assert read_manifest(path, data_root=root).rejected == []
    for split, toolkit_path, own_path in zip(
        ("train", "valid", "test"), files, own, strict=False
    ):
        rows, mine = read(save, split), read(tmp_path / "own", split)
        assert list(rows[0])[:5] == TOOLKIT == list(mine[0])[:5]
        if name == "LibriSpeech":
            by_id = {row["ID"]: row for row in rows}
            assert len(by_id) == len(rows) == len(mine)
            assert all(by_id[row["ID"]] == row for row in mine)
            continue
        # The scripts drop short sentences, and have the rest in upper case or
        # lower case.
        theirs = read_manifest(toolkit_path, data_root=files.data_root).rows
        ours = read_manifest(own_path, data_root=own.data_root).rows
        ours = {row.pop("id"): row for row in ours}
        assert theirs
        for row in theirs:
            counterpart = ours[row.pop("id")]
            text = row.pop("text")
            assert text in (text.upper(), text.lower()) and "<" not in text
            for key, value in row.items():
                assert counterpart[key] == pytest.approx(value, abs=0.01)
    (save / "train.csv").write_text("mine")
    prepare_corpus(root, save, speechbrain_recipes=clone)
    assert (save / "train.csv").read_text() == "mine"
    prepare_corpus(root, save)  # another order
    assert read(save, "train") == read(tmp_path / "own", "train")
