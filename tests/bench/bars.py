"""Print the figures of the house that are kept: circles, sizes, types. Run: make bars."""

from __future__ import annotations

import sys

from support.house import aims, bars, repeated_classes, repeated_modules


def main() -> int:
    """Print each figure beside its bar; 1 if one that is kept is missed."""
    for bar in bars():
        print(f"{bar.what:45} {bar.found:>8g}   at most {bar.most:<6g} {'' if bar.holds else '<-'}")
    for bar in aims():
        print(f"{bar.what:45} {bar.found:>8g}   to be   {bar.most:<6g} (an aim, not kept yet)")
    for name in [*repeated_classes(), *repeated_modules()]:
        print(f"  twice: {name}")
    return 0 if all(bar.holds for bar in bars()) else 1


if __name__ == "__main__":
    sys.exit(main())
