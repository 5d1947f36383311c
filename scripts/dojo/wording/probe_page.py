"""What a probe has seen as one page of HTML."""

from collections.abc import Sequence

from dojo.instruments.probe.facts import Facts
from dojo.instruments.probe.finding import Finding
from dojo.wording import probes
from dojo.wording.pages import templates


def render_probe(
    name: str, facts: Facts, findings: Sequence[Finding], notes: Sequence[str], seed: int
) -> str:
    """Return the page on a kata of this name."""
    tables = (probes.module_table(facts), probes.parameter_table(facts))
    return (
        templates()
        .get_template("probe.html")
        .render(
            name=name,
            heading=probes.heading(name, facts, seed),
            error=facts.error,
            findings=findings,
            notes=notes,
            optimizers=probes.optimizer_lines(facts),
            tables=[table for table in tables if table.rows],
        )
    )
