"""No test reaches another machine: the guard in `conftest` works."""

import socket
import urllib.request

import pytest


def test_another_machine_is_out_of_reach():
    for address in ("192.0.2.1", "2001:db8::1"):  # reserved for documentation
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as client, pytest.raises(Exception) as error:  # noqa: PT011
            client.connect((address, 80))
        assert type(error.value).__name__ == "NetworkUsed"
    with pytest.raises(Exception) as error:  # noqa: PT011
        urllib.request.urlopen("http://example.org/", timeout=1)
    assert type(error.value).__name__ == "NetworkUsed"


def test_processes_of_this_machine_can_meet():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(b"x")
        accepted, _ = server.accept()
        with accepted:
            assert accepted.recv(1) == b"x"
    left, right = socket.socketpair()
    left.sendall(b"y")
    assert right.recv(1) == b"y"
    left.close(), right.close()
