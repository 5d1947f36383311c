"""What is told once a kata is over: each bug's story, and what else there was to see."""

import difflib
import textwrap
from collections.abc import Collection, Sequence

from dojo.kata.bug import Bug
from dojo.kata.kata import Kata

STORY_WIDTH = 88


def story_lines(
    bug: Bug, width: int | None = STORY_WIDTH, *, told: Collection[str] = ()
) -> list[str]:
    """Return a bug's title, what it does, wrong and right lines, where it was seen, what is asked.

    The story is wrapped, unless there is no width to wrap it to, and left out if it was `told`.
    """
    lines = tale_lines(bug, width, told=told)
    lines += [f"  {line}" for line in code_lines(bug)]
    lines += [f"  seen in: {link}" for link in bug.seen_in]
    for question in bug.ask:
        lines += _wrapped(f"asked: {question.text}", width)
        lines += _wrapped(f"  {question.answer}", width)
    return lines


def tale_lines(
    bug: Bug, width: int | None = STORY_WIDTH, *, told: Collection[str] = ()
) -> list[str]:
    """Return a bug's title and what it does, without the lines of code that it is in."""
    why = "the same again, elsewhere" if bug.why in told else bug.why
    return [bug.title, *_wrapped(why, width)]


def code_lines(bug: Bug) -> list[str]:
    """Return what a bug makes of the lines that it touches, and what they should be."""
    wrong = textwrap.dedent(bug.replace).strip("\n").splitlines()
    right = textwrap.dedent(bug.find).strip("\n").splitlines()
    heads = {"-": "wrong: ", "+": "right: "}
    return [heads[line[0]] + line[2:] for line in difflib.ndiff(wrong, right) if line[0] in heads]


def aside_lines(kata: Kata, planted: Sequence[Bug], width: int | None = STORY_WIDTH) -> list[str]:
    """Return the tempting fixes of these bugs that are wrong, and what looks wrong and is right."""
    lines = []
    ids = {bug.id for bug in planted}
    for bug in kata.bugs:
        if bug.over_fix_of in ids:
            title = kata.bug(bug.over_fix_of).title
            lines += ["", f'A tempting fix of "{title}" that is wrong:']
            lines += [*_wrapped(bug.why, width), *(f"  {line}" for line in code_lines(bug))]
    for decoy in kata.decoys:
        lines += ["", "Looks wrong, and is right:"]
        lines += [f"  {line}" for line in textwrap.dedent(decoy.find).strip("\n").splitlines()]
        lines += _wrapped(decoy.why, width)
    return lines


def _wrapped(text: str, width: int | None) -> list[str]:
    """Return a text as lines that stand in from the left, as far as it does and two more."""
    indent = " " * (len(text) - len(text.lstrip()) + 2)
    if width is None:
        return [indent + text.lstrip()]
    return textwrap.wrap(text.lstrip(), width, initial_indent=indent, subsequent_indent=indent)
