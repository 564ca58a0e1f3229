"""Penn Treebank tokens of captions, as CIDEr and BLEU are published on them, without Java.

The reference is the Stanford tokenizer (CoreNLP 3.4.1, ``-preserveLines -lowerCase``) as
github.com/tylin/coco-caption calls it, which then drops the tokens of ``PUNCTUATION``. As there, at
each place the longest of all patterns wins. Its ways are kept, and pinned by tests: brackets become
"-lrb-" and stay, because the list of dropped tokens spells them in capitals; "!!" stays where "!"
goes; "£5" becomes "# 5" and "€5" "$ 5"; what it doesn't know, such as emoji, is left out.

One thing is better here: a caption is read by itself. There the captions are lines of one stream:
a line separator (U+2028) inside one shifts all later captions, and whether a last word such as "b."
keeps its period depends on how the next caption begins. Here it loses it, as before a capital.
What is known to differ otherwise are words run into one another ("'70shorse", "etc.a") and letters
that Unicode has had since 2012.
"""

from __future__ import annotations

import re
from unicodedata import category

# Dropped after tokenisation (coco-caption, ptbtokenizer.py).
_DROPPED = "'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;"
PUNCTUATION = frozenset(_DROPPED.split())

# Python takes superscripts, fractions and the like for letters, and accents that are characters of
# their own for none; the Stanford tokenizer does the opposite.
_MARKS = "".join(map(chr, filter(lambda c: category(chr(c)) in ("Mn", "Mc"), range(0x300, 0xE80))))
_NO_LETTERS = "¹²³⁰⁴-⁹₀-₉¼-¾⅐-↋①-⒛⓪-⓿❶-➓〇〡-〩〸-〺"
_FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_LETTER = rf"(?:[^\W\d_{_NO_LETTERS}]|[{_MARKS}])"
_ALNUM = rf"(?:{_LETTER}|\d)"
_APOSTROPHE = "['’\u0092]"
# A word's tail that is a token of its own: "isn't" is "is n't", "dog's" is "dog 's".
_TAIL = rf"{_APOSTROPHE}(?i:[msd]|re|ve|ll)(?!{_LETTER})"
_NOT = rf"[nN]{_APOSTROPHE}[tT](?!{_LETTER})"
_PARTED = re.compile(rf"{_TAIL}|{_NOT}")
_BEFORE_NOT = re.compile(rf"(?<=[A-MO-Za-mo-z])(?=[nN]{_APOSTROPHE}[tT])")
# Written as one, tokenised as two: where the second begins.
_JOINED = {
    "cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "gimme": 3, "lemme": 3, "'twas": 2, "'tis": 2,
}  # fmt: skip
_REPLACED = _FRACTIONS | {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "£": "#", "€": "$", "¢": "cents", "&amp;": "&", "&lt;": "<", "&gt;": ">",
    "…": "...", "–": "--", "—": "--", "“": "``", "”": "''", "‘": "`", "’": "'", '"': "''",
    "«": "``", "»": "''",
}  # fmt: skip
_ROUND = re.compile(r"[()]")  # the brackets that are rewritten within a smiley
# Left out, beside what is beyond U+FFFF: quotation marks and brackets of Chinese and Japanese, rare
# signs of currency, Roman numerals.
_UNKNOWN = re.compile(r"[‐-‒―‛․‥‧‹›‼‽⁃⁅-⁞₡-₣₥-₫₭-⃏⅐-⅒⅟-↋〃〈-】〓-〠〰〶〷〽〾〿￢-￤]")

# Abbreviations that keep their period wherever they stand ...
_ABBREVIATIONS = """
jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri
mr mrs ms drs? profs? sens? reps? attys? lt col gen messrs govs? adm rev maj sgt cpl pvt capt ste?
ave pres lieut hon brig co?mdr pfc spc supts? det mt ft adj adv asst assoc ens insp mlle mme msgr
sfc jr sr bros esq cf ph\\.d blvd rd
inc cos? corp pp?t[ye]s? ltd plc rt bancorp dept bhd assn univ intl sys invt elec natl m[ft]g
ala ariz calif colo conn ct dak fla ga ind kans? ky md mich minn mo mont neb nev okla penn tenn va
vt wisc? wyo etc al seq tel est ext sq vs bldg prop
"""
# ... and those that keep it only before a number.
_NUMBERED = "nos? figs? pp? art"

# Words joined by hyphens, each perhaps with an elided article: "rock-n-roll", "hors-d'oeuvre".
_ELIDED = rf"(?:[dDoOlL]{_APOSTROPHE}{_LETTER})?{_ALNUM}+"
_JOINT = rf"{_ELIDED}(?:[-_‐‑]{_ELIDED})*"
_WORD = rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*"
_NUMBER = r"(?:\d+(?:[.:,]\d+)*|(?:[.:,]\d+)+)"
_ATTRIBUTE = r"""[A-Za-z][A-Za-z0-9_:.-]*(?:\s*=\s*(?:"[^"]*"|'[^']*'))?"""
_PATTERNS = (
    # A tag of a markup language; "<image 1>" is none.
    rf"<[A-Za-z][A-Za-z0-9_:.-]*(?:\s+{_ATTRIBUTE})*\s*/?>|</[A-Za-z][A-Za-z0-9_:.-]*\s*>",
    r"<!--.*?-->|<[!?][A-Za-z-][^>]*>",
    r"(?i:https?|ftp)://[^\s<>\"|()]+[^\s<>\"|(){}.!?,-]",
    r"(?:www\.)?(?:[\w-]+\.)+(?:com|net|org|edu)(?:/[^\s<>\"|()]*[^\s<>\"|(){}.!?,-])?",
    r"<?[A-Za-z0-9][^\s\"<>|()]*@(?:[^\s\"<>|().]+\.)*[^\s\"<>|().]+>?",
    rf"@[A-Za-z_][A-Za-z0-9_]*|#{_LETTER}+",
    rf"[+-]?{_NUMBER}",
    r"(?:\d{1,4}[- ])?\d{1,4}/\d{1,4}",
    r"\d{1,2}/\d{1,2}/\d{2,4}",
    _WORD,
    _JOINT,
    rf"(?:{_WORD}|{_JOINT})\.(?=[,;:、])",  # an abbreviation, by what follows
    r"[A-Za-z0-9][A-Za-z0-9.,]*(?:-[A-Za-z0-9]+)+",
    r"[A-Z]+(?:[+&][A-Z]+)+",
    r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",
    r"[Ww]/[Oo](?![A-Za-z])",
    r"(?:[A-Za-z]\.){2,}|(?:[A-Za-z]\.)+[A-Za-z]|[A-Za-z]\.(?=\s*\S)",  # "u.s.", "p.m.", "J. Smith"
    rf"(?i:{'|'.join(_ABBREVIATIONS.split())})\.",
    rf"(?i:{'|'.join(_NUMBERED.split())})\.(?=\s*\d)",
    _TAIL,
    _NOT,
    # Words that an apostrophe belongs to.
    rf"{_APOSTROPHE}[nN]{_APOSTROPHE}?|'(?i:tis|twas)(?!{_ALNUM})",
    rf"{_APOSTROPHE}(?i:em|till?|cause|[2-9]0s|\d\ds?)(?!{_ALNUM})",
    rf"[A-HJ-XZn]{_APOSTROPHE}{_LETTER}{{2,}}|[Yy]{_APOSTROPHE}(?={_LETTER})",
    rf"{_LETTER}+[aeiouyAEIOUY](?!{_TAIL}){_APOSTROPHE}[aeiouA-Z]{_LETTER}*",
    r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]](?![A-Za-z0-9])",  # a smiley
    r"[A-Z]*\$|[!?]+|\.{3,}|-{2,}|\*+|_+|&(?:amp|lt|gt);|\S",
)
_LEXER = tuple(re.compile(pattern) for pattern in _PATTERNS)


def tokenize(caption: str) -> list[str]:
    """The lower-case tokens of ``caption`` that count."""
    text = _BEFORE_NOT.sub(" ", caption.replace("\N{SOFT HYPHEN}", ""))
    tokens: list[str] = []
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        found = max((pattern.match(text, position) for pattern in _LEXER), key=_length)
        assert found is not None  # the last pattern matches any character
        tokens += _written(found.group())
        position = found.end()
    return [token for token in tokens if token and token not in PUNCTUATION]


def _length(match: re.Match[str] | None) -> int:
    return match.end() - match.start() if match else 0


def _written(token: str) -> list[str]:
    """``token`` as the Stanford tokenizer writes it: in one piece, two, or not at all."""
    lower = token.lower()
    if cut := _JOINED.get(lower):
        return [lower[:cut], lower[cut:]]
    if set(lower) == {"."} and len(lower) > 1:
        return ["..."]
    if set(lower) == {"-"} and len(lower) > 1:
        return ["--"]
    unknown = len(lower) == 1 and (ord(lower) > 0xFFFF or not lower.isprintable())
    if unknown or _UNKNOWN.fullmatch(token):
        return []
    if lower in _REPLACED:
        return [_REPLACED[lower]]
    if _PARTED.fullmatch(token):
        lower = re.sub(_APOSTROPHE, "'", lower)
    lower = lower.replace(" ", "\N{NO-BREAK SPACE}")
    return [_ROUND.sub(lambda bracket: _REPLACED[bracket.group()], lower)]
