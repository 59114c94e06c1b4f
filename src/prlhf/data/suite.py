"""Great Expectations, reduced to what is needed here: suites over tables, findings, Data Docs.

The library takes seconds to import, so it is imported where it is used and nowhere else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.core import ExpectationValidationResult
    from great_expectations.expectations.expectation import Expectation

OnFailure = Literal["quarantine", "stop", "warn"]
"""What a failed check means: its rows are set aside, the pipeline stops, or the user is told."""

_SITE: Final = "data_docs"


@dataclass(frozen=True)
class Check:
    """One expectation and what its failure means.

    Attributes:
        name: What findings call it: unique within a suite, except that checks of one row fault
            share the fault's name.
        expectation: A Great Expectations expectation.
        on_failure: See `OnFailure`.
        message: What to tell the user; `{observed}` and `{unexpected}` are filled in.
    """

    name: str
    expectation: Expectation
    on_failure: OnFailure = "stop"
    message: str = ""


@dataclass(frozen=True)
class Finding:
    """What came out of a check.

    Attributes:
        check: The check.
        success: Whether the data meet the expectation.
        observed: The observed value, None where the expectation looks at each row.
        unexpected: How many rows fail, None where the expectation looks at the whole table.
        rows: The index labels of all failing rows.
    """

    check: Check
    success: bool
    observed: Any
    unexpected: int | None
    rows: list[int]

    @property
    def message(self) -> str:
        """What to tell the user about a failure."""
        return self.check.message.format(observed=self.observed, unexpected=self.unexpected)

    def summary(self) -> dict[str, Any]:
        """The finding as plain values that are equal for equal data."""
        kwargs = self.check.expectation.configuration.kwargs
        found: dict[str, Any] = {
            "expectation": self.check.expectation.expectation_type,
            "arguments": {key: kwargs[key] for key in sorted(kwargs)},
            "on_failure": self.check.on_failure,
            "success": self.success,
        }
        if self.unexpected is not None:
            found["unexpected"] = self.unexpected
        if self.observed is not None:
            found["observed"] = self.observed
        return found


class Validator:
    """Runs suites in memory and renders them all as one set of Data Docs."""

    def __init__(self) -> None:
        # Before the import: the library reads it once. It would send usage statistics.
        os.environ["GX_ANALYTICS_ENABLED"] = "false"
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        from prlhf.data.expectations import NarrowPandasExecutionEngine

        self._context = gx.get_context(mode="ephemeral")
        self._context.variables.progress_bars = ProgressBarsConfig(globally=False)
        self._tables = self._context.data_sources.add_or_update_pandas("prlhf")
        type(self._tables).execution_engine_override = NarrowPandasExecutionEngine
        self.findings: dict[str, list[Finding]] = {}

    def run(self, suite: str, frame: pd.DataFrame, checks: Sequence[Check]) -> list[Finding]:
        """Check a table. Its index must be unique: findings name rows by it.

        Raises:
            RuntimeError: A check crashed instead of giving a verdict. That is a fault of the
                program, not of the data.
        """
        import great_expectations as gx

        for place, check in enumerate(checks):
            # Results come back in another order; this is how each finds its check again.
            check.expectation.meta = {"place": place, "name": check.name}
        batch = self._tables.add_dataframe_asset(suite).add_batch_definition_whole_dataframe(suite)
        expectations = gx.ExpectationSuite(
            name=suite, expectations=[check.expectation for check in checks]
        )
        definition = gx.ValidationDefinition(
            name=suite, data=batch, suite=self._context.suites.add_or_update(expectations)
        )
        checkpoint = gx.Checkpoint(
            name=suite,
            validation_definitions=[self._context.validation_definitions.add_or_update(definition)],
            result_format={"result_format": "COMPLETE"},
        )
        outcome = self._context.checkpoints.add_or_update(checkpoint).run(
            batch_parameters={"dataframe": frame}
        )
        # It would keep the table for as long as there is a context.
        self._tables.get_execution_engine().batch_manager.reset_batch_cache()
        (result,) = outcome.run_results.values()
        found = {_place(each): each for each in result.results}
        findings = [_finding(check, found[place]) for place, check in enumerate(checks)]
        self.findings[suite] = findings
        return findings

    def write_docs(self, directory: Path) -> None:
        """Render everything that ran as HTML into an existing empty directory."""
        site: Any = {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                "base_directory": str(directory.resolve()),
            },
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        }
        self._context.add_data_docs_site(site_name=_SITE, site_config=site)
        self._context.build_data_docs(site_names=[_SITE])
        self._context.delete_data_docs_site(_SITE)
        _without_beacon(directory)

    def summary(self) -> dict[str, dict[str, Any]]:
        """All findings by suite and check; checks of one name are numbered from the second on."""
        suites: dict[str, dict[str, Any]] = {}
        for suite, findings in self.findings.items():
            named = suites.setdefault(suite, {})
            for finding in findings:
                name, number = finding.check.name, 1
                while name in named:
                    number += 1
                    name = f"{finding.check.name}_{number}"
                named[name] = finding.summary()
        return suites


def _place(result: ExpectationValidationResult) -> int:
    config = result.expectation_config
    assert config is not None
    assert config.meta is not None
    return int(config.meta["place"])


def _finding(check: Check, result: ExpectationValidationResult) -> Finding:
    crash = _crash(result.exception_info or {})
    if crash is not None:
        raise RuntimeError(f"the check {check.name} crashed: {crash}")
    details = result.result
    observed: Any = details.get("observed_value")
    rows = details.get("unexpected_index_list")
    return Finding(
        check,
        bool(result.success),
        observed.item() if hasattr(observed, "item") else observed,
        details.get("unexpected_count"),
        [] if rows is None else [int(row) for row in rows],
    )


def _crash(info: Mapping[str, Any]) -> str | None:
    """The message of an exception within a check: flat for some causes, by metric for others."""
    if info.get("raised_exception"):
        return str(info.get("exception_message"))
    for value in info.values():
        if isinstance(value, Mapping) and value.get("raised_exception"):
            return str(value.get("exception_message"))
    return None


def _without_beacon(directory: Path) -> None:
    """Cut the link by which every page fetches its logo from the maker's server.

    The page's time of making is in that address: it would tell the server who reads what.
    """
    for page in directory.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        html = re.sub(r"https://great-expectations-web-assets[^\"')\s]*", "data:,", html)
        page.write_text(html, encoding="utf-8")
