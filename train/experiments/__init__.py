"""Programs that measure what stands in docs."""

from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
