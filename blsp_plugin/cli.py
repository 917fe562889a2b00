"""The ``blsp`` command: a trained adapter from the shell.

Nothing heavy is imported before a command needs it, so that ``--help`` is
there at once. The library prints nothing; what is on the standard output is
written here.

Authors
 * The blsp_plugin team 2026
"""

import argparse
import contextlib
import importlib
import os
import sys

from blsp_plugin import commands
from blsp_plugin.errors import BadInput, one_line_errors

__all__ = ["main"]

# Commands of other modules: what they do, their module, its extra.
_OTHERS = {
    "serve": (
        "answer over HTTP, as OpenAI's API does",
        "blsp_plugin.serving.command",
        "serve",
    ),
    "web": (
        "talk to it in the browser",
        "blsp_plugin.webpage.command",
        "demo",
    ),
}


def main(argv=None):
    """Run a command.

    Arguments
    ---------
    argv : list of str, optional
        The command line; the process' own if not given.

    Returns
    -------
    int
        Exit status: 0, 1 if some files or turns failed, 130 after Ctrl-C,
        141 if nobody reads on. Bad input exits with status 2 and one line.
    """
    try:
        return _main(sys.argv[1:] if argv is None else argv) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Python would complain about what it could not flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


@one_line_errors
def _main(argv):
    args = _parser(argv).parse_args(argv)
    if args.command in _OTHERS:
        with _extra_needed(args.command):
            if args.adapter is None:
                args.adapter = commands.find_adapter()
            return args.module.run(args)
    return args.run(args)


@contextlib.contextmanager
def _extra_needed(command):
    """A package that is missing is named with the extra that brings it."""
    _, _, extra = _OTHERS[command]
    try:
        yield
    except ModuleNotFoundError as error:
        raise BadInput(
            f"blsp {command} needs more ({error.name} is missing): "
            f"pip install 'blsp_plugin[{extra}]'"
        ) from error


# The command line


def _parser(argv):
    parser = argparse.ArgumentParser(
        prog="blsp",
        description="Make a text LLM hear: speech and an instruction in, "
        "text out.",
        epilog="blsp COMMAND --help shows examples. The adapter is that of "
        "--adapter, else $BLSP_ADAPTER, else results/blsp/adapter, else the "
        "one that comes with the project, else that of make demo.",
    )
    subparsers = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True
    )
    for add in (_add_answer, _add_chat, _add_transcribe, _add_export):
        add(subparsers)
    for name, (words, module, _) in _OTHERS.items():
        command = subparsers.add_parser(name, help=words, description=words)
        if name in argv[:1]:
            with _extra_needed(name):
                module = importlib.import_module(module)
                module.add_arguments(command)
                command.set_defaults(module=module)
    doctor = subparsers.add_parser(
        "doctor", help="explain the environment in ten lines"
    )
    doctor.add_argument(
        "--mend",
        action="store_true",
        help="move torchaudio's CUDA-linked libraries aside on CPU-only torch",
    )
    doctor.set_defaults(run=commands.doctor)
    return parser


def _command(subparsers, name, run, words, examples):
    command = subparsers.add_parser(
        name,
        help=words,
        description=words[0].upper() + words[1:] + ".",
        epilog="examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _add_model_options(parser, new_tokens=128):
    """What the commands that open a model have in common."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--adapter",
        metavar="FOLDER",
        help="trained adapter, a folder or hub id (default: see blsp --help)",
    )
    _add_base_options(group)
    group.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "int8"],
        help="of the LLM's weights (default: as trained; float32 on a CPU that "
        "would emulate bfloat16)",
    )
    group.add_argument(
        "--encoder-dtype",
        "--encoder_dtype",
        choices=["float32", "bfloat16"],
        help="of the encoder's weights (default: likewise)",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: any)")
    group.add_argument(
        "--max-new-tokens",
        "--max_new_tokens",
        type=_positive,
        default=new_tokens,
        metavar="N",
        help=f"longest answer, in tokens (default: {new_tokens})",
    )


def _add_base_options(group):
    for name, what in (("whisper", "encoder"), ("llm", "LLM")):
        group.add_argument(
            f"--{name}",
            metavar="MODEL",
            help=f"folder or hub id of the {what}, where the adapter's own "
            "name of it is not found",
        )


def _add_choice_options(parser):
    group = parser.add_argument_group("sampling (greedy if not given)")
    group.add_argument("--temperature", type=float, default=0.0, metavar="T")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P")
    group.add_argument("--seed", type=int, metavar="N")


def _positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def _above_zero(text):
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number


def _add_answer(subparsers):
    parser = _command(
        subparsers,
        "answer",
        commands.answer,
        "follow an instruction on one clip, or on each of several",
        '  blsp answer clip.wav "Please repeat the following words."\n'
        '  blsp answer clip.wav "Please translate the following text into '
        'German."\n'
        '  blsp answer a.wav b.wav c.wav "Is this a question?" --json\n'
        '  blsp answer long.mp3 "Sum this up." --dtype int8',
    )
    parser.add_argument("clips", nargs="+", metavar="CLIP", help="audio file")
    parser.add_argument("question", help="the instruction, in words")
    parser.add_argument(
        "--json", action="store_true", help="a JSON object a clip"
    )
    _add_model_options(parser)
    _add_choice_options(parser)


def _add_chat(subparsers):
    parser = _command(
        subparsers,
        "chat",
        commands.chat,
        "talk with it, by keyboard and by audio files",
        "  blsp chat\n"
        "  blsp chat question.wav          (says the clip first)\n"
        "  printf '%s\\n' clip.wav 'And in French?' | blsp chat\n"
        "\nin the conversation:\n"
        + "\n".join(f"  {line}" for line in commands.HELP.splitlines()),
    )
    parser.add_argument(
        "clips", nargs="*", metavar="CLIP", help="said first, together"
    )
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument(
        "--json", action="store_true", help="a JSON object a turn"
    )
    _add_model_options(parser, 256)
    _add_choice_options(parser)


def _add_transcribe(subparsers):
    parser = _command(
        subparsers,
        "transcribe",
        commands.transcribe,
        "transcribe many files, one line each",
        "  blsp transcribe *.flac > transcripts.tsv\n"
        "  blsp transcribe recordings/*.mp3 --json --output transcripts.jsonl"
        "\n\nWith --output the same command goes on where it was stopped.\n"
        "A bad file is one line on the standard error; the rest goes on, and\n"
        "the exit status is 1.",
    )
    parser.add_argument("clips", nargs="+", metavar="CLIP", help="audio file")
    parser.add_argument(
        "--output", metavar="FILE", help="write there; files in it are skipped"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="JSON lines with path, text, seconds; else path, tab, text",
    )
    parser.add_argument(
        "--batch-size",
        "--batch_size",
        type=_positive,
        default=16,
        metavar="N",
        help="files read together, at most (default: 16)",
    )
    parser.add_argument(
        "--max-decode-ratio",
        "--max_decode_ratio",
        type=_above_zero,
        metavar="R",
        help="tokens of a transcript per token of the speech, at most: cuts "
        "what loops (default: any)",
    )
    _add_model_options(parser)


def _add_export(subparsers):
    parser = _command(
        subparsers,
        "export",
        commands.export,
        "pack a trained adapter for others, with a model card",
        "  blsp export results/blsp/adapter my-adapter --metrics results/asr\n"
        "  blsp export results/blsp/adapter my-adapter --push me/my-adapter\n"
        "  blsp export results/blsp/adapter merged --transformers",
    )
    parser.add_argument("source", help="adapter folder of a training")
    parser.add_argument("target", help="folder to write")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=[],
        metavar="PATH",
        help="output folders of evaluations, for the model card",
    )
    _add_base_options(parser)
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="of the weights in the files (default: as trained)",
    )
    parser.add_argument(
        "--license", metavar="ID", help="the hub's name of one: apache-2.0, ..."
    )
    parser.add_argument(
        "--language",
        nargs="+",
        default=[],
        metavar="CODE",
        help="that are understood (default: those of the evaluations)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="open the base, too, and compare logits before and after",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="write into a folder that holds other files",
    )
    parser.add_argument(
        "--allow-local-paths",
        action="store_true",
        help="for a package that stays on this machine",
    )
    parser.add_argument(
        "--transformers",
        action="store_true",
        help="encoder, adapter and LLM as one model for transformers",
    )
    parser.add_argument(
        "--push", metavar="USER/NAME", help="upload to the Hugging Face hub"
    )
    parser.add_argument(
        "--private", action="store_true", help="a repository that is made"
    )
    parser.add_argument(
        "--json", action="store_true", help="say what was written as JSON"
    )
