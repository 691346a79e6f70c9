"""What a run cost and what the cache saved: `add_cost(record, store)` when its stages are done.

Seconds and devices are those of the manifests, so a run on workers is counted as one in process is; prices are those of
`configs/prices.yaml`, or of the file that MARTLET_PRICES names.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.record import RunRecord, StageRecord
from stages.artifacts.manifest import Manifest
from stages.artifacts.store import Store
from stages.errors import ArgumentsError

__all__ = ["Prices", "add_cost", "add_up", "cost_line", "load_prices", "money"]

VARIABLE = "MARTLET_PRICES"
SHIPPED = Path(__file__).resolve().parents[1] / "configs" / "prices.yaml"

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]

logger = logging.getLogger("martlet.cost")


class Prices(BaseModel):
    """A price list.

    Attributes:
        currency: of every price, ISO 4217.
        cpu: a machine without a GPU, an hour.
        gpus: one GPU, an hour, by a pattern of its name; the first that fits counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    cpu: Price | None = None
    gpus: dict[str, Price] = {}

    def of_gpu(self, name: str) -> float | None:
        """The price of a GPU by the name that its driver gives; None if no pattern fits."""
        return next((price for glob, price in self.gpus.items() if fnmatch(name.lower(), glob.lower())), None)

    def of_machine(self, gpus: Sequence[str]) -> float | None:
        """The price of a machine with these GPUs, an hour; None if one of them has none."""
        if not gpus:
            return self.cpu
        prices = [self.of_gpu(name) for name in gpus]
        return None if None in prices else sum(price for price in prices if price is not None)


def load_prices(path: Path | None = None) -> Prices:
    """The price list at `path`, at MARTLET_PRICES, or the shipped one.

    Raises:
        ArgumentsError: it is not there, or not a price list.
    """
    import yaml

    named = os.environ.get(VARIABLE)
    place = path or (Path(named).expanduser() if named else SHIPPED)
    origin = f"{VARIABLE}={named}" if named and path is None else str(place)
    try:
        return Prices.model_validate(yaml.safe_load(place.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentsError(f"{origin} cannot be read: {getattr(error, 'strerror', None) or 'not text'}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ArgumentsError(f"{origin}: not YAML, line {mark.line + 1 if mark else 1}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ArgumentsError(
            f"{origin}: {where}: {first['msg']}. A price list has currency, cpu and gpus, as {SHIPPED.name} shows"
        ) from None


def add_cost(record: RunRecord, store: Store) -> None:
    """Fills in what each stage cost and saved, and the sum of the run.

    A price list that cannot be read costs nobody a finished run: it is said, and the run has no price.
    """
    try:
        prices = load_prices()
    except ArgumentsError as error:
        logger.warning("%s: what the run cost is not known", error)
        prices = None
    unpriced: set[str] = set()
    for line in record.stages:
        manifest = _manifest(line, store)
        if manifest is not None:
            unpriced |= _add_to_stage(line, manifest, prices)
    record.cost = _total(record.stages, prices, sorted(unpriced))


def _manifest(line: StageRecord, store: Store) -> Manifest | None:
    """The manifest of the run that made a stage's result: this one, or a former one."""
    if line.artifact is None or line.key is None:
        return None
    return next((found for found in store.manifests(line.artifact) if found.key == line.key), None)


def _add_to_stage(line: StageRecord, manifest: Manifest, prices: Prices | None) -> set[str]:
    """Fills in one line; answers the devices that have no price."""
    gpus: list[str] = list(manifest.machine.get("gpus") or [])
    price = prices.of_machine(gpus) if prices else None
    seconds = 0.0 if line.status == "cached" else line.seconds
    line.saved_seconds = manifest.seconds if line.status == "cached" else 0.0
    line.gpu_hours = seconds * len(gpus) / 3600
    line.cost = None if price is None else seconds * price / 3600
    line.saved_cost = None if price is None else line.saved_seconds * price / 3600
    if prices is None or price is not None:
        return set()
    return {name for name in gpus if prices.of_gpu(name) is None} or {"a machine without a GPU"}


def _total(stages: Sequence[StageRecord], prices: Prices | None, unpriced: list[str]) -> dict[str, Any]:
    counted = [line for line in stages if line.gpu_hours is not None]
    known = prices is not None and not unpriced
    return {
        "currency": prices.currency if prices else None,
        "seconds": round(sum(line.seconds for line in counted if line.status != "cached"), 3),
        "gpu_hours": round(sum(line.gpu_hours or 0.0 for line in counted), 6),
        "cost": round(sum(line.cost or 0.0 for line in counted), 6) if known else None,
        "saved_seconds": round(sum(line.saved_seconds or 0.0 for line in counted), 3),
        "saved_cost": round(sum(line.saved_cost or 0.0 for line in counted), 6) if known else None,
        "unpriced": unpriced,
    }


def add_up(costs: Iterable[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """The sum of several runs' costs; None if there is none."""
    known = [cost for cost in costs if cost is not None]
    if not known:
        return None
    total: dict[str, Any] = {"currency": known[0]["currency"]}
    for name, digits in (("seconds", 3), ("gpu_hours", 6), ("cost", 6), ("saved_seconds", 3), ("saved_cost", 6)):
        values = [cost[name] for cost in known]
        total[name] = None if None in values else round(sum(values), digits)
    return {**total, "unpriced": sorted({name for cost in known for name in cost["unpriced"]})}


def money(amount: float, currency: str) -> str:
    """`12.35 USD`, `0.0042 USD`."""
    text = f"{amount:,.2f}" if amount >= 0.1 or amount == 0 else f"{amount:.2g}"
    return f"{'<0.0001' if 0 < amount < 0.0001 else text} {currency}"


def cost_line(cost: Mapping[str, Any]) -> str:
    """One line for people: `61.2 s, 0.017 GPU-hours, 0.051 USD; the cache saved 12.0 s, 0.01 USD`."""
    spent = _amounts(cost["seconds"], cost["cost"], cost["currency"], cost["gpu_hours"])
    saved = _amounts(cost["saved_seconds"], cost["saved_cost"], cost["currency"])
    line = f"{spent}; the cache saved {saved}" if cost["saved_seconds"] else spent
    if cost["unpriced"]:
        line += (
            f"; no price for {', '.join(cost['unpriced'])}: add it to configs/prices.yaml, or name yours in {VARIABLE}"
        )
    return line


def _amounts(seconds: float, cost: float | None, currency: str | None, gpu_hours: float = 0.0) -> str:
    parts = [f"{seconds:.1f} s"]
    parts += [f"{gpu_hours:.3g} GPU-hours"] if gpu_hours else []
    parts += [money(cost, currency)] if cost is not None and currency else []
    return ", ".join(parts)
