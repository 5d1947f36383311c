"""What a request changes: each change brings a bug in, mends one, or is harmless."""

from dataclasses import dataclass

from dojo.history.reviews import Effect
from dojo.kata.bug import FRESH, Bug, Kind
from dojo.practice.review.edits import Edit


@dataclass(frozen=True)
class Change:
    """One change of a request: an edit of the reference, made or taken back."""

    edit: Edit
    effect: Effect
    old_is_edited: bool  # the old side has the edit's lines, and the new one the reference's
    bug: Bug | None = None  # that comes in or is mended
    reason: str = ""  # why it is harmless

    @property
    def is_fresh(self) -> bool:
        """Say whether its bug was made by an operator."""
        return self.bug is not None and self.bug.id.startswith(FRESH)

    @property
    def kind(self) -> Kind | None:
        """Return the kind of its bug, if it has to do with one."""
        return self.bug.kind if self.bug else None
