"""The message server of a job. It runs in process 0 beside its training. All processes connect to it.

Messages are JSON objects, one per line. From a process:

    {"hello": index, "count": all, "name": name}    the first message
    {"gather": name, "value": value}                {"gathered": name, "values": [...]} goes to all, once all have sent
    {"tell": kind, "value": value}                  {"told": kind, "from": index, "value": value} goes to all; with
                                                    "to": index, only to that process
    {"fail": message}                               this process stops because of an error
    {}                                              a heartbeat

To a process, in addition: {} as heartbeat, and {"end": message} when the job ends for all processes.
"""

import asyncio
import json
from typing import Any

LIMIT = 2**26
"""Maximum length of a message in bytes."""

ENDED = "its process has ended"

LEAVE = "leave"
"""Name of the last gather of a job. Connections that close after it are not errors."""


async def read(reader: asyncio.StreamReader, seconds: float) -> dict[str, Any] | None:
    """The next message; None at the end of the connection.

    Raises:
      TimeoutError: if nothing arrived for `seconds`.
      OSError: for a broken connection.
      ValueError: if the line is not a message.
    """
    connection = await asyncio.wait_for(reader.readline(), seconds)
    message = json.loads(connection) if connection else None
    if not isinstance(message, dict | None):
        raise ValueError(f"{connection[:80]!r} is not a message of this protocol")
    return message


def write(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    """Enqueues a message for sending. Does nothing if the connection is closing."""
    if not writer.is_closing():
        writer.write(json.dumps(message).encode() + b"\n")


class Hub:
    """Connects `count` processes and monitors them. Ends the job for all if one is lost or does not connect in time."""

    def __init__(self, count: int, arrival_seconds: float, silence_seconds: float):
        self._count, self._arrival, self._silence = count, arrival_seconds, silence_seconds
        self._names: dict[int, str] = {}
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._accepted: set[asyncio.StreamWriter] = set()
        self._exchanges: dict[str, dict[int, Any]] = {}
        self._over = False

    async def serve(self, port: int) -> None:
        """Listens on all addresses of this machine until the event loop ends.

        Raises:
          OSError: if the port is taken.
        """
        self._server = await asyncio.start_server(self._attend, None, port, limit=LIMIT)
        asyncio.get_running_loop().call_later(self._arrival, self._miss)
        self._beating = asyncio.create_task(self._beat())

    def close(self) -> None:
        """Closes all connections, also those without a hello."""
        self._beating.cancel()
        self._server.close()
        for writer in self._accepted:
            writer.close()

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection from its hello to its end."""
        index = None
        self._accepted.add(writer)
        try:
            index = self._greet(await read(reader, self._silence), writer)
            if index is None:
                return
            while (message := await read(reader, self._silence)) is not None:
                self._handle(index, message)
            problem = ENDED
        except TimeoutError:
            problem = f"nothing was heard of it for {self._silence:g} seconds"
        except OSError as error:
            problem = ENDED if isinstance(error, ConnectionError) else str(error)
        except (ValueError, KeyError, TypeError) as error:
            problem = f"it sent what is not a message ({error!r})"
        finally:
            if index is None:  # a second connection of a process, or one that is not of this job
                self._accepted.discard(writer)
                writer.close()
        if index is not None:
            self._end(f"{self._name(index)} is lost: {problem}", [other for other in self._writers if other != index])

    def _greet(self, hello: dict[str, Any] | None, writer: asyncio.StreamWriter) -> int | None:
        """The index of the process that sent `hello`; None if it does not belong to this job."""
        index = (hello or {}).get("hello")
        if hello is None or not isinstance(index, int):
            return None
        if index in self._writers or not 0 <= index < self._count or hello["count"] != self._count:
            here = ", ".join(self._name(other) for other in sorted(self._names))
            problem = (
                f"host {index} of {hello['count']} ({hello['name']}) has no place among the {self._count} hosts here; "
                f"arrived: {here}. Give every process an index of its own, and other jobs another address"
            )
            write(writer, {"end": problem})
            return None
        self._names[index], self._writers[index] = hello["name"], writer
        return index

    def _handle(self, index: int, message: dict[str, Any]) -> None:
        if "gather" in message:
            values = self._exchanges.setdefault(message["gather"], {})
            values[index] = message["value"]
            if len(values) == self._count:
                del self._exchanges[message["gather"]]
                self._over |= message["gather"] == LEAVE
                self._send({"gathered": message["gather"], "values": [values[i] for i in range(self._count)]})
        elif "tell" in message:
            told = {"told": message["tell"], "from": index, "value": message["value"]}
            self._send(told, [message["to"]] if "to" in message else None)
        elif "fail" in message:
            others = [other for other in self._writers if other != index]
            self._end(f"{self._name(index)} stopped: {message['fail']}", others)

    def _miss(self) -> None:
        """Ends the job if processes are missing after `arrival_seconds`."""
        if absent := [str(index) for index in range(self._count) if index not in self._names]:
            here = ", ".join(self._name(index) for index in sorted(self._names))
            self._end(
                f"{'hosts' if len(absent) > 1 else 'host'} {', '.join(absent)} of {self._count} did not arrive within "
                f"{self._arrival:g} seconds; arrived: {here}. Look at the output of the missing ones, and whether they "
                "reach this address"
            )

    async def _beat(self) -> None:
        while True:
            # Several heartbeats fit into the silence that counts as a loss, so a late one is none.
            await asyncio.sleep(self._silence / 6)
            self._send({})

    def _end(self, message: str, to: list[int] | None = None) -> None:
        if not self._over:
            self._over = True
            self._send({"end": message}, to)

    def _send(self, message: dict[str, Any], to: list[int] | None = None) -> None:
        for index in self._writers if to is None else to:
            write(self._writers[index], message)

    def _name(self, index: int) -> str:
        return f"host {index} ({self._names[index]})"
