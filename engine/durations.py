"""Durations as a person reads them."""


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


def in_words(seconds: float) -> str:
    """Seconds as 0.5 s, 12 s, 1.5 minutes; hours as minutes, too, for the settings of how long to wait are in minutes."""
    if seconds < 0.01:
        return "less than 0.01 s"
    if seconds < 59.5:
        return f"{seconds:.2g} s"
    minutes = f"{seconds / 60:.1f}".removesuffix(".0")
    return "1 minute" if minutes == "1" else f"{minutes} minutes"
