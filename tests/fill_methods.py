"""Run as a program: fills in what docs/methods.md says of the methods of this package.

python -m tests.fill_methods
"""

import re
from pathlib import Path

from tasks.methods import Kind, Method, methods, variants_of

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
KINDS: dict[Kind, str] = {
    "detector": "Detectors",
    "localizer": "Localizers",
    "mitigation": "Mitigations",
    "metric": "Metrics",
}
_TABLES = re.compile(r"(?<=<!-- methods -->\n).*?(?=<!-- /methods -->)", re.DOTALL)


def filled(page: str) -> str:
    """The page with the methods of now."""
    return _TABLES.sub(lambda _: "".join(f"\n### {title}\n\n{_table(kind)}" for kind, title in KINDS.items()), page)


def _table(kind: Kind) -> str:
    rows = [
        f"| `{one.name}` | {one.words}{_variants(one)} | {one.control} | {_settings(one)} | {one.paper} |"
        for one in methods(kind)
        if one.params.__module__.startswith("tasks.")  # those of packages that happen to be installed are not ours
    ]
    head = "| method | what it does | compared with | settings | paper |\n|---|---|---|---|---|\n"
    return head + "".join(f"{row}\n" for row in rows)


def _variants(one: Method) -> str:
    found = variants_of(one)
    return f" Variants: {', '.join(f'`{name}`' for name in found)}." if found not in ((), (one.name,)) else ""


def _settings(one: Method) -> str:
    return f"`{one.group}`" if one.params.model_fields else ""


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
