"""`fledge inspect RECIPE`: what its packed rows and pairs really are, in the terminal and as one page."""

import os
import shutil
import sys
from pathlib import Path

from .find import Subject, find
from .page import page
from .survey import RowSurvey, Survey, survey
from .terminal import Paper, check_lines, leak_lines, lines


WIDEST = 110
"""Columns beyond which lines are hard to read."""


def inspect(
    path: Path,
    split: str = "train",
    row: int | None = None,
    count: int = 4,
    check: bool = False,
    with_leak_test: bool = False,
    html: Path | None = None,
) -> None:
    """Print what there is to see and write the page.

    Args:
        split: train or eval.
        row: show this row or pair alone, counted from 1.
        count: rows or pairs to show otherwise, evenly spaced.
        check: list the checks only, and write no page unless `html` says where.
        html: where the page goes; inspect.html beside the first folder if left out.

    Raises:
        ValueError: nothing to look into, no such row, a backend that leaks, or, with `check`, a check that fails.
    """
    subjects, missing = _subjects(path, split)
    if row is not None and len(subjects) > 1:
        names = ", ".join(subject.name for subject in subjects)
        raise ValueError(f"--row: {path} holds {names}; name the recipe of one of them")
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    paper = Paper(min(shutil.get_terminal_size().columns, WIDEST), colour)
    surveys = []
    for subject in subjects:
        surveys.append(survey(subject, split, row, count, with_leak_test))
        print("\n".join(_checks(surveys[-1], paper) if check else lines(surveys[-1], paper)), end="\n\n")
    for sentence in missing:
        print(paper.ink(f"not shown: {sentence}", "1"))
    if html is not None or not check:
        target = html or subjects[0].folder.parent / "inspect.html"
        try:
            target.write_text(page(_title(path), surveys, missing), encoding="utf-8")
        except OSError as error:
            raise ValueError(f"--html: {target} cannot be written: {error.strerror}; name another path") from error
        print(target)
    _refuse(surveys, check)


def _subjects(path: Path, split: str) -> tuple[list[Subject], list[str]]:
    """Those that can be shown, and a sentence about each of the others."""
    there, absent = find(path)
    missing = [f"{subject.name}: nothing made yet in {subject.folder}" for subject in absent]
    without = [subject for subject in there if not subject.has(split)]
    missing += [f"{subject.name}: {subject.folder} has no held-out part" for subject in without]
    subjects = [subject for subject in there if subject.has(split)]
    if not subjects:
        raise ValueError(f"--eval: {'; '.join(missing)}; name eval_datasets in its recipe and prepare again")
    return subjects, missing


def _checks(one: Survey, paper: Paper) -> list[str]:
    found = [f"{one.subject.name} · {one.split} · {one.subject.folder}", *check_lines(one.checks, paper)]
    if isinstance(one, RowSurvey) and one.leak is not None:
        found += leak_lines(one.leak)
    return found


def _title(path: Path) -> str:
    """A folder's own name; for a recipe file that of its folder too."""
    path = path.resolve()
    return path.name if path.is_dir() else f"{path.parent.name}: {path.stem}"


def _refuse(surveys: list[Survey], check: bool) -> None:
    faults = [
        f"{one.subject.name}: {leak}"
        for one in surveys
        if isinstance(one, RowSurvey) and one.leak is not None and (leak := one.leak.fault())
    ]
    if check:
        faults += [
            f"{one.subject.name}: {check.rule}: {check.message}"
            for one in surveys
            for check in one.checks
            if check.state == "fault"
        ]
    if faults:
        raise ValueError("\n".join(faults))
