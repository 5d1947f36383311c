"""Tells from a path whose solution of which kata it is."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from dojo.errors import DojoError
from dojo.kata.kata import Kata

# Each kata by its name, tried in this order.
_NAMED = (
    "{learner}/**/{kata}/botched.py",
    "{learner}/{kata}.py",
    "{learner}_{kata}.py",
)
# Where one kata is asked for, and the path names none.
_OF_ONE = ("{learner}/**/botched.py", "{learner}/*.py", "{learner}_botched.py", "{learner}.py")
_ALONE = "katas/{kata}/botched.py"  # one checkout, of one learner
_NO_SOLUTION = re.compile(r"(.*/)?(test_\w*|conftest|reference|setup)\.py")
# What learning platforms add to a learner's name: Moodle to folders, Canvas to files.
_MOODLE = re.compile(r"(.+?)_\d+_assignsubmission_\w+")
_CANVAS = re.compile(r"(.+?)(_LATE)?_\d+_\d+(_.*)?")
_TOKENS = re.compile(r"\{learner\}|\{kata\}|\*\*/|\*|[^{*]+|.", re.DOTALL)

Places = dict[PurePosixPath, tuple[str, Kata]]


class Layout:
    """Where solutions lie: a pattern that was given, or those that are common."""

    def __init__(self, katas: Sequence[Kata], one: bool, pattern: str | None = None) -> None:
        """Look for these katas; `one` says that only one is asked for, whatever the path names."""
        self._katas = {name: kata for kata in katas for name in goes_by(kata)}
        self._one = katas[0] if one else None
        if pattern is None:
            self._named = [self._compiled(one) for one in _NAMED]
            self._others = [self._compiled(one) for one in _OF_ONE] if one else []
        else:
            if "{learner}" not in pattern or not (one or "{kata}" in pattern):
                needed = "{learner}" if one else "{learner} and {kata}"
                raise DojoError(f"--pattern {pattern!r} needs {needed} in it")
            self._named, self._others = [self._compiled(pattern)], []
        self._alone = self._compiled(_ALONE)
        self._given = pattern is not None

    def places(self, paths: Iterable[PurePosixPath], source: str) -> Places:
        """Return whose each path is, and of which kata; others are left out.

        `source` is the name of what was handed in, and of the learner if it is one checkout.
        """
        shown = {path: str(path) for path in paths}
        found: Places = {}
        if not self._given:
            for path, text in shown.items():
                if match := self._alone.fullmatch(text):
                    found[path] = (source, self._katas[match["kata"]])
            if found:
                return found
            top = _common_top(shown, self._katas)
            shown = {path: text.removeprefix(top) for path, text in shown.items()}
        for patterns in (self._named, self._others):
            for pattern in patterns:
                self._match(pattern, shown, found)
        return found

    def _match(
        self, pattern: re.Pattern[str], shown: Mapping[PurePosixPath, str], found: Places
    ) -> None:
        """Add what the pattern matches, but for learners who have that kata already."""
        before = set(found.values())
        for path, text in shown.items():
            if path in found or _NO_SOLUTION.fullmatch(text) or self._is_of_another(text):
                continue
            if match := pattern.fullmatch(text):
                named = match.groupdict().get("kata")
                kata = self._katas[named] if named else self._one
                assert kata is not None
                place = (learner_name(match["learner"]), kata)
                if place not in before:
                    found[path] = place

    def _is_of_another(self, text: str) -> bool:
        """Say whether a path names a kata by its folder, and none that is asked for."""
        folder = re.search(r"katas/([^/]+)/botched\.py$", text)
        return folder is not None and folder[1] not in self._katas

    def _compiled(self, pattern: str) -> re.Pattern[str]:
        names = "|".join(map(re.escape, self._katas))
        groups = {
            "{learner}": "(?P<learner>[^/]+?)",
            "{kata}": f"(?P<kata>{names})",
            "**/": "(?:[^/]+/)*",
            "*": "[^/]*",
        }
        tokens = _TOKENS.findall(pattern)
        try:
            return re.compile("".join(groups.get(token, re.escape(token)) for token in tokens))
        except re.error:
            raise DojoError(f"--pattern {pattern!r} has a part twice") from None


def learner_name(part: str) -> str:
    """Return a learner's name without what a platform added to it."""
    name = part.removesuffix(".zip")
    for added in (_MOODLE, _CANVAS):
        if match := added.fullmatch(name):
            return match[1]
    return name


def goes_by(kata: Kata) -> tuple[str, str]:
    """Return what a kata is called in paths and tables: by its folder, or by its word."""
    return kata.name, kata.name.partition("_")[2]


def _common_top(shown: Mapping[PurePosixPath, str], katas: Mapping[str, Kata]) -> str:
    """Return the folder that holds all learners' folders, as archives have one; or nothing."""
    tops = {path.parts[0] for path in shown}
    below = {path.parts[1] for path in shown if len(path.parts) > 2}
    is_learner = len(below) < 2 or "katas" in below or below & katas.keys()
    files = any(len(path.parts) < 2 for path in shown)
    return "" if len(tops) != 1 or is_learner or files else f"{tops.pop()}/"
