"""Evaluation: figures that can be checked by hand, and that do not depend on how the work is batched."""

import math
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONVERSATIONS, TEXTS, documents_of
from transformers import PreTrainedTokenizerBase

from fledge.data.made import balanced, on_policy_pairs, wrong_form_pairs
from fledge.data.pairs import check_pair, read_pairs, write_pairs
from fledge.evaluation import generate
from fledge.evaluation.generate import Answer, chat_prompt, sample
from fledge.evaluation.intervals import settled
from fledge.evaluation.likelihood import (
    Measured,
    bits_per,
    log_likelihoods,
    measure,
    picked,
    preference_margins,
    text_measures,
    utf8_bytes,
    windows,
)
from fledge.evaluation.measures import (
    answer_measures,
    choice_measures,
    distinct,
    form_measures,
    is_loop,
    preference_measures,
    repeated,
)
from fledge.evaluation.trigram import END, START, Trigram
from fledge.model.modeling_fledge import FledgeForCausalLM


Make = Callable[..., FledgeForCausalLM]


def bits_per_character(trigram: Trigram, texts: list[str]) -> float:
    return bits_per("characters", [Measured.of(trigram.bits(text), {"text": text}) for text in texts]).value


def bits(model: FledgeForCausalLM, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]) -> float:
    return bits_per("characters", measure("m", model, tokenizer, rows)).value


def plain(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures without their intervals."""
    found = settled(figures, 0)
    found.pop("intervals", None)
    return found


# --- the trigram


@pytest.mark.parametrize("documents", [TEXTS, ["ab"], ["aaaa", "aaab"], ["abcabc"] * 5])
def test_trigram_probabilities_sum_to_one(documents: list[str]) -> None:
    model = Trigram(documents)
    characters = [*sorted(set("".join(documents))), END]
    unseen = "\u2603"
    for context in (START + START, START + characters[0], characters[0] * 2, documents[0][:2], unseen * 2):
        probabilities = [model.probability(context + character) for character in [*characters, unseen]]
        assert min(probabilities) > 0
        assert sum(probabilities) == pytest.approx(1, abs=1e-12)


def test_trigram_reaches_the_entropy_of_its_source() -> None:
    chance = random.Random(0)
    uniform = ["".join(chance.choices("abcd", k=1000)) for _ in range(60)]
    # Two bits a character, and the end costs ten of them once in a thousand.
    assert bits_per_character(Trigram(uniform[:50]), uniform[50:]) == pytest.approx(2, abs=0.03)

    # The third character follows from the two before it: one bit in two characters is free.
    def chain() -> str:
        text = chance.choice("ab")
        while len(text) < 1000:
            text += chance.choice("ab") if len(text) % 2 == 0 else {"a": "x", "b": "y"}[text[-1]]
        return text

    chains = [chain() for _ in range(60)]
    assert bits_per_character(Trigram(chains[:50]), chains[50:]) == pytest.approx(0.5, abs=0.03)
    assert bits_per_character(Trigram(["abcdefgh" * 4] * 500), ["abcdefgh" * 4]) < 0.1


def test_trigram_backs_off_to_contexts_not_occurrences() -> None:
    # b follows "a" ten times, always after p; c twice, after q and r: in a new context c is the likelier.
    model = Trigram(["pab"] * 10 + ["qac", "rac"])
    assert model.probability("xac") > model.probability("xab")
    assert model.probability("pab") > model.probability("pac")


def test_trigram_counts_the_end_as_a_character() -> None:
    model = Trigram(["ab", "ac"])
    expected = [model.probability(gram) for gram in (START * 2 + "a", START + "ab", "ab" + END)]
    assert model.bits("ab") == pytest.approx(-sum(map(math.log2, expected)))
    assert bits_per_character(model, ["ab", "a"]) == pytest.approx((model.bits("ab") + model.bits("a")) / 5)


# --- likelihood


def by_hand(model: FledgeForCausalLM, ids: list[int], first: int) -> float:
    """log p of ids[first:] given what stands before, in nats."""
    with torch.no_grad():
        log_softmax = model(torch.as_tensor(ids)[None]).logits[0].log_softmax(-1)
    return sum(log_softmax[place - 1, ids[place]].item() for place in range(first, len(ids)))


@pytest.mark.parametrize("batch_tokens", [1, 100, 8192])
def test_likelihood_is_independent_of_the_batch(
    make_model: Make, tokenizer: PreTrainedTokenizerBase, batch_tokens: int
) -> None:
    model = make_model()
    documents = documents_of(tokenizer, [{"text": text} for text in TEXTS], 128)
    found = log_likelihoods(model, documents, tokenizer.pad_token_id, "test", batch_tokens)
    assert found == pytest.approx([by_hand(model, document.input_ids, 1) for document in documents], rel=1e-6)


def test_bits_are_per_character_of_text_or_answer(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> None:
    model = make_model()
    begin, end = "<|begin|>", "<|end|>"
    nats = sum(by_hand(model, tokenizer(begin + text + end)["input_ids"], 1) for text in TEXTS[:3])
    characters = sum(len(text) + 1 for text in TEXTS[:3])
    rows = [{"text": text} for text in TEXTS[:3]]
    assert bits(model, tokenizer, rows) == pytest.approx(-nats / math.log(2) / characters, rel=1e-6)

    # Only the answers count: those of the second conversation are "Hello!" and a poem.
    first, second = "<|begin|><|user|>Hi<|end|><|assistant|>", f"<|user|>A line?{end}<|assistant|>"
    answers = [f"Hello!{end}", f"{TEXTS[6]}{end}"]
    ids = [tokenizer(part)["input_ids"] for part in (first, answers[0], second, answers[1])]
    start = sum(map(len, ids[:3]))
    whole = [token for part in ids for token in part]
    nats = by_hand(model, whole[: len(ids[0] + ids[1])], len(ids[0])) + by_hand(model, whole, start)
    expected = -nats / math.log(2) / sum(len(answer) - len(end) + 1 for answer in answers)
    assert bits(model, tokenizer, CONVERSATIONS[1:2]) == pytest.approx(expected, rel=1e-6)


def test_a_long_document_is_read_in_windows_that_count_every_token_once(
    make_model: Make, tokenizer: PreTrainedTokenizerBase
) -> None:
    document = documents_of(tokenizer, [{"text": " ".join(TEXTS)}], 1000)[0]
    count = len(document.input_ids)
    for length in (2, 7, 64, count - 1, count):
        pieces = windows(document, length)
        assert max(len(piece.input_ids) for piece in pieces) <= length
        labels = [label for piece in pieces for label in list(piece.labels) if label != -100]
        assert labels == [label for label in list(document.labels) if label != -100]

    # With windows of two tokens, each is predicted from the one before it alone.
    model = make_model(max_position_embeddings=2)
    ids = list(document.input_ids)
    expected = sum(by_hand(model, list(pair), 1) for pair in pairwise(ids))
    assert log_likelihoods(model, [document], 0, "test") == pytest.approx([expected], rel=1e-5)


def uniform(model: FledgeForCausalLM) -> FledgeForCausalLM:
    """Every token equally likely, whatever stands before it."""
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    return model


def test_bits_of_a_uniform_model_follow_from_the_vocabulary(
    make_model: Make, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = uniform(make_model())
    rows = [{"text": text} for text in TEXTS]
    tokens = [len(tokenizer(text)["input_ids"]) + 1 for text in TEXTS]
    found = plain(text_measures({"all": measure("m", model, tokenizer, rows)}))
    whole = sum(tokens) * math.log2(320)
    assert found == {
        "bits_per_char": pytest.approx(whole / sum(len(text) + 1 for text in TEXTS), rel=1e-6),
        "bits_per_byte": pytest.approx(whole / sum(len(text.encode()) + 1 for text in TEXTS), rel=1e-6),
        "loss": pytest.approx(math.log(320), rel=1e-6),
        "perplexity": pytest.approx(320, rel=1e-5),
    }

    # Ideographs take three bytes each, letters one: sources differ, and together they are the whole.
    sources = {"han": [rows[0]], "latin": [rows[3]]}
    found = plain(text_measures({name: measure("m", model, tokenizer, part) for name, part in sources.items()}))
    for name, index in (("han", 0), ("latin", 3)):
        expected = tokens[index] * math.log2(320) / (utf8_bytes(TEXTS[index]) + 1)
        assert found["bits_per_byte_by_source"][name] == pytest.approx(expected, rel=1e-6)
    assert found["bits_per_char"] > found["bits_per_byte"]


# --- choices


def choice(answer: int, *options: str, form: str = "a") -> dict[str, Any]:
    prompt = [{"role": "user", "content": "Which?"}]
    return {"prompt": prompt, "choices": list(options), "answer": answer, "form": form, "document": "Which\n"}


def test_a_model_that_knows_one_letter_picks_it(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> None:
    # Every token equally likely, but for "x", which is e^3 times as likely as any other after anything.
    model = uniform(make_model(tie_word_embeddings=False))
    x = tokenizer("x")["input_ids"][0]
    head = model.get_output_embeddings()
    bias = torch.zeros(320)
    bias[x] = 3.0
    head.register_forward_hook(lambda module, inputs, output: output + bias)
    rows = [choice(1, "zq", "xx", "qz"), choice(0, "xxxxxxxx", "q"), choice(2, "jq", "xj", "qj", form="b")]
    for document_prompt in (None, lambda row: row["document"]):
        found = picked("m", model, tokenizer, rows, document_prompt)
        assert found == [1, 0, 1]  # normalised: eight of the likely letter beat one of another
    assert plain(choice_measures(rows, found)) == {
        "choice_accuracy": pytest.approx(2 / 3),
        "choice_accuracy_by_form": {"a": 1.0, "b": 0.0},
        "choice_chance": pytest.approx((1 / 3 + 1 / 2 + 1 / 3) / 3),
    }


def test_choices_are_scored_per_byte_end_included(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> None:
    model = make_model()
    rows = [choice(0, *TEXTS), choice(0, "yes", "no", "The sun", "x" * 30)]
    start = tokenizer(chat_prompt(tokenizer, rows[0]["prompt"]))["input_ids"]
    base = tokenizer("<|begin|>Which\n")["input_ids"]

    def best(row: dict[str, Any], start: list[int], end: str) -> int:
        scores = [
            by_hand(model, start + tokenizer(text + end)["input_ids"], len(start)) / (len(text.encode()) + 1)
            for text in row["choices"]
        ]
        return scores.index(max(scores))

    assert picked("m", model, tokenizer, rows, None) == [best(row, start, "<|end|>") for row in rows]
    as_document = picked("m", model, tokenizer, rows, lambda row: row["document"])
    assert as_document == [best(row, base, "\n") for row in rows]


def test_preference_margins_have_the_sign_of_the_preference(
    make_model: Make, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make_model()
    prompt = [{"role": "user", "content": "Hi"}]
    pairs = [
        {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": a}],
            "rejected": [{"role": "assistant", "content": b}],
        }
        for a, b in (("x", "yes"), ("月", "no"))
    ]
    start = tokenizer(chat_prompt(tokenizer, prompt))["input_ids"]

    def answer(text: str) -> float:
        return by_hand(model, start + tokenizer(text + "<|end|>")["input_ids"], len(start))

    expected = [answer("x") - answer("yes"), answer("月") - answer("no")]
    assert preference_margins("m", model, tokenizer, pairs) == pytest.approx(expected, rel=1e-5)
    turned = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in pairs]
    assert preference_margins("m", model, tokenizer, turned) == pytest.approx([-x for x in expected], rel=1e-5)


def test_preferences_are_counted_from_the_reference_on() -> None:
    # From -3, 1 and 2 nats to -1, 1 and 5: two of three pairs grew, by 2, 0 and 3.
    found = plain(preference_measures([-1.0, 1.0, 5.0], [-3.0, 1.0, 2.0]))
    assert found == {"preference_accuracy": pytest.approx(2 / 3), "preference_margin": pytest.approx(5 / 3)}


# --- sampling


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample in float32 wherever the tests run: bfloat16 may round otherwise in another batch."""
    monkeypatch.setattr(generate, "choose_bf16", lambda _: False)


def sampled(
    model: FledgeForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: list[str], **keys: Any
) -> list[Answer]:
    values = {"temperature": 1.0, "max_new_tokens": 12, "batch_size": 8, "seed": 0, "label": "test", **keys}
    return sample(model, tokenizer, prompts, **values)


GREEDY = 1e-7
"""A temperature so low that only the likeliest token is ever drawn."""

PROMPTS = ["<|begin|><|user|>" + text + "<|end|><|assistant|>" for text in TEXTS]


def greedy(model: FledgeForCausalLM, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The likeliest continuation of each prompt, by itself and by transformers' own generate."""
    found = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        found.append(model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :].tolist())
    return found


def test_answers_do_not_depend_on_the_batch(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> None:
    model = make_model()
    expected = [Answer(tokenizer.decode(t, skip_special_tokens=True), False) for t in greedy(model, tokenizer)]
    assert len({answer.text for answer in expected}) > 4
    for batch_size in (1, 3, 8):
        assert sampled(model, tokenizer, PROMPTS, temperature=GREEDY, batch_size=batch_size) == expected
    assert sampled(model, tokenizer, PROMPTS[::-1], temperature=GREEDY) == expected[::-1]


def test_seeds_repeat(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> None:
    model = make_model()
    first = sampled(model, tokenizer, PROMPTS)
    assert first == sampled(model, tokenizer, PROMPTS)
    assert first != sampled(model, tokenizer, PROMPTS, seed=1)


def test_an_answer_ends_at_its_stop_token(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> None:
    model = make_model()
    written = greedy(model, tokenizer)
    # The tokens that two answers end with by chance become stop tokens: answers end at different times, some never.
    stops = [written[0][3], written[5][6]]
    ends = [next((place for place, token in enumerate(tokens) if token in stops), None) for tokens in written]
    assert None in ends and len(set(ends)) > 2
    expected = [
        Answer(tokenizer.decode(tokens[:end], skip_special_tokens=True), end is not None)
        for tokens, end in zip(written, ends, strict=True)
    ]
    model.generation_config.eos_token_id = stops
    for batch_size in (1, 3, 8):
        assert sampled(model, tokenizer, PROMPTS, temperature=GREEDY, batch_size=batch_size) == expected
    model.generation_config.eos_token_id = stops[0]
    assert sampled(model, tokenizer, PROMPTS[:1], temperature=GREEDY)[0].stopped


def test_samples_follow_the_whole_distribution(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> None:
    model = make_model()
    ids = tokenizer(PROMPTS[7])["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    texts = [tokenizer.decode([token], skip_special_tokens=True) for token in range(320)]
    wanted = texts[logits.argmax()]
    alike = torch.tensor([text == wanted for text in texts])
    for temperature in (1.0, 0.3):
        p = (logits / temperature).softmax(-1)[alike].sum().item()
        answers = sampled(
            model, tokenizer, PROMPTS[7:] * 4000, max_new_tokens=1, batch_size=4000, temperature=temperature
        )
        share = sum(answer.text == wanted for answer in answers) / 4000
        assert 0.01 < p < 0.99
        assert share == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 4000))


# --- measures


def test_measures_of_literal_answers() -> None:
    requests = [{"form": "b", "want": "xx"}, {"form": "a", "want": "yy"}, {"form": "a", "want": "zz"}, {"form": "a"}]
    answers = [Answer("xx", True), Answer("yy", False), Answer("zz", True), Answer("known\nother", True)]
    judge = {"judge": lambda request, text: 1.0 if text == request.get("want") else 0.5}
    found = form_measures(requests, answers, **judge, lines=str.splitlines, known_lines={"known", "xx"}, line_length=5)
    assert plain(found) == {
        "form_perfect": 0.5,
        "form_perfect_by_form": {"a": pytest.approx(1 / 3), "b": 1.0},
        "copied_line_rate": 0.5,
        "lines_compared": 2,
    }
    found = plain(answer_measures([Answer("xx", True), Answer("abababab", False)], list))
    assert found == {
        "stop_rate": 0.5,
        "mean_length": 5.0,
        "distinct_1": 0.3,  # x a b of ten characters
        "distinct_2": pytest.approx(3 / 8),  # xx ab ba of eight pairs
        "seq_rep_4": pytest.approx(
            0.3
        ),  # nothing to repeat in xx; abab and baba among five in the other: (0 + 3/5) / 2
        "loop_rate": 0.5,
        "answers": 2,
    }


def test_distinct_2() -> None:
    assert distinct(["abab", "b"], 2) == pytest.approx(2 / 3)  # ab ba ab; pairs never span two texts
    assert distinct(["ab", "ba"], 2) == 1.0
    assert distinct(["a", ""], 2) == 0.0
    assert distinct([["to", "be", "to", "be"]], 2) == pytest.approx(2 / 3)
    assert distinct(["abab"], 1) == 0.5


def test_repetition() -> None:
    assert repeated("abcdabcd", 4) == pytest.approx(0.2)  # abcd twice among five
    assert repeated("abcdefgh", 4) == repeated("abc", 4) == repeated("", 4) == 0.0
    assert is_loop("so so so on and on and on and on")  # the phrase need not be whole at its beginning
    assert is_loop(3 * ["said", "she"])
    assert not is_loop("ab ab ab end") and not is_loop("abab") and not is_loop("aaaa") and not is_loop("")
    assert is_loop("aaaaaa")


# --- pairs


def request(form: str, number: int) -> dict[str, Any]:
    prompt = [{"role": "user", "content": f"{form} {number}"}]
    return {"prompt": prompt, "form": form, "reference": f"{form} poem {number}"}


REQUESTS = [request(form, number) for number in range(4) for form in ("a", "b", "c")]


def test_on_policy_pairs_are_worse_than_the_real_answer() -> None:
    scores = {"good": 0.9, "bad": 0.25, "": 0.0}
    answers = ["good", "bad", "", "bad", "bad"]
    pairs, unfit = on_policy_pairs(REQUESTS[:5], answers, lambda _, answer: scores.get(answer, 0.9))
    assert [pair["prompt"] for pair in pairs] == [REQUESTS[index]["prompt"] for index in (1, 3, 4)]
    assert unfit == [REQUESTS[0], REQUESTS[2]]
    assert pairs[0]["chosen"] == [{"role": "assistant", "content": "b poem 0"}]
    assert pairs[0]["rejected"] == [{"role": "assistant", "content": "bad"}]
    assert (pairs[0]["made"], pairs[0]["rejected_score"]) == ("on_policy", 0.25)


def test_balanced_pairs_prefer_no_length() -> None:
    answers = [
        "much too long an answer",
        "",
        "short",
        "b poem 9",
        "another that is too long",
        "longer than the real one",
    ]
    pairs, _ = on_policy_pairs(REQUESTS[:6], answers, lambda _, answer: float(answer.endswith(tuple("0123"))))
    kept = [pair["rejected"][0]["content"] for pair in balanced(pairs)]
    assert kept == ["much too long an answer", "short", "b poem 9"]


def test_wrong_form_pairs_reject_a_real_poem_of_another_form() -> None:
    pairs = wrong_form_pairs(REQUESTS, REQUESTS, 10, seed=0)
    assert len(pairs) == 10
    references = {request["reference"] for request in REQUESTS}
    for pair, asked in zip(pairs, REQUESTS, strict=False):
        rejected = pair["rejected"][0]["content"]
        assert rejected in references and rejected[0] != asked["form"] == pair["form"]
        assert pair["chosen"][0]["content"] == asked["reference"]
    assert (
        pairs == wrong_form_pairs(REQUESTS, REQUESTS, 10, seed=0) != wrong_form_pairs(REQUESTS, REQUESTS, 10, seed=1)
    )


def test_a_pair_that_teaches_nothing_is_refused(tmp_path: Path) -> None:
    good = wrong_form_pairs(REQUESTS, REQUESTS, 2, seed=0)
    write_pairs(tmp_path / "pairs.parquet", good)
    assert read_pairs(tmp_path / "pairs.parquet").to_list() == good
    with pytest.raises(ValueError, match=r"^pair 3: chosen and rejected are the same; "):
        write_pairs(tmp_path / "same.parquet", [*good, {**good[0], "rejected": good[0]["chosen"]}])
    for side, role, missing, empty in (
        ("prompt", "user", "pair without a prompt", "an empty user turn"),
        ("chosen", "assistant", "pair without its chosen or rejected side", "an empty answer"),
        ("rejected", "assistant", "pair without its chosen or rejected side", "an empty answer"),
    ):
        for value, fault in ([], missing), ([{"role": role, "content": ""}], empty):
            with pytest.raises(ValueError, match=f"^here: {fault}; "):
                check_pair({**good[0], side: value}, "here")
    check_pair({**good[0], "rejected": [{"role": "assistant", "content": "what the model wrote \ufffd"}]}, "here")
    with pytest.raises(ValueError, match=r"no such file: .*gone\.parquet; run the pairs stage"):
        read_pairs(tmp_path / "gone.parquet")
