"""The loop, and what runs beside it."""
