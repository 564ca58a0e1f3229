"""The chat format of an export: ChatML as the model was trained on, for whoever serves it."""

from __future__ import annotations

import json

from nvlm.model.prompts import END, START, SYSTEM


def chat_template(*, begins: bool) -> str:
    """A Jinja template; with ``begins`` the sequence starts with the tokenizer's BOS.

    Every conversation of training has a system turn: one without gets the trained one, and one
    whose system turn is empty gets none. The content of a message is a string: a server that finds
    it taken apart here would pass images in another way.
    """
    trained = json.dumps(f"{START}system\n{SYSTEM}{END}\n")
    start, end, answer = (json.dumps(text) for text in (START, f"{END}\n", f"{START}assistant\n"))
    bos = "{{ bos_token }}" if begins else ""
    return (
        bos + "{%- if not messages or messages[0]['role'] != 'system' %}{{ " + trained + " }}"
        "{%- endif %}"
        "{%- for message in messages %}"
        "{%- if message['content'] or message['role'] != 'system' %}"
        "{{ " + start + " + message['role'] + '\\n' + message['content'] + " + end + " }}"
        "{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{ " + answer + " }}{%- endif %}"
    )
