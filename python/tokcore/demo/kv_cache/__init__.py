"""The demo's third act: the trained model over caches of several precisions, and what forgetting costs."""
