"""What a test raises where the code calls what its brief bans."""

from _pytest.outcomes import Failed


class Banned(Failed):
    """The code calls what its brief bans; the message names it."""
