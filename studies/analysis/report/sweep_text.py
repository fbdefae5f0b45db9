"""What the trials of a sweep say, in a table, sentences and plain values."""

from __future__ import annotations

from collections.abc import Sequence

from studies.analysis.sweeps.optima import (
    Search,
    SweepOptimum,
    Trend,
    noise,
    optimum,
    transfers,
    trends,
    within_noise,
)
from studies.analysis.sweeps.settings import settings_text, short

_MAX_LISTED = 6
"""Settings within noise that the page spells out."""


def sweep_lines(searches: Sequence[Search]) -> list[tuple[str, ...]]:
    """A table: per size the winner, its own score and its score at other seeds, the noise."""
    header = (
        "size",
        "trials",
        "winner",
        "own score %",
        "at other seeds %",
        "within noise",
        "noise",
    )
    lines: list[tuple[str, ...]] = [header]
    for search in searches:
        won = search.trial(search.winner)
        spread = noise(search)
        again = list(search.repeats.values())
        mean = sum(again) / len(again) if again else 0.0
        lines.append(
            (
                search.label or "all",
                f"{len(search.trials)} of {search.wanted}",
                settings_text(won.settings) if won else "not decided",
                f"{search.score(won):.1f}" if won else "–",
                f"{mean:.1f} (n = {len(again)})" if again else "not run",
                f"{len(within_noise(search))} settings" if won else "–",
                f"{spread.sd:.2f} points ({spread.source})" if spread else "unknown",
            )
        )
    return lines


def sweep_texts(searches: Sequence[Search]) -> list[str]:
    """Sentences: settings within noise, bias of the winner, optima, trends, transfer, the files."""
    texts: list[str] = []
    for search in searches:
        texts += _texts_of(search)
    texts += [f"{short(t.key).capitalize()}: {t.verdict}{_slope(t)}." for t in trends(searches)]
    for moved in transfers(searches):
        verdict = {
            True: "it is within noise of the best, which does not contradict the transfer",
            False: "it is beaten by more than noise: the transfer does not hold",
            None: "no noise is known to judge it by",
        }[moved.holds]
        margin = "" if moved.margin is None else f" (noise margin {moved.margin:.1f})"
        texts.append(
            f"{moved.label}: the setting that won at the size before is number {moved.rank} of "
            f"{moved.num_trials} trials, {moved.behind:.1f} points below the best{margin}: "
            f"{verdict}."
        )
    journals = [s.journal for s in searches if s.journal and s.trials]
    if journals:
        texts.append(f"Every trial in the browser: optuna-dashboard {journals[0]}")
    return texts


def _texts_of(search: Search) -> list[str]:
    name = f"{search.label}: " if search.label else ""
    won = search.trial(search.winner)
    if won is None:
        return []
    close = within_noise(search)
    shown = "; ".join(
        f"{settings_text(t.settings)} ({search.score(t):.1f})" for t in close[:_MAX_LISTED]
    )
    more = f"; and {len(close) - _MAX_LISTED} more" if len(close) > _MAX_LISTED else ""
    texts = [f"{name}settings that cannot be distinguished from the winner: {shown}{more}."]
    spread = noise(search)
    if spread is not None and spread.source == "repeats":
        bias = search.score(won) - spread.centre
        texts.append(
            f"{name}at {spread.n} other seeds the winner scores {spread.centre:.1f} ± "
            f"{spread.sd:.2f}, {abs(bias):.1f} points {'below' if bias >= 0 else 'above'} its own "
            "score as a trial."
        )
    elif spread is not None:
        texts.append(
            f"{name}noise is taken from the size of the dev set ({spread.n} images) alone: the "
            "seed adds to it; name repeat_seeds to measure it."
        )
    if len(search.protocols) > 1:
        by_rank = search.rule == "mean_rank"
        rule = "of the best mean rank" if by_rank else f"that is best by {search.objective}"
        count = len(search.front)
        trials = f"{count} trial{'s' if count != 1 else ''}"
        texts.append(f"{name}{trials} on the Pareto front; the winner is the one {rule}.")
    found = [optimum(search, key) for key in search.keys]
    return texts + [f"{name}{_optimum_text(o)}." for o in found if o.status != "few"]


def _optimum_text(found: SweepOptimum) -> str:
    what = short(found.key)
    if found.status == "edge":
        return f"the best {what} lies at the edge of the values tried and is not quoted"
    if found.status == "flat" or found.at is None:
        return f"{what} has no optimum that can be distinguished from a flat response"
    low = "the lowest tried" if found.low is None else f"{found.low:.3g}"
    high = "the highest tried" if found.high is None else f"{found.high:.3g}"
    return f"the best {what} is {found.at:.3g} (90 % interval {low} to {high})"


def _slope(found: Trend) -> str:
    if found.slope is None:
        return ""
    unit = "decades" if found.is_log else "units"
    return (
        f" ({found.slope:+.3g} {unit} per tenfold parameters, 90 % interval {found.slope_low:+.3g} "
        f"to {found.slope_high:+.3g})"
    )


def sweep_json(searches: Sequence[Search]) -> list[dict[str, object]]:
    """Everything of the section, as plain values."""
    return [
        {
            "size": s.label or None,
            "encoder_params": s.params,
            "protocols": list(s.protocols),
            "winner": s.winner,
            "front": list(s.front),
            "within_noise": [t.number for t in within_noise(s)],
            "noise_sd": spread.sd if (spread := noise(s)) else None,
            "noise_source": spread.source if spread else None,
            "repeats": {str(seed): score for seed, score in s.repeats.items()},
            "importance": dict(s.importance),
            "optima": {k: _optimum_json(optimum(s, k)) for k in s.keys},
            "trials": [
                {"trial": t.number, "settings": dict(t.settings), "values": list(t.values)}
                for t in s.trials
            ],
        }
        for s in searches
    ]


def _optimum_json(found: SweepOptimum) -> dict[str, object]:
    return {"status": found.status, "at": found.at, "low": found.low, "high": found.high}
