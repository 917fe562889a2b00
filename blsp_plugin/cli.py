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
import json
import os
import sys

from blsp_plugin.errors import BadInput, one_line_errors

__all__ = ["find_adapter", "main"]

# Looked for in this order; the second is that of a checkout.
_PLACES = (
    "results/blsp/adapter",
    os.path.join("pretrained", "starter"),
    os.path.join(
        os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
        "pretrained",
        "starter",
    ),
    "results/demo/blsp/adapter",
)
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
_HELP = """\
/audio FILE [TEXT]  say a clip (with a text beside it); a path alone does too
/new                begin a new conversation
/quit               end (or Ctrl-D)
/help               show this"""


def find_adapter():
    """The adapter that is meant where none is named.

    Returns
    -------
    str
        ``$BLSP_ADAPTER``, or the first folder that is there of
        ``results/blsp/adapter``, ``pretrained/starter``,
        ``results/demo/blsp/adapter``.

    Raises
    ------
    BadInput
        If there is none.
    """
    named = os.environ.get("BLSP_ADAPTER")
    if named:
        return named
    for place in _PLACES:
        if os.path.isfile(os.path.join(place, "adapter.json")):
            return place
    raise BadInput(
        "no adapter: give --adapter FOLDER, set BLSP_ADAPTER, or train one "
        "(make demo)"
    )


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
            if getattr(args, "adapter", "") is None:
                args.adapter = find_adapter()
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
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True
    )
    for add in (_add_answer, _add_chat, _add_transcribe, _add_export):
        add(commands)
    for name, (words, module, _) in _OTHERS.items():
        command = commands.add_parser(name, help=words, description=words)
        if name in argv[:1]:
            with _extra_needed(name):
                module = importlib.import_module(module)
                module.add_arguments(command)
                command.set_defaults(module=module)
    doctor = commands.add_parser(
        "doctor", help="explain the environment in ten lines"
    )
    doctor.add_argument(
        "--mend",
        action="store_true",
        help="move torchaudio's CUDA-linked libraries aside on CPU-only torch",
    )
    doctor.set_defaults(run=_doctor)
    return parser


def _command(commands, name, run, words, examples):
    command = commands.add_parser(
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
        help="of the LLM's weights (default: as trained)",
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


def _add_answer(commands):
    parser = _command(
        commands,
        "answer",
        _answer,
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


def _add_chat(commands):
    parser = _command(
        commands,
        "chat",
        _chat,
        "talk with it, by keyboard and by audio files",
        "  blsp chat\n"
        "  blsp chat question.wav          (says the clip first)\n"
        "  printf '%s\\n' clip.wav 'And in French?' | blsp chat\n"
        "\nin the conversation:\n"
        + "\n".join(f"  {line}" for line in _HELP.splitlines()),
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


def _add_transcribe(commands):
    parser = _command(
        commands,
        "transcribe",
        _transcribe,
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
    _add_model_options(parser)


def _add_export(commands):
    parser = _command(
        commands,
        "export",
        _export,
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


# The commands


def _doctor(args):
    from blsp_plugin.doctor import main as doctor

    return doctor(["--mend"] if args.mend else [])


def _open(args):
    """The speech LLM that the options name."""
    adapter = args.adapter or find_adapter()
    _quiet()
    from blsp_plugin.inference import SpeechLLM

    run_opts = None
    if args.device is not None:
        _check_device(args.device)
        run_opts = {"device": args.device}
    return SpeechLLM.from_hparams(
        adapter,
        whisper=args.whisper,
        llm=args.llm,
        dtype=args.dtype,
        run_opts=run_opts,
    )


def _quiet():
    """Only errors of the libraries below, and no bars for half a second."""
    import logging
    import warnings

    logging.getLogger("speechbrain").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _check_device(name):
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BadInput(f"--device {name}: cannot be used ({reason})") from error


def _choice(args):
    choice = {"temperature": args.temperature, "top_p": args.top_p}
    return {**choice, "seed": args.seed}


def _say(text="", end="\n"):
    sys.stdout.write(text + end)
    sys.stdout.flush()


def _say_json(value):
    _say(json.dumps(value, ensure_ascii=False))


def _complain(text):
    # Names of files may be of any bytes.
    text = text.encode("utf-8", "backslashreplace").decode()
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _answer(args):
    for clip in args.clips:
        if not os.path.exists(clip):
            raise BadInput(
                f"{clip}: no such file; give clips, and behind them the "
                "question in quotes"
            )
    if os.path.isfile(args.question):
        raise BadInput(
            f"{args.question}: is a file; give the question behind the clips"
        )
    speech_llm, question = _open(args), _as_text(args.question)
    sys.stdout.reconfigure(errors="surrogateescape")  # names of files
    if len(args.clips) == 1 and not args.json:
        for piece in speech_llm.stream(
            args.clips[0], question, args.max_new_tokens, **_choice(args)
        ):
            _say(piece, end="")
        _say()
        return 0
    status = 0
    for clip in args.clips:
        try:
            pieces = speech_llm.stream(
                clip, question, args.max_new_tokens, **_choice(args)
            )
        except BadInput as error:
            _complain(f"error: {_named(clip, error)}")
            status = 1
            continue
        text = "".join(pieces)
        if args.json:
            _say_json({"path": clip, "question": question, "answer": text})
        else:
            _say(f"{clip}\t{' '.join(text.split())}")
    return status


def _named(path, error):
    return str(error) if path in str(error) else f"{path}: {error}"


def _transcribe(args):
    with contextlib.ExitStack() as stack:
        # Refused before the models are opened, if it is to be refused.
        _quiet()
        from tqdm import tqdm

        from blsp_plugin.transcribing import TranscriptFile, ask_files

        paths, output = list(dict.fromkeys(args.clips)), None
        if args.output is not None:
            output = TranscriptFile(args.output, args.json, paths)
            stack.enter_context(output)
            paths = [path for path in paths if path not in output]
        if not paths:
            return 0
        speech_llm = _open(args)
        # Paths may be of any bytes.
        sys.stdout.reconfigure(errors="surrogateescape")
        bar = stack.enter_context(
            tqdm(
                total=len(paths),
                unit="file",
                file=sys.stderr,
                disable=None,  # where nobody looks
            )
        )
        failed = 0
        for transcript in ask_files(
            speech_llm,
            paths,
            speech_llm.transcribe_instruction,
            batch_size=args.batch_size,
            max_new_tokens=args.max_new_tokens,
        ):
            with tqdm.external_write_mode(file=sys.stderr):
                if transcript.error is not None:
                    failed += 1
                    _complain(f"error: {transcript.error}")
                elif output is None:
                    _say(transcript.line(args.json))
                else:
                    output.write(transcript)
            bar.update()
    return int(bool(failed))


def _export(args):
    _quiet()
    from blsp_plugin import export

    if args.transformers:
        done = export.export_transformers(
            args.source,
            args.target,
            whisper=args.whisper,
            llm=args.llm,
            dtype=args.dtype,
            overwrite=args.overwrite,
        )
    else:
        done = export.export_adapter(
            args.source,
            args.target,
            metrics=args.metrics,
            whisper=args.whisper,
            llm=args.llm,
            dtype=args.dtype,
            licence=args.license,
            languages=args.language,
            check=args.check,
            overwrite=args.overwrite,
            allow_local_paths=args.allow_local_paths,
        )
    url = None
    if args.push:
        url = export.push(args.target, args.push, args.private)
    if args.json:
        _say_json({**done._asdict(), "url": url})
        return 0
    for name, size in done.files.items():
        _say(f"{os.path.join(done.folder, name)}\t{size} bytes")
    if done.difference is not None:
        _say(f"largest difference of the logits: {done.difference:g}")
    if url is not None:
        _say(url)
    return 0


def _chat(args):
    for clip in args.clips:
        if not os.path.exists(clip):
            raise BadInput(f"{clip}: no such file; give audio files")
    speech_llm = _open(args)
    chat = speech_llm.chat(args.system)
    typed = sys.stdin.isatty() and not args.json
    if typed:
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")  # input() then has a history
        _say("Type, or drop an audio file here; /help says more.")
    failed = 0
    if args.clips:
        failed += not _turn(chat, args, None, args.clips)
    for line in _lines(typed):
        line = line.strip()
        if line == "/quit":
            break
        if line == "/new":
            chat = speech_llm.chat(args.system)
        elif line == "/help":
            _say(_HELP)
        elif line:
            try:
                text, clips = _said(line)
            except BadInput as error:
                _complain(f"error: {error}")
                failed += 1
                continue
            failed += not _turn(chat, args, text, clips)
    return int(bool(failed) and not typed)


def _lines(typed):
    """What is typed, or piped, line by line."""
    if not typed:
        sys.stdin.reconfigure(errors="surrogateescape")
        yield from sys.stdin
        return
    while True:
        try:
            yield input("> ")
        except EOFError:
            _say()
            return


def _said(line):
    """A line of a conversation as text and clips."""
    import shlex

    if line.split()[0] == "/audio":
        try:
            words = shlex.split(line)[1:]
        except ValueError as error:
            raise BadInput(f"{line}: {error}; mend the quotes") from error
        if not words:
            raise BadInput("/audio: name a file")
        # A name with spaces may stand without quotes.
        rest = line.split(None, 1)[1]
        if os.path.isfile(rest):
            return None, [rest]
        return _as_text(" ".join(words[1:])) or None, [words[0]]
    dropped = line.removeprefix("file://")
    candidates = [line, dropped]
    with contextlib.suppress(ValueError):
        # Terminals quote the name, or put backslashes before its spaces.
        words = shlex.split(dropped)
        candidates += words if len(words) == 1 else []
    for path in candidates:
        if os.path.isfile(path):
            return None, [path]
    if line.startswith("/") and len(line.split()) == 1:
        raise BadInput(f"{line}: no such command or file; /help shows them")
    return _as_text(line), []


def _as_text(words):
    """What was typed, without bytes that are no characters."""
    return words.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _turn(chat, args, text, clips):
    """Say something and show the reply; whether that went well."""
    try:
        pieces = chat.stream(
            text, list(clips), args.max_new_tokens, **_choice(args)
        )
    except BadInput as error:
        _complain(f"error: {error}")
        return False
    if args.json:
        reply = "".join(pieces)
        figures = chat.figures._asdict()
        said = {"text": text, "audio": clips, "reply": reply}
        _say_json({**said, **figures})
        return True
    for piece in pieces:
        _say(piece, end="")
    _say()
    return True
