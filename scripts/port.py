"""For ./run serve: exits with a message unless HOST and PORT, its two arguments, can be listened on."""

import socket
import sys

host, port = sys.argv[1], int(sys.argv[2])
try:
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, proto) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
except OSError as error:
    sys.exit(f"Cannot listen on {host}:{port} ({error.strerror}); try PORT={port % 65535 + 1} ./run serve")
