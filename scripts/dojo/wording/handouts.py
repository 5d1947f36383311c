"""What a class reads in its handout."""

from collections.abc import Iterable, Mapping, Sequence

from dojo.kata.kata import Kata


def readme(katas: Iterable[Kata]) -> str:
    """Return the first page: what to do, and with what."""
    rows = "\n".join(
        f"| [{kata.name}](katas/{kata.name}/README.md) | {kata.title} | {kata.level} "
        f"| {kata.minutes} |"
        for kata in katas
    )
    return f"""# Find the bugs

Each `botched.py` was broken on purpose. Read the brief beside it, find what is wrong, and mend it;
the tests stay as they are.

| kata | what it is about | level | minutes |
|---|---|---|---|
{rows}

Python 3.11 or newer with pytest, torch and numpy is enough (and triton for kernels):

    pip install pytest torch numpy
    pytest katas/NAME

`scripts/check.sh NAME`, `scripts/watch.sh NAME` and the other scripts make an environment of their
own the first time. Hand in your `botched.py`.
"""


def hints(planted: Mapping[Kata, Sequence[str]]) -> dict[str, str]:
    """Return a page of hints for each kata, folded away, by its path in the handout."""
    return {
        f"katas/{kata.name}/HINTS.md": _hints(kata, bug_ids) for kata, bug_ids in planted.items()
    }


def _hints(kata: Kata, bug_ids: Sequence[str]) -> str:
    parts = [f"# Hints for {kata.name}\n\nOpen one at a time; each says more than the one before."]
    for number, bug_id in enumerate(bug_ids, 1):
        parts.append(f"## Bug {number} of {len(bug_ids)}")
        parts += [
            f"<details><summary>Hint {place}</summary>\n\n{hint}\n\n</details>"
            for place, hint in enumerate(kata.bug(bug_id).hints, 1)
        ]
    return "\n\n".join(parts) + "\n"
