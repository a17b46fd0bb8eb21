"""A mailbox loses nothing, keeps the order, and wakes its reader."""

import asyncio

import pytest

from deployments.model.replica import gathered
from erllama.events import Tokens

A, B, C = (Tokens((i,), str(i)) for i in range(3))


def test_what_was_put_before_is_taken_at_once_and_in_order():
    async def main() -> None:
        mailbox = asyncio.Queue()
        for event in (A, B):
            mailbox.put_nowait(event)
        assert await gathered(mailbox) == [A, B]

    asyncio.run(main())


def test_a_waiting_reader_gets_everything_that_came_before_it_ran():
    async def main() -> None:
        mailbox = asyncio.Queue()
        reader = asyncio.create_task(gathered(mailbox))
        await asyncio.sleep(0)  # the reader waits now
        for event in (A, B):
            mailbox.put_nowait(event)
        assert await reader == [A, B]

    asyncio.run(main())


def test_nothing_is_taken_twice():
    async def main() -> None:
        mailbox = asyncio.Queue()
        mailbox.put_nowait(A)
        assert await gathered(mailbox) == [A]
        reader = asyncio.create_task(gathered(mailbox))
        await asyncio.sleep(0)
        assert not reader.done()
        mailbox.put_nowait(B)
        assert await reader == [B]

    asyncio.run(main())


def test_a_reader_that_gives_up_loses_nothing_for_the_next_one():
    async def main() -> None:
        mailbox = asyncio.Queue()
        reader = asyncio.create_task(gathered(mailbox))
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        mailbox.put_nowait(C)
        assert await gathered(mailbox) == [C]

    asyncio.run(main())


def test_a_reader_cancelled_after_it_was_woken_leaves_the_events():
    async def main() -> None:
        mailbox = asyncio.Queue()
        reader = asyncio.create_task(gathered(mailbox))
        await asyncio.sleep(0)
        mailbox.put_nowait(A)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert await gathered(mailbox) == [A]

    asyncio.run(main())
