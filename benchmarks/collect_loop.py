"""The compiled loop of the load generator: sockets, epoll and the clock by their C functions."""

from __future__ import annotations

import errno
import select
import socket

import numpy as np
import numpy.typing as npt
from numba import njit, types

from transforms.records.memory import byte_at, int32_at

NUMBER_DIGITS = 12

_epoll_create = types.ExternalFunction("epoll_create1", types.int32(types.int32))
_epoll_ctl = types.ExternalFunction("epoll_ctl", types.int32(types.int32, types.int32, types.int32, types.intp))
_epoll_wait = types.ExternalFunction("epoll_wait", types.int32(types.int32, types.intp, types.int32, types.int32))
_send = types.ExternalFunction("send", types.intp(types.int32, types.intp, types.intp, types.int32))
_recv = types.ExternalFunction("recv", types.intp(types.int32, types.intp, types.intp, types.int32))
_close = types.ExternalFunction("close", types.int32(types.int32))
_clock = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.intp))
_errno = types.ExternalFunction("__errno_location", types.intp())

_ADD, _MODIFY = 1, 3  # EPOLL_CTL_ADD, EPOLL_CTL_MOD
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_NO_SIGNAL = socket.MSG_NOSIGNAL
_AGAIN = errno.EAGAIN
_EVENT = 12  # bytes of struct epoll_event, which is packed: u32 events, u64 data
_ANSWER = 1 << 17
PATIENCE_S = 30.0
_HEAD_END = 0x0A0D0A0D
OK, CLOSED, UNEXPECTED, LATE = range(4)

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


@njit(cache=True)
def _now(kind: int, room: I64) -> float:
    """Seconds of clock 1 (monotonic) or 0 (since 1970)."""
    _clock(np.int32(kind), np.intp(room.ctypes.data))
    return room[0] + room[1] * 1e-9


@njit(cache=True)
def _digits(text: Bytes, place: int, count: int, value: int) -> None:
    for i in range(count - 1, -1, -1):
        text[place + i] = 48 + value % 10
        value //= 10


@njit(cache=True)
def _fill(text: Bytes, blanks: I64, number: int, batch: int, users: int, micros: int) -> None:
    """Writes the numbers that differ from request to request."""
    for b in range(len(blanks)):
        n, kind = number * batch + blanks[b, 3], blanks[b, 2]
        if kind == 0:
            value = number
        elif kind == 2:
            value = n * 40_503 % 50_000
        elif kind == 4:
            value = micros
        else:
            value = n * 2_654_435_761 % users
        _digits(text, blanks[b, 0], blanks[b, 1], value)


@njit(cache=True)
def _watch(poller: int, how: int, fd: int, what: int, which: int, event: I32) -> None:
    event[0], event[1], event[2] = what, which, 0
    _epoll_ctl(np.int32(poller), np.int32(how), np.int32(fd), np.intp(event.ctypes.data))


@njit(cache=True)
def _length(base: int, size: int) -> int:
    """Bytes of a whole answer whose first bytes are there: 0 when its head is not whole, -1 when it has no length."""
    for at in range(size - 3):
        if int32_at(base, at) == _HEAD_END:
            for k in range(at - 16):
                if (byte_at(base, k) == 10 and byte_at(base, k + 1) | 32 == 99 and byte_at(base, k + 8) == 45
                        and byte_at(base, k + 9) | 32 == 108 and byte_at(base, k + 15) == 58):  # \ncontent-length:
                    value = 0
                    k += 16
                    while byte_at(base, k) == 32:
                        k += 1
                    while 48 <= byte_at(base, k) <= 57:
                        value = value * 10 + byte_at(base, k) - 48
                        k += 1
                    return at + 4 + value
            return -1
    return 0


@njit(cache=True)
def _is_told(answer: Bytes, size: int, whole: int, mark: Bytes, number: int) -> bool:
    """Whether an answer says that all was accepted, and of this request."""
    at = size - whole
    if whole < len(mark) + NUMBER_DIGITS:
        return False
    for i in range(len(mark)):
        if answer[at + i] != mark[i]:
            return False
    value = 0
    for i in range(NUMBER_DIGITS):
        value = value * 10 + answer[at + len(mark) + i] - 48
    return value == number


@njit(cache=True)
def drive(fds: I32, texts: Bytes, sizes: I64, blanks: I64, mark: Bytes, users: int, first: int, seconds: float, rate: float,
          batch: int, room: int) -> tuple[int, I64, npt.NDArray[np.float64], I64, int]:
    """Sends requests over connected, non-blocking sockets until the time is over, and waits for the answers.

    Args:
      texts, sizes, blanks: variants of a request, its numbers still to be filled in; they take turns.
      mark: what the body of the answer begins with, before the number of the request.
      first: number of the first request.
      rate: requests a second, 0 for as many as are answered.
      room: how many requests there is room for; then it ends.

    Returns:
      How many were sent; the numbers of those accepted; milliseconds of each answer; answers by status; OK or what went wrong.
    """
    n = len(fds)
    base = np.int64(0)
    times, event, events = np.zeros(2, np.int64), np.zeros(3, np.int32), np.zeros(3 * max(1, n), np.int32)
    requests, left_from = np.zeros((n, texts.shape[1]), np.uint8), np.zeros(n, np.int64)
    length, number, due = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.float64)
    answers, got = np.zeros((n, _ANSWER), np.uint8), np.zeros(n, np.int64)
    free, accepted, latencies = np.arange(n), np.empty(room, np.int64), np.empty(room, np.float64)
    statuses = np.zeros(1000, np.int64)
    free_count, oldest, sent, good, answered, problem = n, 0, 0, 0, 0, OK
    poller = _epoll_create(np.int32(0))
    for c in range(n):
        _watch(poller, _ADD, fds[c], _IN, c, event)
    started = _now(1, times)
    end, next_due = started + seconds, started
    while problem == OK:
        now = _now(1, times)
        while free_count and now < end and sent < room and (rate == 0.0 or next_due <= now):
            free_count -= 1
            c = free[oldest]  # connections take turns: the one last answered first would keep most of them idle
            oldest = (oldest + 1) % n
            number[c], due[c] = first + sent, next_due if rate > 0.0 else now
            if rate > 0.0:
                next_due += 1 / rate
            variant = sent % len(texts)
            length[c] = sizes[variant]
            requests[c] = texts[variant]
            _fill(requests[c], blanks[variant], number[c], batch, users, np.int64(_now(0, times) * 1e6))
            sent += 1
            base = np.int64(requests[c].ctypes.data)
            done = _send(fds[c], np.intp(base), np.intp(length[c]), np.int32(_NO_SIGNAL))
            left_from[c] = max(0, done)
            if left_from[c] < length[c]:
                _watch(poller, _MODIFY, fds[c], _IN | _OUT, c, event)
        if now >= end and answered == sent:
            break
        if now > end + PATIENCE_S:
            problem = LATE
            break
        wait = 50.0
        if rate > 0.0 and free_count and now < end:
            wait = max(1.0, (min(next_due, end) - now) * 1e3)
        ready = _epoll_wait(np.int32(poller), np.intp(events.ctypes.data), np.int32(n), np.int32(wait))
        for e in range(max(0, ready)):
            c = int(events[3 * e + 1])
            if events[3 * e] & _OUT:
                base = np.int64(requests[c].ctypes.data)
                done = _send(fds[c], np.intp(base + left_from[c]), np.intp(length[c] - left_from[c]), np.int32(_NO_SIGNAL))
                left_from[c] += max(0, done)
                if left_from[c] == length[c]:
                    _watch(poller, _MODIFY, fds[c], _IN, c, event)
            if not events[3 * e] & ~_OUT:
                continue
            base = np.int64(answers[c].ctypes.data)
            size = _recv(fds[c], np.intp(base + got[c]), np.intp(_ANSWER - got[c]), np.int32(0))
            if size < 0 and int32_at(np.int64(_errno()), 0) == _AGAIN:
                continue
            if size <= 0:
                problem = CLOSED
                break
            got[c] += size
            whole = _length(base, got[c])
            if whole < 0 or whole > _ANSWER or (whole and got[c] > whole):
                problem = UNEXPECTED
                break
            if whole == 0 or got[c] < whole:
                continue
            latencies[answered] = (_now(1, times) - due[c]) * 1e3
            answered += 1
            status = (answers[c, 9] - 48) * 100 + (answers[c, 10] - 48) * 10 + answers[c, 11] - 48
            statuses[status % 1000] += 1
            if status == 202:
                head = 0
                while int32_at(base, head) != _HEAD_END:
                    head += 1
                if _is_told(answers[c], got[c], got[c] - head - 4, mark, number[c]):
                    accepted[good] = number[c]
                    good += 1
            got[c] = 0
            free[(oldest + free_count) % n] = c
            free_count += 1
    _close(np.int32(poller))
    return sent, accepted[:good], latencies[:answered], statuses, problem
