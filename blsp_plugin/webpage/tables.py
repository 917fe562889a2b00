"""The small tables under a conversation, as HTML.

Authors
 * The blsp_plugin team 2026
"""

from html import escape

__all__ = ["figures_table", "heard_table", "note_line"]

_HEADS = (
    ("Speech", "length of the clip"),
    ("Speech tokens", "embeddings that the clip became"),
    ("Read", "tokens of this turn that had to be read"),
    ("Kept", "tokens of earlier turns, read before"),
    ("Answer", "tokens that were written"),
    ("First token", "time until the answer began"),
    ("Total", "time until the answer ended"),
    ("Tokens/s", "after the first"),
)


def figures_table(costs):
    """What the last turn was made of, and how long it took.

    Arguments
    ---------
    costs : dict
        Name of a side -> its `TurnCost`, or None where it has none.

    Returns
    -------
    str
        HTML; empty where no side has any.

    Example
    -------
    >>> figures_table({"Speech LLM": None})
    ''
    """
    rows = {name: _cells(cost) for name, cost in costs.items() if cost}
    if not rows:
        return ""
    heads = "".join(
        f'<th scope="col" title="{title}">{head}</th>' for head, title in _HEADS
    )
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
        for name, cells in rows.items()
    )
    return (
        f"<table><thead><tr><td>&nbsp;</td>{heads}</tr></thead>"
        f"<tbody>{lines}</tbody></table>"
    )


def _cells(cost):
    turn = cost.turn
    return (
        f"{cost.audio:.1f} s" if cost.audio else "–",
        turn.speech_tokens or "–",
        turn.prompt_tokens - turn.kept_tokens,
        turn.kept_tokens,
        turn.reply_tokens,
        f"{cost.first_token:.2f} s",
        f"{cost.seconds:.2f} s",
        "–" if cost.rate is None else f"{cost.rate:.0f}",
    )


def heard_table(heard):
    """What was heard in the last clip.

    Arguments
    ---------
    heard : Heard

    Returns
    -------
    str
        HTML; empty where nothing was.

    Example
    -------
    >>> from blsp_plugin.webpage.talk import Heard
    >>> "&lt;b&gt;" in heard_table(Heard(whisper="<b>"))
    True
    """
    rows = (("Speech LLM", heard.speech_llm), ("Whisper", heard.whisper))
    lines = "".join(
        f"<dt>{name}</dt><dd>{escape(text) or '…'}</dd>"
        for name, text in rows
        if text is not None
    )
    return f'<dl class="heard">{lines}</dl>' if lines else ""


def note_line(note):
    """A sentence for the visitor.

    Arguments
    ---------
    note : str

    Returns
    -------
    str
        HTML; empty without one.

    Example
    -------
    >>> note_line("a < b")
    '<p class="note" role="alert">a &lt; b</p>'
    """
    return f'<p class="note" role="alert">{escape(note)}</p>' if note else ""
