"""Every command and every example in every README really runs."""

import glob
import os
import re
import shlex
import subprocess
import sys

import pytest
import soundfile
import yaml

from tests.kit import (
    project_folder,
    tiny_kit,
    tiny_librispeech,
    tiny_speech_folder,
)
from tests.server import transformers_server
from tests.tiny import tiny_corpus, tiny_llm, tiny_tasks, tiny_whisper
from tests.training import ROOT
from tests.warm_python import warm_python

READMES = sorted(
    [os.path.join(ROOT, "README.md")]
    + glob.glob(os.path.join(ROOT, "recipes", "*", "README.md"))
)


def blocks(readme, language):
    """Fenced blocks of a language, with line continuations joined."""
    with open(readme, encoding="utf-8") as stream:
        text = stream.read()
    found = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return [block.replace("\\\n", " ") for block in found]


def commands(readme):
    """Shell commands of a README, one a line, comments left out."""
    lines = "\n".join(blocks(readme, "(?:bash|sh|shell)")).splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A project folder, and what stands for a user's models and data."""
    folder = tmp_path_factory.mktemp("documented")
    corpus = tiny_corpus(folder / "corpus", n=6, n_eval=4)
    stand_ins = {
        "/data/LibriSpeech": tiny_librispeech(corpus, folder / "libri"),
        **dict.fromkeys(
            ("/data/CoVoST", "/data/fluent_speech_commands", "/data/SLURP"),
            tiny_tasks(corpus, folder / "tasks"),
        ),
        # A worker's imports take seconds: only the run of two ranks has some.
        "/blsp_two_ranks": "/blsp_two_ranks --num_workers 1",
        # Few sentences and few rows: it is run, not trained.
        "starter.py ": "starter.py --sentences 3 --lists 2 "
        "--number_of_epochs 1 ",
        "words.yaml": "words.yaml --number 2 --most_lists 2",
        "/data/speech": tiny_speech_folder(corpus, folder / "speech"),
        "openai/whisper-small": tiny_whisper(folder / "whisper", seed=3),
        "meta-llama/Llama-3.2-1B-Instruct": tiny_llm(folder / "llm", seed=3),
    }
    environment = {
        **os.environ,
        "BLSP_STARTER": str(tiny_kit(folder / "kit")),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": ROOT,
        "PATH": os.path.dirname(sys.executable) + ":" + os.environ["PATH"],
    }
    project = project_folder(folder / "project")
    preset = project / "hparams" / "train.yaml"
    text = preset.read_text()
    assert "num_workers: 1" in text
    preset.write_text(text.replace("num_workers: 1", "num_workers: 0"))
    soundfile.write(project / "clip.wav", [0.01, -0.01] * 8000, 16000)
    llm = folder / "kit" / "smollm2-135m-instruct"
    with (
        transformers_server(llm, folder / "server.txt") as url,
        warm_python(folder / "bin", environment) as python,
    ):
        environment["PATH"] = f"{python.parent}:{environment['PATH']}"
        environment["PYTHON_EXEC"] = str(python)  # of torchrun's ranks
        # It takes text only, and knows its LLM by the folder.
        stand_ins["{url: http://127.0.0.1:8000/v1, model: llm}"] = (
            f"{{url: {url}, model: {llm}, prompt_as: text, extra_body: null}}"
        )
        yield project, stand_ins, environment


def run(command, place):
    project, stand_ins, environment = place
    for documented, here in stand_ins.items():
        command = command.replace(documented, str(here))
    return subprocess.run(
        command,
        shell=True,
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
    )


def make_target_runs_something(command):
    """`make test` runs this very suite: look only at what it would run."""
    done = subprocess.run(
        ["make", "--dry-run", *shlex.split(command)[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.returncode == 0 and "/bin/python" in done.stdout


def test_recipes_run_as_documented(place):
    """The loop's commands in the order of the READMEs, the main one first."""
    assert run("python -c 'raise SystemExit(3)'", place).returncode == 3
    assert "no_such" in run("python -c 'no_such()'", place).stderr
    seen = []
    for readme in READMES:
        assert commands(readme), f"{readme} has no command"
        for command in commands(readme):
            if command in seen:
                continue
            seen.append(command)
            if shlex.split(command)[0] == "make":
                assert make_target_runs_something(command), command
                continue
            if ".venv-vllm" in command:
                # Gigabytes: tests/test_vllm_engine.py runs it if it is there.
                assert os.path.isfile(os.path.join(ROOT, command.split()[2]))
                continue
            done = run(command, place)
            assert done.returncode == 0, (
                f"{readme}: {command}\n{done.stdout[-3000:]}"
                f"{done.stderr[-3000:]}"
            )
    stages = ("continuation/generate", "blsp/train", "report/report")
    tasks = [f"{task}/evaluate" for task in ("asr", "st", "slu", "chat")]
    for stage in (*stages, *tasks):
        assert any(stage in command for command in seen)
    assert any("torchrun" in command for command in seen)
    python_examples_run(place)
    demo_shows_its_table(place)


def python_examples_run(place):
    """The README's Python, on the adapter that its commands have trained."""
    project, _, environment = place
    for readme in READMES:
        for code in blocks(readme, "python"):
            done = subprocess.run(
                ["python", "-c", code],
                cwd=project,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{readme}:\n{code}\n{done.stderr}"


def demo_shows_its_table(place):
    """`make demo` is recipes/demo/demo.py; a second run reuses the first."""
    for _ in range(2):
        done = run("python recipes/demo/demo.py", place)
        assert done.returncode == 0, done.stderr[-3000:]
        for word in ("agreement", "cascade", "metrics.json"):
            assert word in done.stdout, done.stdout


def yaml_files():
    pattern = os.path.join(ROOT, "hparams", "**", "*.yaml")
    return sorted(glob.glob(pattern, recursive=True))


class AnyTag(yaml.SafeLoader):
    """Reads HyperPyYAML without building its objects."""


AnyTag.add_multi_constructor(
    "!",
    lambda loader, suffix, node: (
        loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.MappingNode)
        else loader.construct_sequence(node, deep=True)
        if isinstance(node, yaml.SequenceNode)
        else node.value
    ),
)


def base_keys(path):
    """Keys of a preset's base, and of its base."""
    keys, folder = set(), os.path.dirname(path)
    while True:
        with open(path, encoding="utf-8") as stream:
            tree = yaml.load(stream.read(), AnyTag)  # noqa: S506
        if "base" not in tree:
            return keys
        path = os.path.join(folder, tree["base"])
        with open(path, encoding="utf-8") as stream:
            keys |= set(yaml.load(stream.read(), AnyTag))  # noqa: S506


@pytest.mark.parametrize("path", yaml_files(), ids=os.path.basename)
def test_every_key_is_read(path):
    """By a reference in the YAML or by name in a recipe or the library."""
    with open(path, encoding="utf-8") as stream:
        text = stream.read()
    keys = yaml.load(text, AnyTag)  # noqa: S506
    if "base" in keys:
        with open(path, encoding="utf-8") as stream:
            lines = [
                line
                for line in stream
                if line.strip() and not line.startswith("#")
            ]
        assert len(lines) <= 40, "a preset differs by at most 40 lines"
        known = base_keys(path)
        own = {key for key in keys if key not in known and key != "base"}
        assert all(f"<{key}>" in text for key in own)
        keys = own
    code = ""
    for folder in ("recipes", "blsp_plugin"):
        pattern = os.path.join(ROOT, folder, "**", "*.py")
        for source in glob.glob(pattern, recursive=True):
            with open(source, encoding="utf-8") as stream:
                code += stream.read()
    from speechbrain.core import RunOptions

    run_options = RunOptions().as_dict()
    for key in keys:
        if key.startswith("__"):
            continue
        read = (
            f"<{key}" in text
            or re.search(rf"[\"']{key}[\"']", code)
            or f"hparams.{key}" in code
            or key in run_options
        )
        assert read, f"{path}: nobody reads {key}"
        swallowed = [o for o in run_options if o.startswith(key) and o != key]
        assert not swallowed, f"--{key} would be taken for --{swallowed[0]}"
