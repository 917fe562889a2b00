"""TED-LIUM, MuST-C, SLURP, Fluent Speech Commands, Snips, FLEURS, speech
folders; and what is said where a split is not as long as it was published.
"""

import itertools
import json
import os
import shutil

import pytest

from blsp_plugin.data import covost, fleurs, fluent_speech, slurp, tedlium
from blsp_plugin.data.audio import read_speech
from blsp_plugin.data.corpora import CORPORA, prepare_corpus
from blsp_plugin.data.covost import prepare_covost
from blsp_plugin.data.fleurs import prepare_fleurs
from blsp_plugin.data.fluent_speech import prepare_fluent_speech
from blsp_plugin.data.manifest import read_manifest
from blsp_plugin.data.must_c import prepare_must_c
from blsp_plugin.data.slurp import prepare_slurp
from blsp_plugin.data.snips import prepare_snips
from blsp_plugin.data.speech_folder import prepare_speech_folder
from blsp_plugin.data.tedlium import prepare_tedlium
from blsp_plugin.errors import BadInput
from tests import miniatures
from tests.test_preparers import read, reasons, refusal

TOOLKIT = ["ID", "duration", "wav", "spk_id", "wrd"]
SPLITS = ("train", "valid", "test")
# (miniature, options, columns after the toolkit's, clips by manifest)
WORKS = {
    "TED-LIUM": (miniatures.tedlium, {}, ["start", "stop"], (2, 1, 2)),
    "MuST-C": (
        miniatures.must_c,
        {},
        ["start", "stop", "translation"],
        (3, 1, 2),
    ),
    "SLURP": (
        miniatures.slurp,
        {},
        ["intent", "scenario", "action", "entities"],
        (4, 1, 2),
    ),
    "Fluent Speech Commands": (
        miniatures.fluent_speech,
        {},
        ["intent"],
        (2, 1, 2),
    ),
    "Snips": (
        miniatures.snips,
        {"train_splits": ["all"], "valid_splits": ["all"]},
        ["intent", "entities"],
        (3, 3, 3),
    ),
    "FLEURS": (
        miniatures.fleurs,
        {"language": "fr_fr", "target": "en_us"},
        ["prompt", "translation"],
        (2, 1, 2),
    ),
    "speech folder": (
        miniatures.speech_folder,
        {},
        ["lang", "prompt", "intent", "slots"],
        (11, 11, 11),
    ),
}


def counts(save):
    stamp = json.loads((save / "prepared.json").read_text("utf-8"))
    return stamp["clips"], stamp["left_out"]


@pytest.mark.parametrize("name", WORKS)
def test_columns_and_recognition(name, tmp_path):
    """By its layout alone; every row's audio is that long."""
    make, options, extras, clips = WORKS[name]
    root, save = make(tmp_path / "corpus"), tmp_path / "save"
    [corpus] = [corpus for corpus in CORPORA if corpus.is_there(root)]
    assert corpus.name == name
    files = prepare_corpus(root, save, corpus_options=options)
    key = "intent" if "intent" in extras else "wrd"
    for split, path, number in zip(SPLITS, files, clips, strict=False):
        rows = read(save, split)
        assert len(rows) == number
        assert all(list(row) == [*TOOLKIT, *extras] for row in rows)
        assert len({row["ID"] for row in rows}) == number
        root_folder = files.data_root
        keep = ["wrd", *extras]
        for row in read_manifest(path, key, root_folder, keep=keep).rows:
            assert set(keep) <= set(row)
            speech = read_speech(row["wav"], row.get("start"), row.get("stop"))
            assert abs(len(speech) / 16000 - row["duration"]) < 0.001
    assert not (save / "rejected.jsonl").read_text()
    # The same again does nothing.
    (save / "test.csv").write_text("mine")
    prepare_corpus(root, save, corpus_options=options)
    assert (save / "test.csv").read_text() == "mine"
    # What a recipe does not want is not prepared.
    lists = {f"{split}_splits": [] for split in ("train", "valid")}
    only = tmp_path / "test"
    prepare_corpus(root, only, **lists, corpus_options=options)
    assert [path.name for path in only.glob("*.csv")] == ["test.csv"]
    message = refusal(
        prepare_corpus, root, tmp_path / "x", speechbrain_recipes=tmp_path
    )
    assert f"is {name}, whose script of the toolkit cannot be" in message


def test_tedlium_words_and_stretches(tmp_path):
    root, save = miniatures.tedlium(tmp_path / "ted"), tmp_path / "save"
    prepare_tedlium(root, save)
    for split, part in zip(SPLITS, miniatures.TALKS, strict=True):
        expected = [
            (begin, words)
            for begin, _, _, words in miniatures.TALKS[part]
            if words is not None
        ]
        rows = read(save, split)
        assert [
            (int(row["start"]) / 16000, row["wrd"]) for row in rows
        ] == expected
    assert counts(save)[1] == {"train": 1, "test": 1}
    first, last = read(save, "train")
    talk = "AnnLee_train_2010"
    assert first["ID"] == f"{talk}-0000025-0000100"
    assert first["spk_id"] == talk and first["wav"].endswith(f"{talk}.sph")
    assert last["stop"] == "36000"  # where the recording ends

    legacy = root / "TEDLIUM_release-3/legacy"
    for split, form in (("train", "wav"), ("dev", "flac")):
        for path in (legacy / split / "sph").iterdir():
            miniatures.tone(path.with_suffix(f".{form}"), 2.25)
            path.unlink()
    (legacy / "train/sph").rename(legacy / "train/wav")
    release2 = tmp_path / "ted/TEDLIUM_release2"
    shutil.copytree(legacy, release2)
    message = refusal(prepare_tedlium, root, tmp_path / "new")
    assert "release None asked" in message and "TEDLIUM_release2" in message
    prepare_tedlium(root, tmp_path / "new", release="TEDLIUM_release2")
    [row] = read(tmp_path / "new", "valid")
    assert row["wav"].endswith("TEDLIUM_release2/dev/sph/AnnLee_dev_2010.flac")
    assert len(read(tmp_path / "new", "train")) == 2

    file = legacy / "dev/stm/AnnLee_dev_2010.stm"
    file.write_text("AnnLee_dev_2010 1 AnnLee 0.5 here are words\n")
    options = {"train_splits": [], "max_rejected": 0.5}
    prepare_tedlium(legacy, tmp_path / "bad", **options)
    [reason] = reasons(tmp_path / "bad").values()
    assert "not an STM line" in reason
    shutil.rmtree(legacy / "dev/stm")
    message = refusal(prepare_tedlium, legacy, tmp_path / "none")
    assert "no dev/stm; extract" in message


def test_must_c_lines_stay_together(tmp_path):
    root, save = miniatures.must_c(tmp_path / "must"), tmp_path / "save"
    prepare_must_c(root, save)
    for split, part in zip(SPLITS, miniatures.SENTENCES, strict=False):
        sentences = miniatures.SENTENCES[part]
        found = [
            (row["wrd"], row["translation"], int(row["start"]) / 16000)
            for row in read(save, split)
        ]
        assert found == [
            (english, other, float(offset))
            for _, offset, _, english, other in sentences
        ]
    ids = [row["ID"] for row in read(save, "train")]
    assert ids == ["ted_1_0", "ted_1_1", "ted_2_0"]
    # The pair's own folder; more than one pair.
    both = {"train_splits": [], "valid_splits": []}
    heldout = {**both, "test_splits": ["tst-HE"]}
    prepare_must_c(root / "en-de", tmp_path / "he", **heldout)
    [row] = read(tmp_path / "he", "test")
    assert row["wav"] == "$data_root/data/tst-HE/wav/ted_5.wav"
    miniatures.must_c(root, "fr")
    message = refusal(prepare_must_c, root, save)
    assert "target None asked, MuST-C is there in de, fr" in message

    folder = root / "en-de/data/train/txt"
    text = (folder / "train.de").read_text("utf-8")
    (folder / "train.de").write_text(text + "Eine Zeile mehr.\n", "utf-8")
    message = refusal(prepare_must_c, root, tmp_path / "x", target="de")
    assert "train.yaml: 3 segments, but 3 lines in train.en and 4" in message
    (folder / "train.de").write_text("\n" + text.split("\n", 1)[1], "utf-8")
    segments = (folder / "train.yaml").read_text()
    cut = segments.replace("offset: 1.500000, ", "")
    (folder / "train.yaml").write_text(cut)
    options = {"target": "de", "max_rejected": 0.5}
    prepare_must_c(root, tmp_path / "x", **options)
    found = reasons(tmp_path / "x")
    assert "segment is not whole (KeyError('offset'))" in found["", 2]
    assert "empty translation" in found["ted_1_0", 1]
    assert read(tmp_path / "x", "test")[1]["translation"] == ""
    new = tmp_path / "new"
    for content, mend in (("- {", ", row 2: not YAML"), ("3", "no list of")):
        (folder / "train.yaml").write_text(f"{content}\n")
        assert mend in refusal(prepare_must_c, root, new, target="de")
    (folder / "train.yaml").unlink()
    message = refusal(prepare_must_c, root, new, target="de")
    assert "train.yaml: no such file" in message


def test_slurp_columns(tmp_path):
    """What the corpus' own scripts/evaluation takes for gold."""
    root, save = miniatures.slurp(tmp_path / "slurp"), tmp_path / "save"
    prepare_slurp(root, save)
    rows = read(save, "train")
    assert [row["ID"] for row in rows] == [
        *("audio-1-headset", "audio-1", "audio-2", "audio--3-headset")
    ]
    entities = [
        {"type": "time", "filler": "eight o'clock"},
        {"type": "date", "filler": "today"},
    ]
    for row in rows[:3]:
        assert json.loads(row.pop("entities")) == entities
        assert row["wav"] == f"$data_root/audio/slurp_real/{row['ID']}.flac"
        assert list(row.values())[3:] == [
            *("FE-145", "wake me at eight o'clock today"),
            *("alarm_set", "alarm", "set"),
        ]
    # Not what the field "intent" says.
    assert list(rows[3].values())[5:] == [
        *("iot_cleaning", "iot", "cleaning", "[]")
    ]
    assert read(save, "test")[0]["intent"] == "play_music"
    path = save / "train.csv"
    keep = ["intent", "entities"]
    row = read_manifest(path, data_root=root, keep=keep).rows[0]
    assert json.loads(row["entities"]) == entities

    prepare_slurp(root, tmp_path / "close", headset=True)
    assert [row["ID"] for row in read(tmp_path / "close", "train")] == [
        *("audio-1-headset", "audio-2", "audio--3-headset")
    ]
    assert counts(tmp_path / "close")[1] == {"train": 1, "test": 1}
    both = ["train", "train_synthetic"]
    (root / "dataset/slurp/metadata.json").unlink()
    prepare_slurp(root, tmp_path / "both", both, [], [])
    last = read(tmp_path / "both", "train")[-1]
    assert last["wav"].endswith("slurp_synth/audio-synth-8.flac")
    assert last["spk_id"] == ""

    # As the toolkit's script has it: tables beside the recordings.
    for kind in ("slurp_real", "slurp_synth"):
        (root / "audio" / kind).rename(root / kind)
    for table in (root / "dataset/slurp").iterdir():
        table.rename(root / table.name)
    prepare_slurp(root, tmp_path / "flat")
    assert len(read(tmp_path / "flat", "train")) == 4
    lines = (root / "train.jsonl").read_text().splitlines()
    lines += ["{", lines[0].replace('"span": [3', '"span": [33')]
    (root / "train.jsonl").write_text("\n".join(lines))
    options = {"max_rejected": 0.5}
    prepare_slurp(root, tmp_path / "bad", **options)
    found = reasons(tmp_path / "bad")
    assert "no sentence of SLURP" in found["", 4]
    (root / "metadata.json").write_text("[]")
    message = refusal(prepare_slurp, root, save, [], [])
    assert "metadata.json: not the file of this corpus" in message
    for kind in ("slurp_real", "slurp_synth"):
        shutil.rmtree(root / kind)
    assert "no slurp_real" in refusal(prepare_slurp, root, save)


def test_fluent_speech_intents(tmp_path):
    root = miniatures.fluent_speech(tmp_path / "fluent")
    save = tmp_path / "save"
    prepare_fluent_speech(root, save)
    rows = read(save, "train") + read(save, "test")
    assert [(row["wrd"], row["intent"]) for row in rows] == [
        ("Turn the lights off, please", "deactivate lights none"),
        ("Louder", "increase volume none"),
        ('Get me "the" juice', "bring juice none"),
        ("Use Chinese", "change language Chinese none"),
    ]
    assert list(rows[0].values())[:4] == [
        *("a1", "1.0", "$data_root/wavs/speakers/sa/a1.wav", "sa")
    ]
    table = root / "data/test_data.csv"
    with open(table, "a") as stream:
        stream.write("2,wavs/x.wav,s,Two, commas,a,b,c\n3,,s,No path,a,b,c\n")
    options = {"test_splits": ["test"], "max_rejected": 0.5}
    prepare_fluent_speech(root, tmp_path / "bad", [], [], **options)
    found = reasons(tmp_path / "bad")
    assert "8 fields where the header has 7" in found["", 4]
    assert "empty path" in found["", 5]
    table.write_text("path,text\n")
    message = refusal(prepare_fluent_speech, root, tmp_path / "new")
    assert "test_data.csv, row 1: no column 'speakerId'" in message
    table.unlink()
    message = refusal(prepare_fluent_speech, root, tmp_path / "new")
    assert "test_data.csv: no such file" in message


def test_snips_joined_by_text(tmp_path):
    root, save = miniatures.snips(tmp_path / "snips"), tmp_path / "save"
    prepare_snips(root, save)
    assert sorted(os.listdir(save)) == [
        *("prepared.json", "rejected.jsonl", "test.csv")
    ]
    rows = read(save, "test")
    assert [(row["ID"], row["intent"]) for row in rows] == [
        ("5", "SwitchLightOn"),
        ("8", "SwitchLightOn"),
        ("12", "SetLightColor"),
    ]
    assert rows[2]["wrd"] == "Red in the hall, now!"
    assert rows[2]["spk_id"] == "w7"
    assert json.loads(rows[2]["entities"]) == [
        {"type": "color", "filler": "Red"},
        {"type": "room", "filler": "hall"},
    ]
    assert counts(save)[1] == {"test": 1}  # nobody spoke it
    # Folds share nothing, and make the whole.
    folds = [f"fold{number}" for number in range(1, 6)]
    prepare_snips(root, tmp_path / "cross", folds[1:], [], folds[:1])
    train = read(tmp_path / "cross", "train")
    test = read(tmp_path / "cross", "test")
    assert {row["ID"] for row in test} == {"5", "12"}
    assert [row["ID"] for row in train] == ["8"]

    folder = root / "smart-lights-en-close-field"
    shutil.copytree(folder, root / "smart-lights-en-far-field")
    assert "subset None asked" in refusal(prepare_snips, root, save)
    far = {"subset": "smart-lights-en-far-field"}
    prepare_snips(root, tmp_path / "far", **far)
    assert "far-field/speech" in read(tmp_path / "far", "test")[0]["wav"]
    message = refusal(prepare_snips, folder, save, test_splits=["test"])
    assert "no split 'test'; name all, or fold1" in message
    file = folder / "speech_corpus/metadata.json"
    file.write_text(file.read_text().replace('"Lights on"', '"Lights out"'))
    prepare_snips(folder, tmp_path / "bad", max_rejected=0.5)
    found = reasons(tmp_path / "bad")
    assert "'Lights out' is no query of dataset.json" in found["8", 0]
    (folder / "dataset.json").write_text("{}")
    message = refusal(prepare_snips, folder, save)
    assert "dataset.json: not the file of this corpus" in message


def test_fleurs_sentences_across_languages(tmp_path):
    root, save = miniatures.fleurs(tmp_path / "fleurs"), tmp_path / "save"
    options = {"language": "fr_fr", "target": "en_us"}
    prepare_fleurs(root, save, **options)
    assert [
        (row["ID"], row["prompt"], row["wrd"], row["translation"])
        for row in read(save, "valid") + read(save, "test")
    ] == [
        ("70", "7", '"Non, dit-il.', '"No, he says.'),
        ("10", "1675", 'Il dit "oui", enfin.', '"Yes" he says, "at last"'),
        ("12", "1675", 'Il dit "oui", enfin.', '"Yes" he says, "at last"'),
    ]
    assert counts(save)[1] == {"test": 1}  # English lacks the sentence
    prepare_fleurs(root, tmp_path / "asr", language="fr_fr")
    rows = read(tmp_path / "asr", "test")
    assert [row["ID"] for row in rows] == ["10", "11", "12"]
    assert list(rows[0]) == [*TOOLKIT, "prompt"]

    message = refusal(prepare_fleurs, root, save)
    assert "language None asked, FLEURS is there in en_us, fr_fr" in message
    message = refusal(prepare_fleurs, root, save, language="en_us", target="de")
    assert "target 'de' asked" in message
    with open(root / "en_us/test.tsv", "a") as stream:
        stream.write("1677\tshort.wav\tcut\n")
    options = {"language": "en_us", "max_rejected": 0.5}
    prepare_fleurs(root, tmp_path / "bad", **options)
    found = reasons(tmp_path / "bad")
    assert "3 columns where the header has 7" in found["short", 2]
    (root / "en_us/dev.tsv").unlink()
    message = refusal(prepare_fleurs, root, save, language="en_us")
    assert "dev.tsv: no such file" in message


def test_parallel_prompts_ids_match(tmp_path):
    """The same prompts in both directions, and in the same order."""
    root = miniatures.speech_folder(tmp_path / "speech")
    expected = {
        ("en", "es"): ["bye", "queue", "stars"],
        ("en", "fr"): ["agent", "bye", "queue"],
        ("es", "fr"): ["bye", "queue"],
    }
    for pair in itertools.combinations(miniatures.PROMPTS, 2):
        both = []
        for language, target in (pair, pair[::-1]):
            save = tmp_path / f"{language}-{target}"
            options = {"language": language, "target": target}
            prepare_corpus(root, save, corpus_options=options)
            assert not (save / "rejected.jsonl").read_text()
            both.append({split: read(save, split) for split in SPLITS})
        there, back = both
        for split in SPLITS:
            prompts = [row["prompt"] for row in there[split]]
            assert prompts == [row["prompt"] for row in back[split]]
            assert prompts == [f"{split}_{name}" for name in expected[pair]]
            for row, other in zip(there[split], back[split], strict=True):
                assert (row["lang"], other["lang"]) == pair
                assert row["wrd"] == other["translation"]
                assert row["translation"] == other["wrd"]
    left = counts(tmp_path / "en-fr")[1]
    assert left == {"train": 2, "valid": 2, "test": 2}  # "stars", an order


@pytest.mark.parametrize("absolute", [True, False])
def test_linked_speech_folder_of_clips_elsewhere(absolute, tmp_path):
    """Above a linked folder lies what is above its target."""
    root = miniatures.speech_folder(tmp_path / "clips" / "speech")
    listed = tmp_path / "deep" / "er" / "tables" / "phone"
    listed.mkdir(parents=True)
    table = (root / "phone/manifest.tsv").read_text("utf-8")
    place = root if absolute else os.path.relpath(root, listed)
    there = table.replace("\taudio/", f"\t{place}/phone/audio/")
    (listed / "manifest.tsv").write_text(there, "utf-8")
    link, save = tmp_path / "speech", tmp_path / "s"
    link.symlink_to(listed.parent)
    prepare_speech_folder(link, save, language="fr")
    rows = read_manifest(save / "train.csv", data_root=link).rows
    assert len(rows) == 3
    assert all(os.path.isfile(row["wav"]) for row in rows)


def test_speech_folder_options(tmp_path):
    root, save = miniatures.speech_folder(tmp_path / "speech"), tmp_path / "s"
    prepare_speech_folder(root, save, corpora="orders")
    [row] = read(save, "test")
    assert (row["ID"], row["wrd"], row["intent"]) == (
        *("orders_test", ""),
        "orderDrink",
    )
    assert json.loads(row["slots"]) == {"size": "12 ounce", "drink": "tea"}
    # Such rows are read by their intent.
    path = save / "train.csv"
    assert read_manifest(path, data_root=root).rows == []
    [row] = read_manifest(path, "intent", root, keep=["slots"]).rows
    assert row["text"] == "orderDrink" and "tea" in row["slots"]
    prepare_speech_folder(root / "phone", tmp_path / "es", language="es")
    rows = read(tmp_path / "es", "train")
    assert [row["wrd"] for row in rows] == [
        *('es: "queue', 'es: "stars', 'es: "bye')
    ]
    assert rows[0]["wav"] == "$data_root/audio/es__train_queue.wav"

    for option, value in (
        ("language", "de"),
        ("target", "de"),
        ("corpora", "films"),
    ):
        given = [value] if option == "corpora" else value
        message = refusal(prepare_speech_folder, root, save, **{option: given})
        assert f"{option} '{value}' asked, speech is there in" in message
    message = refusal(prepare_speech_folder, root, save, ["dev"])
    assert "train_splits 'dev' asked, speech is there in test, tr" in message
    options = {"language": "fr", "target": "fr"}
    message = refusal(prepare_speech_folder, root, save, **options)
    assert "language and target are both 'fr'" in message
    message = refusal(prepare_speech_folder, tmp_path / "es", save)
    assert "no manifest.tsv and no" in message

    file = root / "orders/manifest.tsv"
    text = file.read_text().replace("orderDrink", "", 1)
    text = text.replace("\t1.0\t", "\tlong\t").replace("tlong", "t1.0", 1)
    file.write_text(text + "cut\taudio/cut.wav\n")
    options = {"corpora": ["orders"], "max_rejected": 1}
    prepare_speech_folder(root, tmp_path / "bad", **options)
    found = reasons(tmp_path / "bad")
    assert "neither text nor intent" in found["orders_train", 2]
    assert "duration_s 'long' is no number" in found["orders_test", 4]
    assert "2 columns where the header has 9" in found["orders_cut", 5]


def test_covost_counts(tmp_path, monkeypatch, caplog):
    """All of the official test set, or a warning that it is not all."""
    assert covost.PUBLISHED["fr_en"][2] == 14760
    assert covost.PUBLISHED["de_en"][2] == 13511
    assert covost.PUBLISHED["en_*"][2] == 15531
    root = miniatures.covost(tmp_path / "cv")
    monkeypatch.setitem(covost.PUBLISHED, "fr_en", (3, 1, 2))
    prepare_covost(root, tmp_path / "whole")
    assert counts(tmp_path / "whole")[0] == {"train": 3, "valid": 1, "test": 2}
    assert "published" not in caplog.text
    # A sentence without its clip, and one that is too many.
    monkeypatch.setitem(covost.PUBLISHED, "fr_en", (4, 1, 2))
    (root / f"fr/clips/{miniatures.clip_name('5')}.mp3").unlink()
    prepare_covost(root, tmp_path / "cut", max_rejected=0.5)
    warnings = [r.getMessage() for r in caplog.records if r.levelname != "INFO"]
    assert len(warnings) == 2
    assert "train has 3 clips, published are 4;" in warnings[0]
    assert "test has 1 clips, published are 2; before" in warnings[1]
    # Other pairs are nobody's official ones.
    caplog.clear()
    monkeypatch.delitem(covost.PUBLISHED, "fr_en")
    prepare_covost(root, tmp_path / "other", max_rejected=0.5)
    assert "published" not in caplog.text


@pytest.mark.parametrize(
    ("name", "module", "published"),
    [
        ("TED-LIUM", tedlium, [{"test": 2}]),
        ("SLURP", slurp, [{"devel": 1, "test": 2}]),
        ("Fluent Speech Commands", fluent_speech, [{"test": 9}, {"test": 2}]),
    ],
)
def test_other_counts(name, module, published, tmp_path, monkeypatch, caplog):
    make, options, _, clips = WORKS[name]
    root = make(tmp_path / "corpus")
    prepare_corpus(root, tmp_path / "a", corpus_options=options)
    test = module.PUBLISHED[0]["test"]
    assert f"test has {clips[2]} clips, published are {test}" in caplog.text
    monkeypatch.setattr(module, "PUBLISHED", published)
    caplog.clear()
    prepare_corpus(root, tmp_path / "b", corpus_options=options)
    assert "published" not in caplog.text


def test_counts_of_a_language(tmp_path, monkeypatch, caplog):
    root = miniatures.fleurs(tmp_path / "fleurs")
    monkeypatch.setitem(fleurs.PUBLISHED, "fr_fr", {"test": 3, "dev": 2})
    prepare_fleurs(root, tmp_path / "a", language="fr_fr")
    assert "dev has 1 clips, published are 2;" in caplog.text
    assert "test has" not in caplog.text
    # With a target the missing ones are missing on purpose.
    caplog.clear()
    options = {"language": "fr_fr", "target": "en_us"}
    prepare_fleurs(root, tmp_path / "b", **options)
    assert "published" not in caplog.text


def test_no_corpus_at_all(tmp_path):
    with pytest.raises(BadInput, match="nor one of .*Snips, FLEURS, speech"):
        prepare_corpus(tmp_path, tmp_path / "save")
