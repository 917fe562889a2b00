"""Prompts with one speech slot, and their text twins.

The whole text prompt is rendered once, by the tokenizer's own chat template;
the transcript's span becomes the slot. The speech row and its text twin (the
same prompt with the transcript in the slot) have identical ids outside the
slot, for every tokenizer: tokenising the pieces apart would not give that
(SentencePiece adds a "▁", byte-level BPE moves spaces and newlines).

Authors
 * The blsp_plugin team 2026
"""

from typing import NamedTuple

from jinja2 import TemplateError

from blsp_plugin.errors import BadInput
from blsp_plugin.packing import Row
from blsp_plugin.pretrained import fingerprint_text

__all__ = ["MARK", "Prompt", "PromptIds", "ids_around"]

INSTRUCTION, SPEECH = "{instruction}", "{speech}"
MARK = "\ue000speech\ue001"  # private use: in no template and in no text
# What is common to the tokenisations with all of these in the slot does not
# depend on the transcript. First and last characters differ in kind.
_PROBES = ("Hello there", "the end.", "7 of 9", '"Why?"', "élan!", "a", "…")


class PromptIds(NamedTuple):
    """Token ids around the slot, the same for every clip.

    Arguments
    ---------
    prefix : tuple of int
        Before the slot.
    suffix : tuple of int
        After it, up to where the response starts.
    """

    prefix: tuple
    suffix: tuple


class Prompt:
    """A prompt template with an instruction and one speech slot.

    Arguments
    ---------
    tokenizer : transformers.PreTrainedTokenizerBase
        Of the LLM.
    content : str
        The user's message in a chat; has ``{speech}`` once and may have
        ``{instruction}``.
    template : str, optional
        A whole plain prompt for a base model (few-shot text, say) that has no
        chat template; has ``{speech}`` once. Takes the place of ``content``.
    system : str, optional
        System message of the chat.
    chat_options : dict, optional
        Variables of the chat template (``enable_thinking: False``, say).

    Raises
    ------
    BadInput
        If the slot is missing, or a chat is asked of a tokenizer that has no
        chat template.
    """

    def __init__(
        self,
        tokenizer,
        content="{instruction}\n{speech}",
        template=None,
        system=None,
        chat_options=None,
    ):
        self.tokenizer = tokenizer
        self.content = content
        self.template = template
        self.system = system
        # Llama-3's template writes today's date, which would make another
        # prompt of it every day.
        self.chat_options = {"date_string": "01 Jan 2025"}
        self.chat_options.update(chat_options or {})
        name = "content" if template is None else "template"
        if (template or content).count(SPEECH) != 1:
            raise BadInput(f"prompt {name} must have {SPEECH} exactly once")
        if template is None and not tokenizer.chat_template:
            raise BadInput(
                f"{tokenizer.name_or_path}: its tokenizer has no chat "
                "template; give the prompt a plain `template` with {speech}"
            )
        self._ids = {}
        self._controls = tuple(
            str(token)
            for token in tokenizer.added_tokens_decoder.values()
            if token.special
        )

    def render(self, instruction):
        """The prompt's text before and after the slot.

        Arguments
        ---------
        instruction : str
            What to do with the speech.

        Returns
        -------
        before : str
        after : str
        """
        before, after = self._around(instruction)
        if self.template is not None:
            return self.bos_text() + before, after
        messages = [{"role": "user", "content": before + MARK + after}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        text = self.render_chat(messages)
        if text.count(MARK) != 1:
            raise BadInput(
                f"{self.tokenizer.name_or_path}: its chat template shows the "
                f"user's message {text.count(MARK)} times instead of once"
            )
        return tuple(text.split(MARK))

    def fill(self, instruction, speech):
        """The user's message, or the plain prompt, in the words of training.

        Arguments
        ---------
        instruction : str
            What to do with the speech.
        speech : str
            What stands in the slot: a transcript, or a mark.

        Returns
        -------
        str
        """
        # Not one replacement after the other: braces in a text stay text.
        return speech.join(self._around(instruction))

    def _around(self, instruction):
        pieces = (self.template or self.content).split(SPEECH)
        return [piece.replace(INSTRUCTION, instruction) for piece in pieces]

    def render_chat(self, messages):
        """A chat's text, up to where the next reply starts.

        Arguments
        ---------
        messages : list of dict
            With ``role`` and ``content``.

        Returns
        -------
        str

        Raises
        ------
        BadInput
            If the chat template refuses them.
        """
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=True,
                **self.chat_options,
            )
        except TemplateError as error:
            raise BadInput(
                f"{self.tokenizer.name_or_path}: its chat template refuses "
                f"this conversation ({error})"
            ) from error

    def encode(self, text, **options):
        """Token ids of a text, without what a tokenizer adds around it.

        Arguments
        ---------
        text : str
        **options : dict
            Of the tokenizer: ``split_special_tokens``, ...

        Returns
        -------
        list of int
        """
        encoded = self.tokenizer(text, add_special_tokens=False, **options)
        return encoded["input_ids"]

    def ids(self, instruction):
        """Token ids around the slot.

        Arguments
        ---------
        instruction : str
            What to do with the speech.

        Returns
        -------
        PromptIds
        """
        if instruction not in self._ids:
            self._ids[instruction] = self._split(instruction)
        return self._ids[instruction]

    def slot_ids(self, instruction, transcript):
        """Ids of a transcript as it stands in the slot: the text twin's.

        Arguments
        ---------
        instruction : str
            What to do with the transcript.
        transcript : str
            Text; control strings in it (``<|im_end|>``) stay text.

        Returns
        -------
        list of int
            ``prefix + slot + suffix`` is the tokenisation of the whole prompt
            wherever no token straddles the end of the transcript; there the
            transcript ends as it would at the end of a text.
        """
        prefix, suffix = self.ids(instruction)
        before, after = self.render(instruction)
        transcript = transcript.strip()
        if not any(control in transcript for control in self._controls):
            for tail in (after, ""):
                ids = self.encode(before + transcript + tail)
                end = len(ids) - (len(suffix) if tail else 0)
                if (
                    end >= len(prefix)
                    and tuple(ids[: len(prefix)]) == prefix
                    and (not tail or tuple(ids[end:]) == suffix)
                ):
                    return ids[len(prefix) : end]
        return self.encode(transcript, split_special_tokens=True)

    def row(self, instruction, speech):
        """A prompt that awaits its response.

        Arguments
        ---------
        instruction : str
            What to do with the speech.
        speech : int or str
            Number of speech tokens, or the transcript (the text twin).

        Returns
        -------
        Row
        """
        prefix, suffix = self.ids(instruction)
        if isinstance(speech, str):
            speech = self.slot_ids(instruction, speech)
        return Row(prefix, speech, suffix)

    def response_ids(self, instruction, text):
        """Ids of a text as the LLM would write it behind the prompt.

        Arguments
        ---------
        instruction : str
            What stood before the slot.
        text : str
            A response.

        Returns
        -------
        list of int
            Behind a plain template that ends in a word or a mark, of the text
            with a space before it.
        """
        _, after = self.render(instruction)
        plain = self.template is not None
        space = " " if plain and not after[-1:].isspace() else ""
        return self.encode(space + text.strip(), split_special_tokens=True)

    def fingerprint(self):
        """Short name of the tokenizer and the template.

        Returns
        -------
        str
            16 hexadecimal digits.
        """
        probe = self.ids("instruction")
        return fingerprint_text(
            "\n".join(self.render(INSTRUCTION)),
            str(probe),
            str(self.slot_ids("instruction", "Hello there, 7 élans!")),
        )

    def tokenizer_fingerprint(self):
        """Short name of the tokenizer alone.

        Returns
        -------
        str
            16 hexadecimal digits.
        """
        probes = [self.encode(probe) for probe in _PROBES]
        return fingerprint_text(str(len(self.tokenizer)), str(probes))

    def bos_text(self):
        """What a plain template starts with: as the tokenizer starts a text.

        Returns
        -------
        str
            The BOS token, or nothing.
        """
        bos = self.tokenizer.bos_token_id
        starts = self.tokenizer("a")["input_ids"][:1] == [bos]
        return self.tokenizer.bos_token if bos is not None and starts else ""

    def check_text(self, text, what="instruction"):
        """Refuse control strings: they would end the user's message.

        Arguments
        ---------
        text : str
            What somebody wants to have in a prompt.
        what : str
            Its name in the message.

        Raises
        ------
        BadInput
            If a control token of the LLM (``<|im_end|>``) stands in it.
        """
        if any(control in text for control in self._controls):
            shown = text if len(text) <= 80 else text[:80] + "..."
            raise BadInput(
                f"{what} {shown!r} has a control token of the LLM in it; "
                "leave it out"
            )

    def _split(self, instruction):
        self.check_text(instruction)
        return PromptIds(*ids_around(self.encode, self.render(instruction)))


def ids_around(encode, texts):
    """Ids of the texts around slots, the same whatever stands in the slots.

    The whole is tokenised with several probes in one slot after the other
    (and the same filler in the rest): what does not change with the probes
    lies outside the slot.

    Arguments
    ---------
    encode : callable
        text -> list of ids.
    texts : sequence of str
        Before, between and behind the slots; one more than there are slots.

    Returns
    -------
    list of tuple of int
        The ids of each text.

    Example
    -------
    >>> ids_around(lambda text: list(map(ord, text)), ["ab", "c", ""])
    [(97, 98), (99,), ()]
    """
    filler = _PROBES[0]
    whole = encode(filler.join(texts))
    starts, ends = [0], []
    for slot in range(1, len(texts)):
        before, after = filler.join(texts[:slot]), filler.join(texts[slot:])
        rows = [encode(before + probe + after) for probe in _PROBES]
        ends.append(_common(rows))
        starts.append(len(whole) - _common([row[::-1] for row in rows]))
    ends.append(len(whole))
    # A token between two slots may change with either: it is in between.
    places = [sorted(place) for place in zip(starts, ends, strict=True)]
    return [tuple(whole[start:end]) for start, end in places]


def _common(rows):
    """Length of the longest common beginning of some lists."""
    columns = zip(*rows, strict=False)
    differing = (i for i, ids in enumerate(columns) if len(set(ids)) > 1)
    return next(differing, min(map(len, rows)))
