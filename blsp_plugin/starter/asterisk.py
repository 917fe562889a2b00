"""The starter corpus: Asterisk's telephone prompts, spoken by people.

Five languages read the same prompts. A package holds G.722 audio, another the
texts; both become FLAC and CSV files as the toolkit's LibriSpeech script
writes them.

Authors
 * The blsp_plugin team 2026
"""

import csv
import gzip
import hashlib
import io
import logging
import os
import re
import shutil
from collections import namedtuple

from blsp_plugin.errors import BadInput
from blsp_plugin.starter import debian

logger = logging.getLogger(__name__)

_RATE = 16000
_SAMPLES_A_BYTE = 2  # G.722 at 64 kbit/s
_LANGUAGES = ("en", "es", "fr", "it", "ru")
_COLUMNS = ("ID", "duration", "wav", "spk_id", "wrd", "prompt")
SPLITS = ("train", "valid", "test")

# Sounds and silences: some languages give them a spoken-looking text.
_NOT_SPEECH = re.compile(
    r"(ascending|descending)-2tone|beep(err)?|confbridge-(join|leave)"
    r"|tt-monkeys|silence/\d+"
)
# "(note: ...)", "[sound of ...]", "<beep>": written, not spoken.
_REMARK = re.compile(r"\([^()]*\)|\[[^][]*\]|<[^<>]*>")
# "..." tells where prompts are spliced. It stands at a text's ends only.
_SPLICE_BEFORE = re.compile(r"^\s*(?:\.{2,}|…)\s*")
_SPLICE_AFTER = re.compile(r"[\s,]*(?:\.{2,}|…)\s*$")
_QUOTES = (('"', '"'), ("“", "”"))
# How the voices read the telephone's keys.
_KEYS = {
    "en": {"*": "star", "#": "pound"},
    "fr": {"*": "étoile", "#": "dièse"},
}

Clip = namedtuple("Clip", ["prompt", "text", "source", "split"])
Clip.__doc__ = """A prompt to write.

Arguments
---------
prompt : str
    Its id, the same in every language, such as "digits/8".
text : str
    What is said.
source : str
    G.722 file.
split : str
    "train", "valid" or "test".
"""


def build_en(folder):
    """Fill an empty folder with the English corpus (see `build`)."""
    build(folder, "en")


def build_es(folder):
    """Fill an empty folder with the Spanish corpus (see `build`)."""
    build(folder, "es")


def build_fr(folder):
    """Fill an empty folder with the French corpus (see `build`)."""
    build(folder, "fr")


def build_it(folder):
    """Fill an empty folder with the Italian corpus (see `build`)."""
    build(folder, "it")


def build_ru(folder):
    """Fill an empty folder with the Russian corpus (see `build`)."""
    build(folder, "ru")


def build(folder, language):
    """Fetch, decode and split the prompts of one language.

    The texts of all languages are fetched (they are small): the splits are
    drawn from all of them, see `split_prompts`.

    Arguments
    ---------
    folder : str
        An empty folder.
    language : str
        "en", "es", "fr", "it" or "ru".

    Raises
    ------
    BadInput
        When the packages can't be fetched or aren't what they were.
    """
    work = os.path.join(folder, "work")
    os.makedirs(work)
    sound_package = f"asterisk-core-sounds-{language}-g722"
    files = debian.fetch(
        [f"asterisk-core-sounds-{code}" for code in _LANGUAGES]
        + [sound_package],
        work,
    )
    texts = {
        code: read_texts(
            os.path.join(
                files,
                f"usr/share/doc/asterisk-core-sounds-{code}",
                f"core-sounds-{code}.txt.gz",
            ),
            code,
        )
        for code in _LANGUAGES
    }
    sounds = os.path.join(files, "usr/share/asterisk/sounds")
    (speaker,) = (
        name for name in os.listdir(sounds) if name.startswith(language + "_")
    )
    splits = split_prompts(texts)
    clips = []
    for prompt, text in sorted(texts[language].items()):
        source = os.path.join(sounds, speaker, prompt + ".g722")
        # A few texts have no recording, and one recording is empty.
        if os.path.isfile(source) and os.path.getsize(source):
            clips.append(Clip(prompt, text, source, splits[prompt]))
    logger.info("starter kit: decoding %d %s clips", len(clips), language)
    _write(folder, language, speaker, clips)
    shutil.copy(
        os.path.join(files, f"usr/share/doc/{sound_package}/copyright"),
        os.path.join(folder, "copyright"),
    )
    _write_licence(folder, language, speaker)
    shutil.rmtree(work)


def read_texts(path, language="en"):
    """Read a package's list of prompts.

    Arguments
    ---------
    path : str
        Gzipped UTF-8 lines ``id: text``; ``;`` starts a comment.
    language : str
        The texts' language.

    Returns
    -------
    dict
        Prompt id to what is said, without sounds and empty texts. Of a
        repeated id the first counts.

    Raises
    ------
    BadInput
        When the file is missing or damaged.
    """
    try:
        # One of the lists starts with a byte order mark.
        with gzip.open(path, "rt", encoding="utf-8-sig") as fin:
            lines = fin.read().splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{path}: can't be read ({error}); the package is damaged or "
            "changed: run the same command again"
        ) from error
    listed = {}
    for line in lines:
        prompt, colon, text = line.partition(":")
        if colon and not line.startswith(";"):
            listed.setdefault(prompt.strip(), text.strip())
    texts = {}
    for prompt, text in listed.items():
        # Slips: a text that repeats its id, one that runs on into the
        # entries after it.
        text = text.removeprefix(prompt + ":")
        for found in re.finditer(r"\s(\S+): ", text):
            if found.group(1) in listed:
                text = text[: found.start()]
                break
        text = spoken(prompt, text, language)
        if text:
            texts[prompt] = text
    return texts


def spoken(prompt, text, language="en"):
    """Reduce a prompt's text to what is said.

    Arguments
    ---------
    prompt : str
        Its id.
    text : str
        As listed.
    language : str
        Its language, for the keys "*" and "#".

    Returns
    -------
    str
        Case and punctuation kept, whitespace squeezed; remarks and the dots
        that stand for neighbouring prompts are gone. Empty when nothing is
        said.

    Example
    -------
    >>> spoken("vm-intro", "Leave a message.  (simple tone sound plays)")
    'Leave a message.'
    >>> spoken("vm-helpexit", "... press * to exit ...")
    'press star to exit.'
    >>> spoken("beep", "beep")
    ''
    """
    if _NOT_SPEECH.fullmatch(prompt):
        return ""
    text = _REMARK.sub(" ", text).strip()
    for left, right in _QUOTES:
        if text.startswith(left) and text.endswith(right):
            text = text[1:-1]
        elif text.endswith(right) and text.count(left) == (left == right):
            text = text[:-1]  # closed but never opened: a slip
    text = _SPLICE_AFTER.sub(".", _SPLICE_BEFORE.sub("", text))
    for key, word in _KEYS.get(language, {}).items():
        text = text.replace(key, word)
    text = " ".join(text.split())
    return text if sentence_key(text) else ""


def sentence_key(text):
    """Reduce a text to what makes it the same sentence as another.

    Arguments
    ---------
    text : str
        Any text.

    Returns
    -------
    str
        Its letters and digits, in lower case.

    Example
    -------
    >>> sentence_key("You're on hold, 2 ahead...")
    'youreonhold2ahead'
    """
    return "".join(c for c in text.lower() if c.isalnum())


def split_prompts(texts):
    """Draw the splits by sentence, the same in every language.

    Prompts that share a sentence in any language form a family, and a family
    is never divided: so no transcript, and no translation of one, is in two
    splits. The family's draw is the sha256 of one of its English sentences
    (of another language's where English has none), so it depends on nothing
    but these texts.

    Arguments
    ---------
    texts : dict
        Language to (prompt id to text).

    Returns
    -------
    dict
        Prompt id to "train" (80 %), "valid" (8 %) or "test" (12 %).

    Example
    -------
    >>> splits = split_prompts({"en": {"a": "Hi!", "b": "hi", "c": "Bye"}})
    >>> splits["a"] == splits["b"]
    True
    """
    parent = {}

    def family(node):
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for language in sorted(texts):
        for prompt, text in sorted(texts[language].items()):
            node = (language, sentence_key(text))
            parent[family(("prompt", prompt))] = family(node)
    drawn_by = {}
    for language in sorted(texts):
        for prompt, text in texts[language].items():
            # False sorts first: English sentences before all others.
            key = (language != "en", language, sentence_key(text))
            head = family(("prompt", prompt))
            drawn_by[head] = min(key, drawn_by.get(head, key))
    return {
        prompt: _draw(drawn_by[family(("prompt", prompt))][2])
        for language in texts
        for prompt in texts[language]
    }


def _draw(sentence):
    """Choose a sentence's split by its hash."""
    digest = hashlib.sha256(sentence.encode("utf-8")).hexdigest()
    hundredth = int(digest[:8], 16) % 100
    if hundredth < 80:
        return "train"
    return "valid" if hundredth < 88 else "test"


def decode_g722(path):
    """Decode raw G.722.

    Arguments
    ---------
    path : str
        A ``.g722`` file, 64 kbit/s, without a header.

    Returns
    -------
    numpy.ndarray
        (samples,) int16, 16 kHz mono.

    Raises
    ------
    BadInput
        When PyAV is missing or the file can't be decoded.
    """
    import numpy as np

    try:
        import av
    except ImportError as error:
        raise BadInput(
            "starter corpus: the package av decodes it and is missing; run: "
            "pip install 'blsp_plugin[demo]'"
        ) from error
    try:
        with av.open(path, format="g722") as container:
            blocks = [
                frame.to_ndarray().reshape(-1)
                for frame in container.decode(audio=0)
            ]
    except av.FFmpegError as error:
        raise BadInput(f"{path}: can't be decoded ({error})") from error
    samples = np.concatenate(blocks)
    wanted = os.path.getsize(path) * _SAMPLES_A_BYTE
    if len(samples) != wanted or samples.dtype != np.int16:
        raise BadInput(
            f"{path}: decoded to {len(samples)} samples of {samples.dtype}, "
            f"expected {wanted} of int16; install the pinned version of av"
        )
    return samples


def _write(folder, language, speaker, clips):
    """Write the FLAC files and one CSV a split."""
    import soundfile

    os.makedirs(os.path.join(folder, "flac"))
    rows = {split: [] for split in SPLITS}
    for clip in clips:
        name = f"{language}__{clip.prompt.replace('/', '__')}"
        samples = decode_g722(clip.source)
        # Through memory, so that a full disk is Python's OSError and not a
        # quietly shortened file.
        encoded = io.BytesIO()
        soundfile.write(encoded, samples, _RATE, format="FLAC")
        wav = os.path.join("flac", name + ".flac")
        with open(os.path.join(folder, wav), "wb") as fout:
            fout.write(encoded.getbuffer())
        duration = len(samples) / _RATE
        rows[clip.split].append(
            (
                name,
                f"{duration:.10g}",
                os.path.join("$data_root", wav),
                speaker,
                clip.text,
                clip.prompt,
            )
        )
    for split in SPLITS:
        path = os.path.join(folder, split + ".csv")
        with open(path, "w", encoding="utf-8", newline="") as fout:
            writer = csv.writer(fout, lineterminator="\n")
            writer.writerow(_COLUMNS)
            writer.writerows(rows[split])


_CREDITS = {
    "en": ("English", "CC BY-SA 3.0", "Allison Smith, for Digium, Inc."),
    "es": ("Spanish", "CC BY-SA 3.0", "Allison Smith, for Digium, Inc."),
    "fr": (
        "French",
        "CC BY-SA 3.0",
        "June Wallack; translated by Clod Patry, Kristopher Lalletti and "
        "June Wallack",
    ),
    "it": ("Italian", "CC BY 3.0", "Carlo Flora; translated by Silvia Petrin"),
    "ru": ("Russian", "CC BY 3.0", "provided by Maxim Topal, ivrvoice.ru"),
}


def _write_licence(folder, language, speaker):
    """Write the licence and the credits beside the clips."""
    name, licence, credit = _CREDITS[language]
    address = licence[3:].replace(" ", "/").lower()
    with open(
        os.path.join(folder, "LICENCE.md"), "w", encoding="utf-8"
    ) as fout:
        fout.write(
            f"# Asterisk core sounds, {name}\n\n"
            f"Licence: {licence} "
            f"(https://creativecommons.org/licenses/{address}/).\n"
            f"Voice and text: {credit} (`{speaker}`).\n"
            f"Source: Debian package `asterisk-core-sounds-{language}-g722`; "
            "its copyright file, with all credits, lies beside this one.\n"
            "Changed here: decoded to 16 kHz FLAC; sounds without speech "
            "left out; remarks that are not spoken taken out of the texts; "
            "split into train, valid and test.\n"
        )
