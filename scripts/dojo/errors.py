"""The one kind of error that a person is meant to read."""


class DojoError(Exception):
    """Something the person at the keyboard can put right; the message says what and how."""
