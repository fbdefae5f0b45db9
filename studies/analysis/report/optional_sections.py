"""Sections that only some studies have: laws, predictions, and what a sweep's trials say.

What draws and fits them is imported here when there is something to show: a report without them
stays light.
"""

from __future__ import annotations

from collections.abc import Sequence

from studies.analysis.figures.sweep_map import sweep_map
from studies.analysis.report.meta import ReportMeta
from studies.analysis.report.section import Section, section
from studies.analysis.sweeps.surface import sweep_surface
from studies.result_row import ResultRow


def difference_sections(meta: ReportMeta) -> list[Section]:
    """What several studies that are reported together differ by."""
    if not meta.differences:
        return []
    from studies.analysis.curves.differences import difference_lines, difference_texts
    from studies.analysis.figures.difference_figure import forest_figure

    text, lines = difference_texts(meta.differences), difference_lines(meta.differences)
    drawn = [forest_figure(meta.differences, "differences")]
    return [section("Differences", drawn, is_wide=True, text=text, lines=lines)]


def law_sections(meta: ReportMeta) -> list[Section]:
    """Laws with what may be said of them, and predictions against measurements, if any."""
    found = []
    if meta.laws:
        from studies.analysis.figures.law_figures import law_drawings
        from studies.analysis.laws.by_protocol import law_lines, law_texts

        text, lines = law_texts(meta.laws), law_lines(meta.laws)
        drawn = law_drawings(meta.laws)
        found.append(section("Scaling laws", drawn, is_quiet=True, text=text, lines=lines))
    if len(meta.predictions) > 1:
        title = "Predictions against measurements"
        found.append(section(title, is_quiet=True, lines=meta.predictions))
    return found


def sweep_sections(rows: Sequence[ResultRow], meta: ReportMeta) -> list[Section]:
    """The map over mask ratio and decoder of a single search, then what the trials say."""
    found = []
    # Sizes have a winner each: one map would show the trials of one and the choice of none.
    surface = sweep_surface(rows, meta.objective) if len(meta.searches) < 2 else None
    drawn = [sweep_map(surface, meta.sweep_winner, "sweep")] if surface else []
    if surface or (not meta.axes and len(meta.searches) < 2):
        objective = f" for {meta.objective}" if meta.objective else ""
        won = meta.sweep_winner
        text = [f"Chosen by the sweep{objective}: {won.text}."] if won else []
        found.append(section("Sweep: mask ratio and decoder", drawn, text=text))
    if any(search.trials for search in meta.searches):
        from studies.analysis.figures.sweep_figures import sweep_drawings
        from studies.analysis.report.sweep_text import sweep_lines, sweep_texts

        drawings = sweep_drawings(meta.searches)
        text, lines = sweep_texts(meta.searches), sweep_lines(meta.searches)
        title = "Sweep: trials, noise and what matters"
        found.append(section(title, drawings, text=text, lines=lines))
    return found
