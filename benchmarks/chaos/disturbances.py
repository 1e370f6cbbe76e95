"""What goes wrong, at random but from a seed: replicas killed, drained, restarted, Redis stopped, links cut."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from benchmarks.chaos.deployment import Deployment
    from benchmarks.chaos.replica import Replica

PAUSE_S: Final = (1.0, 3.0)  # between two of them
SUPERVISOR_S: Final = (0.2, 1.5)  # until a replica that ended is started again
REDIS_DOWN_S: Final = (1.0, 5.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """``kind``: kill, drain, cut, redis or restart; ``what``: whom."""

    at: float
    kind: str
    what: str = ""

    def concerns(self, link: int | None) -> bool:
        """Whether a generation over that link may have been broken by it."""
        if self.kind == "cut":
            return self.what == f"link {link}"
        return self.kind in ("kill", "drain")


class Disturbances:
    """One replica at least is left alone at any time: with none, there is nobody to fail over to."""

    def __init__(self, deployment: Deployment, seed: int) -> None:
        self.events: list[Event] = []
        self._deployment = deployment
        self._random = random.Random(seed)
        self._tasks: list[asyncio.Task[None]] = []
        self._redis: asyncio.Task[None] | None = None

    async def run(self, seconds: float) -> None:
        """Disturb for so long, then wait until everything is up again."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        deck: list[Callable[[], Awaitable[None]]] = []
        while (wait_s := self._random.uniform(*PAUSE_S)) < end - loop.time():
            await asyncio.sleep(wait_s)
            if not deck:  # each kind has its turn in a minute, whatever the seed
                deck = [self.kill, self.kill, self.drain, self.drain, self.cut, self.redis]
                self._random.shuffle(deck)
            await deck.pop()()
        await self.settled()

    async def settled(self) -> None:
        """Until all that was taken down is up. Raises what went wrong in starting it."""
        while not all(task.done() for task in self._tasks):
            await asyncio.gather(*self._tasks)
        for task in self._tasks:
            task.result()

    async def kill(self) -> None:
        """``kill -9`` of a replica, once two serve."""
        replica = await self._choose()
        self._note("kill", replica.name)
        await replica.kill()
        self._again(replica)

    async def drain(self) -> None:
        """SIGTERM, once two serve; it goes on for the drain's time."""
        replica = await self._choose()
        self._note("drain", replica.name)
        replica.ready.clear()

        async def drained() -> None:
            await replica.drain()
            self._again(replica)

        self._keep(drained())

    async def cut(self) -> None:
        """All connections of a link break."""
        index = self._random.randrange(len(self._deployment.links))
        self._note("cut", f"link {index}")
        self._deployment.links[index].say("cut")

    async def redis(self) -> None:
        """Redis is killed, and started again with what is on its disk."""
        if self._redis is not None and not self._redis.done():
            return
        self._note("redis")
        down_s = self._random.uniform(*REDIS_DOWN_S)

        async def away() -> None:
            self._deployment.redis.stop()
            await asyncio.sleep(down_s)
            await asyncio.to_thread(self._deployment.redis.start)

        self._redis = self._keep(away())

    async def _choose(self) -> Replica:
        while True:
            ready = [replica for replica in self._deployment.replicas if replica.ready.is_set()]
            if len(ready) > 1:
                return self._random.choice(ready)
            coming = [
                asyncio.create_task(replica.ready.wait())
                for replica in self._deployment.replicas
                if not replica.ready.is_set()
            ]
            await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            for waiting in coming:
                waiting.cancel()

    def _again(self, replica: Replica) -> None:
        wait_s = self._random.uniform(*SUPERVISOR_S)

        async def again() -> None:
            await asyncio.sleep(wait_s)
            await replica.start()
            self._note("restart", replica.name)

        self._keep(again())

    def _keep(self, work: Awaitable[None]) -> asyncio.Task[None]:
        async def kept() -> None:
            await work

        task = asyncio.create_task(kept())
        self._tasks.append(task)
        return task

    def _note(self, kind: str, what: str = "") -> None:
        self.events.append(Event(asyncio.get_running_loop().time(), kind, what))

    async def __aenter__(self) -> Disturbances:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
