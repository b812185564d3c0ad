"""Items come in order, failures come through, and the thread ends with its reader."""

import threading

import pytest

from simclr.data.loading import prefetch


def test_order_is_kept():
    assert list(prefetch(range(100))) == list(range(100))
    assert list(prefetch([])) == []


def test_a_failure_is_raised_after_the_items_before_it():
    def failing():
        yield 1
        yield 2
        raise KeyError("three")

    seen = []
    with pytest.raises(KeyError, match="three"):
        seen.extend(prefetch(failing()))
    found = prefetch(failing())
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(KeyError, match="three"):
        next(found)


def test_no_more_than_depth_items_are_made_in_advance():
    made = []
    taken = threading.Event()

    def counting():
        for k in range(10):
            made.append(k)
            yield k
            if k == 4:
                taken.set()

    items = prefetch(counting(), depth=3)
    assert next(items) == 0
    assert not taken.wait(0.3)  # 0 is taken, 1 to 3 wait, 4 is being handed over
    assert made == [0, 1, 2, 3, 4]
    assert list(items) == list(range(1, 10))


def test_the_thread_ends_when_its_reader_gives_up():
    before = threading.active_count()
    items = prefetch(iter(int, 1))
    next(items)
    assert threading.active_count() == before + 1
    items.close()
    assert threading.active_count() == before
