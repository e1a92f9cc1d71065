"""Documents -> rows of `max_length` tokens, from their lengths alone."""

import numpy as np


def pack(lengths: np.ndarray, max_length: int, strategy: str) -> tuple[np.ndarray, np.ndarray]:
    """Cut documents into pieces and put the pieces into rows. The outcome depends on the lengths and their order only.

    Args:
        lengths: tokens of each document, (N,), none of them 0.
        strategy: `wrapped`: one document after another, cut wherever a row is full; only the last row has room left.
            `best-fit`: no document is cut. `best-fit-split`: a document longer than a row fills rows of its own, and
            what is left over is packed like a short document.

    Returns:
        pieces: (P, 3) uint32, row after row: number of the document, and its tokens from start to stop.
        rows: (R + 1,) int64: row r holds pieces[rows[r] : rows[r + 1]].

    Raises:
        ValueError: `best-fit` and a document longer than a row.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if strategy == "wrapped":
        return _wrapped(lengths, max_length)
    if strategy == "best-fit" and len(lengths) and lengths.max() > max_length:
        index = int((lengths > max_length).argmax())
        raise ValueError(f"document {index} has {lengths[index]} tokens, a row has {max_length}")
    return _best_fit_split(lengths, max_length)


def _wrapped(lengths: np.ndarray, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    ends = np.cumsum(lengths)
    starts = ends - lengths
    row_starts = np.arange(0, lengths.sum(), max_length)
    cuts = np.union1d(starts, row_starts)
    document = np.searchsorted(ends, cuts, side="right")
    stops = np.append(cuts, lengths.sum())[1:]
    pieces = _pieces(document, cuts - starts[document], stops - starts[document])
    return pieces, np.append(np.searchsorted(cuts, row_starts), len(pieces))


def _best_fit_split(lengths: np.ndarray, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    whole, rest = np.divmod(lengths, max_length)
    documents = np.repeat(np.arange(len(lengths)), whole)
    starts = (np.arange(len(documents)) - np.repeat(np.cumsum(whole) - whole, whole)) * max_length
    full = _pieces(documents, starts, starts + max_length)

    short = np.flatnonzero(rest)
    order = short[np.argsort(-rest[short], kind="stable")]
    row_of = best_fit(rest[order], max_length)
    order = order[np.argsort(row_of, kind="stable")]
    pieces = np.concatenate([full, _pieces(order, lengths[order] - rest[order], lengths[order])])
    sizes = np.concatenate([[0], np.ones(len(full), np.int64), np.bincount(row_of)])
    return pieces, np.cumsum(sizes)


def _pieces(documents: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    return np.stack([documents, starts, stops], axis=1).astype(np.uint32)


def best_fit(lengths: np.ndarray, max_length: int) -> np.ndarray:
    """The row of each length, by best-fit decreasing: the longest left goes where the least room still holds it.

    Ding et al. 2024, "Fewer truncations improve language modeling". Equal lengths are placed together: the row with
    the least room takes as many of them as fit before any other row is looked at, so that the work grows with the
    number of different lengths and not with the number of documents.

    Args:
        lengths: (N,), falling, each at least 1 and at most max_length.
    """
    row_of = np.empty(len(lengths), np.int64)
    having = np.zeros(max_length + 1, np.int64)  # room left -> how many rows have it
    rows: list[list[np.ndarray]] = [[] for _ in having]  # room left -> those rows
    opened = placed = 0

    def put(room: int, some: np.ndarray) -> None:
        if len(some):
            rows[room].append(some)
            having[room] += len(some)

    def take(room: int, wanted: int) -> np.ndarray:
        taken = []
        while wanted:
            some = rows[room].pop()
            if len(some) > wanted:
                rows[room].append(some[wanted:])
                some = some[:wanted]
            taken.append(some)
            wanted -= len(some)
            having[room] -= len(some)
        return np.concatenate(taken)

    values, counts = np.unique(lengths, return_counts=True)
    for length, left in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while left:
            room = length + int((having[length:] > 0).argmax())
            if not having[room]:  # no row holds it: open as many as it fills
                room, needed = max_length, -(-left // (max_length // length))
                put(room, np.arange(opened, opened + needed))
                opened += needed
            per_row = room // length
            some = take(room, min(having[room], -(-left // per_row)))
            count = min(left, len(some) * per_row)
            row_of[placed : placed + count] = np.repeat(some, per_row)[:count]
            filled, over = divmod(count, per_row)
            put(room - per_row * length, some[:filled])
            put(room - over * length, some[filled:])
            placed += count
            left -= count
    return row_of
