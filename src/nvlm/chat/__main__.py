"""Talk with a model about pictures.

Run with: python -m nvlm.chat checkpoints/72b/sft --image picture.jpg
or: python -m nvlm.chat --server http://localhost:8000/v1
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nvlm.chat.dialogue import Dialogue, Model
from nvlm.errors import UserError, run_command

HELP = "/image FILE shows a picture, /reset begins anew, /quit ends; Ctrl-C ends an answer"


def main() -> None:
    """Read the arguments, open the model, and talk until the user leaves."""
    parser = argparse.ArgumentParser(prog="python -m nvlm.chat", description=__doc__, epilog=HELP)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="that answers in this process")
    parser.add_argument("--image", type=Path, action="append", default=[], help="to talk about")
    parser.add_argument("--server", metavar="URL", help="that answers instead (OpenAI's interface)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=512, help="of an answer (%(default)s)"
    )
    arguments = parser.parse_args()
    if (arguments.checkpoint is None) == (arguments.server is None):
        raise UserError("give a checkpoint, or a server with --server: one of the two answers")
    if arguments.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {arguments.max_new_tokens} should be 1 or more")
    dialogue = Dialogue()
    for path in arguments.image:
        dialogue.show(path)
    with _opened(arguments) as model:
        print(HELP, file=sys.stderr)
        talk(model, dialogue, arguments.max_new_tokens)


def talk(model: Model, dialogue: Dialogue, max_new_tokens: int) -> None:
    """Read lines until /quit or the end of input; what goes wrong with one is told, no more."""
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        word, _, rest = line.partition(" ")
        try:
            if word == "/quit":
                return
            if word == "/reset":
                dialogue = Dialogue()
            elif word == "/image":
                dialogue.show(Path(rest.strip()).expanduser())
            elif word.startswith("/"):
                raise UserError(f"{word} is no command: {HELP}")
            elif line:
                _answer(model, dialogue, line, max_new_tokens)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)


def _answer(model: Model, dialogue: Dialogue, question: str, max_new_tokens: int) -> None:
    """Print the answer as it comes; what came until Ctrl-C counts as said."""
    dialogue.ask(question)
    said = ""
    try:
        for piece in model.stream(dialogue, max_new_tokens):
            print(piece, end="", flush=True)
            said += piece
    except KeyboardInterrupt:
        print(" [ended]", end="")
    except UserError:
        if not said:
            dialogue.take_back()
            raise
        print(" [broken off]", end="")
    print(flush=True)
    dialogue.answer(said)


@contextmanager
def _opened(arguments: argparse.Namespace) -> Iterator[Model]:
    """Whoever answers. What a checkpoint needs is imported for one alone: it takes seconds."""
    if arguments.server is not None:
        from nvlm.chat.server import ServerModel

        yield ServerModel(arguments.server)
        return
    from nvlm.chat.local import open_checkpoint

    with open_checkpoint(arguments.checkpoint) as model:
        yield model


if __name__ == "__main__":
    run_command(main)
