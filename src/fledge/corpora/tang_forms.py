"""The four regular forms of Tang verse, and how well a text keeps to one.

A poem's body has one couplet a text line, "A，B。", with nothing before, between or after:

    床前明月光，疑是地上霜。
    举头望明月，低头思故乡。
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass


# form -> (characters a line, lines)
FORMS = {"五言绝句": (5, 4), "七言绝句": (7, 4), "五言律诗": (5, 8), "七言律诗": (7, 8)}

# Ideographs only: the unified blocks with their extensions, and the compatibility block.
HAN = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]"

# A line with the marks that end it. The two branches cover any text without a gap, so that nothing goes unjudged.
_MARKS = r"，。！？；：、\s"
_PIECE = re.compile(rf"[^{_MARKS}]*[{_MARKS}]+|[^{_MARKS}]+")


@dataclass(frozen=True)
class FormCheck:
    """perfect: the whole text is exactly the form. lines: the lines found, without marks. score: 0.0 to 1.0."""

    perfect: bool
    lines: list[str]
    score: float


def form_of(lines: Sequence[str]) -> str | None:
    """The form that bare lines (no punctuation) have, by shape alone; None if none of the four."""
    for form, (length, count) in FORMS.items():
        if len(lines) == count and all(re.fullmatch(f"{HAN}{{{length}}}", line) for line in lines):
            return form
    return None


def format_poem(lines: Sequence[str]) -> str:
    """The body of a poem from its bare lines: one "A，B。" a text line. Raises ValueError for an odd number."""
    if len(lines) % 2:
        raise ValueError(f"a poem is made of couplets, but there are {len(lines)} lines; give an even number")
    return "\n".join(f"{first}，{second}。" for first, second in zip(lines[::2], lines[1::2], strict=True))


def check_form(form: str, text: str) -> FormCheck:
    """Compare a whole answer with a form.

    A line fits if it has the form's number of ideographs, is followed by exactly the mark that belongs there ("，",
    "。" and a newline, "。" at the very end), and repeats no earlier line. The score is the number of lines that fit,
    over the larger of the lines expected and the lines found. Perfect means score 1.0: every line fits and the text
    holds nothing else, not even outer white space; so a poem that repeats a line verbatim is never perfect.
    Raises ValueError for an unknown form.
    """
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}; use one of {', '.join(FORMS)}")
    length, count = FORMS[form]
    ends = ["，", "。\n"] * (count // 2)
    ends[-1] = "。"
    pieces = _PIECE.findall(text)
    lines = [re.sub(f"[{_MARKS}]+$", "", piece) for piece in pieces]
    fitting = sum(
        re.fullmatch(f"{HAN}{{{length}}}{end}", piece) is not None and line not in lines[:position]
        for position, (piece, line, end) in enumerate(zip(pieces, lines, ends, strict=False))
    )
    score = fitting / max(count, len(pieces))
    return FormCheck(perfect=score == 1.0, lines=[line for line in lines if line], score=score)
