"""Numbers and times as people read them."""

import math


def minutes(seconds: float) -> str:
    """Return a time as minutes and seconds, such as `7:05`."""
    whole = math.ceil(seconds)
    return f"{whole // 60}:{whole % 60:02}"


def clock(seconds: float) -> str:
    """Return a time as a clock shows it: 6:30, or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float) -> str:
    """Return a time in words: 45 min, or 5 h 12 min."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def count(number: int, noun: str) -> str:
    """Return a number of things: 1 day, 2 days."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
