"""Public numbers on the privacy spent, as people read them."""

from collections.abc import Iterable, Mapping

UNITS = {"": "", "silo_": "as a silo "}
"""Whose privacy the numbers are about, by the beginning of their names: of a silo's records or patients, or of the silo
as a whole."""


def spent(privacy: Mapping[str, float], delta: bool = True) -> str:
    """``epsilon 1.22 (RDP 1.33) at delta 1e-05``; empty where nothing is accounted for. A silo's ledger and the driver
    may say the same of the silo as a whole: it is told once, with what the ledger has of other jobs."""
    told = [_figures(privacy, unit, delta) for unit in UNITS]
    if told[0] == told[1]:
        told[0] = ""
    elif _same(privacy.get("epsilon_job"), privacy.get("silo_epsilon")):
        told = ["", f"{told[1]}, over all jobs {privacy['epsilon']:.4g}"]
    return ", ".join(whose + text for whose, text in zip(UNITS.values(), told, strict=True) if text)


def spent_by(silos: Iterable[tuple[str, Mapping[str, float]]]) -> str:
    """Of several silos, those that spent the same together."""
    whose: dict[str, list[str]] = {}
    for silo, privacy in silos:
        text = spent(privacy)
        if text and silo not in whose.setdefault(text, []):
            whose[text].append(silo)
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in whose.items())


def _figures(privacy: Mapping[str, float], unit: str, delta: bool) -> str:
    if f"{unit}epsilon" not in privacy:
        return ""
    bound, at = privacy.get(f"{unit}epsilon_rdp"), privacy.get(f"{unit}delta")
    rdp = "" if bound is None else f" (RDP {bound:.4g})"
    return f"epsilon {privacy[f'{unit}epsilon']:.4g}{rdp}" + (
        "" if at is None or not delta else f" at delta {at:g}"
    )


def _same(one: float | None, other: float | None) -> bool:
    """As far as they are printed."""
    return one is not None and other is not None and f"{one:.4g}" == f"{other:.4g}"
