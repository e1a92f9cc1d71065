"""Tasks of lm-evaluation-harness, asked in process of a loaded model; no code out of a recipe is run.

The harness itself (Gao et al. 2021) may run code that a task names: Python functions (`!function`), metrics that the
`evaluate` library fetches, and Jinja templates outside a sandbox. A task of a recipe's own is plain YAML here, metrics
are those that the harness brings, and every template is rendered in Jinja's sandbox.
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fledge.arguments import TaskEntry
from fledge.data.load import reason
from fledge.files import stays_inside
from fledge.machine import choose_bf16
from fledge.recipe import messages, read_document

from .scores import Subject


BATCH_SIZE = 16
"""Questions with one answer each in a forward pass."""

FEWSHOT_SEED = 1234
"""The harness's own."""

READERS = {".parquet": "parquet", ".jsonl": "json"}
DATA_KEYS = ("dataset_path", "dataset_name", "dataset_kwargs", "test_split")
"""Keys of a task file that the recipe's `path` stands for."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """One entry of `tasks:` with what the harness made of it, and a digest of its settings and rows."""

    entry: TaskEntry
    made: dict[str, dict[str, Any]]
    """`tasks` and `groups` by name."""
    digest: str

    @property
    def key(self) -> dict[str, Any]:
        """What decides the metrics besides the model."""
        return {"digest": self.digest, "limit": self.entry.limit}


def load_tasks(entries: list[TaskEntry]) -> list[Asked]:
    """The tasks with their rows, before any model is loaded.

    Raises:
        ValueError: lm-evaluation-harness is not installed, there is no such task, its rows cannot be had, or it would
            run code.
    """
    if not entries:
        return []
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ValueError("tasks: needs lm-evaluation-harness: pip install 'fledge-lm[eval]'") from None
    with _no_code():
        # Once: the harness reads its 14,000 files for it.
        manager = TaskManager(include_defaults=any(not entry.include_path for entry in entries))
        return [_load(entry, manager) for entry in entries]


def ask(subject: Subject, asked: Asked) -> dict[str, dict[str, Any]]:
    """The metrics of a task, or of every task of a group, each with its stderr, few-shot count, version and limit.

    Every text begins with the tokenizer's beginning-of-sequence token, as in training; no chat template is applied.
    Products are taken in bfloat16 where training takes them so. `cut` counts texts that lost their beginning, since
    they are longer than the model's context.

    Raises:
        ValueError: a row that the task's templates cannot render.
    """
    from lm_eval import evaluate

    from .reader import Reader

    dtype = torch.bfloat16 if choose_bf16("auto") else None
    logger.info("%s: %s", subject.name, asked.entry.name)
    with _no_code():
        reader = Reader(subject.model, tokenizer=subject.tokenizer, batch_size=BATCH_SIZE, mixed_precision_dtype=dtype)
        try:
            for task in asked.made["tasks"].values():
                task.set_fewshot_seed(FEWSHOT_SEED)  # anew: every model gets the same examples
            found = evaluate(reader, asked.made, limit=asked.entry.limit, bootstrap_iters=1000, log_samples=False)
        except TemplateError as error:
            raise ValueError(f"tasks: {asked.entry.name}: a template cannot be rendered: {reason(error)}") from None
    if reader.cut:
        logger.warning("%s: %s: %d texts lost their beginning", subject.name, asked.entry.name, reader.cut)
    return {
        name: {
            **{_metric(key): value for key, value in metrics.items() if isinstance(value, float)},
            "num_fewshot": found["n-shot"].get(name),
            "version": found["versions"].get(name),
            "questions": found["n-samples"].get(name, {}).get("effective"),
            "limit": asked.entry.limit,
            "cut": reader.cut,
        }
        for name, metrics in found["results"].items()
    }


def _metric(key: str) -> str:
    """`acc,none` -> acc; a filter other than none stays: `exact_match,strict-match`."""
    return key.removesuffix(",none")


def _load(entry: TaskEntry, manager: Any) -> Asked:
    place = f"tasks: {entry.name}"
    made = _own(entry, place) if entry.include_path else _of_the_harness(entry, place, manager)
    rows = hashlib.sha256()
    for task in made["tasks"].values():
        if getattr(task, "UNSAFE_CODE", False):
            raise ValueError(f"{place}: runs code that a model wrote, and fledge runs none; take the task out")
        unknown = [name for name, metric in getattr(task, "_metric_fn_list", {}).items() if metric is None]
        if unknown and task.config.process_results is None:
            raise ValueError(f"{place}: the metric {unknown[0]} is not the harness's own; it would be fetched and run")
        fewshot = task.get_config("num_fewshot") if entry.num_fewshot is None else entry.num_fewshot
        task.set_config("num_fewshot", fewshot or 0)
        rows.update(json.dumps(task.dump_config(), sort_keys=True, default=str).encode())
        shown = [*task.fewshot_docs()] if task.config.num_fewshot else []
        for row in (*itertools.islice(task.eval_docs, entry.limit), *shown):
            rows.update(json.dumps(row, sort_keys=True, default=str).encode())
    return Asked(entry, made, rows.hexdigest())


def _of_the_harness(entry: TaskEntry, place: str, manager: Any) -> dict[str, dict[str, Any]]:
    """A task or group that the harness brings, and the single tasks in it."""
    if entry.path:
        raise ValueError(f"{place}: `path` is for tasks of your own, together with include_path; take it out")
    if entry.name not in manager.all_tasks:
        near = get_close_matches(entry.name, manager.all_tasks, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{place}: lm-evaluation-harness {metadata.version('lm_eval')} has no such task{meant}")
    try:
        return manager.load([entry.name])
    except Exception as error:  # of datasets and the hub, or of the task's own code
        raise ValueError(
            f"{place}: cannot be loaded ({type(error).__name__}: {reason(error)}); its rows are on the hub: run the "
            "stage once while online, or take the task out"
        ) from None


def _own(entry: TaskEntry, place: str) -> dict[str, dict[str, Any]]:
    """A task out of a folder of the recipe's."""
    from lm_eval.api.task import ConfigurableTask

    file, values = _task_file(Path(entry.include_path), entry.name, place)
    if stated := [key for key in DATA_KEYS if key in values]:
        raise ValueError(f"{file}: {stated[0]}: the recipe names the rows, in the `path` of the task; take it out")
    if not (stays_inside(entry.path) and Path(entry.path).suffix in READERS and Path(entry.path).is_file()):
        raise ValueError(
            f"{place}: path: {entry.path}: name the task's rows, a {' or '.join(READERS)} file below the working "
            "directory that is there"
        )
    data = {"dataset_path": READERS[Path(entry.path).suffix], "dataset_kwargs": {"data_files": {"test": entry.path}}}
    try:
        made = ConfigurableTask(config={**values, **data, "test_split": "test"})
    except Exception as error:  # whatever the harness makes of a wrong key, template or row
        raise ValueError(f"{file}: the harness cannot load it: {type(error).__name__}: {reason(error)}") from None
    return {"tasks": {entry.name: made}, "groups": {}}


def _task_file(folder: Path, name: str, place: str) -> tuple[Path, dict[str, Any]]:
    """The file of a folder that holds the task of this name, as plain values: no tag, so no function, gets through."""
    if not (stays_inside(str(folder)) and folder.is_dir()):
        raise ValueError(f"{place}: include_path: {folder}: no folder below the working directory")
    names = []
    for path in sorted(folder.glob("*.yaml")):
        document = read_document(path)
        if document.faults:
            raise ValueError("\n".join(messages(document.faults, path, document.lines)))
        if document.value.get("task") == name:
            return path, document.value
        names.append(str(document.value.get("task")))
    raise ValueError(f"{place}: include_path: {folder} has no such task; it has {', '.join(names) or 'none'}")


@contextmanager
def _no_code() -> Iterator[None]:
    """Meanwhile templates are rendered in the sandbox, `evaluate.load` runs nothing, and the harness is quiet."""
    import evaluate
    from lm_eval import utils

    def refuse(name: str, *_: Any, **__: Any) -> None:
        raise ValueError(f"evaluate.load({name!r}) would run code that it fetched")

    plain, load, talk = utils.env, evaluate.load, logging.getLogger("lm_eval")
    sandbox = ImmutableSandboxedEnvironment(
        loader=plain.loader, undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
    )
    sandbox.filters.update(plain.filters)
    level = talk.level
    utils.env, evaluate.load = sandbox, refuse
    talk.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        utils.env, evaluate.load = plain, load
        talk.setLevel(level)
