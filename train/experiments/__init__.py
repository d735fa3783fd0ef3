"""Programs that measure what stands in docs."""
