#!/usr/bin/env python3
"""Says when cron patterns take place around clock changes, by looking at every minute, or second, in turn.

Reads cases as lines of JSON:

    {"pattern": "30 2 * * *", "zone": "Europe/Stockholm", "on_gap": "shift", "on_repeat": "first", "start": 0, "end": 0}

and answers each with a line: {"times": [instants], "differs": {mistake: whether it would give other times}}. Times are seconds
since 1970. It knows nothing but `zoneinfo` and a reading of its own of what patterns and policies mean. Zone data come
from PYTHONTZPATH.

The mistakes are what programs of this kind were found to do wrong: a comparison that does not notice them is worth nothing.
"""

import calendar
import datetime
import functools
import json
import sys
import zoneinfo

MONTHS = "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC".split()
DAYS = "SUN MON TUE WED THU FRI SAT".split()
NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@hourly": "0 * * * *",
}
MISTAKES = ("preceding", "interval", "unsorted", "days_anded")


def numbers(field, least, most, names=(), first=0):
    """The numbers of a field of numbers, names, lists, ranges and steps."""
    found = set()
    for part in field.upper().split(","):
        part, _, step = part.partition("/")
        for index, name in enumerate(names):
            part = part.replace(name, str(index + first))
        if part in ("*", "?"):
            low, high = least, most
        else:
            low, _, high = part.partition("-")
            low, high = int(low), int(high or low)
        found.update(range(low, high + 1, int(step or 1)))
    return found


class Pattern:
    def __init__(self, text):
        fields = NICKNAMES.get(text, text).split()
        self.by_seconds = len(fields) == 6
        if not self.by_seconds:
            fields.insert(0, "0")
        second, minute, hour, self.day, month, self.weekday = fields
        self.seconds = numbers(second, 0, 59)
        self.minutes = numbers(minute, 0, 59)
        self.hours = numbers(hour, 0, 23)
        self.months = numbers(month, 1, 12, MONTHS, 1)
        self.elapsed = "*" in hour
        self.days = functools.cache(self.is_day)

    def is_monthday(self, date):
        last = calendar.monthrange(date.year, date.month)[1]
        for part in self.day.upper().split(","):
            if part == "L":
                right = date.day == last
            elif part.endswith("W"):
                wanted = last if part == "LW" else int(part[:-1])
                if wanted > last:
                    continue
                day = date.replace(day=wanted)
                if day.weekday() == 5:
                    # Saturday: the Friday before, or the Monday after if that is another month.
                    wanted = wanted - 1 if wanted > 1 else wanted + 2
                elif day.weekday() == 6:
                    wanted = wanted + 1 if wanted < last else wanted - 2
                right = date.day == wanted
            else:
                right = date.day in numbers(part, 1, 31)
            if right:
                return True
        return False

    def is_weekday(self, date):
        last = calendar.monthrange(date.year, date.month)[1]
        today = date.isoweekday() % 7
        for part in self.weekday.upper().split(","):
            name, _, which = part.partition("#")
            if part not in ("*", "?") and part.endswith("L"):
                name, which = part[:-1], "L"
            days = {day % 7 for day in numbers(name, 0, 7, DAYS)}
            if today not in days:
                continue
            if not which or (which == "L" and date.day + 7 > last) or (which != "L" and (date.day - 1) // 7 + 1 == int(which)):
                return True
        return False

    def is_day(self, date, anded=False):
        if date.month not in self.months:
            return False
        free = [field in ("*", "?") for field in (self.day, self.weekday)]
        right = [self.is_monthday(date), self.is_weekday(date)]
        if any(free) or anded:
            return all(right)
        return any(right)

    def matches(self, wall, anded=False):
        right = wall.hour in self.hours and wall.minute in self.minutes and wall.second in self.seconds
        return right and self.days(wall.date(), anded)

    def within(self, wall):
        """As if lists were intervals."""

        def inside(number, numbers):
            return min(numbers) <= number <= max(numbers)

        right = inside(wall.hour, self.hours) and inside(wall.minute, self.minutes) and inside(wall.second, self.seconds)
        return right and self.days(wall.date())


@functools.cache
def moments(zone, start, end, step):
    """What the clock shows at each moment: (instant, wall time, copy, times skipped just before).

    `copy` is "first" or "last" for a wall time that is shown twice.
    """
    zone = zoneinfo.ZoneInfo(zone)
    shown = []
    before = datetime.datetime.fromtimestamp(start - step, zone).replace(tzinfo=None)
    for instant in range(start, end, step):
        aware = datetime.datetime.fromtimestamp(instant, zone)
        copy = None
        if aware.replace(fold=0).utcoffset() != aware.replace(fold=1).utcoffset():
            copy = "last" if aware.fold else "first"
        wall = aware.replace(tzinfo=None, fold=0)
        skipped = []
        missing = before + datetime.timedelta(seconds=step)
        while missing < wall:
            skipped.append(missing)
            missing += datetime.timedelta(seconds=step)
        shown.append((instant, wall, copy, skipped))
        before = wall
    return shown


def times(case, mistake=None):
    pattern = parsed(case["pattern"])
    step = 1 if pattern.by_seconds else 60
    anded = mistake == "days_anded"
    found = []
    for instant, wall, copy, skipped in moments(case["zone"], case["start"], case["end"], step):
        counts = pattern.matches(wall, anded)
        if counts and copy and not pattern.elapsed:
            counts = case["on_repeat"] in (copy, "both")
        if not counts and skipped and not pattern.elapsed and case["on_gap"] == "shift":
            if mistake == "preceding":
                skipped = skipped[1:]
            matches = pattern.within if mistake == "interval" else lambda time: pattern.matches(time, anded)
            counts = any(map(matches, skipped))
        if counts:
            found.append((wall, instant))
    if mistake == "unsorted":
        found.sort()
    return [instant for _, instant in found]


@functools.cache
def parsed(text):
    return Pattern(text)


def main():
    for line in sys.stdin:
        case = json.loads(line)
        right = times(case)
        differs = {mistake: times(case, mistake) != right for mistake in MISTAKES}
        print(json.dumps({"times": right, "differs": differs}))


main()
