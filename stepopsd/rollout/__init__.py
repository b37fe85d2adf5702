"""From tasks to token records: engines, the rollout loop, its limits, step spans and training rows."""
