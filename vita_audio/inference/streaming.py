"""Text of an answer while its token ids arrive one by one."""

from __future__ import annotations

from vita_audio.text import TextTokenizer

REPLACEMENT = "\ufffd"  # decoded from bytes that do not form a character yet


class TextStream:
    """Decodes ids one by one; the returned pieces add up to `TextTokenizer.decode` of all ids."""

    def __init__(self, tokenizer: TextTokenizer):
        self._tokenizer = tokenizer
        self._pending: list[int] = []  # ids since the last complete character

    def push(self, token_id: int) -> str:
        """Take the next id and return the text that is now certain, possibly none."""
        self._pending.append(token_id)
        text = self._tokenizer.decode(self._pending)
        if text.endswith(REPLACEMENT):  # perhaps the first bytes of a character
            return ""
        self._pending = []
        return text

    def flush(self) -> str:
        """Return the rest, in which bytes that form no character appear as U+FFFD."""
        text, self._pending = self._tokenizer.decode(self._pending), []
        return text
