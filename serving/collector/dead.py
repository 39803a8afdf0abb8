"""What is refused is kept: a JSON record per event in the log ``<log>-dead``, with reason and what was sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from schemas.dead_letters import DeadLetter, encode_dead_letter
from serving.collector.wire import Refused
from serving.eventlog.base import Producer

DETAIL_CHARACTERS = 500


class DeadLetters:
    """Writes dead letters to a log of their own."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    async def put(self, refused: Sequence[tuple[int, Refused]], now: int) -> None:
        """Keeps (index in the request, event) pairs; durable when it returns.

        Raises:
          LogUnavailable, LogBusy: they could not be written.
        """
        records = [encode_dead_letter(DeadLetter(r.reason, r.detail[:DETAIL_CHARACTERS], r.payload, now, index))
                   for index, r in refused]
        await asyncio.gather(*(self._producer.send(0, record, now) for record in records))
