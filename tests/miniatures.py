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


# TED-LIUM: (begin, end, words) of the segments of a split's talk, and what is
# to be made of the words. The last one ends 10 ms behind its recording.
TALKS = {
    "train": [
        (0.25, 1.0, "<unk> i 'm here(2) {NOISE} today", "i'm here today"),
        (1.0, 1.5, "<unk>", None),
        (1.5, 2.26, "rock 'n' roll 's fine", "rock 'n' roll's fine"),
    ],
    "dev": [(0.5, 1.5, "you 've seen it", "you've seen it")],
    "test": [
        (0.0, 0.5, "ignore_time_segment_in_scoring", None),
        (
            0.5,
            1.25,
            "and they 'll say that 's all",
            "and they'll say that's all",
        ),
        (1.25, 2.0, "<unk>", ""),
    ],
}


def tedlium(root):
    """``TEDLIUM_release-3/legacy/<split>/{sph,stm}``."""
    for split, segments in TALKS.items():
        folder = root / "TEDLIUM_release-3/legacy" / split
        talk = f"AnnLee_{split}_2010"
        form = {"format": "NIST", "subtype": "PCM_16"}
        tone(folder / "sph" / f"{talk}.sph", 2.25, **form)
        lines = [";; a comment"]
        for begin, end, words, _ in segments:
            speaker, labels = talk, "<o,f0,female>"
            if "ignore" in words:
                speaker, labels = "inter_segment_gap", "<o,,unknown>"
            times = f"{begin:.2f} {end:.2f}"
            lines.append(f"{talk} 1 {speaker} {times} {labels} {words} ")
        (folder / "stm").mkdir()
        (folder / "stm" / f"{talk}.stm").write_text("\n".join(lines) + "\n")
    return root


# MuST-C: (talk, offset, duration, English, German). A line holds what Python
# takes for the end of a line, and a number is an integer.
SENTENCES = {
    "train": [
        (1, "0.500000", "1.000000", "Thank you.\u2028So much.", "Danke."),
        (1, "1.500000", "0.750000", '"Yes," he said.', "„Ja“, sagte er."),
        (2, "0", "2", "We do.", "Wir auch."),
    ],
    "dev": [(3, "0.250000", "1.250000", "(Applause)", "(Applaus)")],
    "tst-COMMON": [
        (4, "0.250000", "1.000000", "One: two.", "Eins: zwei."),
        (4, "1.250000", "0.500000", "Three.", ""),
    ],
    "tst-HE": [(5, "0.100000", "1.000000", "Never.", "Nie.")],
}


def must_c(root, language="de"):
    """``en-<language>/data/<split>/{wav,txt}``."""
    for split, sentences in SENTENCES.items():
        folder = root / f"en-{language}/data" / split
        texts = {"yaml": [], "en": [], language: []}
        for talk, offset, duration, english, other in sentences:
            tone(folder / f"wav/ted_{talk}.wav", 2.25)
            texts["yaml"].append(
                f"- {{duration: {duration}, offset: {offset}, rW: 2, uW: 0, "
                f"speaker_id: spk.{talk}, wav: ted_{talk}.wav}}"
            )
            texts["en"].append(english)
            texts[language].append(other)
        (folder / "txt").mkdir()
        for kind, lines in texts.items():
            path = folder / "txt" / f"{split}.{kind}"
            path.write_text("".join(f"{x}\n" for x in lines), "utf-8")
    return root


def _slurp_sentence(number, annotated, intent, meaning, takes):
    """An entry; ``annotated`` is words, or (type, words) of an entity."""
    words, entities = [], []
    for part in annotated:
        kind, text = part if isinstance(part, tuple) else (None, part)
        span = list(range(len(words), len(words) + len(text.split())))
        words += text.split()
        if kind:
            entities.append({"span": span, "type": kind})
    scenario, action = meaning
    return {
        "slurp_id": number,
        "sentence": " ".join(words).lower(),
        "sentence_annotation": "",
        "intent": intent,
        "action": action,
        "tokens": [
            {"surface": word, "id": i, "lemma": word, "pos": "NN"}
            for i, word in enumerate(words)
        ],
        "scenario": scenario,
        "recordings": [
            {"file": file, "wer": 0.0, "ent_wer": None, "status": "correct"}
            for file in takes
        ],
        "entities": entities,
    }


def slurp(root):
    """A clone of SLURP's repository with its recordings in ``audio/``."""
    alarm = ["wake me at", ("time", "Eight o'clock"), ("date", "today")]
    splits = {
        "train": [
            _slurp_sentence(
                *(1, alarm, "alarm_set", ("alarm", "set")),
                ["audio-1-headset.flac", "audio-1.flac", "audio-2.flac"],
            ),
            # The field "intent" leaves the scenario out.
            _slurp_sentence(
                *(2, ["clean the floor"], "cleaning", ("iot", "cleaning")),
                ["audio--3-headset.flac"],
            ),
        ],
        "train_synthetic": [
            _slurp_sentence(
                *(1, alarm, "alarm_set", ("alarm", "set")),
                ["audio-synth-8.flac"],
            )
        ],
        "devel": [
            _slurp_sentence(
                *(3, ["what is it"], "qa_factoid", ("qa", "factoid")),
                ["audio-4.flac"],
            )
        ],
        "test": [
            _slurp_sentence(
                *(4, ["play", ("song", "Hey")], "music", ("play", "music")),
                ["audio-5.flac", "audio-5-headset.flac"],
            )
        ],
    }
    tables = root / "dataset/slurp"
    tables.mkdir(parents=True)
    metadata = {}
    for split, sentences in splits.items():
        lines = [json.dumps(sentence) + "\n" for sentence in sentences]
        (tables / f"{split}.jsonl").write_text("".join(lines), "utf-8")
        kind = "synth" if split == "train_synthetic" else "real"
        for sentence in sentences:
            speakers = {}
            for recording in sentence["recordings"]:
                file = recording["file"]
                tone(root / f"audio/slurp_{kind}" / file, 1)
                speakers[file] = {"usrid": "FE-145", "status": "correct"}
            if kind == "real":
                about = {"nlub_id": 1, "recordings": speakers}
                metadata[str(sentence["slurp_id"])] = about
    (tables / "metadata.json").write_text(json.dumps(metadata))
    return root


def fluent_speech(root):
    """``data/*_data.csv`` with a nameless column of numbers, ``wavs/``."""
    clips = {
        "train": [
            ("a1", "Turn the lights off, please", "deactivate,lights,none"),
            ("a2", "Louder", "increase,volume,none"),
        ],
        "valid": [("b1", "Kitchen lights on", "activate,lights,kitchen")],
        "test": [
            ("c1", 'Get me "the" juice', "bring,juice,none"),
            ("c2", "Use Chinese", "change language,Chinese,none"),
        ],
    }
    (root / "data").mkdir(parents=True)
    for split, rows in clips.items():
        text = ",path,speakerId,transcription,action,object,location\n"
        for number, (clip, words, meaning) in enumerate(rows):
            path = f"wavs/speakers/s{clip[0]}/{clip}.wav"
            tone(root / path, 1)
            quoted = words
            if "," in words or '"' in words:
                doubled = words.replace('"', '""')
                quoted = f'"{doubled}"'
            text += f"{number},{path},s{clip[0]},{quoted},{meaning}\n"
        (root / f"data/{split}_data.csv").write_text(text)
    return root


def _query(*parts):
    """An utterance of Snips; a slot is (name, words)."""
    return {
        "data": [
            {"text": part}
            if isinstance(part, str)
            else {
                "text": part[1],
                "entity": f"l_{part[0]}",
                "slot_name": part[0],
            }
            for part in parts
        ]
    }


def snips(root):
    """``smart-lights-en-close-field``; the third query has no recording."""
    folder = root / "smart-lights-en-close-field"
    intents = {
        "SwitchLightOn": {
            "utterances": [
                _query("Turn on the lights in the ", ("room", "living room")),
                _query("Lights on"),
                _query(
                    "Could you switch on ", ("room", "the attic"), " please"
                ),
            ]
        },
        "SetLightColor": {
            "utterances": [
                _query(("color", "Red"), " in the ", ("room", "hall"), ", now!")
            ]
        },
    }
    worker = {"id": "w7", "age": 30, "gender": "female", "country": "us"}
    texts = {
        "12": "Red in the hall, now!",
        "5": "Turn on the lights in the living room",
        "8": "Lights on",
    }
    metadata = {}
    for name, text in texts.items():
        tone(folder / f"speech_corpus/audio/{name}.wav", 1)
        about = {"id": int(name), "filename": f"{name}.wav", "text": text}
        metadata[name] = {**about, "worker": worker}
    dataset = {"language": "en", "intents": intents, "entities": {}}
    config = {"dataset": "dataset.json", "speech_corpus": "speech_corpus"}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    (folder / "config.json").write_text(json.dumps(config))
    file = folder / "speech_corpus/metadata.json"
    file.write_text(json.dumps(metadata))
    return root


# FLEURS: (number, file, sentence as the table has it). A sentence is spoken
# twice, one is quoted as in a CSV file, one begins with a lone quote.
NUMBERED = {
    "fr_fr": {
        "train": [(3, "31", "Il fait beau."), (3, "32", "Il fait beau.")],
        "dev": [(7, "70", '"Non, dit-il.')],
        "test": [
            (1675, "10", '"Il dit ""oui"", enfin."'),
            (1676, "11", "Une autre."),
            (1675, "12", '"Il dit ""oui"", enfin."'),
        ],
    },
    "en_us": {
        "train": [(3, "a", "The weather is fine.")],
        "dev": [(7, "b", '"No, he says.')],
        "test": [(1675, "c", '"Yes" he says, "at last"')],
    },
}


def fleurs(root):
    """``<language>/*.tsv`` without headers, ``<language>/audio/<split>/``."""
    for language, splits in NUMBERED.items():
        for split, rows in splits.items():
            text = ""
            for number, clip, sentence in rows:
                path = root / language / "audio" / split / f"{clip}.wav"
                tone(path, 1)
                plain = sentence.lower().strip('."')
                fields = [str(number), path.name, sentence, plain]
                text += "\t".join([*fields, "x | y", "16000", "FEMALE"]) + "\n"
            (root / language / f"{split}.tsv").write_text(text, "utf-8")
    return root


# A speech folder: the prompts of each language, in the order of the table.
# "stars" has no French recording, "agent" no Spanish translation; "queue" is
# spoken in all.
PROMPTS = {
    "en": ["agent", "bye", "queue", "stars"],
    "es": ["queue", "stars", "bye"],
    "fr": ["queue", "bye", "agent"],
}


def speech_folder(root):
    """``phone`` in three languages, and ``orders`` that have no text."""
    header = (
        "id wav duration_s speaker lang split text prompt tr_en tr_es tr_fr"
    )
    records = []
    for split in ("train", "valid", "test"):
        for language, prompts in PROMPTS.items():
            for prompt in prompts:
                name = f"{language}__{split}_{prompt}"
                tone(root / "phone/audio" / f"{name}.wav", 1)
                record = {
                    "id": name,
                    "wav": f"audio/{name}.wav",
                    "duration_s": "1.000",
                    "speaker": f"{language}_1",
                    "lang": language,
                    "split": split,
                    "prompt": f"{split}_{prompt}",
                }
                for other in PROMPTS:
                    lacks = (other, prompt) == ("es", "agent")
                    words = "" if lacks else f'{other}: "{prompt}'
                    record[f"tr_{other}"] = words
                record["text"] = record[f"tr_{language}"]
                records.append(record)
    (root / "phone/manifest.tsv").write_text(table(header, records), "utf-8")
    header = "id wav duration_s speaker lang split text intent slots"
    records = []
    for split in ("train", "valid", "test"):
        tone(root / f"orders/audio/{split}.wav", 1)
        record = {"id": split, "wav": f"audio/{split}.wav", "split": split}
        record.update(duration_s="1.0", lang="en", intent="orderDrink")
        record["slots"] = json.dumps({"size": "12 ounce", "drink": "tea"})
        records.append(record)
    (root / "orders/manifest.tsv").write_text(table(header, records), "utf-8")
    return root
