"""The connection of a process to the hub: exchanges with the other processes, heartbeats, and the end of the job."""

import asyncio
import concurrent.futures
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from llm_jax.hosts.hosts_config import HostsConfig
from llm_jax.hosts.hub import ENDED, LEAVE, LIMIT, Hub, read, write
from llm_jax.hosts.process_info import ProcessInfo

_RETRY_SECONDS = 0.1


def end_process(message: str) -> None:
    """Prints `message` and ends this process at once. It may be inside a collective, which cannot be interrupted."""
    say_last(f"llm-jax: {message}. All hosts stop; the same command resumes")
    os._exit(1)


def say_last(text: str) -> None:
    """Prints to stderr before the process ends. Ignores errors such as a broken pipe or a full disk."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


class Connection:
    """The connection of this process. A background thread reads and writes. `hears` maps a kind of message (see `tell`)
    to its handler, which is called in that thread.

    Args:
      name: name of this machine, for messages.
      end: called in that thread when the job ends because of another process.
    """

    def __init__(self, place: ProcessInfo, config: HostsConfig, name: str, end: Callable[[str], None] = end_process):
        self.place, self._config, self._name, self._end = place, config, name, end
        self.hears: dict[str, Callable[[int, Any], None]] = {}
        self._waiting: dict[str, concurrent.futures.Future] = {}
        self._left = False
        self._hub: Hub | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hosts", daemon=True)
        self._thread.start()

    def open(self) -> None:
        """Connects to the hub. Process 0 starts the hub before.

        Raises:
          ValueError: if the port is taken, or process 0 is not reached within `arrival_seconds`.
        """
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    def start_gather(self, name: str, value: Any) -> concurrent.futures.Future:
        """Sends `value`, which must be JSON. The future returns the values of all processes, in their order."""
        future = self._waiting[name] = concurrent.futures.Future()
        self._post({"gather": name, "value": value})
        return future

    def gather(self, name: str, value: Any = None) -> list[Any]:
        """The values of all processes under this name. Waits for all processes."""
        return self.start_gather(name, value).result()

    def tell(self, kind: str, value: Any, to: int | None = None) -> None:
        """Calls hears[kind](index of this process, value) in all processes, or only in process `to`. Does not wait.
        Safe in a signal handler."""
        self._post({"tell": kind, "value": value} | ({} if to is None else {"to": to}))

    def fail(self, message: str) -> None:
        """Ends the other processes, which print `message` and the name of this process."""
        self._left = True
        self._post({"fail": message})
        time.sleep(0.2)  # the message must be sent before this process ends

    def leave(self) -> None:
        """Waits until all processes call it. After that, a closed connection is not an error."""
        self.gather(LEAVE)

    def close(self) -> None:
        """Ends the connection, after `leave`."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _post(self, message: dict[str, Any]) -> None:
        self._loop.call_soon_threadsafe(lambda: write(self._writer, message))

    async def _close(self) -> None:
        self._beating.cancel()
        self._writer.close()
        if self._hub is not None:
            self._hub.close()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)

    async def _open(self) -> None:
        place, config = self.place, self._config
        if place.index == 0:
            self._hub = Hub(place.count, config.arrival_seconds, config.silence_seconds)
            try:
                await self._hub.serve(place.port)
            except OSError as error:
                raise ValueError(
                    f"host 0 ({self._name}) cannot listen at port {place.port} ({error.strerror or error}): another "
                    "job may use the port; set --hosts.address (or JAX_COORDINATOR_PORT) to another"
                ) from error
        reader, self._writer = await self._connect()
        write(self._writer, {"hello": place.index, "count": place.count, "name": self._name})
        self._listening, self._beating = asyncio.create_task(self._listen(reader)), asyncio.create_task(self._beat())

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        place, give_up = self.place, time.monotonic() + self._config.arrival_seconds
        host = "localhost" if place.index == 0 else place.host
        while True:
            try:
                return await asyncio.open_connection(host, place.port, limit=LIMIT)
            except OSError as error:
                if time.monotonic() > give_up:
                    raise ValueError(
                        f"host {place.index} ({self._name}) did not reach host 0 at {place.address} within "
                        f"{self._config.arrival_seconds:g} seconds ({error.strerror or error}): check the output of "
                        "host 0, and that the address is that of its machine"
                    ) from error
            await asyncio.sleep(_RETRY_SECONDS)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        problem = ENDED
        try:
            while (message := await read(reader, self._config.silence_seconds)) is not None:
                self._handle(message)
        except TimeoutError:
            problem = f"nothing was heard of it for {self._config.silence_seconds:g} seconds"
        except OSError as error:
            problem = ENDED if isinstance(error, ConnectionError) else str(error)
        except Exception as error:  # for any error: without this thread, training would continue unconnected
            problem = f"what it sends is nothing of llm-jax's host 0 ({error!r}); look what else uses its port"
        if not self._left:
            self._end(f"host 0 ({self.place.host}) is lost: {problem}")

    def _handle(self, message: dict[str, Any]) -> None:
        if "gathered" in message:
            self._left |= message["gathered"] == LEAVE
            self._waiting.pop(message["gathered"]).set_result(message["values"])
        elif "told" in message:
            self.hears[message["told"]](message["from"], message["value"])
        elif "end" in message and not self._left:
            self._left = True
            self._end(message["end"])

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._config.silence_seconds / 6)
            write(self._writer, {})
