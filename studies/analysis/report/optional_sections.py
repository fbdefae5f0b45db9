"""Sections that only some studies have: laws, predictions, and what a sweep's trials say.

What draws and fits them is imported here when there is something to show: a report without them
stays light.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from studies.analysis.figures.sweep_map import sweep_map
from studies.analysis.report.meta import section
from studies.analysis.sweeps.surface import sweep_surface
from studies.result_row import ResultRow

if TYPE_CHECKING:
    from studies.analysis.report.meta import ReportMeta


def difference_sections(meta: ReportMeta) -> list[dict[str, Any]]:
    """What several studies that are reported together differ by."""
    if not meta.differences:
        return []
    from studies.analysis.curves.differences import difference_lines, difference_texts
    from studies.analysis.figures.difference_figure import forest_figure

    said = {"text": difference_texts(meta.differences), "lines": difference_lines(meta.differences)}
    return [
        section("Differences", [forest_figure(meta.differences, "differences")], wide=True, **said)
    ]


def law_sections(meta: ReportMeta) -> list[dict[str, Any]]:
    """Laws with what may be said of them, and predictions against measurements, if any."""
    found = []
    if meta.laws:
        from studies.analysis.figures.law_figures import law_drawings
        from studies.analysis.laws.by_protocol import law_lines, law_texts

        table = law_lines(meta.laws)
        said = {"text": law_texts(meta.laws)} | ({"lines": table} if len(table) > 1 else {})
        found.append(section("Scaling laws", law_drawings(meta.laws), quiet=True, **said))
    if len(meta.predictions) > 1:
        title = "Predictions against measurements"
        found.append(section(title, [], quiet=True, lines=meta.predictions))
    return found


def _winner_text(winner: Mapping[str, Any]) -> str:
    """`mask ratio 0.75, decoder depth 4; linear_probe.top1 on dev 82.6, trial 11 of 12`."""
    from studies.analysis.sweeps.settings import settings_text

    facts = ("settings", "objective", "score", "trial", "num_trials", "decided_at")
    settings = winner.get("settings") or {k: v for k, v in winner.items() if k not in facts}
    text = settings_text(settings)
    if isinstance(winner.get("score"), float):
        text += f"; {winner.get('objective', 'score')} {winner['score']:.4g}"
    if "trial" in winner:
        text += f", trial {winner['trial']} of {winner.get('num_trials', '?')}"
    return text


def sweep_sections(rows: Sequence[ResultRow], meta: ReportMeta) -> list[dict[str, Any]]:
    """The map over mask ratio and decoder of a single search, then what the trials say."""
    found = []
    # Sizes have a winner each: one map would show the trials of one and the choice of none.
    surface = sweep_surface(rows, meta.objective) if len(meta.searches) < 2 else None
    chosen = sweep_map(surface, meta.sweep_winner, "sweep") if surface else None
    if surface or (not meta.axes and len(meta.searches) < 2):
        more = {"winner": _winner_text(meta.sweep_winner)} if meta.sweep_winner else {}
        found.append(section("Sweep: mask ratio and decoder", [chosen], **more))
    if any(search.trials for search in meta.searches):
        from studies.analysis.figures.sweep_figures import sweep_drawings
        from studies.analysis.report.sweep_text import sweep_lines, sweep_texts

        said = {
            "text": sweep_texts(meta.searches),
            "lines": sweep_lines(meta.searches),
        }
        drawings = sweep_drawings(meta.searches)
        found.append(section("Sweep: trials, noise and what matters", drawings, **said))
    return found


def searches_json(meta: ReportMeta) -> list[dict[str, Any]]:
    """What the sweep's trials say, as plain values."""
    if not meta.searches:
        return []
    from studies.analysis.report.sweep_text import sweep_json

    return sweep_json(meta.searches)


def laws_json(meta: ReportMeta) -> list[dict[str, Any]]:
    """The laws, as plain values."""
    if not meta.laws:
        return []
    from studies.analysis.laws.by_protocol import law_json

    return law_json(meta.laws)
