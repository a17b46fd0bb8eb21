"""A mailbox loses nothing, keeps the order, and wakes its reader."""

import asyncio

import pytest

from deployments.model.mailbox import Mailbox
from erllama.events import Tokens

A, B, C = (Tokens((i,), str(i)) for i in range(3))


def test_what_was_put_before_is_taken_at_once_and_in_order():
    async def main() -> None:
        mailbox = Mailbox()
        for event in (A, B):
            mailbox.put(event)
        assert await mailbox.take() == [A, B]

    asyncio.run(main())


def test_a_waiting_reader_gets_everything_that_came_before_it_ran():
    async def main() -> None:
        mailbox = Mailbox()
        reader = asyncio.create_task(mailbox.take())
        await asyncio.sleep(0)  # the reader waits now
        for event in (A, B):
            mailbox.put(event)
        assert await reader == [A, B]

    asyncio.run(main())


def test_nothing_is_taken_twice():
    async def main() -> None:
        mailbox = Mailbox()
        mailbox.put(A)
        assert await mailbox.take() == [A]
        reader = asyncio.create_task(mailbox.take())
        await asyncio.sleep(0)
        assert not reader.done()
        mailbox.put(B)
        assert await reader == [B]

    asyncio.run(main())


def test_a_reader_that_gives_up_loses_nothing_for_the_next_one():
    async def main() -> None:
        mailbox = Mailbox()
        reader = asyncio.create_task(mailbox.take())
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        mailbox.put(C)
        assert await mailbox.take() == [C]

    asyncio.run(main())


def test_a_reader_cancelled_after_it_was_woken_leaves_the_events():
    async def main() -> None:
        mailbox = Mailbox()
        reader = asyncio.create_task(mailbox.take())
        await asyncio.sleep(0)
        mailbox.put(A)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert await mailbox.take() == [A]

    asyncio.run(main())
