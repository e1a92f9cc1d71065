"""Reading the Tang poems out of the npm package `chinese-poetry`, and deciding which of them to keep."""

import hashlib
import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opencc import OpenCC
from tqdm import tqdm

from fledge.corpora.tang_forms import HAN, form_of, format_poem


_POEMS = re.compile(r"package/dist/quantangshi/poet\.tang\.\d+\.json")
_TANG300 = "package/dist/mengxue/tangshisanbaishou.json"
_LICENSE = "package/LICENSE"

_MAX_TITLE = 20
_NOTE = re.compile(r"[(（\[［〖][^()（）\[\]［］〖〗]*[)）\]］〗]")
_QUOTES = re.compile(r"[《》“”]")
# Marks that end a line of verse. All become "，" or "。" by position, which is what the form checker asks for.
_STOPS = re.compile(r"[，。！？；：,!?;:\s]+")
# Boxes and circles (囗 is an ideograph, but this source uses it as a box), descriptions of a glyph that has no code
# point, and the private use area.
_MISSING = re.compile(r"[□囗○●…{}⿰\ue000-\uf8ff]")
_BRACKETS = re.compile(r"[()（）\[\]［］〖〗〈〉《》「」『』|/]")
# The music bureau's classes, written before the title proper: "横吹曲辞 洛阳陌".
_BUREAU = re.compile(r"..[曲歌]辞|杂歌谣辞|新乐府辞")
_NUMERAL = r"[一二三四五六七八九十百零○〇]+"
_ORDINAL = re.compile(rf"[其第]?{_NUMERAL}")
_SERIES = re.compile(rf"(?<=.){_NUMERAL}首$")


@dataclass(frozen=True)
class RawPoem:
    """A poem as the package has it, but in simplified characters."""

    title: str
    author: str
    paragraphs: tuple[str, ...]


@dataclass(frozen=True)
class Poem:
    """A kept poem. `title` is "" where the source has none usable. `id` is a hash of the body alone."""

    form: str
    title: str
    author: str
    lines: tuple[str, ...]
    body: str
    id: str

    @property
    def text(self) -> str:
        """The pretraining document."""
        title = f"《{self.title}》" if self.title else ""
        return f"{self.form}{title}{self.author}\n{self.body}"


@dataclass(frozen=True)
class Package:
    """What the tarball holds: every Tang poem, the anthology of 320, and the licence text."""

    poems: list[RawPoem]
    tang300: list[RawPoem]
    license: str


def read_package(tarball: Path) -> Package:
    """Stream the tarball without unpacking it, and simplify the characters.

    Raises ValueError if one of the parts is not in it.
    """
    simplify = OpenCC("t2s").convert
    poems: list[RawPoem] = []
    tang300: list[RawPoem] = []
    license_text = ""
    with (
        tarfile.open(tarball, "r|gz") as members,
        tqdm(desc="reading poems", unit=" poems", disable=None) as progress,
    ):
        for member in members:
            if _POEMS.fullmatch(member.name):
                # Written without \u escapes, so a whole file can be simplified at once.
                entries = json.loads(simplify(_content(members, member)))
                found = [_raw(entry, "title") for entry in entries]
                poems += found
                progress.update(len(found))
            elif member.name == _TANG300:
                groups = json.loads(simplify(_content(members, member)))["content"]
                tang300 = [_raw(entry, "chapter") for group in groups for entry in group["content"]]
            elif member.name == _LICENSE:
                license_text = _content(members, member)
    if not (poems and tang300 and license_text):
        raise ValueError(f"{tarball} lacks the Tang poems, the Tang 300 or the licence; use chinese-poetry 2.0.1")
    return Package(poems, tang300, license_text)


def _content(members: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = members.extractfile(member)
    if file is None:
        raise ValueError(f"{member.name} is not a plain file in this package; use chinese-poetry 2.0.1")
    return file.read().decode()


def _raw(entry: dict[str, Any], title: str) -> RawPoem:
    return RawPoem(entry[title], entry["author"], tuple(entry["paragraphs"]))


def verse_lines(raw: RawPoem, strip_notes: bool = False) -> tuple[str, ...]:
    """The text between the stops, punctuation taken off; with `strip_notes`, notes and quotes too."""
    verse = "\n".join(raw.paragraphs)
    if strip_notes:
        verse = _QUOTES.sub("", _NOTE.sub("", verse))
    return tuple(line for line in _STOPS.split(verse) if line)


def clean(raw: RawPoem, strip_notes: bool = False) -> Poem | str:
    """A regular poem, or else why it is dropped.

    A note in brackets drops the poem, because in this source a bracket may also hold part of the verse;
    `strip_notes` takes notes and quotation marks off instead, for the anthology, where brackets hold nothing but
    variant readings.
    """
    lines = verse_lines(raw, strip_notes)
    verse = "".join(lines)
    author = _NOTE.sub("", raw.author).strip()
    form = form_of(lines)
    if not lines:
        return "empty"
    if _MISSING.search(verse):
        return "missing character"
    if _BRACKETS.search(verse):
        return "note or bracket"
    if not re.fullmatch(f"{HAN}+", verse):
        return "other character that is not an ideograph"
    if form is None:
        return "irregular form"
    if len(set(lines)) < len(lines):
        return "repeats a line"
    if not re.fullmatch(f"{HAN}+", author):
        return "unreadable author"
    body = format_poem(lines)
    identity = hashlib.sha256(body.encode()).hexdigest()[:16]
    return Poem(form, clean_title(raw.title), author, lines, body, identity)


def clean_title(raw: str) -> str:
    """A title to ask for, or "" if there is none usable.

    Notes in brackets, the music bureau's class, "十首" and the number within a series go; the parts that stay are
    joined by "·". Not usable: other characters than ideographs, or more than 20 characters in all.
    """
    parts = re.split(r"[\s·]+", _NOTE.sub(" ", raw).strip())
    if len(parts) > 1 and _BUREAU.fullmatch(parts[0]):
        parts = parts[1:]
    if len(parts) > 1 and _ORDINAL.fullmatch(parts[-1]):
        parts = parts[:-1]
    title = "·".join(_SERIES.sub("", part) for part in parts)
    return title if len(title) <= _MAX_TITLE and re.fullmatch(f"{HAN}+(·{HAN}+)*", title) else ""
