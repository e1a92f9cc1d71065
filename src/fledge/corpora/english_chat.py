"""Conversations, requests, preference pairs and multiple choices built from English text.

Every choice is a hash of the title, never a random number, and what stands beside an article or a recipe comes from
the same split.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from fledge.corpora.chance import fraction
from fledge.corpora.english_sources import Article, Recipe, Talk, sentences


LONGEST_MORE = 400
"""Characters of the longest answer to "Tell me more."."""
LONGEST_CONTEXT = 300
"""Characters of the lead that a question may quote."""
LONGEST_STEPS, LONGEST_INGREDIENTS = 440, 220
"""Characters of the longest recipe that becomes a pair."""
LONGEST_OPENING = 300
"""Characters of the longest opening of small talk that is a request."""
WRONG = 3
"""Wrong descriptions beside the right one: chance is 1 in 4."""

TITLE_ONLY, WITH_LEAD = "from the title", "from the lead"


def chat(*turns: str) -> list[dict[str, str]]:
    """Turns of user and assistant, in that order."""
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def article_chats(articles: Sequence[Article]) -> list[dict[str, Any]]:
    """One conversation an article: rows of messages, kind and title.

    Kinds: "define" (what it is, in the lead's first sentence, then more of the lead if there is more), "brief" (the
    description), "read" (the description of a quoted lead). Without a description it is always a "define".
    """
    return [_article_chat(article) for article in articles]


def _article_chat(article: Article) -> dict[str, Any]:
    share = fraction(article.title, "kind")
    if article.description and share < 0.25:
        kind, turns = "brief", [brief(article), article.description]
    elif article.description and share < 0.5:
        kind, turns = "read", [read(article), article.description]
    else:
        first, *rest = sentences(article.lead)
        kind, turns = "define", [f"{question(article)}?", first]
        if rest and len(rest[0]) <= LONGEST_MORE:
            turns += ["Tell me more.", up_to(LONGEST_MORE, rest)]
    return {"messages": chat(*turns), "kind": kind, "title": article.title}


def question(article: Article) -> str:
    """ "What is X", or "Who was X" of people."""
    return f"{'Who was' if article.topic == 'People' else 'What is'} {article.title}"


def brief(article: Article) -> str:
    """Asks for the description, given the title alone."""
    return f"In a few words: {question(article)[0].lower()}{question(article)[1:]}?"


def read(article: Article) -> str:
    """Asks for the description, given the beginning of the lead."""
    return f"{up_to(LONGEST_CONTEXT, sentences(article.lead))}\n\n{brief(article)}"


def up_to(length: int, parts: Sequence[str]) -> str:
    """As many whole sentences as `length` characters hold, and one in any case."""
    text = parts[0]
    for part in parts[1:]:
        if len(text) + 1 + len(part) > length:
            break
        text = f"{text} {part}"
    return text


def recipe_chats(recipes: Sequence[Recipe]) -> list[dict[str, Any]]:
    """One conversation a recipe: what it takes, then its steps."""
    return [
        {
            "messages": chat(*_asked(recipe), recipe.step_list),
            "kind": "recipe",
            "title": recipe.title,
        }
        for recipe in recipes
    ]


def _asked(recipe: Recipe) -> tuple[str, str, str]:
    return f"How do I make {recipe.title}?", f"You need:\n{recipe.ingredient_list}", "And the steps?"


def talk_chats(talks: Sequence[Talk]) -> list[dict[str, Any]]:
    """The human conversations; the one who begins is the user."""
    return [{"messages": chat(*talk.turns), "kind": "small talk", "title": talk.title} for talk in talks]


def pairs(articles: Sequence[Article], recipes: Sequence[Recipe], most: int) -> list[dict[str, Any]]:
    """At most `most` preference pairs in the order of a hash, each article and recipe in one of them at most.

    Chosen is the right description, rejected that of another article of the same topic; or chosen are a recipe's
    steps, rejected those of another recipe whose title ends with the same word, or that has the same category.
    """
    by_topic = _groups(articles, lambda article: article.topic)
    rows = []
    for article in articles:
        wrong = _wrong(article, by_topic[article.topic], 1) if article.description else []
        if wrong:
            form, prompt = (
                (TITLE_ONLY, brief(article)) if fraction(article.title, "pair") < 0.5 else (WITH_LEAD, read(article))
            )
            rows.append(_pair(article.title, form, chat(prompt), article.description, wrong[0]))
    short = [
        recipe
        for recipe in recipes
        if len(recipe.step_list) <= LONGEST_STEPS and len(recipe.ingredient_list) <= LONGEST_INGREDIENTS
    ]
    by_kind = _groups(short, _kind_of)
    by_category = _groups(short, lambda recipe: recipe.category)
    for recipe in short:
        alike = [other for other in by_kind[_kind_of(recipe)] if other != recipe]
        alike = alike or [other for other in by_category[recipe.category] if other != recipe and recipe.category]
        if alike:
            other = alike[int(fraction(recipe.title, "wrong") * len(alike))]
            rows.append(_pair(recipe.title, "steps", chat(*_asked(recipe)), recipe.step_list, other.step_list))
    return sorted(rows, key=lambda row: fraction(row["title"], row["form"], "order"))[:most]


def _pair(title: str, form: str, prompt: list[dict[str, str]], chosen: str, rejected: str) -> dict[str, Any]:
    sides = {
        side: [{"role": "assistant", "content": text}] for side, text in (("chosen", chosen), ("rejected", rejected))
    }
    return {"prompt": prompt, **sides, "form": form, "made": f"same_topic_{form}".replace(" ", "_"), "title": title}


def choices(articles: Sequence[Article], most: int) -> list[dict[str, Any]]:
    """Multiple choices: the right description and WRONG others of the same topic, at a place that a hash decides.

    At most `most` articles, in the order of a hash, each asked twice: from its title alone, and with its lead.
    `document` is how the same question begins as plain text, for a model that knows no chat.
    """
    by_topic = _groups(articles, lambda article: article.topic)
    rows = []
    for article in sorted(articles, key=lambda article: fraction(article.title, "order")):
        wrong = _wrong(article, by_topic[article.topic], WRONG) if article.description else []
        if len(wrong) < WRONG:
            continue
        answer = int(fraction(article.title, "place") * (WRONG + 1))
        options = [*wrong[:answer], article.description, *wrong[answer:]]
        for form, prompt, document in (
            (TITLE_ONLY, brief(article), f"{article.title}\n"),
            (WITH_LEAD, read(article), f"{up_to(LONGEST_CONTEXT, sentences(article.lead))}\n\n{article.title}\n"),
        ):
            row = {"prompt": chat(prompt), "choices": options, "answer": answer, "form": form}
            rows.append({**row, "title": article.title, "document": document})
        if len(rows) == 2 * most:
            break
    return rows


def requests(
    articles: Sequence[Article], recipes: Sequence[Recipe], talks: Sequence[Talk], most: int
) -> list[dict[str, Any]]:
    """What models are asked to answer, `most` of each form: a definition, a recipe, the next turn of small talk."""
    rows = []
    for article in _first(articles, most):
        reference = sentences(article.lead)[0]
        rows.append(_request("definition", article.title, chat(f"{question(article)}?"), reference, article.title))
    for recipe in _first(recipes, most):
        asked = _asked(recipe)
        beginning = f"{recipe.title}\n\nIngredients:"
        rows.append(_request("recipe", recipe.title, chat(asked[0]), asked[1], beginning))
    for talk in _first([talk for talk in talks if sum(map(len, talk.turns[:3])) <= LONGEST_OPENING], most):
        rows.append(
            _request("small talk", talk.title, chat(*talk.turns[:3]), talk.turns[3], "\n".join(talk.turns[:3]))
        )
    return rows


def _request(form: str, title: str, prompt: list[dict[str, str]], reference: str, document: str) -> dict[str, Any]:
    return {"prompt": prompt, "form": form, "title": title, "reference": reference, "document": f"{document}\n"}


def _first(items: Sequence[Any], most: int) -> list[Any]:
    return sorted(items, key=lambda item: fraction(item.title, "order"))[:most]


def _wrong(article: Article, alike: Sequence[Article], most: int) -> list[str]:
    """At most `most` different descriptions of other articles of the same topic, none of them the right one."""
    start = int(fraction(article.title, "wrong") * len(alike))
    found: dict[str, str] = {}
    for other in (*alike[start:], *alike[:start]):
        text = other.description
        if text and text.casefold() != article.description.casefold():
            found.setdefault(text.casefold(), text)
        if len(found) == most:
            break
    return list(found.values())


def _groups(items: Sequence[Any], key: Any) -> dict[str, list[Any]]:
    # In the order of a hash: neighbours in the alphabet are alike in more than their topic.
    groups: dict[str, list[Any]] = defaultdict(list)
    for item in sorted(items, key=lambda item: fraction(item.title, "group")):
        groups[key(item)].append(item)
    return groups


def _kind_of(recipe: Recipe) -> str:
    """The last word of a dish: "soup"."""
    return recipe.dish.split()[-1].casefold() if recipe.dish else ""
