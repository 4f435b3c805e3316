"""How a broker numbers its packets, as far as it has shown it.

A packet id proves nothing across connections by itself. A broker that takes the smallest free id, or numbers afresh on
every connection, may redeliver a message we never saw under the id of one that we did, with the same topic and the
same payload; to take one for the other loses it. Only where ids are counted up through a session, over its
connections, does an id that comes again stand for the same message.

So the broker has to show it, on one connection:

- It has processed acknowledgements: a PINGRESP came for a PINGREQ that was sent behind them, so their ids are free.
- And it counts on all the same: ENOUGH more messages come, each under the id that follows the last.

When a session is resumed its first message must fit: a redelivery begins behind what is known to be settled and not
behind the oldest message that was never acknowledged; a new message takes the next id. One that numbers afresh begins
with 1, so a replay that begins with 1 is never believed.

What is left: another client that holds the session unnoticed for 65,535 messages brings the same ids around again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from server.core.acks import Delivery

IDS = 65_535
# More than the window of any broker that takes the smallest free id (HiveMQ: 50): there ids end below it.
ENOUGH = 64
# So often a PINGREQ follows acknowledgements, in messages: what is settled stays close behind, so that little fits.
SETTLE_EVERY = 1_024


class Numbering:
    """What is known of the packet ids of one session.

    Messages have a position: their packet id, counted on without starting again at 1.
    """

    def __init__(self) -> None:
        self._first: int | None = None
        self._newest: int | None = None
        self._settled: int | None = None
        self._unacknowledged: int | None = None
        self._counted = 0
        self._refuted = False
        self._asked = False
        self._acknowledged = 0
        self.opening = False
        self.replaying = False

    @property
    def is_shown(self) -> bool:
        """Whether the broker has shown that it counts."""
        return self._counted >= ENOUGH and not self._refuted

    # --- connections ------------------------------------------------------------------------------------------------

    def connected(self, *, resumed: bool) -> None:
        """A connection begins, with the session that is known, or with a new one."""
        if not resumed:
            self._start_again()
            self._refuted = False
        self.opening = self.replaying = resumed
        self._asked, self._acknowledged = False, 0

    def lost(self, unacknowledged: Iterable[int]) -> None:
        """The connection ended; under these ids came what was never acknowledged."""
        if self._newest is not None:
            after = self._newest + 1
            self._unacknowledged = min((self._position(each) for each in unacknowledged), default=after)

    # --- messages ---------------------------------------------------------------------------------------------------

    def opened_by(self, packet_id: int, *, duplicate: bool) -> bool:
        """Whether the first message of a resumed session fits: then its redeliveries are what their ids say."""
        self.opening = False
        fits = self.is_shown and packet_id != 1 and self._fits(packet_id, duplicate=duplicate)
        if not fits:
            self._start_again()
        return fits

    def redelivered(self, packet_id: int) -> None:
        """A redelivery came; it is the newest message if the last connection broke before it had arrived."""
        if self._newest is None or not self.is_shown:
            self._begin(packet_id)
        elif packet_id == _after(self._newest):
            self._newest += 1

    def arrived(self, messages: Sequence[Delivery]) -> None:
        """New messages came, in this order."""
        if self._refuted:
            self.replaying = False
        elif self._counted < ENOUGH or self._newest is None:
            for message in messages:
                if message.packet_id is not None:
                    self._count(message.packet_id)
        else:  # once it has shown that it counts, the last id is enough
            ids = (message.packet_id for message in reversed(messages))
            last = next((packet_id for packet_id in ids if packet_id is not None), None)
            if last is not None:
                step = (last - self._newest) % IDS
                # It fell back (it was restarted from an older state), or left some out (as if they had expired).
                if step > IDS // 2 or (step > len(messages) and not self.replaying):
                    self._start_again()
                    self._begin(last)
                else:
                    self._newest += step
                self.replaying = False

    # --- acknowledgements -------------------------------------------------------------------------------------------

    def acknowledged(self, messages: int) -> bool:
        """So many messages were acknowledged; whether to ask the broker now if it has processed that."""
        self._acknowledged += messages
        if self._newest is None or self._refuted or self._asked:
            return False
        if self._settled is None or self._acknowledged >= SETTLE_EVERY:
            self._asked, self._acknowledged = True, 0
        return self._asked

    def mark(self, oldest_unacknowledged: int | None) -> int:
        """The position up to which everything is acknowledged; pass it to `settled` once the broker has answered."""
        newest = self._newest or 0
        return newest if oldest_unacknowledged is None else self._position(oldest_unacknowledged) - 1

    def settled(self, mark: int) -> None:
        """The broker has processed all acknowledgements up to this position."""
        self._asked = False
        if self._first is not None and mark >= self._first:
            self._settled = mark

    # --- inside -----------------------------------------------------------------------------------------------------

    def _fits(self, packet_id: int, *, duplicate: bool) -> bool:
        newest, settled, oldest = self._newest, self._settled, self._unacknowledged
        if newest is None or settled is None or oldest is None:
            return False
        if not duplicate:
            return packet_id == _after(newest)
        return oldest - settled < IDS and 1 <= (packet_id - settled) % IDS <= oldest - settled

    def _count(self, packet_id: int) -> None:
        newest = self._newest
        if newest is not None and packet_id == _after(newest):
            self._newest = newest + 1
            self._counted += self._settled is not None
        elif newest is None or self.replaying:  # a replay may end before the newest message: that was acknowledged
            self._start_again()
            self._begin(packet_id)
        else:
            self._refuted = True
        self.replaying = False

    def _begin(self, packet_id: int) -> None:
        self._first = self._newest = packet_id

    def _position(self, packet_id: int) -> int:
        newest = self._newest or 0
        return newest - (newest - packet_id) % IDS

    def _start_again(self) -> None:
        self._first = self._newest = self._settled = self._unacknowledged = None
        self._counted = 0


def _after(position: int) -> int:
    """The packet id that follows this position's."""
    return position % IDS + 1
