"""Planted facts: whether a decoder still finds a number of its prompt with few keys of it.

For each fact, a line with a number is put into a text, and the prompt ends with the question for
it. The prompt is read with all keys, then the cache is compressed, as in a generation: the choice
of keys has seen the question. The last token is taken back and read again, with the keys kept, so
that no digit of the answer comes from all keys.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from thinformer.measuring.cache_quality import FULL, METHODS, compressed, prefilled
from thinformer.support.progress import Tell
from thinformer.support.table import aligned
from thinformer.torch.evaluation.decoders import Decoder

CITIES = (
    "Lisbon", "Vienna", "Oslo", "Cairo", "Lima", "Kyoto", "Dublin", "Prague", "Athens", "Havana",
    "Madrid", "Warsaw", "Nairobi", "Helsinki", "Toronto", "Seoul", "Berlin", "Geneva", "Bogota",
    "Sydney",
)  # fmt: skip


class Fact(NamedTuple):
    """A city and its number, of four digits."""

    city: str
    number: str

    @property
    def line(self) -> str:
        """The line that is put into a text."""
        return f"\nThe secret number of {self.city} is {self.number}.\n"

    @property
    def question(self) -> str:
        """The end of the prompt."""
        return f"\nThe secret number of {self.city} is"


class Recall(NamedTuple):
    """How many facts a method recalls; the full cache has no size."""

    method: str
    size: int | None
    recalled: int
    facts: int


def make_facts(count: int, seed: int) -> list[Fact]:
    """Return facts with random numbers; cities repeat, but no two facts share a prompt."""
    numbers = random.Random(seed)
    return [Fact(CITIES[i % len(CITIES)], str(numbers.randint(1000, 9999))) for i in range(count)]


def planted(
    decoder: Decoder, text: torch.Tensor, fact: Fact, depth: float, prompt: int
) -> torch.Tensor:
    """Return a prompt of as many tokens: a text's beginning with a fact in it, and the question.

    depth : 0 puts the fact at the text's beginning, 1 directly before the question
    """
    line, question = decoder.tokens_of(fact.line), decoder.tokens_of(fact.question)
    rest = prompt - len(line) - len(question)
    if rest < 1:
        raise ValueError(
            f"--prompt must be more than {len(line) + len(question)} with --facts: a fact and its "
            f"question are so many tokens; got {prompt}"
        )
    place = max(1, round(depth * rest))  # a token that begins a text stays the first
    return torch.cat([text[:place], line, text[place:rest], question])


def recalls(
    decoder: Decoder,
    texts: Sequence[torch.Tensor],
    sizes: Sequence[int],
    prompt: int,
    count: int,
    seed: int,
    tell: Tell,
) -> list[Recall]:
    """Ask for `count` facts, each in a prompt of its own; texts take turns."""
    ways: list[tuple[str, int | None]] = [
        (FULL, None), *((method, size) for size in sizes for method in METHODS)
    ]  # fmt: skip
    found = dict.fromkeys(ways, 0)
    for i, fact in enumerate(make_facts(count, seed)):
        tell("planted facts", i / count)
        tokens = planted(decoder, texts[i % len(texts)], fact, (i + 0.5) / count, prompt)
        cache, length = prefilled(decoder, tokens, can_crop=True), answer_length(decoder, fact)
        for method, size in ways:
            if size is None:
                few = copy.deepcopy(cache)
            else:
                few = compressed(cache, method, size, seed + i, room=length)
            answer = continuation(decoder, few, tokens[-1:], length)
            found[method, size] += is_recalled(answer, fact)
    return [Recall(*way, recalled, count) for way, recalled in found.items() if count]


def answer_length(decoder: Decoder, fact: Fact) -> int:
    """Return how many tokens the answer may take: the number's own, and one for a space."""
    return len(decoder.tokens_of(f" {fact.number}")) + 1


def continuation(decoder: Decoder, cache: Any, last: torch.Tensor, length: int) -> str:
    """Return the most likely text behind a prompt, token by token; `last` is its last token."""
    cache.crop(-1)
    answer, tokens = [], last
    for _ in range(length):
        tokens = decoder.logits(tokens, cache, last=True).argmax(1)
        answer.append(int(tokens))
    return decoder.tokenizer.decode(answer)


def is_recalled(answer: str, fact: Fact) -> bool:
    """Whether an answer begins with the fact's number, and not with a longer one."""
    given = answer.strip()
    after = given[len(fact.number) :]
    return given.startswith(fact.number) and not after[:1].isdigit()


def format_recalls(found: Sequence[Recall]) -> str:
    """Return a table: a row for each method, a column for each size."""
    sizes = dict.fromkeys(each.size for each in found if each.size is not None)
    rows = [["facts recalled", *(f"{size:,}" for size in sizes)]]
    for method in dict.fromkeys(each.method for each in found):
        some = {each.size: each for each in found if each.method == method}
        cells = [some.get(size, some.get(None)) for size in sizes]
        rows.append([method, *(f"{each.recalled} of {each.facts}" for each in cells if each)])
    return aligned(rows, left={0})
