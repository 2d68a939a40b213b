"""Ways for a peer to be there and not to answer, without any privilege: for the tests of time-outs.

Sockets of 127.0.0.1 stand in for the network. A gate drops packets by a socket filter that lets none through: the
kernel then acknowledges nothing and the peer retransmits, just as with a firewall that drops.
https://docs.kernel.org/networking/filter.html
"""

import ctypes
import socket
import struct
import threading
from typing import Self

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
NOTHING = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # one instruction: return 0 bytes
FILTER = struct.pack("HL", 1, ctypes.addressof(NOTHING))


class Silent:
    """A port that takes connections and never says a word, or (`full`) does not even take them."""

    def __init__(self, *, full: bool = False) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=0 if full else 128)
        self.port: int = self.listener.getsockname()[1]
        self.fillers: list[socket.socket] = []
        while full:
            filler = socket.socket()
            filler.settimeout(0.2)
            self.fillers.append(filler)
            try:
                filler.connect(("127.0.0.1", self.port))
            except TimeoutError:
                break

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in [self.listener, *self.fillers]:
            each.close()


class Gate:
    """A port that hands every connection on to the port `target`, until it drops all packets."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.taken = 0
        self.forgotten: set[socket.socket] = set()
        self.inner: list[socket.socket] = []
        self.outer: list[socket.socket] = [self.listener]
        threading.Thread(target=self.accept, daemon=True).start()

    def drop(self) -> None:
        """From now on no packet comes through."""
        for each in self.outer:
            each.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, FILTER)

    def restore(self) -> None:
        """Packets come through again."""
        for each in self.outer:
            each.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)

    def forget(self) -> None:
        """The connections that there are stay open, and what is said on them goes nowhere: a broken proxy."""
        self.forgotten.update(self.outer, self.inner)

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            self.taken += 1
            self.outer.append(client)
            self.inner.append(server)
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self.pump, args=pair, daemon=True).start()

    def pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if source not in self.forgotten:
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.outer + self.inner:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            each.close()
