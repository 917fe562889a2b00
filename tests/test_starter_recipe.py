"""What recipes/starter/starter.py lists for its stages."""

import os
import runpy

from blsp_plugin.data.speech_folder import NEEDED
from blsp_plugin.data.tsv import read_tsv
from tests.kit import tiny_speech_folder
from tests.tiny import tiny_corpus
from tests.training import ROOT


def listed(folder):
    """Clips to train on: ids and paths, in the tables of a speech folder."""
    tables = folder.glob("*/manifest.tsv")
    rows = [row for table in tables for _, row, _ in read_tsv(table, NEEDED)]
    return {r["id"]: r["wav"] for r in rows if r["split"] == "train"}


def test_what_stages_hear_beside_the_recordings(tmp_path, monkeypatch):
    """Lists, sentences, other speeds; nothing that the demo tests on."""
    monkeypatch.chdir(tmp_path)
    corpus = tiny_corpus(tmp_path / "corpus", n=3, n_eval=1)
    speech = tiny_speech_folder(corpus, tmp_path / "data")
    (held, wav), *others = listed(speech).items()
    recipe = runpy.run_path(f"{ROOT}/recipes/starter/starter.py")
    demo = [{"id": held, "split": "test"}]
    parts = recipe["bring_together"].__globals__
    monkeypatch.setitem(parts, "starter_corpus", lambda: demo)
    recipe["bring_together"](str(speech))

    made = tmp_path / "results" / "starter"
    spoken = made / "speech" / "synthetic"
    spoken.mkdir()
    os.link(wav, spoken / "0.wav")
    row = ("spoken_0", "0.wav", "1.0", "voice", "en", "train", "Some words.")
    lines = ["\t".join(NEEDED), "\t".join(row)]
    (spoken / "manifest.tsv").write_text("\n".join(lines) + "\n")
    recipe["add_sentences"]()
    words = listed(made / "words")
    assert words == dict(others) | {"spoken_0": str(spoken / "0.wav")}
    assert listed(made / "recorded") == dict(others)

    recipe["add_speeds"]()
    played = listed(made / "played")
    copies = {f"{name}_{speed}" for name, _ in others for speed in (0.9, 1.1)}
    assert set(played) == set(words) | copies
