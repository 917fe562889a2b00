"""What each command of ``blsp`` does.

Nothing heavy is imported before a command needs it. The library prints
nothing; what is on the standard output is written here.

Authors
 * The blsp_plugin team 2026
"""

import contextlib
import importlib
import json
import os
import sys

from blsp_plugin.errors import BadInput

__all__ = [
    "HELP",
    "answer",
    "chat",
    "doctor",
    "export",
    "find_adapter",
    "transcribe",
]

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
HELP = """\
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


def doctor(args):
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
        encoder_dtype=args.encoder_dtype,
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


def answer(args):
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


def transcribe(args):
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
            max_decode_ratio=args.max_decode_ratio,
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


def export(args):
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


def chat(args):
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
            _say(HELP)
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
