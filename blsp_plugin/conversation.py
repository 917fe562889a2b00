"""Conversations of speech and text -> token ids with slots.

The tokenizer's chat template renders the whole conversation once; clips and
the LLM's own replies are slots in it, so that a reply stays the very tokens
that were written, and the ids of earlier turns stay what they were wherever
the template itself does not rewrite them.

Authors
 * The blsp_plugin team 2026
"""

from typing import NamedTuple

from blsp_plugin.errors import BadInput
from blsp_plugin.prompts import MARK, ids_around

__all__ = ["Reply", "Speech", "conversation_ids"]

_ROLES = ("system", "user", "assistant")


class Speech(NamedTuple):
    """A clip in a conversation.

    Arguments
    ---------
    clip : object
        Whatever stands for the clip.
    """

    clip: object


class Reply(NamedTuple):
    """What the LLM has said.

    Arguments
    ---------
    ids : tuple of int
        Token ids, as they were written.
    text : str
        Their text.
    """

    ids: tuple
    text: str


def conversation_ids(prompt, messages):
    """A conversation as the LLM reads it, up to where its next reply starts.

    Arguments
    ---------
    prompt : Prompt
        Gives the tokenizer and its chat template, the system message where
        the conversation has none, and the wording of a message that is one
        text and one clip: that of the training, whatever their order.
    messages : sequence of tuple
        ``("user", [parts])`` with texts (str) and `Speech`, in any order;
        ``("assistant", Reply or str)``; ``("system", str)``, at the beginning
        only. The last is the user's.

    Returns
    -------
    list
        Token ids (int), and each `Speech` where it stands.

    Raises
    ------
    BadInput
        If the template refuses the conversation, the tokenizer has none, or a
        text holds control tokens.
    """
    if prompt.template is not None:
        raise BadInput(
            "this adapter has a plain prompt, of a base model: it answers an "
            "instruction about a clip, but cannot chat"
        )
    if not messages or messages[-1][0] != "user":
        raise BadInput("the conversation must end with the user's message")
    if prompt.system is not None and messages[0][0] != "system":
        messages = [("system", prompt.system), *messages]
    rendered, slots = [], []
    for number, (role, content) in enumerate(messages):
        if role not in _ROLES or (role == "system" and number):
            raise BadInput(
                f"message {number + 1}: role {role!r}; give user or assistant, "
                "and system for the first one only"
            )
        if role == "assistant":
            slots.append(content)
            text = MARK
        else:
            parts = [content] if isinstance(content, str) else content
            text = _user_text(prompt, parts, number)
            slots += [part for part in parts if isinstance(part, Speech)]
        rendered.append({"role": role, "content": text})
    texts = prompt.render_chat(rendered).split(MARK)
    if len(texts) != len(slots) + 1:
        raise BadInput(
            f"{prompt.tokenizer.name_or_path}: its chat template shows "
            f"{len(texts) - 1} of {len(slots)} clips and replies of this "
            "conversation"
        )
    pieces = ids_around(prompt.encode, texts)
    ids = list(pieces[0])
    for slot, piece in zip(slots, pieces[1:], strict=True):
        if isinstance(slot, Speech):
            ids.append(slot)
        elif isinstance(slot, Reply):
            ids += slot.ids
        else:
            ids += prompt.encode(slot.strip(), split_special_tokens=True)
        ids += piece
    return ids


def _user_text(prompt, parts, number):
    """The text of a message, with marks for its clips."""
    parts = [
        part.replace(MARK, "") if isinstance(part, str) else part
        for part in parts
    ]
    texts = [part for part in parts if isinstance(part, str)]
    for text in texts:
        prompt.check_text(text, f"message {number + 1}:")
    texts = [text for text in texts if text.strip()]
    clips = len(parts) - sum(isinstance(part, str) for part in parts)
    if not texts and not clips:
        raise BadInput(f"message {number + 1}: is empty")
    if clips == 1 and len(texts) == 1:
        return prompt.fill(texts[0], MARK)
    return "\n".join(
        part if isinstance(part, str) else MARK
        for part in parts
        if not isinstance(part, str) or part.strip()
    )
