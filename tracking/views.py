"""MLflow's pages arranged for a federation: a job's run and its silos' in the same charts, what was learned first.

MLflow keeps a shared view of an experiment's page as an experiment tag; its address names the tag.
"""

import json
from typing import Any

TAG = "mlflow.sharedViewState."
COLOUR_TAG = "mlflow.runColor"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")
"""Of Okabe and Ito, which the colour-blind can tell apart; and two more."""
INK = "#222222"
"""Of the federation as a whole."""
LEARNED = "Model metrics"
SECTIONS = (LEARNED, "round", "seconds", "bytes")
"""MLflow would sort them by name and put metrics without a prefix, such as the accuracy, last."""


def key_of(run_id: str) -> str:
    """Names the view in its tag and in addresses."""
    return f"siloray-{run_id}"


def view_of(run_id: str, metric: str) -> str:
    """The view's content: charts of the run and its silos, side by side instead of nested; ``metric`` first, then
    the usual ones. MLflow adds the other charts, and leaves out those that have nothing to show."""
    state = {
        "searchFilter": f"tags.`siloray.run_id` = '{run_id}'",
        "orderByKey": "tags.`mlflow.runName`",  # any order but the default shows child runs without unfolding
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "compareRunsMode": "CHART",
        "runsHiddenMode": "FIRST_20_RUNS",
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "compareRunCharts": [
            _chart(name) for name in dict.fromkeys((metric, "accuracy", "auc", "loss", "train_loss"))
        ],
        "compareRunSections": [_section(name) for name in SECTIONS],
    }
    return json.dumps(state)


def colour_of(index: int | None) -> str:
    """Of the silo with this place in the job; None: of the job's own run."""
    return INK if index is None else COLOURS[index % len(COLOURS)]


def _section(name: str) -> dict[str, Any]:
    ours = name == LEARNED  # "reordered": further charts go behind those that are there
    flags = {"display": True, "isReordered": ours, "deleted": False, "isGenerated": True}
    return {"uuid": f"siloray-{name}", "name": name, **flags}


def _chart(metric: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "uuid": f"siloray-{metric}",
        "metricKey": metric,
        "displayName": metric,
        "metricSectionId": f"siloray-{LEARNED}",
        "runsCountToCompare": 20,
        "deleted": False,
        "isGenerated": True,
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "scaleType": "linear",
        "range": {},
        "lineSmoothness": 0,
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
