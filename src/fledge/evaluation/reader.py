"""How lm-evaluation-harness reads one of our models; imported only where the harness is installed."""

from typing import Any

from lm_eval.models.huggingface import HFLM


class Reader(HFLM):
    """A loaded model whose texts begin with the tokenizer's beginning-of-sequence token, as its documents did.

    The harness leaves that to the tokenizer, and ours adds none by itself. `cut` counts the texts so far that are
    longer than the model's context: the harness drops their beginning.
    """

    cut = 0

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        before, after = super()._encode_pair(context, continuation)
        begin = self.tokenizer.bos_token_id
        if begin is not None and before[:1] != [begin]:
            before = [begin, *before]
        self.cut += len(before) + len(after) > self.max_length + 1  # the last token is read by nobody
        return before, after

    def tok_batch_encode(self, strings: list[str], *arguments: Any, **keys: Any) -> Any:
        begin = self.tokenizer.bos_token or ""
        strings = [text if text.startswith(begin) else begin + text for text in strings]
        if limit := keys.get("left_truncate_len"):
            self.cut += sum(len(self.tok_encode(text)) > limit for text in strings)
        return super().tok_batch_encode(strings, *arguments, **keys)
