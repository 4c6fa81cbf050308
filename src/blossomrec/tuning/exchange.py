"""Where trials in processes of their own meet the process that holds the study."""

# Nothing heavy is imported: this is all that its process needs.
from __future__ import annotations

import asyncio


class Exchange:
    """Where trials, in processes of their own, and the process that holds the study meet."""

    def __init__(self) -> None:
        self._reports = asyncio.Queue[tuple[int, int, float]]()
        self._answers: dict[int, asyncio.Future[bool]] = {}

    async def report(self, number: int, epoch: int, value: float) -> bool:
        """A validation of a trial; gives, when it is answered, whether the trial is to end."""
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._reports.put_nowait((number, epoch, value))
        return await answer

    async def take(self) -> tuple[int, int, float]:
        """The next report, when there is one."""
        return await self._reports.get()

    async def answer(self, number: int, ends: bool) -> None:
        """Answer the last report of a trial."""
        if (waiting := self._answers.pop(number, None)) is not None and not waiting.done():
            waiting.set_result(ends)
