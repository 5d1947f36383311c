"""How the database came to be what it is, one named step after another."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Migration:
    """A step from one version of the database to the next; the version counts the steps."""

    name: str
    script: str


# Only ever append: exports of old versions are read through these too.
MIGRATIONS = (
    Migration(
        "attempts, runs and hints",
        """
        CREATE TABLE attempt (
            id INTEGER PRIMARY KEY,
            kata TEXT NOT NULL,
            planted TEXT NOT NULL,
            started_at TEXT NOT NULL,
            revealed_at TEXT,
            solved_at TEXT
        );
        CREATE INDEX attempt_kata ON attempt (kata);
        CREATE TABLE run (
            id INTEGER PRIMARY KEY,
            attempt INTEGER NOT NULL REFERENCES attempt (id),
            at TEXT NOT NULL,
            revision TEXT NOT NULL,
            passed INTEGER NOT NULL,
            failed INTEGER NOT NULL,
            gone TEXT NOT NULL,
            solved INTEGER NOT NULL,
            seconds REAL NOT NULL
        );
        CREATE INDEX run_attempt ON run (attempt);
        CREATE TABLE hint (
            id INTEGER PRIMARY KEY,
            attempt INTEGER NOT NULL REFERENCES attempt (id),
            at TEXT NOT NULL,
            bug TEXT NOT NULL,
            level INTEGER NOT NULL,
            UNIQUE (attempt, bug, level)
        );
        """,
    ),
    Migration(
        "practice sessions",
        """
        CREATE TABLE session (
            id INTEGER PRIMARY KEY,
            started_at TEXT NOT NULL,
            interview INTEGER NOT NULL,
            interview_on TEXT,
            ended_at TEXT
        );
        CREATE TABLE exercise (
            id INTEGER PRIMARY KEY,
            session INTEGER NOT NULL REFERENCES session (id),
            kata TEXT NOT NULL,
            bugs TEXT NOT NULL,
            budget REAL NOT NULL,
            spent REAL NOT NULL DEFAULT 0,
            attempt INTEGER REFERENCES attempt (id),
            outcome TEXT,
            grade INTEGER,
            ended_at TEXT
        );
        CREATE INDEX exercise_session ON exercise (session);
        CREATE INDEX exercise_kata ON exercise (kata);
        """,
    ),
    Migration(
        "quiet sessions",
        "ALTER TABLE session ADD COLUMN quiet INTEGER NOT NULL DEFAULT 0;",
    ),
    Migration("the seed of a run", "ALTER TABLE run ADD COLUMN seed INTEGER;"),
    Migration(
        "moves: notes, probes, logs",
        """
        CREATE TABLE move (
            id INTEGER PRIMARY KEY,
            attempt INTEGER NOT NULL REFERENCES attempt (id),
            at TEXT NOT NULL,
            kind TEXT NOT NULL,
            text TEXT NOT NULL
        );
        CREATE INDEX move_attempt ON move (attempt);
        """,
    ),
    Migration(
        "whether a run came to its end",
        "ALTER TABLE run ADD COLUMN whole INTEGER NOT NULL DEFAULT 1;",
    ),
    Migration(
        "proofs",
        """
        CREATE TABLE proof (
            id INTEGER PRIMARY KEY,
            kata TEXT NOT NULL,
            goal TEXT NOT NULL,
            versions TEXT NOT NULL,
            budget REAL,
            started_at TEXT NOT NULL,
            spent REAL NOT NULL DEFAULT 0,
            hints INTEGER NOT NULL DEFAULT 0,
            claims INTEGER NOT NULL DEFAULT 0,
            caught TEXT NOT NULL DEFAULT '[]',
            alarms INTEGER NOT NULL DEFAULT 0,
            outcome TEXT,
            grade INTEGER,
            ended_at TEXT
        );
        CREATE INDEX proof_kata ON proof (kata);
        """,
    ),
    Migration(
        "reviews of requests, change by change",
        """
        CREATE TABLE review (
            id INTEGER PRIMARY KEY,
            at TEXT NOT NULL,
            place INTEGER NOT NULL,
            kata TEXT NOT NULL,
            effect TEXT NOT NULL,
            bug TEXT NOT NULL,
            kind TEXT,
            marked INTEGER NOT NULL,
            seconds REAL NOT NULL
        );
        """,
    ),
    Migration(
        "the bug of the day",
        """
        CREATE TABLE daily (
            id INTEGER PRIMARY KEY,
            day TEXT NOT NULL UNIQUE,
            at TEXT NOT NULL,
            found INTEGER NOT NULL
        );
        """,
    ),
)
