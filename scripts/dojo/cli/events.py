"""The events of a hunt as lines, for a session in plain lines and for watch."""

import time

from dojo.cli.diff import colour_diff
from dojo.practice.loop import BugsCounted, Compared, Event, Probed, RunFails, RunJudged, RunLogged
from dojo.wording.events import event_line
from dojo.wording.logs import log_lines
from dojo.wording.probes import probe_lines
from dojo.wording.quantities import minutes
from dojo.wording.runs import failure_lines, run_lines, tested
from dojo.wording.verdicts import verdict_line


def event_lines(event: Event, name: str) -> list[str]:
    """Return what is printed of an event in a kata of this name: a diff comes with its colours."""
    match event:
        case RunFails(test):
            return [*failure_lines(test), "  the others run ..."]
        case RunJudged(result, judgement, names, sealed, left):
            when = time.strftime("%H:%M:%S") if left is None else f"{minutes(left)} left"
            head = f"[{when}] {tested(result)}"
            return [head, *run_lines(name, result, judgement, names=names, sealed=sealed)]
        case RunLogged(log, _, departures):
            return [f"  {line}" for line in log_lines(log, departures)]
        case Probed(facts):
            return probe_lines(name, facts, 0)
        case BugsCounted(judgement):
            return [verdict_line(judgement, name)]
        case Compared(diff) if diff:
            return [colour_diff(diff)]
        case _:
            line = event_line(event)
            return [line] if line else []
