"""What Great Expectations lacks for large tables. Importing this module takes seconds.

Its own `expect_select_column_values_to_be_unique_within_record` asks each record in a Python
function whether two columns differ: 300,000 pairs of responses took 15 seconds, here they take a
tenth of one. And its engine for pandas copies whole tables, several times for each expectation, and
hashes them.
"""

# The library re-exports its parts without marking them as exported.
# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import datetime
from typing import Any, ClassVar

import pandas as pd
from great_expectations.core.batch import BatchMarkers
from great_expectations.core.batch_spec import RuntimeDataBatchSpec
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.execution_engine.pandas_batch_data import PandasBatchData
from great_expectations.expectations.expectation import ColumnPairMapExpectation
from great_expectations.expectations.metrics.map_metric_provider import (
    ColumnPairMapMetricProvider,
    column_pair_condition_partial,
)


class NarrowPandasExecutionEngine(PandasExecutionEngine):
    """Gives an expectation the columns that it looks at, and no others.

    Rows that do not count (those with a missing value, say) are filtered out anew for every step of
    every expectation: in a table of texts, all columns but one are copied in vain.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._narrow = PandasExecutionEngine()

    def get_batch_data_and_markers(self, batch_spec: Any) -> tuple[PandasBatchData, BatchMarkers]:
        """A table as it is, without a fingerprint.

        The library hashes every value, by way of a Python object for each text: of a million pairs
        that was 13 of 57 processor seconds in a profile. Which data a run was of, DVC knows.
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
    condition_domain_keys = (
        "batch_id",
        "table",
        "column_A",
        "column_B",
        "row_condition",
        "condition_parser",
        "ignore_row_if",
    )
    condition_value_keys = ()

    @column_pair_condition_partial(engine=PandasExecutionEngine)
    def _pandas(
        cls,  # noqa: N805 (the decorator makes it a class method)
        column_A: pd.Series[str],
        column_B: pd.Series[str],
        **_: Any,
    ) -> pd.Series[bool]:
        return column_A != column_B


class ExpectColumnPairValuesToBeDistinct(ColumnPairMapExpectation):
    """Expect the values of two columns to differ in every row."""

    map_metric: ClassVar[str] = "column_pair_values.distinct"
    success_keys = ("column_A", "column_B", "ignore_row_if", "mostly")
    args_keys = ("column_A", "column_B")
    ignore_row_if: str = "either_value_is_missing"
