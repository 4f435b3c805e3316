"""Desired state in SQL; the only code that knows SQL."""
