"""Requests to stop: every signal saves, also while data is waited for."""

import signal
import threading
import time

import pytest
from lightning_fabric import Fabric

from simclr.errors import Interrupted
from simclr.training.stopping import SIGNALS, StopRequests


@pytest.fixture
def stop():
    with StopRequests(Fabric(accelerator="cpu", devices=1)) as requests:
        yield requests


def test_signals_of_users_terminals_and_clusters_are_requests():
    names = {"SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"}
    assert {number.name for number in SIGNALS} == {name for name in names if hasattr(signal, name)}


@pytest.mark.parametrize("number", SIGNALS)
def test_every_signal_is_a_request(stop, number):
    assert not stop.on_any_rank()
    signal.raise_signal(number)
    assert stop.on_any_rank()
    with pytest.raises(Interrupted):
        stop.leave(3, 9)


def test_a_request_ends_waiting_for_data_at_once(stop):
    threading.Timer(0.2, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)).start()
    start = time.perf_counter()
    assert stop.wait_for(lambda: time.sleep(30) or "batch") is None
    assert time.perf_counter() - start < 10
    assert stop.on_any_rank()


def test_a_request_before_waiting_is_not_forgotten(stop):
    signal.raise_signal(signal.SIGTERM)
    assert stop.wait_for(lambda: "batch") is None


def test_a_second_interrupt_ends_at_once_and_handlers_are_restored():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with StopRequests(Fabric(accelerator="cpu", devices=1)):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
