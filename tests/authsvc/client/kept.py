"""What a verdict cache holds, counted from the inside: its bounds are about that."""

from authsvc.client.verdict_cache import VerdictCache


def kept(cache: VerdictCache) -> int:
    """Return how many verdicts are kept, expired ones included."""
    keys = cache._keys.values()
    for_any_origin = sum(key.any_expires_at != float("-inf") for key in keys)
    for_origins = sum(len(key.admitted or ()) + len(key.refused or ()) for key in keys)
    return for_any_origin + for_origins + len(cache._invalid)
