"""Compare the paper studies' recipes with the published ones, and write the table of
docs/deviations.md. Run: make recipe-values."""

from __future__ import annotations

import sys

from support.recipe_values import PAGE, deviation_table, summary, undeclared, unused


def main() -> int:
    """Print what is official; 1 if a difference is not declared, or a declared one is none."""
    print(summary())
    for one in undeclared():
        what = f"{one.study}, {one.recipe}, {one.size}: {one.setting}"
        print(f"  {what} is {one.ours}, published {one.official}")
    for deviation in unused():
        print(f"  declared, but none: {deviation.recipe}, {deviation.setting}")
    before, rows, after = _page()
    PAGE.write_text("\n".join([*before, *deviation_table(), *after]) + "\n")
    return 1 if undeclared() or unused() else 0


def _page() -> tuple[list[str], list[str], list[str]]:
    lines = PAGE.read_text().splitlines()
    rows = [i for i, line in enumerate(lines) if line.startswith("|")]
    start, end = (rows[0], rows[-1] + 1) if rows else (len(lines), len(lines))
    return lines[:start], lines[start:end], lines[end:]


if __name__ == "__main__":
    sys.exit(main())
