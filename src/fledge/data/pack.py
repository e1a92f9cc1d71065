"""Best-fit packing: whole documents into rows of `max_length` tokens, none cut."""

from collections.abc import Sequence


def best_fit(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Indices of the documents of each row.

    Best-fit decreasing: the longest document left goes into the row with the least room that still holds it (Ding et
    al. 2024, "Fewer truncations improve language modeling"). The outcome depends on the lengths and their order only.

    Raises:
        ValueError: a document longer than a row.
    """
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(max_length + 1)]  # room left -> rows that have it
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        if length > max_length:
            raise ValueError(f"document {index} has {length} tokens, a row has {max_length}")
        room = next((room for room in range(length, max_length + 1) if by_room[room]), None)
        if room is None:
            row, room = len(rows), max_length
            rows.append([])
        else:
            row = by_room[room].pop()
        rows[row].append(index)
        by_room[room - length].append(row)
    return rows
