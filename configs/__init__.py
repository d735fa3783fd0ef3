"""Shipped configs: one ``get_config()`` file a run. ``python -m train --config=NAME`` takes their names."""
