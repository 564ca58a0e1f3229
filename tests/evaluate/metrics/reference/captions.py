"""A thousand captions with their references, made of fixed parts with a fixed seed.

Plain descriptions, as COCO has them, and whatever makes tokenizers differ: possessives and other
contractions, hyphens, numbers, money, times, fractions, abbreviations, brackets, quotation marks,
repeated punctuation, capitals, letters that are not English, emoji, empty captions. What our
tokenizer does better, and therefore otherwise, is left out (see src/nvlm/evaluate/metrics/ptb.py):
line separators inside of a caption, and a single letter with a period at a caption's end.
"""

import random

IMAGES = 1000
SEED = 20240911

_WHO = (
    "a man", "a woman", "two dogs", "a cat", "the children", "a black-and-white cow", "an old man",
    "a group of people", "someone's dog", "a girl (about 5)", "a boy's friend", "three zebras",
    "a U.S. soldier", "Mr. Smith", "a 2-year-old", "a naïve tourist", "a señor", "a Japanese 猫",
    "a double-decker bus", "the dogs' owner", "AT&T's van", "a T-shirt",
)  # fmt: skip
_DOES = (
    "is sitting", "rides a horse", "isn't moving", "plays frisbee", "can't be seen", "stands",
    "is about to eat 1,000 grapes", "holds a sign that says \"STOP\"", "is wearing jeans",
    "looks at its reflection", "has won't-stop energy", "is running 3.5 miles",
    "sells fruit for $5", "sells tea for £2.50", "sells milk for 99¢", "costs €10", "sleeps",
    "is 50% asleep", "rock 'n' rolls", "was built in the 1950's", "reads page no. 12",
    "cannot wait", "is gonna jump", "they've painted",
)  # fmt: skip
_WHERE = (
    "on the beach", "in the grass", "at 10:30 a.m.", "on St. Paul street", "near a (wet) bench",
    "under an umbrella, alone", "in front of a café", "next to [a] fence", "by the sea; far away",
    "in New York's park", "with 1/2 of a pizza", "w/o shoes", "in a kitchen and/or bathroom",
    "on a hill -- at dawn", "on a hill – at dusk", "at http://example.com/a?b=c",
    "in black & white", "with #3 on it", "at night :)", "on a {green} field",
    "beside <b>bold</b> text", "on a e-bike",
    "in the '80s", "24/7", "in Ph.D. robes", "of the dog’s house", "with 3½ apples",
)  # fmt: skip
_END = ("", ".", ".", ".", "!", "!!", "?", "...", " .", ",", ";", " 😀", " 🐕🐕", "  ")
_WHOLE = (
    "",
    ".",
    "😀",
    "?!",
    "-5",
    "5.",
    "1,000",
    "The two dogs.",
    "$5-6",
    "日本の犬",
    "a",
    "A cat",
)


def captions() -> tuple[list[str], list[list[str]]]:
    """The answers, one an image, and each image's two to five references."""
    rng = random.Random(SEED)
    answers, references = [], []
    for _ in range(IMAGES):
        parts = [rng.choice(_WHO), rng.choice(_DOES), rng.choice(_WHERE)]
        references.append([_caption(rng, parts) for _ in range(rng.randint(2, 5))])
        answers.append(rng.choice(_WHOLE) if rng.random() < 0.03 else _caption(rng, parts))
    return answers, references


def _caption(rng: random.Random, parts: list[str]) -> str:
    """One way to say ``parts``: some replaced, left out or doubled."""
    said = [
        rng.choice(others) if rng.random() < 0.4 else part
        for part, others in zip(parts, (_WHO, _DOES, _WHERE), strict=True)
    ]
    if rng.random() < 0.2:
        said.insert(2, f"and {rng.choice(_DOES)}")
    if rng.random() < 0.15:
        said.pop()
    text = " ".join(said) + rng.choice(_END)
    form = rng.random()
    return text.upper() if form < 0.05 else text[0].upper() + text[1:] if form < 0.6 else text
