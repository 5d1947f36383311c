"""On which days the learner took the bug of the day."""

from datetime import date, timedelta

from dojo.history.database import Database, now

_DAY = timedelta(days=1)


class Dailies:
    """The bugs of the day in a history's database."""

    def __init__(self, database: Database) -> None:
        """Take an open database."""
        self._database = database

    def add(self, day: date, *, found: bool) -> None:
        """Record that the bug of this day was taken, and whether it was found; the first counts."""
        self._database.execute(
            "INSERT OR IGNORE INTO daily (day, at, found) VALUES (?, ?, ?)",
            (day.isoformat(), now(), found),
        )

    def all(self) -> dict[date, bool]:
        """Return each day that was taken, and whether its bug was found."""
        rows = self._database.execute("SELECT day, found FROM daily ORDER BY day")
        return {date.fromisoformat(day): bool(found) for day, found in rows}

    def streak(self, today: date) -> int:
        """Return how many days in a row were taken until today; a day not over breaks none."""
        days = self.all()
        day = today if today in days else today - _DAY
        length = 0
        while day in days:
            length += 1
            day -= _DAY
        return length
