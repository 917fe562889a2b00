"""The arguments of ``blsp web``, and serving the page.

Authors
 * The blsp_plugin team 2026
"""

import logging
import os
import signal
import sys
import tempfile

from blsp_plugin.errors import BadInput

__all__ = ["add_arguments", "run"]

logger = logging.getLogger(__name__)


def add_arguments(parser):
    """Say what ``blsp web`` takes; imports nothing heavy.

    Arguments
    ---------
    parser : argparse.ArgumentParser
    """
    add = parser.add_argument
    add(
        "adapter",
        nargs="?",
        metavar="ADAPTER",
        help="adapter folder, or its hub id (default: see blsp --help)",
    )
    add("--whisper", help="Whisper, where it is not under its name")
    add("--llm", help="LLM, where it is not under its name")
    add("--dtype", help="of the LLM: float32, bfloat16 or int8")
    add("--encoder-dtype", help="of the encoder: float32 or bfloat16")
    add("--device", help="cpu or cuda (default: cuda if there is one)")
    add("--host", default="127.0.0.1", help="address (default: %(default)s)")
    add("--port", type=int, default=7860, help="default: %(default)s")
    for name, default, what in (
        ("--max-seconds", 120.0, "longest clip"),
        ("--max-mb", 20.0, "largest upload"),
        ("--max-characters", 2000, "longest text"),
        ("--max-new-tokens", 128, "longest answer"),
        ("--max-queue", 16, "turns that may wait"),
        ("--max-visitors", 32, "conversations that are kept"),
        ("--idle-minutes", 60.0, "a conversation ends after such a pause"),
    ):
        add(
            name,
            type=type(default),
            default=default,
            help=f"{what} (default: {default:g})",
        )
    add(
        "--no-cascade",
        action="store_true",
        help="without Whisper's transcript and the LLM's answer to it",
    )
    add(
        "--examples",
        metavar="FOLDER",
        help="clips to begin with; <clip>.txt is an instruction (default: of "
        "the starter corpus, where it is)",
    )


def run(args):
    """Serve the page until it is interrupted.

    Arguments
    ---------
    args : argparse.Namespace
        Of a parser with `add_arguments`.

    Raises
    ------
    BadInput
        If the adapter cannot be opened or cannot chat, the port is taken, or
        a limit is none.
    """
    for name in ("seconds", "mb", "characters", "new_tokens", "queue"):
        if not getattr(args, f"max_{name}") > 0:
            option = f"--max-{name.replace('_', '-')}"
            raise BadInput(f"{option}: must be more than 0")
    if not args.max_visitors > 0 or not args.idle_minutes > 0:
        raise BadInput("--max-visitors, --idle-minutes: must be more than 0")
    # Nothing of a visitor outlives the page, and nobody else reads it here.
    with tempfile.TemporaryDirectory(prefix="blsp_web_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        # Read when gradio is imported: the page asks no other machine.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        page = _page(args)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            serve(page, args.host, args.port)
        except KeyboardInterrupt:
            logger.info("the page is closed")
        finally:
            page.blocks.close(verbose=False)


def serve(page, host, port, wait=True):
    """Put a page on the network.

    Arguments
    ---------
    page : Page
    host : str
        Address to listen at.
    port : int
        Port to listen at; 0 for any that is free.
    wait : bool
        Whether to return only when the page is closed.

    Returns
    -------
    str
        Its address.

    Raises
    ------
    BadInput
        If the port is taken.
    """
    from blsp_plugin.webpage.look import CSS, theme

    if host not in ("127.0.0.1", "localhost", "::1"):
        logger.warning(
            "%s: whoever reaches this machine can use the page; it has no "
            "password and no encryption, put a proxy with both in front",
            host,
        )
    try:
        _, url, _ = page.blocks.launch(
            server_name=host,
            server_port=port or None,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=int(page.limits.megabytes * 2**20),
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            state_session_capacity=1000,
            theme=theme(),
            css=CSS,
        )
    except OSError as error:
        raise BadInput(
            f"{host}:{port}: cannot listen there ({error}); give another --port"
        ) from error
    if wait:
        sys.stdout.write(f"The page is at {url} (Ctrl-C ends it)\n")
        sys.stdout.flush()
        page.blocks.block_thread()
    return url


def _page(args):
    """Open the models, build the page."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise BadInput(
            f"the web page needs gradio ({error}): pip install "
            "'blsp_plugin[demo]'"
        ) from error
    import torch

    from blsp_plugin.evaluation.whisper_asr import WhisperASR
    from blsp_plugin.inference import SpeechLLM
    from blsp_plugin.webpage.examples import find_examples, starter_examples
    from blsp_plugin.webpage.limits import Limits
    from blsp_plugin.webpage.page import Page
    from blsp_plugin.webpage.talk import Models

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    speech_llm = SpeechLLM.from_hparams(
        args.adapter,
        whisper=args.whisper,
        llm=args.llm,
        dtype=args.dtype,
        encoder_dtype=args.encoder_dtype,
        run_opts={"device": device},
    )
    if speech_llm.prompt.template is not None:
        raise BadInput(
            f"{args.adapter}: has the plain prompt of a base model, which "
            "cannot chat; the page needs an adapter of a chat model"
        )
    sources = speech_llm.model.encoder.source, speech_llm.model.llm.source
    asr = None
    if not args.no_cascade:
        asr = WhisperASR(sources[0]).to(device)
    if args.examples is None:
        examples = starter_examples()
    else:
        told = speech_llm.transcribe_instruction
        examples = find_examples(args.examples, told)
    limits = Limits(
        args.max_seconds,
        args.max_mb,
        args.max_characters,
        args.max_new_tokens,
        args.max_queue,
        args.max_visitors,
        60 * args.idle_minutes,
    )
    names = [os.path.basename(os.path.normpath(name)) for name in sources]
    about = (
        "Record or upload a clip and say what to do with it. "
        f"The LLM ({names[1]}) hears through {names[0]}."
    )
    return Page(Models(speech_llm, asr), limits, "Speech LLM", about, examples)
