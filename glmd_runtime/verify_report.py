"""What came of a verification: a row for each stage of each engine, as verify.json holds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from glmd_runtime.errors import BundleError
from glmd_runtime.files.values import each, number, shown, text

Status = Literal["passed", "failed", "not_run"]
PREPROCESS = "preprocess"  # the stage before every engine
ENGINE_STAGES = ("raw", "detections")  # what an engine answers; glmd-export adds the stages inside the graph


@dataclass(frozen=True)
class VerifyRow:
    """One stage of one engine on one backend; `reason` says why it failed or did not run.

    stage  "preprocess", "raw" and "detections"; the exporter's comparison with PyTorch adds those of the network
    """

    engine: str
    backend: str
    precision: str
    stage: str
    status: Status
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VerifyRow:
        """Raises: AttributeError, KeyError, TypeError or ValueError for values that are not those of a row."""
        read: dict[str, Any] = {key: text(values[key]) for key in ("engine", "backend", "precision", "stage", "status")}
        if read["status"] not in get_args(Status):
            raise ValueError(f"expected a status of {', '.join(get_args(Status))}; got {read['status']}")
        read["reason"] = shown(values.get("reason", ""))  # what a library said, in its lines
        read["metrics"] = {text(name): number(value) for name, value in values.get("metrics", {}).items()}
        return cls(**{**values, **read})


@dataclass(frozen=True)
class VerifyReport:
    """What is written to verify.json."""

    rows: tuple[VerifyRow, ...]

    @property
    def status(self) -> Literal["passed", "failed"]:
        """Failed when a row failed, or when no engine ran: the other rows alone prove nothing."""
        engine_passed = any(row.status == "passed" for row in self.rows if row.stage in ENGINE_STAGES)
        return "passed" if engine_passed and all(row.status != "failed" for row in self.rows) else "failed"

    def passed(self, engine: str, backend: str) -> bool:
        """Whether this engine ran on this backend and every stage passed."""
        statuses = [row.status for row in self.rows if (row.engine, row.backend) == (engine, backend)]
        return bool(statuses) and set(statuses) == {"passed"}

    @property
    def summary(self) -> str:
        """`passed: 2 passed, 0 failed, 1 not run`."""
        counts = Counter(row.status for row in self.rows)
        return f"{self.status}: {counts['passed']} passed, {counts['failed']} failed, {counts['not_run']} not run"

    def to_dict(self) -> dict[str, Any]:
        return {"status": self.status, "rows": [asdict(row) for row in self.rows]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VerifyReport:
        """Raises: BundleError for values of another form."""
        try:
            return cls(each(VerifyRow.from_dict, values["rows"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"A report has rows of {VerifyRow.__name__}; got {error!r}. Verify it again.") from error
