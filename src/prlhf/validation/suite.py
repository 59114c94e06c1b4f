"""Great Expectations, reduced to what is needed here: suites over tables, findings, Data Docs.

Importing this module takes seconds, so only the stage `validate` does.
"""

# The library re-exports its parts without marking them as exported.
# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import great_expectations as gx
import pandas as pd
from great_expectations.core import ExpectationValidationResult
from great_expectations.core.batch import BatchMarkers
from great_expectations.core.batch_spec import RuntimeDataBatchSpec
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.execution_engine.pandas_batch_data import PandasBatchData
from great_expectations.expectations.expectation import ColumnPairMapExpectation, Expectation
from great_expectations.expectations.metrics.map_metric_provider import (
    ColumnPairMapMetricProvider,
    column_pair_condition_partial,
)

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
    """The result of a check.

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

    def summary(self) -> dict[str, Any]:
        """The finding as plain values that are equal for equal data."""
        kwargs = self.check.expectation.configuration.kwargs
        found = {"unexpected": self.unexpected, "observed": self.observed}
        return {
            "expectation": self.check.expectation.expectation_type,
            "arguments": {key: kwargs[key] for key in sorted(kwargs)},
            "on_failure": self.check.on_failure,
            "success": self.success,
            **{key: value for key, value in found.items() if value is not None},
        }


class Validator:
    """Runs suites in memory and renders them all as one set of Data Docs."""

    def __init__(self) -> None:
        self._context = gx.get_context(mode="ephemeral")
        self._context.variables.progress_bars = ProgressBarsConfig(globally=False)
        self._tables = self._context.data_sources.add_or_update_pandas("prlhf")
        type(self._tables).execution_engine_override = NarrowPandasExecutionEngine
        self.findings: dict[str, list[Finding]] = {}

    def run(self, suite: str, frame: pd.DataFrame, checks: Sequence[Check]) -> list[Finding]:
        """Check a table. Its index must be unique: findings name rows by it.

        Raises:
            RuntimeError: A check crashed instead of giving a verdict: a fault of the program, not
                of the data.
        """
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
        # The cache would keep the table for as long as there is a context.
        self._tables.get_execution_engine().batch_manager.reset_batch_cache()
        (result,) = outcome.run_results.values()
        results: list[Any] = result.results
        found = {each.expectation_config.meta["place"]: each for each in results}
        findings = [_finding(check, found[place]) for place, check in enumerate(checks)]
        self.findings[suite] = findings
        return findings

    def failures(self, on_failure: OnFailure) -> list[str]:
        """The messages of all failed checks whose failure means this."""
        return [
            finding.check.message.format(observed=finding.observed, unexpected=finding.unexpected)
            for findings in self.findings.values()
            for finding in findings
            if not finding.success and finding.check.on_failure == on_failure
        ]

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

    def write_docs(self, directory: Path) -> None:
        """Render everything that ran as HTML into an existing empty directory."""
        site: Any = {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                # In settings the library takes `$NAME` and `${NAME}` for the environment's.
                "base_directory": str(directory.resolve()).replace("$", r"\$"),
            },
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        }
        self._context.add_data_docs_site(site_name=_SITE, site_config=site)
        self._context.build_data_docs(site_names=[_SITE])
        self._context.delete_data_docs_site(_SITE)
        # Every page would fetch its logo from the maker's server, with the time the page was made
        # in the address: it would tell the server who reads what.
        for page in directory.rglob("*.html"):
            html = page.read_text(encoding="utf-8")
            html = re.sub(r"https://great-expectations-web-assets[^\"')\s]*", "data:,", html)
            page.write_text(html, encoding="utf-8")


def _finding(check: Check, result: ExpectationValidationResult) -> Finding:
    info = result.exception_info or {}
    for each in (info, *info.values()):  # flat for some causes, by metric for others
        if isinstance(each, Mapping) and each.get("raised_exception"):
            raise RuntimeError(f"the check {check.name} crashed: {each.get('exception_message')}")
    details = result.result
    observed: Any = details.get("observed_value")
    return Finding(
        check,
        bool(result.success),
        observed.item() if hasattr(observed, "item") else observed,
        details.get("unexpected_count"),
        [int(row) for row in details.get("unexpected_index_list") or []],
    )


class NarrowPandasExecutionEngine(PandasExecutionEngine):
    """Gives an expectation only the columns that it looks at.

    The library's engine copies whole tables, several times for each expectation, to leave out rows
    with missing values. In a table of texts all columns but one are copied in vain.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._narrow = PandasExecutionEngine()

    def get_batch_data_and_markers(self, batch_spec: Any) -> tuple[PandasBatchData, BatchMarkers]:
        """A table as it is, without a fingerprint.

        The library hashes every value, by way of a Python object for each text: of a million pairs
        that was 13 of 57 processor seconds in a profile. DVC knows which data a run used.
        """
        frame = getattr(batch_spec, "batch_data", None)
        if not isinstance(batch_spec, RuntimeDataBatchSpec) or not isinstance(frame, pd.DataFrame):
            return super().get_batch_data_and_markers(batch_spec)
        # As in the library: the specification, which is kept, does not keep the table.
        batch_spec.batch_data = "PandasDataFrame"
        now = datetime.datetime.now(datetime.UTC)
        markers = BatchMarkers({"ge_load_time": now.strftime("%Y%m%dT%H%M%S.%fZ")})
        return PandasBatchData(execution_engine=self, dataframe=frame), markers

    def get_domain_records(self, domain_kwargs: dict[str, Any]) -> pd.DataFrame:
        """The rows that count, of the columns that `domain_kwargs` names; all if it names none."""
        table = super().get_domain_records({"batch_id": domain_kwargs.get("batch_id")})
        keys = ("column", "column_A", "column_B")
        names = [domain_kwargs[key] for key in keys if key in domain_kwargs]
        names = list(dict.fromkeys([*names, *domain_kwargs.get("column_list", [])]))
        if not names or domain_kwargs.get("row_condition") or not set(names) <= set(table.columns):
            return super().get_domain_records(domain_kwargs)
        self._narrow.load_batch_data("narrow", table[names])
        try:
            return self._narrow.get_domain_records({**domain_kwargs, "batch_id": "narrow"})
        finally:
            self._narrow.batch_manager.reset_batch_cache()


class ColumnPairValuesDistinct(ColumnPairMapMetricProvider):
    """The condition of `ExpectColumnPairValuesToBeDistinct`, for pandas."""

    condition_metric_name = "column_pair_values.distinct"

    @column_pair_condition_partial(engine=PandasExecutionEngine)
    def _pandas(
        cls,  # noqa: N805 (the decorator makes it a class method)
        column_A: pd.Series[str],
        column_B: pd.Series[str],
        **_: Any,
    ) -> pd.Series[bool]:
        return column_A != column_B


class ExpectColumnPairValuesToBeDistinct(ColumnPairMapExpectation):
    """Expect the values of two columns to differ in every row.

    The library's `expect_select_column_values_to_be_unique_within_record` calls a Python function
    for each row: 15 seconds for 300,000 pairs of responses, against a tenth of one here.
    """

    map_metric: ClassVar[str] = "column_pair_values.distinct"
    success_keys = ("column_A", "column_B", "ignore_row_if", "mostly")
    args_keys = ("column_A", "column_B")
    ignore_row_if: str = "either_value_is_missing"
