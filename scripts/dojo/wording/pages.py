"""What the pages of HTML share: each is made from a template, and needs nothing from anywhere."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def templates() -> Environment:
    """Return where templates are found, and how they are read."""
    return Environment(
        loader=PackageLoader("dojo.wording"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
