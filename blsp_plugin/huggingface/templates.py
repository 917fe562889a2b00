"""`Prompt` as a chat template.

transformers' messages have parts of text and audio; an LLM's own template
takes strings. The exported template makes strings of the parts, as the prompt
does, and goes on with the LLM's own.

Authors
 * The blsp_plugin team 2026
"""

from blsp_plugin.prompts import INSTRUCTION, SPEECH

__all__ = ["chat_template"]

_FLATTEN = """\
{%- set ns = namespace(messages=[], parts=[], texts=[], content='') -%}
{%- for message in messages -%}
{%- if message['content'] is defined and message['content'] is not none
    and message['content'] is not string -%}
{%- set ns.parts = [] -%}{%- set ns.texts = [] -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'audio' -%}
{%- set ns.parts = ns.parts + [AUDIO] -%}
{%- elif part['type'] == 'text' -%}
{%- set ns.parts = ns.parts + [part['text']] -%}
{%- set ns.texts = ns.texts + [part['text']] -%}
{%- else -%}
{{- raise_exception('a message has parts of text and audio only') -}}
{%- endif -%}
{%- endfor -%}
{%- if ns.parts | length == TEXTS + 1 and ns.texts | length == TEXTS -%}
{%- set ns.content = ns.texts | join -%}
{%- set ns.content = BEFORE.replace('{instruction}', ns.content) + AUDIO
    + AFTER.replace('{instruction}', ns.content) -%}
{%- else -%}
{%- set ns.content = ns.parts | join('\\n') -%}
{%- endif -%}
{%- set ns.messages = ns.messages + [dict(message, content=ns.content)] -%}
{%- else -%}
{%- set ns.messages = ns.messages + [message] -%}
{%- endif -%}
{%- endfor -%}
"""
_SYSTEM = """\
{%- if ns.messages[0]['role'] != 'system' -%}
{%- set ns.messages = [{'role': 'system', 'content': SYSTEM}] + ns.messages -%}
{%- endif -%}
"""
_OPTION = "{%%- if %s is not defined -%%}{%%- set %s = %r -%%}{%%- endif -%%}\n"
# The new line is the block's; the LLM's template starts at a line's start, as
# it does alone.
_GO_ON = "{%- set messages = ns.messages %}\n"
_PLAIN = """\
{%- if ns.messages | length != 1 -%}
{{- raise_exception('this prompt takes one message') -}}
{%- endif -%}
{{- BOS + ns.messages[0]['content'] -}}
"""


def chat_template(prompt, audio_token):
    """A Jinja template that renders transformers' messages as the prompt.

    A message of one text and one audio (in any order) is what the adapter was
    trained with: it becomes the prompt's content. Other parts are joined by
    new lines. The system message and the options of the prompt are there
    unless the caller gives others. A prompt without a chat takes one message.

    Arguments
    ---------
    prompt : Prompt
        Of the LLM.
    audio_token : str
        What an audio becomes.

    Returns
    -------
    str
    """
    content = prompt.template or prompt.content
    before, after = content.split(SPEECH)
    # Jinja reads Python's literals.
    names = {
        "AUDIO": audio_token,
        "BEFORE": before,
        "AFTER": after,
        "TEXTS": int(INSTRUCTION in content),
        "SYSTEM": prompt.system,
        "BOS": prompt.bos_text(),
    }
    parts = [f"{{%- set {name} = {names[name]!r} -%}}\n" for name in names]
    parts.append(_FLATTEN)
    if prompt.template is not None:
        return "".join([*parts, _PLAIN])
    if prompt.system is not None:
        parts.append(_SYSTEM)
    for name, value in prompt.chat_options.items():
        parts.append(_OPTION % (name, name, value))
    return "".join([*parts, _GO_ON, prompt.tokenizer.chat_template])
