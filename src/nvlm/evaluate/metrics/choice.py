"""Which option an answer chooses, read strictly: never guessed, never the first of two.

Better than the recipe's rules (``metrics.mmmu_recipe``) in these ways:
- "a", "**B**", "[C]", "D\\n" and "\\boxed{\\text{D}}" are read;
- a letter that opens the answer is the choice, whatever is said of the others afterwards:
  "(C) because (B) is wrong" is C;
- the article "A" and the pronoun "I" before a word are no choices: "A dog is shown";
- options that the answer repeats, a line each, are none of its choices, nor is one that it calls
  wrong: "(A) is wrong, so (B)" is B;
- an option's text counts as whole words and in answers of any length; where one option's text is
  part of another's, the longer counts; a letter in it is none: "It is Vitamin D" is that option;
- an answer that leaves two options open ("A or B", two letters on two lines) is unparsable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from string import ascii_uppercase

_BOX = re.compile(r"\\(?:answer|boxed)\s*\{")
_TEXT_COMMAND = re.compile(r"^\\(?:text|mathrm|mathbf|textbf)\s*\{(.*)\}$", re.DOTALL)
_DECORATION = re.compile(r"[*_`$\"“”]+")
_QUOTED = re.compile(r"(?<!\w)['‘]([A-Za-z])['’](?!\w)")
_LONE = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:,;!]?")
_MARK = r"(?:\(([A-Z])\)|\[([A-Z])\]|\b([A-Z])\)|\b([A-Z])(?=[.:,](?:\s|$)))"
_LEADING = re.compile(_MARK)
# What leaves another option open: "or (B)", "/ B", a second letter on the next line.
_HEDGE = re.compile(rf"[.:,]?\s*(?:or|and|/|,|&|\n)\s*(?:{_MARK}|([A-Z])\b(?!['’]))")
# What is said of an option that is not chosen.
_DENIED = re.compile(r"\s*(?:(?:is|was|are)\s+)?(?:not|wrong|incorrect|false)\b", re.IGNORECASE)
# "A" as an article and "I" as a pronoun: before a word, other than one that speaks of options.
_NOT_IN_SENTENCE = r"(?![AaIi]\s+(?!(?:or|and|is|are|because)\b)[a-z])"
_STATED = re.compile(
    r"\b(?i:answer|option|choice)(?i:\s+is|\s*:|\s+would\s+be|\s*=)?(?i:\s+option)?\s*"
    rf"[(\[]?{_NOT_IN_SENTENCE}\b([A-Za-z])(?![\w'’])[)\]]?"
)
_BRACKETED = re.compile(r"\(([A-Z])\)|\[([A-Z])\]|\b([A-Z])\)")
# Only Latin letters make a word with it: Chinese, which MathVista asks in too, has no spaces.
_WORD = re.compile(rf"(?<![\dA-Za-zÀ-ɏ_'’]){_NOT_IN_SENTENCE}([A-Z])(?![\dA-Za-zÀ-ɏ_'’])")


def parse_choice(answer: str, choices: Sequence[str]) -> str | None:
    """The letter that ``answer`` chooses of ``choices`` (A for the first), or None."""
    text = _QUOTED.sub(r"\1", _DECORATION.sub("", boxed(answer))).strip()
    found: set[str] = next(filter(None, _readings(text, choices)), set())
    return found.pop() if len(found) == 1 else None


def _readings(text: str, choices: Sequence[str]) -> Iterator[set[str]]:
    """The letters that each way to read finds, the surest way first."""
    letters = ascii_uppercase[: len(choices)]
    lone = _LONE.fullmatch(text)
    yield {lone[1].upper()} & set(letters) if lone else set()
    options = [_plain(choice) for choice in choices]
    yield {
        letter
        for letter, option in zip(letters, options, strict=True)
        if option and option == _plain(text)
    }
    text = _without_repeated(text, options)
    leading = _LEADING.match(text)
    if leading and not _DENIED.match(text, leading.end()):
        yield _with_alternative(text, leading) & set(letters)
    for pattern in (_STATED, _BRACKETED):
        marks = [
            mark
            for mark in pattern.finditer(text)
            if _letter(mark) in letters and not _DENIED.match(text, mark.end())
        ]
        alternatives = [_with_alternative(text, mark) for mark in marks]
        # The last one counts, with an earlier one that it is an alternative to.
        before = [pair for pair in alternatives[-2:-1] if _letter(marks[-1]) in pair]
        yield set().union(*alternatives[-1:], *before)
    yield {word[1] for word in _WORD.finditer(_without_texts(text, options))} & set(letters)
    yield _by_text(text, options)


def boxed(answer: str) -> str:
    """What stands in the last \\boxed{} or \\answer{}, its braces balanced; else the answer."""
    boxes = list(_BOX.finditer(answer))
    if not boxes:
        return answer
    start, depth = boxes[-1].end(), 1
    for end in range(start, len(answer)):
        depth += {"{": 1, "}": -1}.get(answer[end], 0)
        if depth == 0:
            inside = answer[start:end].strip()
            command = _TEXT_COMMAND.match(inside)
            return command[1] if command else inside
    return answer[start:]


def _without_repeated(text: str, options: Sequence[str]) -> str:
    """``text`` without the lines that repeat options, each with its mark, where two or more do."""
    lines = text.splitlines()
    others = [
        line
        for line in lines
        if not ((mark := _LEADING.match(line)) and _plain(line[mark.end() :]) in options)
    ]
    return "\n".join(others) if len(lines) - len(others) > 1 else text


def _without_texts(text: str, options: Sequence[str]) -> str:
    """``text`` without the options' texts of more than a letter."""
    for option in sorted(options, key=len, reverse=True):
        if len(option) > 1:
            whole = rf"(?<!\w){re.escape(option)}(?!\w)"
            text = re.sub(whole, " ", text, flags=re.IGNORECASE)
    return text


def _letter(match: re.Match[str]) -> str:
    """The letter of whichever alternative matched."""
    return next(group for group in match.groups() if group).upper()


def _plain(text: str) -> str:
    """``text`` to compare: lower case, single spaces, no punctuation at its ends."""
    return " ".join(text.lower().split()).strip(".,;:!?'\"() ")


def _with_alternative(text: str, mark: re.Match[str]) -> set[str]:
    """The letter of ``mark``, and the other one where the text goes on with "or (B)"."""
    hedge = _HEDGE.match(text, mark.end())
    return {_letter(mark)} | ({_letter(hedge)} if hedge else set())


def _by_text(text: str, options: Sequence[str]) -> set[str]:
    """The options whose text stands in the answer as whole words, and in no longer option's."""
    remaining = f" {_plain(text)} "
    found = set()
    for letter, option in sorted(
        zip(ascii_uppercase, options, strict=False), key=lambda o: -len(o[1])
    ):
        pattern = re.compile(rf"(?<!\w){re.escape(option)}(?!\w)")
        if option and pattern.search(remaining):
            found.add(letter)
            remaining = pattern.sub(" ", remaining)
    return found
