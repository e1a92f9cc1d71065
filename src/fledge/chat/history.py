"""A conversation that has to fit into the model's context."""

from collections.abc import Callable


Messages = list[dict[str, str]]


class TurnTooLong(ValueError):
    """The newest turn does not fit, however much is forgotten."""


def fit(messages: Messages, count: Callable[[Messages], int], room: int) -> Messages:
    """The newest of `messages` that take at most `room` tokens, beginning at a turn of the user.

    Args:
        messages: the conversation, the newest message last: the user's.
        count: the tokens that messages take as a prompt.
        room: the most they may take.

    Raises:
        TurnTooLong: the newest message alone takes more.
    """
    starts = [index for index, message in enumerate(messages) if message["role"] == "user"]
    for start in starts:
        tokens = count(messages[start:])
        if tokens <= room:
            return messages[start:]
    raise TurnTooLong(
        f"the message takes {tokens} tokens and the model has room for {room} beside the answer; "
        "shorten it, or lower --max_new_tokens"
    )
