"""The keys of a hunt: what each asks for, and the word that stands beside it."""

from collections.abc import Mapping

from dojo.practice.loop import Action

_LOOKS = {
    "i": Action.PROBE,
    "b": Action.DEBUG,
    "v": Action.SHOW,
    "x": Action.RESEED,
}
# In the order of how badly they are missed where a narrow screen has no room for all.
PRACTICE = {
    "h": Action.HINT,
    "d": Action.DIFF,
    "p": Action.PAUSE,
    "s": Action.SKIP,
    "r": Action.REVEAL,
    "q": Action.QUIT,
    "n": Action.NOTE,
    **_LOOKS,
}
WATCH = {
    "h": Action.HINT,
    "d": Action.DIFF,
    "r": Action.RESET,
    "u": Action.UNDO,
    "n": Action.NEXT,
    "q": Action.QUIT,
    **_LOOKS,
}
WORDS = {
    Action.HINT: "hint",
    Action.NOTE: "note",
    Action.PROBE: "probe",
    Action.DEBUG: "debug",
    Action.SHOW: "heat maps",
    Action.RESEED: "new data",
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
