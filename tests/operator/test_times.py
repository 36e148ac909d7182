"""When a schedule comes: by the local clock, once, whatever the clock is set to; and how many times were missed."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import InputError
from limbeck_operator.times import InvalidSchedule, parse

ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Kolkata",
    "Pacific/Apia",
    "Africa/Casablanca",
    "America/Sao_Paulo",
    "Etc/UTC",
]
MORE_ZONES = ["America/Havana", "Asia/Beirut", "America/Nuuk", "Antarctica/Troll", "America/St_Johns", "Pacific/Easter"]
BEGIN, END = datetime(2020, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def local(instant: datetime, zone: ZoneInfo) -> datetime:
    return instant.astimezone(zone).replace(tzinfo=None)


def changes(name: str) -> list[datetime]:
    """When the clock of a zone is set, 2020 to 2035, to the hour."""
    zone, found, hour = ZoneInfo(name), [], BEGIN
    offset = hour.astimezone(zone).utcoffset()
    while hour < END:
        hour += DAY
        if hour.astimezone(zone).utcoffset() != offset:
            back = hour
            while back.astimezone(zone).utcoffset() != offset:
                back -= HOUR
            found.append(back + HOUR)
            offset = hour.astimezone(zone).utcoffset()
    return found


CHANGES = {name: changes(name) for name in ZONES + MORE_ZONES}


# what is refused


@pytest.mark.parametrize(
    ("schedule", "zone", "said"),
    [
        ("61 * * * *", "Etc/UTC", "'61 * * * *': '61' as the minute; 0 to 59, with * , - and /"),
        ("* 24 * * *", "Etc/UTC", "'24' as the hour; 0 to 23"),
        ("* * 0 * *", "Etc/UTC", "'0' as the day of the month; 1 to 31"),
        ("* * * 13 *", "Etc/UTC", "'13' as the month; 1 to 12"),
        ("* * * * 8", "Etc/UTC", "'8' as the weekday; 0 to 7"),
        ("0 0 ? * 1", "Etc/UTC", "'?' as the day of the month"),
        ("9" * 5000 + " * * * *", "Etc/UTC", "as the minute"),
        ("", "Etc/UTC", "'' has 0 fields; 5: minute hour day month weekday, such as '0 3 * * 1', Mondays at three"),
        ("0 0 0 * * *", "Etc/UTC", "has 6 fields; 5: minute hour day month weekday"),
        ("@reboot", "Etc/UTC", "'@reboot' is no macro; @hourly, @daily, @midnight, @weekly, "),
        ("@every 1h", "Etc/UTC", "is no macro"),
        ("TZ=Europe/Berlin 0 0 * * *", "Etc/UTC", "names a time zone; timeZone is where it is given"),
        ("CRON_TZ=Europe/Berlin 0 0 * * *", "Etc/UTC", "names a time zone; timeZone is where it is given"),
        ("0 0 31 2 *", "Etc/UTC", "'0 0 31 2 *' never comes; a date that some year has"),
        ("0 0 31 4,6,9,11 *", "Etc/UTC", "never comes"),
        ("0 0 */31 2 MON#5", "Etc/UTC", "never comes"),
        ("@daily", "Mars/Olympus", "'Mars/Olympus' is no time zone; a name such as Europe/Berlin"),
        ("@daily", "Europe", "'Europe' is no time zone"),
        ("@daily", "", "'' is no time zone"),
        ("@daily", "../Berlin", "is no time zone"),
        ("@daily", "localtime", "is no time zone"),
        ("@daily", "right/Europe/Berlin", "is no time zone"),
    ],
)
def test_what_is_no_schedule_is_refused_with_what_is_allowed(schedule, zone, said):
    with pytest.raises(InvalidSchedule) as refused:
        parse(schedule, zone)
    assert said in str(refused.value)
    assert isinstance(refused.value, InputError)


@given(st.text("0123456789*/,-#LWMONJAU@?= ", max_size=30), st.text(max_size=20) | st.sampled_from(ZONES))
@settings(deadline=None, derandomize=True)
def test_any_text_is_a_schedule_or_refused(schedule, zone):
    try:
        parsed = parse(schedule, zone)
    except InvalidSchedule:
        return
    assert parsed.next_after(BEGIN) > BEGIN


# times


@pytest.mark.parametrize(
    ("macro", "coming"),
    [
        ("@hourly", "2026-03-04 06:00"),
        ("@daily", "2026-03-05 00:00"),
        ("@midnight", "2026-03-05 00:00"),
        ("@weekly", "2026-03-08 00:00"),
        ("@monthly", "2026-04-01 00:00"),
        ("@yearly", "2027-01-01 00:00"),
        ("@annually", "2027-01-01 00:00"),
    ],
)
def test_a_macro_comes_at_its_times(macro, coming):
    assert parse(macro, "Etc/UTC").next_after(utc("2026-03-04 05:06")) == utc(coming)


def coming(schedule: str, zone: str, since: str, count: int) -> list[str]:
    parsed, found, times = parse(schedule, zone), utc(since), []
    for _ in range(count):
        found = parsed.next_after(found)
        times.append(found.astimezone(parsed.zone).strftime("%d. %H:%M %z"))
    return times


def test_a_schedule_is_in_its_time_zone():
    assert coming("0 3 * * 1", "Asia/Kolkata", "2026-03-04 00:00", 2) == ["09. 03:00 +0530", "16. 03:00 +0530"]


def test_of_two_equal_local_times_the_first_counts():
    assert coming("30 1 * * *", "Europe/London", "2026-10-24 12:00", 2) == ["25. 01:30 +0100", "26. 01:30 +0000"]
    assert coming("30 2 * * *", "Europe/Berlin", "2026-10-24 12:00", 2) == ["25. 02:30 +0200", "26. 02:30 +0100"]
    assert coming("45 1 * * *", "Australia/Lord_Howe", "2026-04-04 00:00", 2) == ["05. 01:45 +1100", "06. 01:45 +1030"]


def test_from_between_two_equal_local_times_the_second_does_not_count():
    assert coming("30 2 * * *", "Europe/Berlin", "2026-10-25 01:10", 1) == ["26. 02:30 +0100"]
    assert coming("45 1 * * *", "Australia/Lord_Howe", "2026-04-04 15:05", 1) == ["06. 01:45 +1030"]
    assert parse("30 2 * * *", "Europe/Berlin").previous(utc("2026-10-25 01:10")) == utc("2026-10-25 00:30")


def test_a_local_time_that_is_left_out_comes_at_the_moment_after_the_gap():
    assert coming("30 2 * * *", "Europe/Berlin", "2026-03-28 12:00", 2) == ["29. 03:00 +0200", "30. 02:30 +0200"]
    assert coming("0,30 2 * * *", "Europe/Berlin", "2026-03-28 12:00", 2) == ["29. 03:00 +0200", "30. 02:00 +0200"]
    assert coming("30 2,3 * * *", "Europe/Berlin", "2026-03-28 12:00", 2) == ["29. 03:00 +0200", "29. 03:30 +0200"]
    assert coming("15 2 * * *", "Australia/Lord_Howe", "2026-10-03 00:00", 2) == ["04. 02:30 +1100", "05. 02:15 +1100"]
    assert coming("@daily", "America/Sao_Paulo", "2018-11-03 12:00", 2) == ["04. 01:00 -0200", "05. 00:00 -0200"]


def test_the_moment_after_a_gap_can_be_on_the_next_day():
    assert coming("30 23 * * *", "America/Nuuk", "2026-03-28 12:00", 2) == ["29. 00:00 -0100", "29. 23:30 -0100"]


def test_a_day_that_is_left_out_comes_when_the_next_begins():
    assert coming("0 10 * * *", "Pacific/Apia", "2011-12-29 12:00", 3) == [
        "29. 10:00 -1000",
        "31. 00:00 +1400",
        "31. 10:00 +1400",
    ]


def test_a_star_follows_real_time_when_the_clock_is_set():
    assert coming("*/30 * * * *", "Europe/Berlin", "2026-10-24 23:59", 6) == [
        "25. 02:00 +0200",
        "25. 02:30 +0200",
        "25. 02:00 +0100",
        "25. 02:30 +0100",
        "25. 03:00 +0100",
        "25. 03:30 +0100",
    ]
    assert coming("*/30 * * * *", "Europe/Berlin", "2026-03-29 00:29", 3) == [
        "29. 01:30 +0100",
        "29. 03:00 +0200",
        "29. 03:30 +0200",
    ]
    assert coming("@hourly", "Australia/Lord_Howe", "2026-10-03 14:00", 3) == [
        "04. 01:00 +1030",
        "04. 03:00 +1100",
        "04. 04:00 +1100",
    ]
    assert coming("*/15 2 * * *", "Australia/Lord_Howe", "2026-10-03 14:00", 2) == [
        "04. 02:30 +1100",
        "04. 02:45 +1100",
    ]


def test_a_leap_day_comes_when_there_is_one():
    assert parse("0 0 29 2 *", "Etc/UTC").next_after(utc("2096-03-01")) == utc("2104-02-29")


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("schedule", ["0 0 * * *", "45 1 * * *", "15 2 * * *"])
def test_a_daily_schedule_comes_once_on_each_day(zone, schedule):
    parsed, found, days = parse(schedule, zone), BEGIN, Counter[date]()
    while found < END:
        coming = parsed.next_after(found)
        assert coming > found
        found = coming
        days[found.astimezone(parsed.zone).date()] += 1
    first, last = min(days), max(days)
    assert days == Counter(first + n * DAY for n in range((last - first).days + 1))
    assert (last - first).days >= 16 * 365


# against every minute


@st.composite
def fields(draw, most: int) -> tuple[str, set[int]]:
    """A field, and the numbers that it is."""
    kind = draw(st.sampled_from(["*", "*/", "-", "-/", ","]))
    if kind == "*":
        return "*", set(range(most))
    step = draw(st.integers(1, most))
    if kind == "*/":
        return f"*/{step}", set(range(0, most, step))
    if kind == ",":
        numbers = draw(st.sets(st.integers(0, most - 1), min_size=1, max_size=3))
        return ",".join(str(number) for number in sorted(numbers)), numbers
    low, high = sorted(draw(st.tuples(st.integers(0, most - 1), st.integers(0, most - 1))))
    if kind == "-":
        return f"{low}-{high}", set(range(low, high + 1))
    if low == high:
        return str(low), {low}
    return f"{low}-{high}/{step}", set(range(low, high + 1, step))


def all_times(
    zone: ZoneInfo, minutes: set[int], hours: set[int], by_clock: bool, begin: datetime, end: datetime
) -> list[datetime]:
    """All times in [begin, end), found by looking at a clock every minute; `begin` is on a day with no change."""
    found, seen, before = [], set[datetime](), local(begin, zone) - MINUTE
    while begin < end:
        now = local(begin, zone)
        shown = [now]
        if by_clock:
            shown = [] if now in seen else shown
            shown += [before + n * MINUTE for n in range(1, (now - before) // MINUTE)]
            seen.add(now)
        if any(moment.minute in minutes and moment.hour in hours for moment in shown):
            found.append(begin)
        before = now
        begin += MINUTE
    return found


@given(st.data(), fields(60), st.sampled_from(ZONES + MORE_ZONES))
@settings(deadline=None, derandomize=True, max_examples=150)
def test_times_are_those_that_a_look_at_the_clock_every_minute_finds(data, minute, zone):
    change = data.draw(st.sampled_from(CHANGES[zone] or [utc("2026-10-25 01:00")]))
    begin, end = change - 8 * HOUR, change + 28 * HOUR
    near = [(local(change, ZoneInfo(zone)) + n * HOUR).hour for n in (-2, -1, 0, 1)]
    hour = data.draw(st.sampled_from([(str(number), {number}) for number in near]) | fields(24))
    parsed = parse(f"{minute[0]} {hour[0]} * * *", zone)
    expected = all_times(parsed.zone, minute[1], hour[1], parsed.by_clock, begin, end)
    assert parsed.by_clock == (not minute[0].startswith("*") and not hour[0].startswith("*"))

    forward, found = [], begin - timedelta(microseconds=1)
    while (found := parsed.next_after(found)) < end:
        forward.append(found)
    assert forward == expected

    backward, found = [], end
    while (found := parsed.previous(found - timedelta(microseconds=1))) >= begin:
        backward.append(found)
    assert backward == expected[::-1]

    for n in range(-13, 14):
        instant = change + n * timedelta(minutes=10)
        before, after = parsed.previous(instant), parsed.next_after(instant)
        assert [moment for moment in [before] if moment >= begin] == [m for m in expected if m <= instant][-1:]
        assert [moment for moment in [after] if moment < end] == [m for m in expected if m > instant][:1]

    since = change + timedelta(seconds=data.draw(st.integers(-6 * 3600, 3 * 3600)))
    until = since + timedelta(seconds=data.draw(st.integers(0, 24 * 3600)))
    missed = [moment for moment in expected if since < moment <= until]
    count, latest = parsed.missed(since, until, limit=500)
    assert count == min(len(missed), 500)
    assert latest == (missed[-1] if missed else None)


SCHEDULES = [
    "* * * * *",
    "*/7 */5 * * *",
    "30 2 * * *",
    "0 3 * * 1",
    "15 1 1,15 * *",
    "0 0 1 1 *",
    "0 12 13 * FRI",
    "0 0 L * *",
    "0 9 * * MON#2",
    "* 2 29 2 *",
]


@given(
    st.sampled_from(SCHEDULES),
    st.sampled_from(ZONES + MORE_ZONES),
    st.datetimes(BEGIN.replace(tzinfo=None), END.replace(tzinfo=None), timezones=st.just(UTC)),
)
@settings(deadline=None, derandomize=True, max_examples=300)
def test_an_instant_lies_between_the_previous_time_and_the_next(schedule, zone, instant):
    parsed = parse(schedule, zone)
    before, after = parsed.previous(instant), parsed.next_after(instant)
    assert before <= instant < after
    assert parsed.next_after(before) == after
    assert parsed.previous(after) == after
    assert parsed.previous(after - timedelta(microseconds=1)) == before
    assert before.tzinfo is UTC
    assert after.tzinfo is UTC


# what was missed


@pytest.mark.parametrize("schedule", ["* * * * *", "*/30 * * * *", "0-59 0-23 * * *", "0 3 * * *", "* * 1 1 *"])
@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Lord_Howe"])
def test_two_years_away_are_dealt_with_at_once(schedule, zone):
    parsed, until = parse(schedule, zone), utc("2026-10-25 01:10:30")
    quickest = 1.0
    for _ in range(5):
        begin = time.thread_time()  # not the wall's: another process may have the core
        count, latest = parsed.missed(until - 730 * DAY, until)
        quickest = min(quickest, time.thread_time() - begin)
    assert count == 100
    assert latest == parsed.previous(until)
    assert quickest < 0.05


def test_what_was_missed_excludes_its_begin_and_includes_its_end():
    parsed = parse("0 * * * *", "Etc/UTC")
    noon = utc("2026-03-04 12:00")
    assert parsed.missed(noon, noon) == (0, None)
    assert parsed.missed(noon, noon + HOUR) == (1, noon + HOUR)
    assert parsed.missed(noon, noon + HOUR - MINUTE) == (0, None)
    assert parsed.missed(noon, noon + 3 * HOUR, limit=2) == (2, noon + 3 * HOUR)
    assert parsed.missed(noon, noon - 3 * HOUR) == (0, None)
