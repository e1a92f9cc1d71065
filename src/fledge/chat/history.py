"""A conversation that has to fit into the model's context."""

from collections.abc import Callable


Messages = list[dict[str, str]]


class TurnTooLong(ValueError):
    """The newest turn does not fit, however much is forgotten."""


def fit(messages: Messages, count: Callable[[Messages], int], room: int) -> Messages:
    """The newest of `messages` that take at most `room` tokens, from a turn of the user on; the system's stays first.

    Args:
        messages: the conversation, the newest message last: the user's.
        count: the tokens that messages take as a prompt.
        room: the most they may take.

    Raises:
        TurnTooLong: the newest message alone takes more.
    """
    system = messages[:1] if messages[0]["role"] == "system" else []
    starts = [index for index, message in enumerate(messages) if message["role"] == "user"]
    for start in starts:
        kept = [*system, *messages[start:]]
        tokens = count(kept)
        if tokens <= room:
            return kept
    raise TurnTooLong(
        f"the message takes {tokens} tokens{' with the system prompt' * bool(system)} and the model has room for "
        f"{room} beside the answer; shorten it, or lower --max_new_tokens"
    )
