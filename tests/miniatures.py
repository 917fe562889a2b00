"""Corpora in their true layouts, a few tones large, made at test time.

Authors
 * The blsp_plugin team 2026
"""

import json

import numpy as np
import soundfile

CHAPTERS = {
    "train-clean-100": {"103-1240": 3, "103-1241": 2, "1034-121119": 2},
    "train-clean-360": {"100-121669": 2},
    "dev-clean": {"84-121123": 2},
    "test-clean": {"1089-134686": 2},
}

# Common Voice: (clip, speaker, sentence), by table.
FRENCH = {
    "train": [
        ("1", "aa", "L'été dernier, nous sommes allés à Brest."),
        ("2", "bb", '"Oui, dit-il, je viens demain !'),
        ("3", "aa", "Oui."),
    ],
    "dev": [("4", "cc", "Le chat dort encore sur mon lit.")],
    "test": [
        ("5", "dd", "Non"),
        ("6", "dd", "Il fait trop chaud pour moi, merci."),
    ],
}
ENGLISH = {
    "1": "Last summer we went to Brest.",
    "2": '"Yes," he says, "I am coming tomorrow!"',
    "3": "Yes.",
    "4": "The cat is still asleep on my bed.",
    "5": "No",
    "6": "It is too hot for me, thanks.",
}
HEADER = (
    "client_id path sentence_id sentence sentence_domain up_votes down_votes "
    "age gender accents variant locale segment"
)
OLD_HEADER = (
    "client_id path sentence up_votes down_votes age gender accents locale "
    "segment"
)

# GigaSpeech: (seconds, subsets, text) of each segment.
TALK = [
    ((0.0, 1.0), ["{XL}", "{L}"], "AS THEY SAY <COMMA> IT'S FINE <PERIOD>"),
    ((1.0, 1.5), ["{XL}", "{L}"], "<MUSIC>"),
    (
        (1.5, 2.255),
        ["{XL}", "{L}", "{M}", "{S}", "{XS}"],
        "IS IT <QUESTIONMARK>",
    ),
]
EVALUATION = [
    ((0.5, 1.0), "OH <EXCLAMATIONPOINT>"),
    ((1.0, 2.0), "<NOISE>"),
]


def tone(path, seconds, rate=16000, pitch=440, **form):
    """Write a tone, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, 0.1 * np.sin(2 * np.pi * pitch * time), rate, **form)


def librispeech(root):
    """``<split>/<speaker>/<chapter>/``; durations differ by a sample."""
    for split, chapters in CHAPTERS.items():
        for chapter, utterances in chapters.items():
            folder = root.joinpath(split, *chapter.split("-"))
            lines = []
            for number in range(utterances):
                name = f"{chapter}-{number:04d}"
                tone(folder / f"{name}.flac", (8000 + number) / 16000)
                lines.append(f"{name} IT'S NUMBER {number} OF {chapter}\n")
            (folder / f"{chapter}.trans.txt").write_text("".join(lines))
    (root / "README.TXT").write_text("LibriSpeech")
    return root


def clip_name(clip):
    """As Common Voice names its clips."""
    return f"common_voice_fr_1733{clip}"


def table(header, records):
    """Text of a TSV file; what a record lacks is empty."""
    names = header.split()
    rows = [[record.get(name, "") for name in names] for record in records]
    return "".join("\t".join(row) + "\n" for row in [names, *rows])


def common_voice(root, header=HEADER):
    """``fr/clips/*.mp3`` and ``fr/*.tsv``."""
    folder = root / "fr"
    everything = []
    for split, clips in FRENCH.items():
        records = []
        for clip, speaker, sentence in clips:
            name = clip_name(clip)
            tone(folder / "clips" / f"{name}.mp3", 1 + int(clip) / 10, 32000)
            records.append(
                {
                    "client_id": speaker,
                    "path": f"{name}.mp3",
                    "sentence_id": f"s{clip}",
                    "sentence": sentence,
                    "up_votes": "2",
                    "locale": "fr",
                    # The toolkit's script strips a row's empty end off.
                    "segment": "Benchmark",
                }
            )
        (folder / f"{split}.tsv").write_text(table(header, records), "utf-8")
        everything += records
    text = table(header, everything)
    (folder / "validated.tsv").write_text(text, "utf-8")
    return root


def covost(root):
    """Common Voice with ``covost_v2.fr_en.tsv``, one file for all splits."""
    folder = common_voice(root) / "fr"
    names = {"train": ["train", "train_covost"], "dev": ["dev"]}
    records = [
        {
            "path": f"{clip_name(clip)}.mp3",
            "translation": ENGLISH[clip],
            "split": names.get(split, [split])[i % len(names.get(split, "x"))],
        }
        for split, clips in FRENCH.items()
        for i, (clip, _, _) in enumerate(clips)
    ]
    text = table("path translation split", records)
    (folder / "covost_v2.fr_en.tsv").write_text(text, "utf-8")
    return root


def split_covost(root):
    """The same in the form of one table a split, with transcripts."""
    folder = common_voice(root) / "fr"
    for split, clips in FRENCH.items():
        records = [
            {
                "path": f"{clip_name(clip)}.mp3",
                "sentence": sentence,
                "translation": ENGLISH[clip],
                "client_id": speaker,
            }
            for clip, speaker, sentence in clips
        ]
        text = table("path sentence translation client_id", records)
        (folder / f"covost_v2.fr_en.{split}.tsv").write_text(text, "utf-8")
    return root


def _recording(root, aid, subsets, segments, source="podcast"):
    path = f"audio/{source}/P0000/{aid}.opus"
    tone(root / path, 2.25, format="OGG", subtype="OPUS")
    return {
        "title": "A talk",
        "url": "https://example.org",
        "path": path,
        "aid": aid,
        "source": source,
        "codec": "opus",
        "channels": 1,
        "md5": "0" * 32,
        "speaker": "N/A",
        "category": "N/A",
        "duration": 2.25,
        "subsets": subsets,
        "format": "opus",
        "sample_rate": 16000,
        "segments": [
            {
                "sid": f"{aid}_S{number:07d}",
                "speaker": "N/A",
                "begin_time": times[0],
                "end_time": times[1],
                "subsets": given,
                "text_tn": text,
            }
            for number, (times, given, text) in enumerate(segments)
        ],
    }


def gigaspeech(root):
    """``GigaSpeech.json`` and ``audio/*/*/*.opus``."""
    all_subsets = [f"{{{name}}}" for name in ("XL", "L", "M", "S", "XS")]
    audios = [
        _recording(root, "POD0000000001", all_subsets, TALK),
        _recording(root, "AUD0000000002", ["{XL}"], TALK[:1], "audiobook"),
    ]
    for aid, name in (("YOU0000000003", "DEV"), ("YOU0000000004", "TEST")):
        segments = [
            (times, [f"{{{name}}}"], text) for times, text in EVALUATION
        ]
        audios.append(
            _recording(root, aid, [f"{{{name}}}"], segments, "youtube")
        )
    about = {"dataset": "GigaSpeech", "language": "EN", "version": "v1.0.0"}
    text = json.dumps({**about, "audios": audios}, indent=2)
    (root / "GigaSpeech.json").write_text(text)
    return root
