"""HTML and SVG as text: what is not `Markup` is escaped, so no name out of a file can become a tag."""

from __future__ import annotations

import html


class Markup(str):
    """Text that is markup already."""


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """Return an element; plain text in it is escaped, attributes that are None are left out.

    A trailing underscore of an attribute's name is dropped and others become hyphens.

    >>> tag("p", "1 < 2 ", tag("b", "really"), class_="note", aria_label=None)
    '<p class="note">1 &lt; 2 <b>really</b></p>'
    """
    given = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    inside = "".join(f' {key}="{html.escape(str(value))}"' for key, value in given)
    return Markup(f"<{name}{inside}>{joined(*children)}</{name}>")


def joined(*children: str) -> Markup:
    """Return pieces one after the other, plain text escaped."""
    return Markup(
        "".join(child if isinstance(child, Markup) else html.escape(child, quote=False) for child in children)
    )
