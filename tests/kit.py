"""A starter kit of tiny random models, and a project folder to run in.

With ``BLSP_STARTER`` pointing at it the recipes run exactly as documented,
without any override, in seconds.
"""

import json
import os
import shutil
import sys

import soundfile

from blsp_plugin.data.manifest import read_manifest
from blsp_plugin.data.speech_folder import NEEDED
from blsp_plugin.starter import PARTS
from tests.tiny import tiny_corpus, tiny_llm, tiny_whisper
from tests.training import ROOT


def tiny_kit(folder):
    """Build the parts that the recipes ask for by default.

    Arguments
    ---------
    folder : pathlib.Path
        Gets one folder a part.

    Returns
    -------
    pathlib.Path
    """
    tiny_whisper(folder / "whisper-base")
    tiny_llm(folder / "smollm2-135m-instruct")
    tiny_llm(folder / "gemma3-270m", seed=1)
    tiny_corpus(folder / "corpus-en", n=8, n_eval=8)
    tiny_flite(folder / "flite")
    for part in folder.iterdir():
        files = {
            name: os.path.getsize(part / name)
            for name in os.listdir(part)
            if (part / name).is_file()
        }
        marker = {"recipe": PARTS[part.name].recipe, "files": files}
        (part / "COMPLETE.json").write_text(json.dumps(marker))
    return folder


def tiny_flite(folder):
    """A program with Flite's options that hums; no voice is needed for it.

    Arguments
    ---------
    folder : pathlib.Path
        Gets ``flite``.
    """
    folder.mkdir()
    program = folder / "flite"
    program.write_text(
        f"""#!{sys.executable}
import sys, wave
if "-lv" in sys.argv:
    sys.exit(print("Voices available: slt rms awb"))
words = len(sys.argv[sys.argv.index("-t") + 1].split())
with wave.open(sys.argv[sys.argv.index("-o") + 1], "wb") as file:
    file.setparams((1, 2, 16000, 0, "NONE", ""))
    file.writeframes(bytes(range(0, 100, 2)) * 100 * words)
"""
    )
    program.chmod(0o755)


def tiny_librispeech(corpus, folder):
    """A LibriSpeech tree, in its true layout, of a tiny corpus' clips.

    Arguments
    ---------
    corpus : SimpleNamespace
        From `tiny_corpus`.
    folder : pathlib.Path
        Gets ``<split>/<speaker>/<chapter>/``.

    Returns
    -------
    pathlib.Path
    """
    for split, source in (
        ("train-clean-100", "train"),
        ("dev-clean", "valid"),
        ("test-clean", "test"),
    ):
        chapter = folder / split / "84" / "121123"
        chapter.mkdir(parents=True)
        lines = []
        clips = sorted(os.listdir(os.path.join(corpus.data_root, source)))
        for i, name in enumerate(clips[:4]):
            path = os.path.join(corpus.data_root, source, name)
            samples, rate = soundfile.read(path)
            clip = f"84-121123-{i:04d}"
            soundfile.write(chapter / f"{clip}.flac", samples, rate)
            lines.append(f"{clip} GO DO YOU HEAR NUMBER {source.upper()} {i}")
        text = "\n".join(lines) + "\n"
        (chapter / "84-121123.trans.txt").write_text(text)
    return folder


def tiny_speech_folder(corpus, folder):
    """A speech folder of one corpus; see `blsp_plugin.data.speech_folder`.

    Its French translations are the English.

    Arguments
    ---------
    corpus : SimpleNamespace
        From `tiny_corpus`: whose clips they are.
    folder : pathlib.Path
        Gets ``tiny/manifest.tsv``.

    Returns
    -------
    pathlib.Path
    """
    lines = ["\t".join((*NEEDED, "tr_fr"))]
    for split in ("train", "valid", "test"):
        manifest = getattr(corpus, f"{split}_csv")
        for row in read_manifest(manifest, data_root=corpus.data_root).rows:
            facts = (row["id"], row["wav"], str(row["duration"]), "she", "en")
            lines.append("\t".join((*facts, split, row["text"], row["text"])))
    (folder / "tiny").mkdir(parents=True)
    (folder / "tiny" / "manifest.tsv").write_text("\n".join(lines) + "\n")
    return folder


def project_folder(folder):
    """A folder with the project's recipes and hparams, and its own results.

    Arguments
    ---------
    folder : pathlib.Path
        Must not exist.

    Returns
    -------
    pathlib.Path
    """
    folder.mkdir()
    for name in ("recipes", "hparams"):
        shutil.copytree(os.path.join(ROOT, name), folder / name)
    return folder
