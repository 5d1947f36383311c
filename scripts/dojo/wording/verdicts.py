"""The line under a run: how many planted bugs are fixed, and what to do next."""

from dojo.errors import typed
from dojo.learner.player import Judgement, unknown_line


def verdict_line(judgement: Judgement, name: str) -> str:
    """Return one line on a whole run: how many planted bugs are fixed, without naming any."""
    total = len(judgement.planting.bugs)
    bugs = "bug" if total == 1 else "bugs"
    reveal, hint = typed("reveal", name), typed("hint", name)
    unknown = unknown_line(name, judgement.planting)
    if unknown:
        return f"{name}: solved. Next: {reveal}" if judgement.solved else unknown
    if judgement.solved:
        return f"{name}: solved, {total} of {total} {bugs} fixed. Next: {reveal}"
    if len(judgement.gone) == total:
        return (
            f"{name}: the planted {bugs} seem fixed ({total} of {total}), yet tests fail: "
            "a fix is incomplete, or a change broke something else"
        )
    return f"{name}: {len(judgement.gone)} of {total} {bugs} fixed. Stuck? {hint}"
