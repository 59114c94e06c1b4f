"""Python runs this at its start: refuse connections that leave the machine, note who tried."""

import errno
import os
import socket
import sys
from pathlib import Path

LOOPBACK = {"localhost", "127.0.0.1", "::1", "", None, socket.gethostname()}


def refuse(event, arguments):
    if event in {"socket.connect", "socket.sendto", "socket.sendmsg"}:
        address = arguments[1]
        if not isinstance(address, tuple):  # a Unix socket, or one that is connected already
            return
        host = address[0]
    elif event in {"socket.getaddrinfo", "socket.gethostbyname"}:
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host in LOOPBACK:
        return
    with Path(os.environ["PRLHF_TEST_NETWORK_LOG"]).open("a", encoding="utf-8") as log:
        log.write(f"{' '.join(sys.argv)}: {event} {host}\n")
    raise OSError(errno.ENETUNREACH, "Network is unreachable")


if "PRLHF_TEST_NETWORK_LOG" in os.environ:
    sys.addaudithook(refuse)
