"""What a relay counts since it was started."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    received: int = 0
    """Entries that came in, whatever they were."""
    filtered: int = 0
    """Entries that ask for nothing: reads, requests, failures, other engines."""
    merged: int = 0
    """Changes of a path that was waiting already."""
    forwarded: int = 0
    """Records that the other side took."""
    refused: int = 0
    """Records that the other side did not take: each became a gap."""
    gaps: int = 0
    """Times that something may have been missed."""
    unreadable: int = 0
    """Lines that are no audit entries."""
    jsonx: int = 0
    """Of these, those of a device with `format=jsonx`."""
    too_long: int = 0
    """Frames that were passed over."""
    dropped: int = 0
    """Changes for which there was no room."""
    dropped_by_kernel: int = 0
    """Datagrams that came faster than they were read, where the system tells."""
    connections: int = 0
    spool_failures: int = 0
    """Times that the disk did not take what was to be kept."""
    forward_failures: int = 0
    """Times that the other side could not be told."""
