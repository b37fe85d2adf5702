"""How the attempts at one prompt, played side by side in one worker, tell each other how they ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass
class _Group:
    """The attempts at one prompt.

    Attributes:
        size: How many there are.
        told: Member -> text of a success, None for anything else.
        left: Members that are done reading.
        complete: Set once everybody has told.
    """

    size: int
    told: dict[int, str | None] = field(default_factory=dict)
    left: set[int] = field(default_factory=set)
    complete: asyncio.Event = field(default_factory=asyncio.Event)


class Siblings:
    """Groups of attempts, by the prompt's name; one object per worker process.

    Example:
        >>> async def play():
        ...     siblings = Siblings()
        ...     siblings.tell("p", 0, 2, None)
        ...     siblings.tell("p", 1, 2, "1. go to shelf 1")
        ...     return await siblings.peer_of("p", 0, wait_s=1.0)
        >>> asyncio.run(play())
        '1. go to shelf 1'
    """

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}

    def tell(self, prompt: str, member: int, size: int, success: str | None) -> None:
        """Say how one attempt ended; every member must, whatever happened to it.

        Args:
            prompt: Name of the prompt.
            member: Number of the attempt.
            size: Attempts at this prompt.
            success: What a peer may be shown of it; None where it did not succeed.
        """
        group = self._groups.setdefault(prompt, _Group(size))
        group.told[member] = success
        if len(group.told) >= group.size:
            group.complete.set()

    async def peer_of(self, prompt: str, member: int, *, wait_s: float) -> str | None:
        """The first success (smallest number) among the others, once all have told or ``wait_s`` seconds are over."""
        group = self._groups[prompt]
        try:
            await asyncio.wait_for(group.complete.wait(), wait_s)
        except asyncio.TimeoutError:
            pass
        finally:
            self.leave(prompt, member)
        others = (group.told[other] for other in sorted(group.told) if other != member)
        return next((text for text in others if text is not None), None)

    def leave(self, prompt: str, member: int) -> None:
        """A member will not ask any more; the group is forgotten with its last one."""
        group = self._groups.get(prompt)
        if group is not None:
            group.left.add(member)
            if len(group.left) >= group.size:
                del self._groups[prompt]

    def __len__(self) -> int:
        return len(self._groups)
