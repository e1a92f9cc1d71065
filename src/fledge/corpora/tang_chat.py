"""Conversations and requests built from real Tang poems. Every choice is a hash of the poem, never a random number."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from fledge.corpora.chance import fraction
from fledge.corpora.tang_forms import FORMS
from fledge.corpora.tang_poems import Poem


KINDS = ("ask", "continue", "author", "reform")
WORDINGS = ("写一首{form}，题为《{title}》。", "请以《{title}》为题，作一首{form}。", "来一首{form}：《{title}》。")

_CONTINUE_BELOW = 0.15
_AUTHOR_BELOW = 0.30
# Only about a sixth of the poems have a namesake of another form; most of them serve, to make up a tenth of the whole.
_REFORM_BELOW = 0.85


def ask(form: str, title: str, key: str) -> str:
    """A request for a poem of that form and title, in the wording that `key` chooses."""
    return WORDINGS[int(fraction(key, "wording") * len(WORDINGS))].format(form=form, title=title)


def conversations(poems: Sequence[Poem]) -> list[dict[str, Any]]:
    """One conversation a poem, in the order given: rows of messages, kind, form and title.

    Kinds: "ask" (a poem by form and title), "continue" (the whole poem from its first line), "author" (ask, then who
    wrote it), "reform" (ask, then a poem of another form with the same title; only where `poems` has one). A poem
    without a usable title can only be a "continue".
    """
    namesakes = _by_title(poems)
    return [_conversation(poem, [p for p in namesakes[poem.title] if p.form != poem.form]) for poem in poems]


def _conversation(poem: Poem, others: list[Poem]) -> dict[str, Any]:
    kind = _kind(poem, others)
    if kind == "continue":
        turns = [f"续写这首{poem.form}：{poem.lines[0]}，", poem.body]
    else:
        turns = [ask(poem.form, poem.title, poem.id), poem.body]
    if kind == "author":
        turns += ["这首诗的作者是谁？", f"{poem.author}。"]
    elif kind == "reform":
        other = others[int(fraction(poem.id, "other") * len(others))]
        turns += [f"同题再写一首{other.form}。", other.body]
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return {"messages": messages, "kind": kind, "form": poem.form, "title": poem.title}


def _kind(poem: Poem, others: list[Poem]) -> str:
    share = fraction(poem.id, "kind")
    if not poem.title or share < _CONTINUE_BELOW:
        return "continue"
    if share < _AUTHOR_BELOW:
        return "author"
    return "reform" if others and share < _REFORM_BELOW else "ask"


def requests_for(poems: Sequence[Poem]) -> list[dict[str, Any]]:
    """One request a poem with a usable title, in the order given, with the poem itself as the reference."""
    return [_request(poem.form, poem.title, poem.id, poem.body) for poem in poems if poem.title]


def unseen_requests(heldout: Sequence[Poem], train: Sequence[Poem], per_form: int) -> list[dict[str, Any]]:
    """Requests for titles that held-out poems have and no train poem has: `per_form` of each form.

    A form asks first for titles that have a real poem of that form, which becomes the reference; then for the titles
    least used so far, with "" as the reference. No form asks for a title twice, so there are fewer than `per_form`
    requests where there are fewer unseen titles.
    """
    seen = {poem.title for poem in train}
    unseen = _by_title([poem for poem in heldout if poem.title and poem.title not in seen])
    used = dict.fromkeys(sorted(unseen, key=lambda title: fraction(title, "order")), 0)
    rows = []
    for form in FORMS:
        real = {title: next((p.body for p in unseen[title] if p.form == form), "") for title in used}
        # Sorting is stable: titles that tie stay in the order of their hash.
        for title in sorted(used, key=lambda title: (not real[title], used[title]))[:per_form]:
            used[title] += 1
            rows.append(_request(form, title, f"{form}{title}", real[title]))
    return rows


def _request(form: str, title: str, key: str, reference: str) -> dict[str, Any]:
    prompt = [{"role": "user", "content": ask(form, title, key)}]
    return {"prompt": prompt, "form": form, "title": title, "reference": reference}


def _by_title(poems: Sequence[Poem]) -> dict[str, list[Poem]]:
    groups: dict[str, list[Poem]] = defaultdict(list)
    for poem in poems:
        groups[poem.title].append(poem)
    return groups
