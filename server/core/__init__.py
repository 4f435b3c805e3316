"""Pure rules: no I/O, no asyncio, no clock, no logging."""
