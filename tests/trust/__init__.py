"""What can be relied on, measured: `python -m tests.trust` (docs/reliability.md)."""
