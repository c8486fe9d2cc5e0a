"""Ids of an answer while they are generated in another thread, and the text they spell."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from queue import SimpleQueue
from threading import Event, Thread

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from vita_audio.text import TextTokenizer

REPLACEMENT = "\ufffd"  # what bytes that are not a character yet decode to


class TextStream:
    """Ids to text while they come; what it returns adds up to `TextTokenizer.decode` of all ids."""

    def __init__(self, tokenizer: TextTokenizer):
        self._tokenizer = tokenizer
        self._pending: list[int] = []  # ids since the last whole character

    def push(self, token_id: int) -> str:
        """Take the next id; return the text that is certain now, possibly none."""
        self._pending.append(token_id)
        text = self._tokenizer.decode(self._pending)
        if text.endswith(REPLACEMENT):  # perhaps the first bytes of a character
            return ""
        self._pending = []
        return text

    def flush(self) -> str:
        """Return the rest, in which bytes that are no character show as U+FFFD."""
        text, self._pending = self._tokenizer.decode(self._pending), []
        return text


class StopRequest(StoppingCriteria):
    """Ends generation after the current token once another thread has asked for it."""

    def __init__(self):
        self._event = Event()

    def set(self) -> None:
        self._event.set()

    def __call__(self, input_ids: Tensor, scores: object, **kwargs) -> Tensor:
        return torch.full((input_ids.shape[0],), self._event.is_set(), device=input_ids.device)


class RowEnds(StoppingCriteria):
    """Ends rows of a batch as other criteria say, and remembers where; what follows in a row is padding.

    Attributes:
        lengths: Row -> its tokens when it ended, the prompt included; without rows that these criteria have not ended.
    """

    def __init__(self, criteria: Iterable[StoppingCriteria]):
        self.lengths: dict[int, int] = {}
        self._criteria = StoppingCriteriaList(criteria)

    def __call__(self, input_ids: Tensor, scores: object, **kwargs) -> Tensor:
        ended = self._criteria(input_ids, scores, **kwargs)
        for row in ended.nonzero().flatten().tolist():
            self.lengths.setdefault(row, input_ids.shape[1])
        return ended


class IdQueue(BaseStreamer):
    """Takes the ids of one answer from `generate` and hands them to another thread, without the prompt."""

    def __init__(self):
        self._queue: SimpleQueue[int | BaseException | None] = SimpleQueue()
        self._has_prompt = False

    def put(self, value: Tensor) -> None:
        """Called by `generate`: first with the prompt, then with each new id."""
        if self._has_prompt:
            for token_id in value.flatten().tolist():
                self._queue.put(token_id)
        self._has_prompt = True

    def end(self) -> None:
        """Called by `generate`; `close` ends the queue, also after an error."""

    def close(self, error: BaseException | None = None) -> None:
        self._queue.put(error)

    def __iter__(self) -> Iterator[int]:
        """Wait for ids and yield them until `close`; raise the error given to it."""
        while isinstance(item := self._queue.get(), int):
            yield item
        if item is not None:
            raise item


def generate_in_thread(generate: Callable[[IdQueue, StopRequest], object]) -> Generator[int, None, None]:
    """Yield the ids that `generate` makes while it runs in a thread of its own.

    The thread starts with the first `next`. An exception in it is raised here. Closing or dropping this iterator stops
    the generation and waits for the thread.

    Args:
        generate: Runs a model's `generate` with the streamer and the stopping criterion it is given.
    """
    ids, stop = IdQueue(), StopRequest()

    def work() -> None:
        try:
            generate(ids, stop)
        except BaseException as error:
            ids.close(error)
        else:
            ids.close()

    thread = Thread(target=work, name="generate", daemon=True)
    thread.start()
    try:
        yield from ids
    finally:
        stop.set()
        thread.join()
