"""``blsp serve``: its options, and starting what they ask for.

Authors
 * The blsp_plugin team 2026
"""

import logging
import os

__all__ = ["add_arguments", "run"]

logger = logging.getLogger(__name__)


def add_arguments(parser):
    """Describe the command line.

    Arguments
    ---------
    parser : argparse.ArgumentParser
        Gets the options.
    """
    add = parser.add_argument
    add(
        "adapter",
        nargs="?",
        help="folder or hub id of a trained adapter (default: see blsp --help)",
    )
    add(
        "--vllm",
        metavar="URL",
        help="a vLLM server of the adapter's LLM, started with "
        "--enable-prompt-embeds; without it the LLM runs in this process",
    )
    add("--vllm-model", help="name of the LLM there, if it serves several")
    add(
        "--vllm-key",
        default=os.environ.get("VLLM_API_KEY"),
        help="API key of vLLM (default: $VLLM_API_KEY)",
    )
    add(
        "--vllm-wait",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="that vLLM may take to start (%(default)s)",
    )
    add("--llm", help="the LLM, where it is not that of the folder")
    add("--whisper", help="the encoder, where it is not that of the folder")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "int8"),
        help="of the LLM's weights (default: as trained; float32 on a CPU that "
        "would emulate bfloat16; with --vllm, whose own dtype decides, of the "
        "embeddings: float32)",
    )
    add(
        "--encoder-dtype",
        choices=("float32", "bfloat16"),
        help="of the encoder's weights (default: likewise); in float32 what "
        "a clip becomes does not depend on those encoded with it",
    )
    add("--device", help="cpu, cuda, ... (default: cuda if there is one)")
    add(
        "--host", default="127.0.0.1", help="address to listen at (%(default)s)"
    )
    add("--port", type=int, default=8080, help="0: any free (%(default)s)")
    add("--model-name", default="blsp", help="for callers (%(default)s)")
    add(
        "--api-key",
        default=os.environ.get("BLSP_API_KEY"),
        help="that callers must give (default: $BLSP_API_KEY, else none)",
    )
    for option, kind, default, text in (
        ("--max-seconds", float, 120.0, "longest clip, s"),
        ("--max-mb", float, 32.0, "largest request, MB"),
        ("--max-queue", int, 256, "requests that wait or are answered"),
        ("--max-new-tokens", int, 256, "longest answer, tokens"),
        ("--read-timeout", float, 10.0, "s that a caller may send nothing"),
        ("--timeout", float, 600.0, "s that an answer may take"),
        ("--cache-mb", float, 256.0, "of speech that was heard already"),
        ("--batch-size", int, 16, "answers decoded together without vLLM"),
    ):
        add(
            option,
            type=kind,
            default=default,
            help=f"{text} (%(default)s)",
        )


def run(args):
    """Serve until somebody ends it.

    Arguments
    ---------
    args : argparse.Namespace
        From `add_arguments`.

    Raises
    ------
    BadInput
        If something is missing, or does not fit the adapter.
    """
    from blsp_plugin.errors import BadInput

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ("httpx", "httpcore", "speechbrain"):
        logging.getLogger(name).setLevel(logging.WARNING)
    limits = _limits(args)
    try:
        import fastapi  # noqa: F401
        import httpx  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise BadInput(
            f"serving needs {error.name}: pip install 'blsp_plugin[serve]'"
        ) from error
    from blsp_plugin.serving.app import make_app
    from blsp_plugin.serving.service import Service
    from blsp_plugin.serving.web import serve

    speech_llm, engine = (_here if args.vllm is None else _at_vllm)(
        args, limits
    )
    service = Service(
        speech_llm, engine, limits, args.model_name, args.cache_mb
    )
    if args.host not in ("127.0.0.1", "localhost", "::1") and not args.api_key:
        logger.warning("%s: anybody there can ask; give --api-key", args.host)
    serve(make_app(service, args.api_key), args.host, args.port, limits)


def _limits(args):
    from blsp_plugin.errors import BadInput
    from blsp_plugin.serving.limits import Limits

    for name in (
        "max_seconds",
        "max_mb",
        "max_queue",
        "max_new_tokens",
        "read_timeout",
        "timeout",
        "batch_size",
    ):
        if not getattr(args, name) > 0:
            option = name.replace("_", "-")
            raise BadInput(f"--{option}: give a number above 0")
    return Limits(
        seconds=args.max_seconds,
        body=int(args.max_mb * 2**20),
        queue=args.max_queue,
        new_tokens=args.max_new_tokens,
        read_seconds=args.read_timeout,
        answer_seconds=args.timeout,
    )


def _open(args, dtype, llm_class=None):
    import torch

    from blsp_plugin.errors import BadInput
    from blsp_plugin.inference import SpeechLLM

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options = {} if llm_class is None else {"llm_class": llm_class}
    try:
        return SpeechLLM.from_hparams(
            args.adapter,
            whisper=args.whisper,
            llm=args.llm,
            dtype=dtype,
            encoder_dtype=args.encoder_dtype,
            run_opts={"device": device},
            **options,
        )
    except BadInput:
        raise
    except Exception as error:  # a hub has a dozen ways to say no
        if os.path.isdir(args.adapter):
            raise
        raise BadInput(
            f"{args.adapter}: no such folder, and no hub gives it "
            f"({type(error).__name__}); correct it"
        ) from error


def _here(args, limits):
    """The whole LLM in this process."""
    from blsp_plugin.serving.local import LocalEngine

    speech_llm = _open(args, args.dtype)
    return speech_llm, LocalEngine(speech_llm.model.llm, args.batch_size)


def _at_vllm(args, limits):
    """The LLM in vLLM, its embeddings here."""
    from blsp_plugin.errors import BadInput
    from blsp_plugin.package import read_facts
    from blsp_plugin.serving.embeddings import TokenEmbeddings
    from blsp_plugin.serving.handshake import check_same_llm, find_server
    from blsp_plugin.serving.vllm import VLLMEngine

    if os.path.isdir(args.adapter) and read_facts(args.adapter).get("lora"):
        raise BadInput(
            f"{args.adapter}: has LoRA in the LLM, which vLLM has not; serve "
            "it without --vllm"
        )
    if args.dtype == "int8":
        raise BadInput("--dtype int8: with --vllm, round the weights there")
    served = find_server(
        args.vllm, args.vllm_model, args.vllm_key, args.vllm_wait
    )
    speech_llm = _open(args, args.dtype or "float32", TokenEmbeddings)
    check_same_llm(served, speech_llm)
    logger.info("%s: serves the LLM of %s", served.url, args.adapter)
    stop_ids = speech_llm.model.llm.stop_ids
    engine = VLLMEngine(served, stop_ids, limits.queue, limits.answer_seconds)
    return speech_llm, engine
