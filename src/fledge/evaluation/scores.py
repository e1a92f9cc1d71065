"""All figures of one model, and the answers they are from."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fledge.arguments import EvaluateArguments
from fledge.machine import choose_bf16

from .generate import Answer, chat_prompt, sample
from .heldout import Heldout, Rows
from .intervals import settled
from .likelihood import bits_per, measure, picked, preference_margins, text_measures
from .measures import answer_measures, choice_measures, form_measures, is_perfect


@dataclass(frozen=True)
class Subject:
    """A model under evaluation; a base model is given the beginning of a document instead of a chat."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    is_base: bool

    @property
    def parts(self) -> tuple[str, PreTrainedModel, PreTrainedTokenizerBase]:
        """As the measures take it."""
        return self.name, self.model, self.tokenizer


def score(subject: Subject, heldout: Heldout, keys: EvaluateArguments) -> dict[str, Any]:
    """`scores` with their intervals, the `margins` of the pairs in nats, and the `samples`; plain JSON."""
    corpus, found, samples = heldout.corpus, {}, []
    if heldout.requests:
        answers = _answers(subject, heldout.requests, heldout, keys)
        found |= answer_measures(answers, corpus.units)
        if heldout.judged:
            known = {line for row in heldout.train for line in corpus.lines(row["body"])}
            found |= form_measures(
                heldout.requests, answers, corpus.judge, corpus.lines, known, corpus.COPIED_LINE_LENGTH
            )
        samples = [_sample(subject, *each, heldout) for each in zip(heldout.requests, answers, strict=True)]
    if heldout.sources:
        found |= likelihood(subject, heldout.sources)
    with _as_training_reads(subject.model):
        if heldout.chats:
            found["answer_bits_per_char"] = bits_per("characters", measure(*subject.parts, heldout.chats))
        if heldout.choices:
            prompt = corpus.document_prompt if subject.is_base else None
            found |= choice_measures(heldout.choices, picked(*subject.parts, heldout.choices, prompt))
        margins = preference_margins(*subject.parts, heldout.pairs) if heldout.pairs else []
    return {"scores": settled(found, keys.seed), "margins": margins, "samples": samples}


def likelihood(subject: Subject, sources: dict[str, Rows]) -> dict[str, Any]:
    """How likely held-out text is, as `text_measures` says it."""
    with _as_training_reads(subject.model):
        return text_measures({source: measure(*subject.parts, rows) for source, rows in sources.items()})


def _as_training_reads(model: PreTrainedModel) -> torch.autocast:
    """Products in bfloat16 where training takes them so by itself."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=choose_bf16("auto"))


def _answers(subject: Subject, requests: Rows, heldout: Heldout, keys: EvaluateArguments) -> list[Answer]:
    """What the model makes of every request: as a chat, or of a base model as the beginning of a document."""
    name, model, tokenizer = subject.parts
    corpus = heldout.corpus
    if subject.is_base:
        prompts = [tokenizer.bos_token + corpus.document_prompt(request) for request in requests]
    else:
        prompts = [chat_prompt(tokenizer, request["prompt"]) for request in requests]
    answers = sample(
        model,
        tokenizer,
        prompts,
        temperature=keys.temperature,
        max_new_tokens=keys.max_new_tokens,
        batch_size=keys.batch_size,
        seed=keys.seed,
        label=f"{name}: answers",
    )
    if not subject.is_base:
        return answers
    return [Answer(corpus.document_answer(given.text), given.stopped) for given in answers]


def _sample(subject: Subject, request: dict[str, Any], given: Answer, heldout: Heldout) -> dict[str, Any]:
    """One line of samples.jsonl; `perfect` only where the corpus has a judge."""
    judged = {"perfect": is_perfect(heldout.corpus.judge, request, given)} if heldout.judged else {}
    return {
        "model": subject.name,
        "form": request["form"],
        "title": request["title"],
        "prompt": request["prompt"][-1]["content"],
        "text": given.text,
        **judged,
        "stopped": given.stopped,
    }
