"""The starter kit: real models and real speech, without a model hub.

Each function returns a directory as a string. The first use downloads and
converts; later uses check a completion marker, import nothing heavy and cost
about a millisecond. From YAML::

    whisper: !apply:blsp_plugin.starter.whisper_base
    llm: !apply:blsp_plugin.starter.smollm2
    data_folder: !apply:blsp_plugin.starter.corpus
        language: en

(HyperPyYAML does not join such a value to a text: ``!ref <data_folder>`` is
the directory, ``!ref <data_folder>/train.csv`` would lose it.)

Nothing else in the code knows what is in the kit: where a hub or a disk has
the models, name ``openai/whisper-base`` or a directory instead. An adapter's
folder that travels names the kit's models as ``starter:whisper-base``
(`portable`), which are fetched where they are not (`resolve`).

The kit lies in ``$BLSP_STARTER``, else in ``$XDG_CACHE_HOME/blsp_plugin``,
else in ``~/.cache/blsp_plugin``. Several processes may ask at once: one
builds, the others wait. To build everything beforehand::

    python -m blsp_plugin.starter

Authors
 * The blsp_plugin team 2026
"""

import os

from blsp_plugin.errors import BadInput
from blsp_plugin.starter.store import Part, ensure, is_ready, root

__all__ = [
    "PARTS",
    "corpus",
    "flite",
    "gemma3",
    "is_ready",
    "portable",
    "resolve",
    "root",
    "smollm2",
    "whisper_base",
    "whisper_tiny_en",
]

_SCHEME = "starter:"
LANGUAGES = ("en", "es", "fr", "it", "ru")

# A recipe number grows when a builder's output changes: the part is rebuilt.
PARTS = {
    "whisper-base": Part(
        "whisper-base", "blsp_plugin.starter.whisper:build_base", 1, 500
    ),
    "whisper-tiny.en": Part(
        "whisper-tiny.en", "blsp_plugin.starter.whisper:build_tiny_en", 1, 260
    ),
    "smollm2-135m-instruct": Part(
        "smollm2-135m-instruct",
        "blsp_plugin.starter.gguf_llm:build_smollm2",
        1,
        520,
    ),
    "gemma3-270m": Part(
        "gemma3-270m", "blsp_plugin.starter.gguf_llm:build_gemma3", 1, 900
    ),
    "flite": Part("flite", "blsp_plugin.starter.debian_flite:build", 1, 100),
    **{
        f"corpus-{language}": Part(
            f"corpus-{language}",
            f"blsp_plugin.starter.asterisk:build_{language}",
            1,
            200,
        )
        for language in LANGUAGES
    },
}


def whisper_base():
    """Whisper-base, multilingual: 74 M parameters, hidden size 512, fp16.

    Returns
    -------
    str
        A directory for ``WhisperForConditionalGeneration.from_pretrained``
        and ``WhisperProcessor.from_pretrained``. MIT licence.

    Raises
    ------
    BadInput
        When it can't be fetched, is damaged, or the disk is full.

    Example
    -------
    >>> whisper_base()  # doctest: +SKIP
    '/home/you/.cache/blsp_plugin/whisper-base'
    """
    return ensure(PARTS["whisper-base"])


def whisper_tiny_en():
    """Whisper-tiny.en, English: 38 M parameters, hidden size 384, fp16.

    Returns
    -------
    str
        A directory for ``WhisperForConditionalGeneration.from_pretrained``
        and ``WhisperProcessor.from_pretrained``. MIT licence.

    Raises
    ------
    BadInput
        When it can't be fetched, is damaged, or the disk is full.

    Example
    -------
    >>> whisper_tiny_en()  # doctest: +SKIP
    '/home/you/.cache/blsp_plugin/whisper-tiny.en'
    """
    return ensure(PARTS["whisper-tiny.en"])


def smollm2():
    """SmolLM2-135M-Instruct: a chat model, hidden size 576, bf16.

    Its weights went through four-bit quantisation (Q4_1) once.

    Returns
    -------
    str
        A directory for ``AutoModelForCausalLM.from_pretrained`` and
        ``AutoTokenizer.from_pretrained``. Apache-2.0 licence.

    Raises
    ------
    BadInput
        When it can't be fetched, is damaged, or the disk is full.

    Example
    -------
    >>> smollm2()  # doctest: +SKIP
    '/home/you/.cache/blsp_plugin/smollm2-135m-instruct'
    """
    return ensure(PARTS["smollm2-135m-instruct"])


def gemma3():
    """Gemma-3-270M base: no chat template, hidden size 640, bf16.

    Its weights went through four-bit quantisation (Q4_K_M) once.

    Returns
    -------
    str
        A directory for ``AutoModelForCausalLM.from_pretrained`` and
        ``AutoTokenizer.from_pretrained``. Gemma Terms of Use.

    Raises
    ------
    BadInput
        When it can't be fetched, is damaged, or the disk is full.

    Example
    -------
    >>> gemma3()  # doctest: +SKIP
    '/home/you/.cache/blsp_plugin/gemma3-270m'
    """
    return ensure(PARTS["gemma3-270m"])


def flite():
    """Flite, a program that speaks, with the voices slt, rms, awb and kal.

    Returns
    -------
    str
        The program. BSD-like licence.

    Raises
    ------
    BadInput
        When it can't be fetched, or the disk is full.

    Example
    -------
    >>> flite()  # doctest: +SKIP
    '/home/you/.cache/blsp_plugin/flite/flite'
    """
    return os.path.join(ensure(PARTS["flite"]), "flite")


def corpus(language="en"):
    """Read telephone prompts with transcripts, 16 kHz mono FLAC.

    Arguments
    ---------
    language : str
        One of "en", "es", "fr", "it", "ru". A prompt has the same id, and its
        sentence the same split, in every language.

    Returns
    -------
    str
        A directory with ``train.csv``, ``valid.csv`` and ``test.csv`` in the
        toolkit's LibriSpeech columns (``wav`` starts with ``$data_root``,
        which is this directory), ``flac/`` and ``LICENCE.md``.

    Raises
    ------
    BadInput
        For another language, or when it can't be fetched.

    Example
    -------
    >>> corpus("en")  # doctest: +SKIP
    '/home/you/.cache/blsp_plugin/corpus-en'
    """
    if language not in LANGUAGES:
        raise BadInput(
            f"starter corpus: no language {language!r}; use one of "
            + ", ".join(LANGUAGES)
        )
    return ensure(PARTS[f"corpus-{language}"])


def portable(source):
    """A name for a model that holds on other machines too, where there is one.

    Arguments
    ---------
    source : str
        Folder or hub id.

    Returns
    -------
    str
        ``starter:<part>`` for a model of the kit, else ``source`` itself.

    Example
    -------
    >>> import os
    >>> portable(os.path.join(root(), "whisper-base"))
    'starter:whisper-base'
    >>> portable("openai/whisper-small")
    'openai/whisper-small'
    """
    for name in PARTS:
        if os.path.abspath(source) == os.path.join(root(), name):
            return _SCHEME + name
    return source


def resolve(source):
    """The folder or hub id that a name stands for; fetched if need be.

    Arguments
    ---------
    source : str
        From `portable`.

    Returns
    -------
    str

    Raises
    ------
    BadInput
        If the kit has no such part, or it cannot be fetched.

    Example
    -------
    >>> resolve("openai/whisper-small")
    'openai/whisper-small'
    """
    if not source.startswith(_SCHEME):
        return source
    name = source.removeprefix(_SCHEME)
    if name not in PARTS:
        raise BadInput(f"{source}: the starter kit has {', '.join(PARTS)}")
    return ensure(PARTS[name])
