"""Lengths of time in words: hours, and minutes or seconds where hours would read 0.00."""

SMALL = 0.1  # hours below which minutes are shown


def in_hours(seconds: float | int, form: str = ".2f") -> str:
    """12.50 h; below `SMALL` hours 4.2 min; below a minute 9.8 s. `form` formats the hours."""
    if seconds >= 3600 * SMALL:
        return f"{seconds / 3600:{form}} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
