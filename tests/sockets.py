"""What tests ask of a socket."""

from __future__ import annotations

import socket
import struct


def reset_on_close(end: socket.socket) -> None:
    """Let its close be a TCP reset, and what was not sent be lost, as when a machine behind it is gone."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
