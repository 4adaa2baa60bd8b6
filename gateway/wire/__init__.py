"""The formats callers and engines speak: bytes in, bytes out; no I/O, no clock."""
