"""Settings that Ray reads when it is imported: this module comes before it. What the environment says wins."""

import os

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",  # Ray's own default differs between its commands
    # Under `uv run`, Ray would start every worker that way, and build its environment anew.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Ray would run silos at low priority, where the tracking follower (lower still) would take a third of their time.
    "RAY_worker_niceness": "0",
    # Small models and updates go with the message instead of through the object store: half the time per call.
    "RAY_max_direct_call_object_size": str(2 << 20),
    "RAY_put_small_object_in_memory_store": "1",
    # A freed model or update gives its memory to the next one at once; Ray would collect a second's worth, and every
    # round would write into fresh pages (half of a round's time at 86 million parameters).
    "RAY_free_objects_period_milliseconds": "0",
}

for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)
