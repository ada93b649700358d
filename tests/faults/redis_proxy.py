"""A TCP proxy before Redis that loses published messages on demand."""

from __future__ import annotations

import contextlib
import socket
import threading


class LossyProxy:
    """Forwards connections to ``port`` and swallows as many pub/sub messages on the way back as :attr:`lose` says."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.lose = 0
        self.lost = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _address = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()
                    continue
                threading.Thread(target=self._forward, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._forward, args=(server, client, True), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, back: bool) -> None:
        waiting = b""
        with contextlib.suppress(OSError):
            while part := source.recv(65536):
                if not back:
                    target.sendall(part)
                    continue
                waiting += part
                while waiting and (size := _message_size(waiting)) is not None:
                    whole, waiting = waiting[:size], waiting[size:]
                    if self.lose and whole[1:].startswith(b"3\r\n$7\r\nmessage") and b'"messages":[[' in whole:
                        self.lose -= 1
                        self.lost += 1
                    else:
                        target.sendall(whole)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _message_size(data: bytes) -> int | None:
    """Bytes of the pub/sub message at the beginning; ``None`` while it is not all there. Other answers: all of it."""
    if data[:1] not in (b"*", b">") or not data[1:].startswith(b"3\r\n$7\r\nmessage"[: len(data) - 1]):
        return len(data)
    place = data.find(b"\r\n") + 2
    for _ in range(3):
        end = data.find(b"\r\n", place)
        if place < 2 or end < 0:
            return None
        place = end + 2 + int(data[place + 1 : end]) + 2
    return place if place <= len(data) else None
