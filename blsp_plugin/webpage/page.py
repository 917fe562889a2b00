"""The page itself: what stands where, and what a click does.

What was said stands on the server, in a `Talk` for each visitor; the page
shows it. So nobody can see or change another one's conversation, and an error
takes nothing away.

Authors
 * The blsp_plugin team 2026
"""

import contextlib
import functools
import logging
import time
from html import escape

import gradio as gr

from blsp_plugin.errors import BadInput
from blsp_plugin.webpage.tables import figures_table, heard_table, note_line
from blsp_plugin.webpage.talk import Talk
from blsp_plugin.webpage.visitors import Visitors

__all__ = ["Page"]

logger = logging.getLogger(__name__)

SPEECH, CASCADE = "Speech LLM", "Cascade"
_BROKEN = (
    "Something went wrong here; what was said before is kept. Please try again."
)
_MODEL = {"concurrency_id": "model", "concurrency_limit": 1}
_AT_ONCE = {"queue": False, "show_progress": "hidden"}
# Old clips are deleted so often, and when they are so old, in seconds.
_CLEAN_EVERY = 300
_REFRESH = 0.1  # seconds between two looks of an answer


class Page:
    """A page over some models.

    Arguments
    ---------
    models : Models
    limits : Limits
    title : str
        Heading.
    about : str
        A line about the models.
    examples : list of Example

    Example
    -------
    >>> page = Page(models, limits, "Speech LLM", "")  # doctest: +SKIP
    >>> page.blocks.launch()  # doctest: +SKIP
    """

    def __init__(self, models, limits, title, about, examples=()):
        self.limits = limits
        self.has_cascade = models.asr is not None
        self.visitors = Visitors(
            functools.partial(Talk, models, limits),
            limits.idle,
            limits.visitors,
        )
        age = max(_CLEAN_EVERY, int(limits.idle))
        with gr.Blocks(
            title=title,
            analytics_enabled=False,
            delete_cache=(_CLEAN_EVERY, age),
        ) as self.blocks:
            self._build(title, about, examples)
            self._connect()
        self.blocks.queue(
            max_size=limits.queue, api_open=False, default_concurrency_limit=1
        )

    def _build(self, title, about, examples):
        with gr.Row(elem_id="head"):
            gr.HTML(f"<h1>{escape(title)}</h1><p>{escape(about)}</p>")
            self.again = gr.Button(
                "New conversation", size="sm", scale=0, min_width=160
            )
        with gr.Row():
            self.speech = _column(
                SPEECH,
                "hears the clip itself",
                "Give a clip and say what to do with it, or just ask.",
            )
            self.text = _column(
                CASCADE,
                "Whisper writes down the clip, the same LLM reads it",
                "To compare: what the LLM answers to a transcript.",
                self.has_cascade,
            )
        self.figures = gr.HTML(elem_id="figures", padding=False)
        self.note = gr.HTML(elem_id="note", padding=False)
        with gr.Row():
            self._build_clip()
            with gr.Column(min_width=300):
                self._build_words()
                if examples:
                    self._build_examples(examples)
        with gr.Accordion("What was heard in the last clip?", open=False):
            self.heard = gr.HTML(elem_id="heard", padding=False)
            self.listen = gr.Button(
                "Let the speech LLM repeat it",
                interactive=False,
                size="sm",
                elem_id="listen",
            )

    def _build_clip(self):
        limits = self.limits
        self.clip = gr.Audio(
            label=f"Clip (up to {limits.seconds:g} seconds, "
            f"{limits.megabytes:g} MB)",
            sources=["upload", "microphone"],
            type="filepath",
            buttons=[],
            elem_id="clip",
            min_width=300,
        )

    def _build_words(self):
        with gr.Row(equal_height=True, elem_id="say"):
            self.words = gr.Textbox(
                label="Instruction",
                show_label=False,
                container=False,
                placeholder="What to do with the clip?",
                lines=1,
                max_lines=5,
                max_length=self.limits.characters,
                autofocus=True,
                scale=5,
                min_width=260,
                elem_id="words",
            )
            self.send = gr.Button(
                "Send",
                variant="primary",
                elem_id="send",
                scale=1,
                min_width=72,
            )
            self.halt = gr.Button(
                "Stop", interactive=False, elem_id="halt", scale=1, min_width=72
            )
        gr.HTML(
            "Type the instruction, or speak it: a clip without a text is a "
            "message of its own.",
            elem_classes="hint",
            padding=False,
        )

    def _build_examples(self, examples):
        gr.Examples(
            [[example.path, example.instruction] for example in examples],
            [self.clip, self.words],
            example_labels=[example.label for example in examples],
            label="Examples",
            elem_id="examples",
            api_name=None,
            api_visibility="private",
        )

    def _connect(self):
        shown = [self.speech, self.text, self.figures, self.note, self.heard]
        buttons = [self.send, self.halt, self.listen]
        given = [self.words, self.clip]
        said = gr.on(
            [self.send.click, self.words.submit],
            self._say,
            given,
            [*buttons, self.note, *given],
            api_name="say",
            **_AT_ONCE,
        )
        wondered = self.listen.click(
            self._wonder,
            outputs=[*buttons, self.note],
            api_visibility="private",
            **_AT_ONCE,
        )
        for begun, turn in ((said, self._answer), (wondered, self._listen)):
            begun.success(
                turn,
                outputs=shown,
                api_name=turn.__name__.strip("_"),
                show_progress="minimal",
                show_progress_on=self.speech,
                **_MODEL,
            ).then(
                self._settle,
                given,
                [*buttons, *given],
                api_visibility="private",
                **_AT_ONCE,
            )
        self.halt.click(self._stop, api_name="stop", **_AT_ONCE)
        self.again.click(
            self._renew, outputs=[*shown, *buttons], api_name="new", **_AT_ONCE
        )
        self.blocks.unload(self._leave)

    # What a click does: at once it is noted what the visitor wants, then it
    # is done in turn. Functions are given the visitor's request by gradio.

    def _say(self, words, clip, request: gr.Request):
        talk = self._queued(request)
        talk.said = (words, clip)
        return [*_buttons(talk), "", "", None]

    def _wonder(self, request: gr.Request):
        return [*_buttons(self._queued(request)), ""]

    def _queued(self, request):
        """The visitor's conversation, waiting for its turn."""
        talk = self.visitors.get(request.session_hash)
        refused = None
        if talk.asked:
            refused = "Your last message is not answered yet."
        elif self.visitors.waiting >= self.limits.queue:
            refused = "Many people are waiting; please try again in a minute."
        if refused:
            raise gr.Error(refused, title="", print_exception=False)
        talk.waiting = True
        return talk

    def _answer(self, request: gr.Request):
        talk = self.visitors.get(request.session_hash)
        for _ in self._followed(talk, talk.ask(*talk.said), request):
            yield self._shown(talk)

    def _listen(self, request: gr.Request):
        talk = self.visitors.get(request.session_hash)
        for _ in self._followed(talk, talk.listen(), request):
            yield self._shown(talk)

    def _followed(self, talk, turn, request):
        """Whenever there is more to show; errors become the note."""
        key, last = request.session_hash, 0.0
        try:
            with contextlib.closing(turn):
                for _ in turn:
                    if key and self.visitors.get(key) is not talk:
                        return  # a new conversation has begun
                    if time.monotonic() - last >= _REFRESH:
                        last = time.monotonic()
                        yield
        except BadInput as error:
            talk.note = str(error)
        except Exception:  # a visitor gets a sentence, whatever it is
            logger.exception("a turn on the page failed")
            talk.note = _BROKEN
        yield

    def _stop(self, request: gr.Request):
        self.visitors.get(request.session_hash).stop()

    def _renew(self, request: gr.Request):
        talk = self.visitors.renew(request.session_hash)
        return [*self._shown(talk), *_buttons(talk)]

    def _settle(self, words, clip, request: gr.Request):
        talk = self.visitors.get(request.session_hash)
        talk.waiting = False
        given = [gr.skip(), gr.skip()]
        if not (talk.taken or words or clip):
            given = talk.said  # to be mended and sent again
        return [*_buttons(talk), *given]

    def _leave(self, request: gr.Request):
        self.visitors.leave(request.session_hash)

    def _shown(self, talk):
        costs = {SPEECH: talk.speech.cost}
        texts = []
        if talk.text is not None:
            costs[CASCADE] = talk.text.cost
            texts = _messages(talk.text)
        return [
            _messages(talk.speech),
            texts,
            figures_table(costs),
            note_line(talk.note or talk.greeting),
            heard_table(talk.heard),
        ]


def _column(name, what, placeholder, visible=True):
    """A side of the page."""
    with gr.Column(min_width=320, visible=visible, elem_classes="side"):
        gr.HTML(
            f"<h2>{escape(name)}</h2><span>{escape(what)}</span>",
            elem_classes="side-head",
            padding=False,
        )
        return gr.Chatbot(
            show_label=False,
            label=name,
            placeholder=placeholder,
            height=350,
            buttons=["copy"],
            render_markdown=False,  # the very words
            feedback_options=None,
            allow_file_downloads=False,
            elem_id="speech" if name == SPEECH else "text",
        )


def _messages(side):
    """A side as gradio's messages."""
    messages = []
    for message in side.shown:
        parts = [
            {"type": "text", "text": part} if isinstance(part, str) else part
            for part in message["content"]
        ]
        messages.append({"role": message["role"], "content": parts})
    if messages and not side.shown[-1]["content"][0]:
        waits = "…" if side.writing else "(no answer)"
        messages[-1]["content"] = [{"type": "text", "text": waits}]
    return messages


def _buttons(talk):
    """Send, Stop, and listening again."""
    return [
        gr.update(interactive=not talk.asked),
        gr.update(interactive=talk.asked),
        gr.update(interactive=talk.has_clip and not talk.asked),
    ]
