"""The keys of a hunt: what each asks for, and the word that stands beside it."""

from collections.abc import Mapping

from dojo.practice.loop import Action

PRACTICE = {
    "h": Action.HINT,
    "n": Action.NOTE,
    "i": Action.PROBE,
    "d": Action.DIFF,
    "p": Action.PAUSE,
    "s": Action.SKIP,
    "r": Action.REVEAL,
    "q": Action.QUIT,
}
WATCH = {
    "h": Action.HINT,
    "i": Action.PROBE,
    "d": Action.DIFF,
    "r": Action.RESET,
    "u": Action.UNDO,
    "n": Action.NEXT,
    "q": Action.QUIT,
}
WORDS = {
    Action.HINT: "hint",
    Action.NOTE: "note",
    Action.PROBE: "probe",
    Action.DIFF: "diff",
    Action.PAUSE: "pause",
    Action.SKIP: "skip",
    Action.REVEAL: "reveal",
    Action.RESET: "reset",
    Action.UNDO: "undo",
    Action.NEXT: "next kata",
    Action.QUIT: "quit",
}
# Asked before what ends a kata.
QUESTIONS = {
    Action.SKIP: "Skip this kata?",
    Action.REVEAL: "Show the answer? It ends this kata.",
}


def keys_line(keys: Mapping[str, Action], *, hints: bool = True) -> str:
    """Return the keys with their words; without `hints`, the key for one is left out."""
    words = {
        **WORDS,
        Action.HINT: f"{WORDS[Action.HINT]}  1-9 on that bug",
        Action.NOTE: "... note of what you suspect",
    }
    return "  ".join(
        f"{key} {words[action]}"
        for key, action in keys.items()
        if hints or action is not Action.HINT
    )
