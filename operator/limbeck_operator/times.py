"""When a cron schedule comes, in its time zone. Pure.

A local time of the schedule comes once. Of the two that a clock set back makes, it is the first; one that a clock set
forward leaves out comes at the moment after the gap. Where the minute or the hour begins with `*`, the schedule follows
real time instead, as in Debian's cron: `*/30 * * * *` comes every 30 minutes whatever the clock does, so that each time
of an hour that is there twice comes twice, and none of an hour that is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from limbeck.errors import InputError

_MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_FIELDS = (
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day of the month", "1 to 31, L, LW"),
    ("month", "1 to 12, JAN to DEC"),
    ("weekday", "0 to 7, SUN to SAT, 5L, FRI#2"),
)
_MACHINE_ZONES = ("localtime", "posixrules", "right/")  # depend on the machine, or count leap seconds
_SECOND, _DAY = timedelta(seconds=1), timedelta(days=1)
_PAST = datetime(2000, 1, 1)


_SCHEDULE = "spec.schedule"


class InvalidSchedule(InputError):  # noqa: N818 - what the user wrote
    """The schedule, or its time zone, is none."""


@dataclass(frozen=True)
class Schedule:
    """The times of a cron expression.

    Attributes:
        expression: five fields.
        zone: that they are in.
        by_clock: whether it follows the local clock, not real time, when the clock is set.
    """

    expression: str
    zone: ZoneInfo
    by_clock: bool

    def next_after(self, instant: datetime) -> datetime:
        """The first time after `instant`, in UTC; `instant` has a time zone."""
        instant = _whole(instant)
        return self._next_by_clock(instant) if self.by_clock else self._next_in_real_time(instant)

    def previous(self, instant: datetime) -> datetime:
        """The last time that is not after `instant`, in UTC; `instant` has a time zone."""
        instant = _whole(instant)
        return self._previous_by_clock(instant) if self.by_clock else self._previous_in_real_time(instant)

    def missed(self, since: datetime, until: datetime, *, limit: int = 100) -> tuple[int, datetime | None]:
        """How many times are after `since` and not after `until`, and the last of them.

        At `limit` the counting ends: as many, or more.
        """
        latest = self.previous(until)
        count, found = 0, since
        while count < limit and (found := self.next_after(found)) <= latest:
            count += 1
        return count, latest if latest > since else None

    def _next_by_clock(self, instant: datetime) -> datetime:
        times = CronSim(self.expression, self._local(instant))
        while (found := self._instant(next(times))) <= instant:  # of two equal local times, the first has been
            pass
        return found

    def _previous_by_clock(self, instant: datetime) -> datetime:
        local = self._local(instant)
        later = instant - self._instant(local)  # between two equal local times, those up to the second have been
        times = CronSim(self.expression, local + later + _SECOND, reverse=True)
        while (found := self._instant(next(times))) > instant:
            pass
        return found

    def _next_in_real_time(self, instant: datetime) -> datetime:
        begin, local = instant, self._local(instant)
        while True:
            found = _utc(next(CronSim(self.expression, local)) - self._offset(begin))
            change = self._first_change(begin, found)
            if change is None:
                return found
            begin, local = change, self._local(change) - _SECOND

    def _previous_in_real_time(self, instant: datetime) -> datetime:
        end = instant
        while True:
            times = CronSim(self.expression, self._local(end) + _SECOND, reverse=True)
            found = _utc(next(times) - self._offset(end))
            change = self._last_change(found, end)
            if change is None:
                return found
            end = change - _SECOND

    def _local(self, instant: datetime) -> datetime:
        return instant.astimezone(self.zone).replace(tzinfo=None)

    def _offset(self, instant: datetime) -> timedelta:
        return self._local(instant) - instant.replace(tzinfo=None)

    def _instant(self, local: datetime) -> datetime:
        """When it is that local time for the first time; if it never is, the moment after the gap."""
        first = local.replace(tzinfo=self.zone, fold=0).astimezone(UTC)
        other = local.replace(tzinfo=self.zone, fold=1).astimezone(UTC)
        return first if first <= other else self._change_between(other, first)

    def _first_change(self, begin: datetime, end: datetime) -> datetime | None:
        """When the clock is first set after `begin` and not after `end`."""
        while begin < end:
            step = min(begin + _DAY, end)
            if self._offset(begin) != self._offset(step):
                return self._change_between(begin, step)
            begin = step
        return None

    def _last_change(self, begin: datetime, end: datetime) -> datetime | None:
        """When the clock is last set after `begin` and not after `end`."""
        while begin < end:
            step = max(end - _DAY, begin)
            if self._offset(step) != self._offset(end):
                return self._change_between(step, end)
            end = step
        return None

    def _change_between(self, before: datetime, after: datetime) -> datetime:
        """The first instant that has the offset of `after`, which `before` has not."""
        offset = self._offset(after)
        while (seconds := int((after - before).total_seconds())) > 1:
            middle = before + timedelta(seconds=seconds // 2)
            if self._offset(middle) == offset:
                after = middle
            else:
                before = middle
        return after


def parse(schedule: str, time_zone: str) -> Schedule:
    """The times of a cron expression in a time zone.

    Args:
        schedule: minute hour day month weekday, or a macro such as @daily.
        time_zone: its IANA name.

    Raises:
        InvalidSchedule: either is none, or the schedule never comes.
    """
    fields = _fields(schedule)
    by_clock = not fields[0].startswith("*") and not fields[1].startswith("*")
    return Schedule(" ".join(fields), _zone(time_zone), by_clock)


def _fields(schedule: str) -> list[str]:
    fields = schedule.split()
    if fields and fields[0].startswith(("TZ=", "CRON_TZ=")):
        raise InvalidSchedule(_SCHEDULE, f"{schedule!r} names a time zone", "timeZone is where it is given")
    if fields and fields[0].startswith("@"):
        if schedule not in _MACROS:
            raise InvalidSchedule(_SCHEDULE, f"{schedule!r} is no macro", f"{', '.join(_MACROS)} are")
        fields = _MACROS[schedule].split()
    if len(fields) != len(_FIELDS):
        allowed = "5: minute hour day month weekday, such as '0 3 * * 1', Mondays at three"
        raise InvalidSchedule(_SCHEDULE, f"{schedule!r} has {len(fields)} fields", f"{allowed}")
    for position, (field, (name, allowed)) in enumerate(zip(fields, _FIELDS, strict=True)):
        alone = ["*"] * len(_FIELDS)
        alone[position] = field
        try:
            CronSim(" ".join(alone), _PAST)
        except (CronSimError, ValueError):  # the latter of a number of thousands of digits
            raise InvalidSchedule(
                _SCHEDULE, f"{schedule!r}: {field!r} as the {name}", f"{allowed}, with * , - and /"
            ) from None
    try:
        next(CronSim(" ".join(fields), _PAST))
    except (CronSimError, StopIteration):
        raise InvalidSchedule(_SCHEDULE, f"{schedule!r} never comes", "a date that some year has") from None
    return fields


def _zone(name: str) -> ZoneInfo:
    try:
        if not name.startswith(_MACHINE_ZONES):
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a folder of zones
        pass
    raise InvalidSchedule("spec.timeZone", f"{name!r} is no time zone", "a name such as Europe/Berlin")


def _whole(instant: datetime) -> datetime:
    """In UTC, in whole seconds: what is between them comes before and after the same times."""
    return instant.astimezone(UTC).replace(microsecond=0)


def _utc(naive: datetime) -> datetime:
    return naive.replace(tzinfo=UTC)
